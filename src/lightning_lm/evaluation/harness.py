"""Tasks of lm-evaluation-harness (Gao et al.), scored by its own code on a causal model; a run keeps the results."""

from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lightning_lm.errors import Refused, refuse
from lightning_lm.evaluation.result import standard_json
from lightning_lm.faults import innermost
from lightning_lm.inference.sources import locate, open_model
from lightning_lm.runs.folder import TASK_RESULTS, read_json_file, write_json

INSTALL = "pip install -c constraints.txt -e '.[lm-eval]'"


@dataclass(frozen=True)
class TaskResult:
    """Of one task: the harness's figures, their standard errors (None where it has none), and how it came to them."""

    figures: dict[str, tuple[float, float | None]]
    shots: int
    examples: int
    task_version: Any
    harness: str  # its version


@dataclass(frozen=True)
class HarnessResults:
    tasks: dict[str, TaskResult]

    def as_json(self) -> str:
        return standard_json({name: asdict(task) for name, task in self.tasks.items()})

    def __str__(self) -> str:
        lines = [f"{'task':<28}{'examples':>10}{'shots':>7}  figure"]
        for name, task in self.tasks.items():
            for number, (figure, (value, error)) in enumerate(task.figures.items()):
                head = f"{name:<28}{task.examples:>10,}{task.shots:>7}" if number == 0 else " " * 45
                lines.append(f"{head}  {figure} {value:.4f}" + (f" ± {error:.4f}" if error is not None else ""))
        version = next(iter(self.tasks.values())).harness
        return "\n".join([*lines, f"by lm-evaluation-harness {version}; ± is its standard error"])


def run_tasks(name: str, tasks: str, batch_size: int | None = None) -> HarnessResults:
    """Score a causal model or run on tasks.

    Args:
        name: as ``open_model`` takes it.
        tasks: names that the harness knows, and files (.yaml) that describe a task, with commas between them.
        batch_size: texts at once; None: 8.

    Raises:
        Refused: the harness isn't installed, knows no such task, or can't load its texts.
    """
    if find_spec("lm_eval") is None:
        raise refuse("--lm-eval", tasks, "lm-evaluation-harness isn't installed", INSTALL)
    opened = open_model(name, "clm", strict=True)
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    typed = [part.strip() for part in tasks.split(",") if part.strip()]
    files = [Path(part) for part in typed if part.endswith((".yaml", ".yml"))]
    try:
        names = [_task_of(part) if Path(part) in files else part for part in typed]
        manager = TaskManager(include_path=[str(file.absolute().parent) for file in files] or None)
        if unknown := [task for task in names if task not in manager.all_tasks]:
            raise refuse("--lm-eval", ", ".join(unknown), "the harness has no such task", "see lm-eval ls tasks")
        model = HFLM(pretrained=opened.model, tokenizer=opened.tokenizer, batch_size=batch_size or 8)
        results = lm_eval.simple_evaluate(model=model, tasks=names, task_manager=manager, log_samples=False)
    except Refused:
        raise
    except Exception as error:  # of its own, of its tasks' code, and of the Hub's
        wrong, remedy = f"the harness fails ({innermost(error)})", "check the task; most take their texts from the Hub"
        raise refuse("--lm-eval", tasks, wrong, remedy) from error
    of_tasks = HarnessResults({task: _result(results, task) for task in results["results"]})
    if locate(name)[1] is not None:
        path = Path(name).expanduser() / TASK_RESULTS
        write_json(
            path, (read_json_file(path) or {}) | {task: asdict(result) for task, result in of_tasks.tasks.items()}
        )
    return of_tasks


def _task_of(file: str) -> str:
    """The name in a task's file, in which functions of Python may be named by tags."""
    for line in Path(file).read_text(encoding="utf-8").splitlines():
        if line.startswith("task:"):
            return str(yaml.safe_load(line)["task"])
    raise refuse("--lm-eval", file, "it names no task", "write task: NAME in it")


def _result(results: dict[str, Any], task: str) -> TaskResult:
    """The harness names a figure ``acc,none``: the figure and the filter that answers went through."""
    of_task, figures = results["results"][task], {}
    for key, value in of_task.items():
        figure, comma, answers = key.partition(",")
        if comma and not figure.endswith("_stderr"):
            error = of_task.get(f"{figure}_stderr,{answers}")
            shown = figure if answers == "none" else f"{figure} ({answers})"
            figures[shown] = (float(value), error if isinstance(error, float) else None)
    examples = results["n-samples"].get(task, {}).get("effective", 0)
    versions = results["versions"].get(task), results["lm_eval_version"]
    return TaskResult(figures, results["n-shot"].get(task, 0), examples, *versions)
