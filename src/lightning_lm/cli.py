"""The command line: use a trained run. ``lightning-lm --help`` shows how; to train one is ``python train.py``."""

import argparse
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from lightning_lm.arguments import BENCHMARKS, SAMPLING, check_arguments, parser
from lightning_lm.errors import Died, Refused, refuse
from lightning_lm.evaluation.options import MASKING, OF_TEXT
from lightning_lm.faults import told_in_one_line
from lightning_lm.logs import CONTROLS, Formatter, tell_of_imports

# torch, transformers and their friends take seconds to import: only the commands do it, once the arguments are right.


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, or 2 with the reasons on stderr where it can't be done."""
    args = parser().parse_args(argv)
    try:
        with log_to_stderr(), told_in_one_line({}):
            check_arguments(args)
            if args.command not in ("report", "next", "rerun"):  # the first two load none, and a run says it itself
                tell_of_imports()
            COMMANDS[args.command](args)
            sys.stdout.flush()
    except Refused as error:
        from lightning_lm.config.explain import lines

        sys.stderr.writelines(f"error: {line}\n" for line in lines(error))
        return 2
    except Died as error:  # it is on the console
        return error.code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read the output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


@contextmanager
def log_to_stderr() -> Iterator[None]:
    logger, handler = logging.getLogger("lightning_lm"), logging.StreamHandler()
    handler.setFormatter(Formatter())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def generate(args: argparse.Namespace) -> None:
    from lightning_lm.inference.sources import open_model

    opened = open_model(args.model, "clm", strict=True)
    from lightning_lm.inference.generation import write_continuation
    from lightning_lm.objectives.clm import encode_prompts

    prompts = encode_prompts(opened.model, opened.tokenizer, args.prompt, args.max_new_tokens)
    options = {n: default if getattr(args, n) is None else getattr(args, n) for n, default in SAMPLING.items()}
    options |= {"max_new_tokens": args.max_new_tokens, "greedy": args.greedy}
    for number, ids in enumerate(prompts, 1):
        for sample in range(args.num_samples):
            if len(prompts) * args.num_samples > 1:
                print(f"=== prompt {number}, sample {sample + 1} ===")
            write_continuation(opened.model, opened.tokenizer, ids, print_text, seed=args.seed + sample, **options)


def print_text(text: str) -> None:
    """A terminal, which would obey them, is shown control characters as escape sequences; a file gets them as such."""
    print(text.translate(CONTROLS) if sys.stdout.isatty() else text, end="", flush=True)


def fill_mask(args: argparse.Namespace) -> None:
    from lightning_lm.inference.sources import open_model

    opened = open_model(args.model, "mlm", strict=True)
    from lightning_lm.objectives.mlm import encode_masked, guesses

    model, tokenizer, shift = opened.model, opened.tokenizer, opened.objective.shift
    for text, ids in zip(args.text, encode_masked(model, tokenizer, args.text, shift), strict=True):
        print_text(f"{text}\n")
        for number, row in enumerate(guesses(model, tokenizer, ids, args.guesses, shift), 1):
            for rank, (token, probability) in enumerate(row):
                print_text(f"{f'mask {number}' if rank == 0 else '':<10}{probability:>7.2%}  {token.strip()}\n")


def evaluate(args: argparse.Namespace) -> None:
    """Each model on each text; of several the JSON is a list."""
    results = []
    for model in args.model if len(args.model) > 1 else ():
        look_for(model)
    for model, data in product(args.model, args.data or [None]):
        results.append(result := evaluate_one(args, model, data))
        if args.json != "-":
            print_text("\n" * (len(results) > 1) + f"{result}\n")
    as_json = [result.as_json() for result in results]
    if args.json is not None:
        write_json_text(as_json[0] if len(as_json) == 1 else f"[{', '.join(as_json)}]", args.json)


def evaluate_one(args: argparse.Namespace, model: str, data: str | None) -> Any:
    if args.task == "blimp":
        look_for(model)
        from lightning_lm.evaluation.minimal_pairs import score_pairs

        return score_pairs(model, data, args.pairs, args.objective)
    if args.lm_eval is not None:
        from lightning_lm.evaluation.harness import run_tasks

        return run_tasks(model, args.lm_eval, args.batch_size)
    from lightning_lm.evaluation import scoring

    given = {name: getattr(args, name) for name in OF_TEXT} | {"mask_draws": args.mask_draws or 1}
    given["masking"] = {name: value for name in MASKING if (value := getattr(args, name)) is not None}
    evaluation = scoring.evaluate(model, data, args.split, **given)
    if args.nll is not None:
        evaluation.token_losses.write(args.nll)
    return evaluation


