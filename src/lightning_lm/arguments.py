"""The arguments of ``lightning-lm``'s commands, and what is wrong with them. Imports nothing heavy."""

import argparse
from pathlib import Path
from typing import NoReturn

from lightning_lm.constraints import COUNT, SEED, Constraint, at_least, positive
from lightning_lm.errors import Problem, Refused
from lightning_lm.evaluation.options import CHOICES, TYPED, wrong_options

SAMPLING = {"temperature": 0.8, "top_k": 50, "top_p": 1.0}  # where not given
CONSTRAINTS = {
    **dict.fromkeys(("max_new_tokens", "num_samples", "guesses", "runs", "words"), COUNT),
    "pairs": at_least(2),
    "temperature": positive(", or --greedy"),
    "top_k": at_least(0),
    "top_p": Constraint(lambda value: 0 < value <= 1, "a number above 0, at most 1"),
    "seed": SEED,
}
OPTIONS = TYPED | {"guesses": "top_k"}  # how users know them, where it differs
KINDS = {"json": "json", "nll": "parquet"}  # of the files that are written
FILES_OF_RUNS = {f"{name}.json" for name in ("summary", "environment", "ledger", "trial", "sweep", "lm_eval")}
FILES_OF_RUNS |= {f"{name}.json" for name in ("export_check", "config", "generation_config", "tokenizer")}
BENCHMARKS = ("blimp", "words", "lambada")  # of compare, what objectives of both kinds can do


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Its result names the chosen ``command``."""
    top = Parser(prog="lightning-lm", description="Use, measure and publish language models.", allow_abbrev=False)
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def bare(name: str, about: str) -> Parser:
        sub = commands.add_parser(name, help=about, description=about, allow_abbrev=False)
        sub.set_defaults(command=name)
        return sub

    def command(name: str, about: str, model: str = "RUN|MODEL", **more: str) -> Parser:
        sub, meaning = bare(name, about), "a run folder" + ", a model folder, or a Hub id" * ("|" in model)
        sub.add_argument("model", metavar=model, help=meaning, **more)
        return sub

    add = command("generate", "continue prompts with a causal model").add_argument
    add("--prompt", action="append", required=True, help="may be repeated; '' starts from nothing")
    add("--max-new-tokens", type=int, default=60, metavar="N", help="default: 60")
    add("--temperature", type=float, metavar="T", help="default: 0.8")
    add("--top-k", type=int, metavar="K", help="draw from the K likeliest tokens; 0: from all; default: 50")
    add("--top-p", type=float, metavar="P", help="draw from the likeliest that have this share; default: 1")
    add("--greedy", action="store_true", help="take the likeliest token instead of drawing one")
    add("--num-samples", type=int, default=1, metavar="N", help="continuations per prompt; default: 1")
    add("--seed", type=int, default=0, help="default: 0")

    add = command("fill-mask", "guess masked tokens with a masked model").add_argument
    add("--text", action="append", required=True, help="with one <mask> or more; may be repeated")
    add("--top-k", dest="guesses", type=int, default=5, metavar="K", help="guesses per mask; default: 5")

    about = "exact perplexity of causal or masked models on a text, or on several"
    add = command("evaluate", about, nargs="+").add_argument
    about = "path, glob, python_docs, wikitext2, wikitext103, or Hub id; may be repeated; default: the run's own"
    add("--data", action="append", help=about)
    add("--split", default="test", help="train, validation, test, or a Hub data set's own; default: test")
    add("--block-size", type=int, metavar="N", help="tokens per window; default: the run's, or the model's up to 1024")
    add("--stride", type=int, metavar="N", help="advance of the windows; default: as disjoint as can be")
    add("--objective", choices=CHOICES["objective"], help="default: what the model was trained for")
    add("--batch-size", type=int, metavar="N", help="windows at once; default: up to 4096 tokens")
    about = "the figures of lm-evaluation-harness's task wikitext, or of transformers' documentation"
    add("--as", dest="convention", choices=CHOICES["convention"], help=about)
    add("--pseudo", type=int, metavar="N", help="pseudo-perplexity of a masked model, over N tokens of the text")
    add("--words", type=int, metavar="N", help="guess N words of the text from each of their sides; see docs/pair.md")
    about = "which of two sentences is likelier; the last words of passages; see docs/pair.md"
    add("--task", choices=CHOICES["task"], help=about)
    about = "tasks of lm-evaluation-harness, by its own code: names or files, with commas; see docs/figures.md"
    add("--lm-eval", metavar="TASKS", help=about)
    add("--pairs", type=int, metavar="N", help="of blimp's paradigms the first N pairs each; default: all")
    add("--text-column", help="of json lines, csv, parquet and Hub data; default: text")
    add("--name", help="configuration of a Hub data set")
    add("--revision", help="branch, tag or commit of a Hub data set")
    add("--separator", choices=["auto", "none", "eos"], help="between rows; default: the run's, or auto")
    about = "windows stay inside documents; default: the run's, or one stream"
    add("--documents", action=argparse.BooleanOptionalAction, help=about)
    add("--prefix", choices=["auto", "bos", "eos", "none"], help="before a document; auto: bos, or else eos")
    add("--mask-draws", type=int, metavar="N", help="draw a masked model's masks so often; default: 1")
    add("--mlm-probability", type=float, metavar="P", help="share of tokens to mask; default: the objective's, 0.15")
    add("--whole-word", action=argparse.BooleanOptionalAction, help="mask whole words; default: as the objective does")
    add("--device", help="such as cpu or cuda:1; default: the GPU where there is one")
    add("--dtype", choices=CHOICES["dtype"], help="of the model's weights; default: float32")
    add("--cache-dir", metavar="FOLDER", help="where the text's tokens are kept; default: the run's, or data/cache")
    add("--json", metavar="PATH", help="write the figures as JSON; '-': to stdout, in place of the table")
    add("--nll", metavar="FILE", type=Path, help="write what each token cost, in nats, as Parquet; see docs/figures.md")

    about = "verify the export of a run, or of a sweep's best one, and upload it to the Hugging Face Hub"
    add = command("push", about, "RUN").add_argument
    add("--repo", required=True, metavar="NAME", help="NAME or OWNER/NAME")
    add("--private", action="store_true", help="make a new repository private")
    add("--dry-run", action="store_true", help="verify, write the model card, send nothing")

    sub = command("rerun", "train with a run's settings again, in a new folder", "RUN")
    sub.add_argument("settings", metavar="SETTING=VALUE", nargs="*", help="what is to be another; AXIS=OPTION, too")

    about = "compare runs: a page to look at, its pictures as files, and the best run as a recipe"
    sub = bare("report", about)
    sub.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="a run's or a sweep's")
    sub.add_argument("--output", metavar="PATH", type=Path, help="default: report.html, in the folder where it is one")
    sub.add_argument("--recipe", metavar="NAME", help="keep the best run's settings as conf/experiment/NAME.yaml")
    about = "what compare --json has written there of causal and masked runs; see docs/pair.md"
    sub.add_argument("--comparison", metavar="FILE", type=Path, help=about)
    about = "a file of evaluate --nll: shows by context and frequency what tokens cost; may be repeated"
    sub.add_argument("--nll", metavar="FILE", dest="losses", type=Path, action="append", default=[], help=about)
    sub.add_argument("--watch", action="store_true", help="write the page anew while runs are at work")

    about = "propose a sweep's next runs: those that tell most about where its best point lies"
    sub = bare("next", about)
    sub.add_argument("folder", metavar="FOLDER", type=Path, help="a sweep's")
    sub.add_argument("--runs", type=int, default=4, metavar="N", help="default: 4")

    about = "say whether two models, or with --recipes two groups of runs, really differ"
    sub = bare("compare", about)
    sub.add_argument(
        "a", metavar="A", help="a file of evaluate --nll, a run or model; with --recipes a sweep, or a glob"
    )
    sub.add_argument("b", metavar="B", help="likewise")
    sub.add_argument("--recipes", action="store_true", help="A and B are runs of two recipes, over several seeds each")
    sub.add_argument("--paired", action="store_true", help="with --recipes: take the runs of the same seed together")
    sub.add_argument("--data", help="the text for runs and models, as for evaluate; default: the run's own")
    sub.add_argument("--split", help="default: test; with --recipes: validation")
    sub.add_argument("--blimp", metavar="DATA", help="by minimal pairs: a folder of BLiMP's files, or nyu-mll/blimp")
    sub.add_argument("--pairs", type=int, metavar="N", help="of each paradigm the first N pairs; default: all")
    sub.add_argument("--words", type=int, metavar="N", help="by N held-out words of the text; see docs/pair.md")
    sub.add_argument("--lambada", metavar="DATA", help="by last words: JSON lines, or EleutherAI/lambada_openai")
    sub.add_argument("--json", metavar="PATH", help="write all figures as JSON; '-': to stdout, in place of the text")

    return top  # further commands go above this line


def check_arguments(args: argparse.Namespace) -> None:
    """Raises Refused with all that can be told from the arguments alone."""
    given = {name: value for name, value in vars(args).items() if value is not None}
    wrong: dict[str, tuple[str, str]] = {}  # argument → the problem and the remedy
    for name in filter(CONSTRAINTS.get, given):
        if not CONSTRAINTS[name].holds(given[name]):
            wrong[name] = "out of range", f"give {CONSTRAINTS[name].right}"
    if given.get("greedy"):
        drawn = [n for n in given if n in SAMPLING or (n == "num_samples" and args.num_samples > 1)]
        wrong |= dict.fromkeys(drawn, ("--greedy leaves nothing to draw", "leave out one of the two"))
    if "a" in given:
        wrong |= {"paired": ("is for recipes", "give --recipes, too")} if args.paired and not args.recipes else {}
        asked = [name for name in BENCHMARKS if name in given]
        if args.data and args.recipes and not asked:
            wrong["data"] = "recipes have been scored", "leave it out"
        if args.recipes and args.split not in (None, "validation", "test"):
            wrong["split"] = ("runs don't have it", "give validation or test")
        if args.pairs and not args.blimp:
            wrong["pairs"] = "is for minimal pairs", "give --blimp, too"
    if args.command == "evaluate":
        wrong |= wrong_options(given)
    if given.get("mask_draws", 1) > 1 and "nll" in given:
        wrong["nll"] = "it holds one draw of the masks", "leave out one of the two"
    if args.command == "evaluate" and len(args.model) * len(args.data or [1]) > 1 and "nll" in given:
        wrong["nll"] = "it holds one model's losses of one text", "name one of each"
    for name in ("json", "nll"):
        path = Path(given.get(name, "-"))
        if path != Path("-") and (path.is_dir() or not path.absolute().parent.is_dir()):
            wrong[name] = ("can't be written", "give a file in a folder that exists" + ", or -" * (name == "json"))
        elif path.is_file() and (path.suffix != f".{KINDS[name]}" or path.name in FILES_OF_RUNS):
            wrong[name] = ("it is there already", f"give a new file, or one of yours that ends in .{KINDS[name]}")
    for name in {"prompt", "text"} & given.keys():
        if any(text != text.encode(errors="replace").decode() for text in given[name]):
            wrong[name] = ("no text in UTF-8", "correct it")
    if wrong:
        names = {name: "--" + OPTIONS.get(name, name).replace("_", "-") for name in wrong}
        raise Refused(*(Problem(names[name], given[name], *reason) for name, reason in wrong.items()))
