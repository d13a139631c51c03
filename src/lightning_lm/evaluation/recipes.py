"""Two recipes, each trained with several seeds: whether one is better, or only luckier."""

from dataclasses import dataclass
from glob import glob
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from lightning_lm.certainty.pairs import Estimate, over_seeds, seeds_to_tell
from lightning_lm.config.composition import flat
from lightning_lm.config.schema import may_change
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.evaluation.comparison import conditions, shown, verdict_lines
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.runs.folder import job_status, read_json_file
from lightning_lm.runs.protocol import differing
from lightning_lm.runs.settings import UNREADABLE, read_settings

TEXT_COUNTS = ("rows", "words", "line_ends", "bytes")  # of a ledger; they don't depend on the tokenizer
PREFIXES = {"validation": "val", "test": "test"}


@dataclass(frozen=True)
class Group:
    """The finished runs of one recipe, by seed."""

    name: str
    runs: dict[int, Path]
    unfinished: list[Path]
    settings: dict[str, Any]  # of one of them: the others differ in the seed alone

    def figures(self, name: str) -> dict[int, float]:
        """Seed → a figure of the summary; those that lack it are left out."""
        summaries = {seed: read_json_file(run / "summary.json") for seed, run in self.runs.items()}
        return {seed: summary[name] for seed, summary in sorted(summaries.items()) if summary.get(name) is not None}

    def protocol(self, split: str) -> dict[str, Any] | None:
        """How the figures of a split were measured."""
        return (read_json_file(next(iter(self.runs.values())) / "summary.json") or {}).get(
            f"{PREFIXES[split]}/protocol"
        )

    def ledger(self, split: str) -> dict[str, Any]:
        return (read_json_file(next(iter(self.runs.values())) / "ledger.json") or {}).get(split) or {}


@dataclass(frozen=True)
class RecipeComparison:
    """Two groups of runs, by a figure of which less is better."""

    names: tuple[str, str]
    figure: str
    values: tuple[dict[int, float], dict[int, float]]  # by seed
    paired: bool
    difference: Estimate  # B's mean less A's
    seeds_to_tell: int | None
    cautions: list[str]

    def __str__(self) -> str:
        lines = []
        for side, name, losses in zip("AB", self.names, self.values, strict=True):
            spread = f"{fmean(losses.values()):.4f} ± {stdev(losses.values()):.4f}"
            lines.append(f"{side}  {name}: {spread} over the seeds {', '.join(map(str, losses))}")
        test = "paired t over seeds" if self.paired else "Welch's t over seeds"
        lines += [f"these two recipes, by {self.figure}, {test}:"]
        lines += [shown(self.difference), *verdict_lines(self.difference, "recipe")]
        if not self.difference.differs:
            many = f"{self.seeds_to_tell} seeds" if self.seeds_to_tell else "More than 1000 seeds"
            lines.append(f"If it is as large as it looks, {many} a side would tell in 80 % of cases.")
        return "\n".join([*lines, *(f"note: {caution}" for caution in self.cautions)])

    def as_dict(self) -> dict[str, Any]:
        return {"question": "recipes", **vars(self), "difference": vars(self.difference)}


def compare_recipes(a: str, b: str, split: str = "validation", paired: bool = False) -> RecipeComparison:
    """Compare the runs of two recipes by their loss, or by bits per byte where the tokenizers differ.

    Args:
        a: a sweep's folder, or a glob of runs' folders; its runs may differ in nothing but the seed.
        b: likewise.
        split: validation or test.
        paired: take runs of the same seed together; both groups must have the same seeds.

    Raises:
        Refused: a group is none, has fewer than two finished runs, or the groups can't be compared.
    """
    groups = [group("A", a), group("B", b)]
    figure = f"{PREFIXES[split]}/{_figure(groups, split)}"
    values = [group.figures(figure) for group in groups]
    check_seeds(groups, values, f" with {figure}", paired)
    first, second = (list(figures.values()) for figures in values)
    if len({*first}) == len({*second}) == 1:
        raise refuse("A", a, "its runs have one and the same figure, and so have B's", "give runs of other seeds")
    cautions = unfinished(groups)
    protocols = [group.protocol(split) for group in groups]
    if all(protocols):  # runs from before protocols were kept have none
        if other := differing(protocols).keys() & {"text", "masking", "limit"}:
            wrong = f"its losses were measured another way than A's: {', '.join(sorted(other))}"
            raise refuse("B", b, wrong, "compare runs that were measured in one way")
        cautions += conditions(*protocols)
    return RecipeComparison(
        (groups[0].name, groups[1].name),
        figure,
        (values[0], values[1]),
        paired,
        over_seeds(first, second, paired),
        seeds_to_tell(first, second, paired),
        cautions,
    )