def look_for(model: str) -> None:
    """Refuse a model that isn't there, and learn whether the Hub can be reached, before its libraries are loaded."""
    from lightning_lm.inference.sources import locate

    locate(model)


def write_json_text(text: str, place: str) -> None:
    """To stdout where the place is "-", else to that file."""
    if place == "-":
        print(text)
    else:
        Path(place).write_text(text + "\n", encoding="utf-8")


def compare(args: argparse.Namespace) -> None:
    from lightning_lm.evaluation.result import standard_json

    split = args.split or ("validation" if args.recipes else "test")
    if asked := [name for name in BENCHMARKS if getattr(args, name) is not None]:
        for side, name in (("A", args.a), ("B", args.b)):
            if Path(name).suffix == ".parquet":
                raise refuse(side, name, "losses tell nothing about what a model can do", "name a run or a model")
            if not args.recipes:
                look_for(name)
        from lightning_lm.evaluation.pair import Benchmarks, compare_pair

        benchmarks = Benchmarks(args.data, split, args.pairs, **{name: getattr(args, name) for name in asked})
        comparison = compare_pair(args.a, args.b, benchmarks, args.recipes, args.paired)
    elif args.recipes:
        from lightning_lm.evaluation.recipes import compare_recipes

        comparison = compare_recipes(args.a, args.b, split, args.paired)
    else:
        from lightning_lm.evaluation.comparison import compare_models

        comparison = compare_models(args.a, args.b, args.data, split)
    if args.json != "-":
        print_text(f"{comparison}\n")
    if args.json is not None:
        write_json_text(standard_json(comparison.as_dict()), args.json)


def push(args: argparse.Namespace) -> None:
    from lightning_lm.hub.push import push

    run = Path(args.model).expanduser()
    if (run / "sweep.json").exists():
        run = best_of(run)
        print(f"the best of the sweep is {run}")
    print(push(run, args.repo, private=args.private, dry_run=args.dry_run))


def best_of(sweep: Path) -> Path:
    """The run that a sweep's report names as the best.

    Raises:
        Refused: none is finished, or their losses can't be compared.
    """
    from lightning_lm.report.comparison import winner
    from lightning_lm.report.runs import collect

    best = winner(collect([sweep]))
    if best is None:
        wrong = "none of its runs is the best: none has finished, or their losses can't be compared"
        raise refuse("FOLDER", sweep, wrong, "name a run")
    return best.folder


def next_runs(args: argparse.Namespace) -> None:
    from lightning_lm.report.next_runs import propose

    print(propose(args.folder, args.runs))


def rerun(args: argparse.Namespace) -> None:
    from lightning_lm.config.rerun import changed
    from lightning_lm.launch import start
    from lightning_lm.runs.folder import sweep_name
    from lightning_lm.runs.settings import config_of

    run = Path(args.model).expanduser()
    before = config_of(run)
    if before.logger.group == sweep_name(run.parent):
        before.logger.group = None  # the sweep's, which this is no job of
    job = changed(before, args.settings)
    start(job, named=any(text.lstrip("+").startswith("run_dir=") for text in args.settings))


def report(args: argparse.Namespace) -> None:
    from lightning_lm.report import page

    output = args.output or (args.folders[0] if len(args.folders) == 1 else Path()) / "report.html"
    if args.watch:
        print(f"{output}: written anew every {page.EVERY} s while runs are at work; Ctrl-C ends it", flush=True)
        page.watch(args.folders, output, args.comparison, args.losses)
    print(page.report(args.folders, output, args.recipe, comparison=args.comparison, losses=args.losses))


COMMANDS = {
    "generate": generate,
    "fill-mask": fill_mask,
    "evaluate": evaluate,
    "compare": compare,
    "push": push,
    "rerun": rerun,
    "report": report,
    "next": next_runs,
}


if __name__ == "__main__":
    sys.exit(main())