def check_seeds(groups: list[Group], by_seed: list[dict[int, Any]], scored: str, paired: bool) -> None:
    """Raises Refused where a side has fewer than two seeds, or the sides have others and shall be paired."""
    few = [
        Problem(side, group.name, f"{len(v)} finished run(s){scored}", "two seeds a side are the least")
        for side, group, v in zip("AB", groups, by_seed, strict=True)
        if len(v) < 2
    ]
    if few:
        raise Refused(*few)
    if paired and by_seed[0].keys() != by_seed[1].keys():
        seeds = [", ".join(map(str, sorted(seeds_of_side))) for seeds_of_side in by_seed]
        raise refuse("--paired", "", f"A has the seeds {seeds[0]}, B {seeds[1]}", "leave it out, or run the others")


def unfinished(groups: list[Group]) -> list[str]:
    """What must be said of runs that came to no end."""
    return [
        f"{group.name}: {len(group.unfinished)} run(s) did not finish, and are left out"
        for group in groups
        if group.unfinished
    ]


def group(side: str, place: str) -> Group:
    """The runs below a sweep's folder, or those that a glob names.

    Raises:
        Refused: there are none, or they differ in more than the seed.
    """
    folders = [path for path in map(Path, sorted(glob(str(Path(place).expanduser())))) if path.is_dir()]
    runs = [run for folder in folders for run in [folder, *sorted(folder.iterdir())] if _is_run(run)]
    if not runs:
        raise refuse(
            side, place, "no runs there", "give the folder of a sweep, or a glob of runs such as 'SWEEP/[0-4]'"
        )
    free = {"seed", *may_change()}
    try:
        every = {run: flat(read_settings(run)) for run in runs}
    except UNREADABLE as error:
        raise refuse(side, place, f"a config.yaml can't be read ({error})", "repair it, or name the others") from error
    settings = {run: recipe_of(own_settings, free) for run, own_settings in every.items()}
    names = dict.fromkeys(name for own_settings in settings.values() for name in own_settings)
    varied = [name for name in names if len({str(own_settings.get(name)) for own_settings in settings.values()}) > 1]
    if varied:
        remedy = "a recipe's runs differ in the seed alone: name them by a glob such as 'SWEEP/[0-4]'"
        raise refuse(side, place, f"its runs differ in {', '.join(varied)}", remedy)
    finished = {run: job_status(run) == "finished" for run in runs}
    by_seed = {every[run]["seed"]: run for run in runs if finished[run]}
    return Group(place, by_seed, [run for run in runs if not finished[run]], settings[runs[0]])


def recipe_of(settings: dict[str, Any], free: set[str]) -> dict[str, Any]:
    """A run's settings without its own ones; a run whose weights it began with is named by that one's recipe."""
    recipe = {name: value for name, value in settings.items() if name not in free}
    base = recipe.get("model.name_or_path")
    if base and _is_run(Path(base).expanduser()):
        recipe["model.name_or_path"] = recipe_of(flat(read_settings(Path(base).expanduser())), free)
    return recipe


def _is_run(folder: Path) -> bool:
    return (folder / "config.yaml").is_file()


def _figure(groups: list[Group], split: str) -> str:
    """The figure that can be compared.

    Raises:
        Refused: there is none.
    """
    ledgers = [group.ledger(split) for group in groups if group.runs]
    objectives = {group.settings["objective.name"] for group in groups}
    limits = {group.settings.get(f"trainer.limit_{PREFIXES[split]}_batches") for group in groups}
    if len({OBJECTIVES[name].facts.kind for name in objectives}) > 1:
        wrong = f"{' and '.join(sorted(objectives))} losses mean different things"
        raise refuse("B", groups[1].name, wrong, "give --words or --blimp, which compare what both can do")
    if len({tuple(ledger.get(name) for name in TEXT_COUNTS) for ledger in ledgers}) > 1 or len(limits) > 1:
        raise refuse("B", groups[1].name, f"its {split} text is another than A's", "evaluate both on the same text")
    if len({ledger.get("key") for ledger in ledgers}) <= 1:
        return "loss"
    if objectives == {"mlm"}:
        raise refuse("B", groups[1].name, "its tokenizer is another than A's", "compare masked models of one tokenizer")
    return "bits_per_byte"
