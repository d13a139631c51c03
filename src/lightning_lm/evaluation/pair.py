"""Two models, or two recipes over their seeds, side by side on what both can do: never on losses of two objectives."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning_lm.errors import refuse
from lightning_lm.evaluation.findings import HEADS, Finding, finding, table
from lightning_lm.evaluation.minimal_pairs import read_pairs, score_pairs
from lightning_lm.evaluation.recipes import check_seeds, group, unfinished
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.inference.sources import locate, trained_for
from lightning_lm.objectives.facts import MLM
from lightning_lm.runs.folder import read_json_file
from lightning_lm.runs.protocol import differing, short_hash
from lightning_lm.runs.settings import read_settings

COSTS = ("parameters", "tokens_seen", "labels_seen", "flops_layers", "flops_head")
PSEUDO_SAMPLE = 2000  # tokens
BITS = {"bits_per_byte": "bits per byte", "pseudo_bits_per_byte": "pseudo bits per byte"}
WORDS, LAST_WORDS, PAIRS, TEXT = "held-out words", "last words", "minimal pairs", "the text"
SAME = {  # test → of its protocol what must be the same
    WORDS: {"text", "tokenizer", "separator", "block_size"},
    TEXT: {"text"},
}


@dataclass(frozen=True)
class Benchmarks:
    """What both sides are asked to do; what is None is left out."""

    data: str | None = None  # the text, as for ``evaluate``; None: the runs' own
    split: str = "test"
    pairs: int | None = None  # of each paradigm the first ones; None: all
    blimp: str | None = None  # where minimal pairs are, as for ``score_pairs``
    words: int | None = None  # of the text, to be guessed
    lambada: str | None = None  # where passages are, whose last words are to be guessed


@dataclass(frozen=True)
class PairComparison:
    """Two sides, A and B: what was spent on them, and what each can do."""

    names: tuple[str, str]
    objectives: tuple[str, str]
    seeds: tuple[list[int], list[int]] | None  # of recipes
    paired: bool
    costs: dict[str, tuple[float, float]]  # of runs; of recipes the mean over theirs
    findings: list[Finding]
    protocols: dict[str, tuple[dict[str, Any], dict[str, Any]]]  # test → how A was measured, and B
    cautions: list[str]

    def notes(self) -> list[str]:
        """What must be known to read the findings."""
        if self.seeds:
            test = "A paired t-test" if self.paired else "Welch's t-test"
            sentences = [f"{test} over the seeds, on the same items; a side is better where both intervals say so."]
        else:
            sentences = ["Intervals are over other items, for these two models; other seeds would give other models."]
        sentences += ["Each line stands by itself: of twenty without a difference, one names a side by chance."]
        return sentences + self.cautions

    def __str__(self) -> str:
        lines = []
        for n, side in enumerate("AB"):
            seeds = f", seeds {', '.join(map(str, self.seeds[n]))}" if self.seeds else ""
            lines.append(f"{side}  {self.names[n]}: {self.objectives[n]}{seeds}")
        for name, (a, b) in self.costs.items():
            lines.append(f"{name.replace('_', ' '):<16}{a:>14.4g}{b:>14.4g}  {'equal' if a == b else ''}".rstrip())
        lines += [*table(self.findings, bool(self.seeds)), "", *self.notes()]
        protocols = {test: dict.fromkeys(map(short_hash, of)) for test, of in self.protocols.items()}
        return "\n".join([*lines, *(f"{test}: protocol {', '.join(hashes)}" for test, hashes in protocols.items())])

    def as_dict(self) -> dict[str, Any]:
        findings = [asdict(finding) | {"better": finding.better, "cells": finding.cells()} for finding in self.findings]
        return {"question": "pair", **vars(self), "findings": findings, "heads": HEADS, "notes": self.notes()}


def compare_pair(a: str, b: str, asked: Benchmarks, recipes: bool = False, paired: bool = False) -> PairComparison:
    """Two models of whichever objectives, or with ``recipes`` two groups of runs that differ in the seed alone.

    Args:
        a: a run or a model; of recipes a sweep's folder, or a glob of runs.
        b: likewise.
        asked: one or more; with a text also its bits per byte, and pseudo bits per byte.
        paired: take runs of the same seed together.

    Raises:
        Refused: there is no such model, group, text or test, or it can't compare the two.
    """
    cautions, seeds, runs = [], None, [[a], [b]]
    if recipes:
        groups = [group("A", a), group("B", b)]
        check_seeds(groups, [group.runs for group in groups], "", paired)
        seeds = sorted(groups[0].runs), sorted(groups[1].runs)
        runs = [[str(group.runs[seed]) for seed in sorted(group.runs)] for group in groups]
        cautions = unfinished(groups)
    places = [[locate(run) for run in side] for side in runs]  # is refused where there is none
    objectives = trained_for(*places[0][0]), trained_for(*places[1][0])
    with_text = asked.data is not None or all(side[0][1] for side in places)
    if asked.blimp:
        read_pairs(asked.blimp, asked.pairs)  # is refused before anything is scored
    findings, protocols = [], {}
    for test, ask in _scorers(asked, with_text).items():
        scored = [[ask(run, of) for run in side] for side, of in zip(runs, objectives, strict=True)]
        first, second = (side[0] for side in scored)
        protocols[test] = first.protocol, second.protocol
        if other := differing(protocols[test]).keys() & SAME.get(test, set()):
            wrong = f"it was asked another thing than A ({test}: {', '.join(sorted(other)).replace('_', ' ')})"
            raise refuse("B", b, wrong, "name one text with --data; words need one tokenizer and block size, too")
        if test != TEXT and not first.items:
            raise refuse("A", a, f"{test}: too few documents to tell chance from a difference", "give a longer text")
        if test == TEXT:
            findings += [_bits(name, scored) for name in BITS if name in first.figures | second.figures]
        else:
            for form, part, keys in _parts(first, second):
                sides = [
                    [result.items[key] for result in side] if key else []
                    for side, key in zip(scored, keys, strict=True)
                ]
                findings.append(finding(", ".join(filter(None, (test, form))), part, sides, recipes, paired))
    cautions += spent_before(runs)
    return PairComparison((a, b), objectives, seeds, paired, _costs(runs), findings, protocols, cautions)


def _scorers(asked: Benchmarks, with_text: bool) -> dict[str, Callable[[str, str | None], Any]]:
    """Test → what scores a run, given its objective. Those that can find that nothing can be compared come first."""
    scorers: dict[str, Callable[[str, str | None], Any]] = {}
    if asked.words:
        scorers[WORDS] = lambda run, _: evaluate(run, asked.data, asked.split, words=asked.words)
    if asked.lambada:
        scorers[LAST_WORDS] = lambda run, _: evaluate(run, asked.lambada, task="lambada")
    if asked.blimp:
        scorers[PAIRS] = lambda run, _: score_pairs(run, asked.blimp, asked.pairs)
    if with_text:
        sample = {MLM.name: PSEUDO_SAMPLE}
        scorers[TEXT] = lambda run, objective: evaluate(run, asked.data, asked.split, pseudo=sample.get(objective))
    return scorers


def _costs(runs: list[list[str]]) -> dict[str, tuple[float, float]]:
    """What was spent on each side's runs, as a mean; nothing where one of them doesn't tell."""
    known = [[read_json_file(Path(run).expanduser() / "summary.json") or {} for run in side] for side in runs]
    shared = [name for name in COSTS if all(name in summary for side in known for summary in side)]
    return {
        name: (fmean(figures[name] for figures in known[0]), fmean(figures[name] for figures in known[1]))
        for name in shared
    }


def spent_before(runs: list[list[str]]) -> Iterator[str]:
    """What must be said of sides whose training began with trained weights."""
    for side, first in zip("AB", (of[0] for of in runs), strict=True):
        if (Path(first).expanduser() / "config.yaml").is_file():
            model = read_settings(Path(first).expanduser())["model"]
            if model.get("pretrained"):
                yield f"{side} began with the weights of {model['name_or_path']}; what these cost is not counted."


def _bits(name: str, scored: list[list[Evaluation]]) -> Finding:
    """A figure of the text; a pseudo-likelihood sees both sides of a token, so that no difference is taken."""
    values = [[result.figures[name] for result in side if name in result.figures] for side in scored]
    intervals = [side[0].intervals.get(name, ()) if len(side) == 1 else () for side in scored]
    return Finding(TEXT, BITS[name], (values[0], values[1]), (intervals[0], intervals[1]))


def _parts(first: Any, second: Any) -> Iterator[tuple[str | None, str, tuple[Any, Any]]]:
    """What a test has told: its form and part, for people, and the key in each side's ``items``; None: not there."""
    if isinstance(first, Evaluation):
        for name in [name for name in first.labels if name in first.items | second.items]:
            keys = (name if name in first.items else None, name if name in second.items else None)
            yield None, first.labels[name], keys
        return
    common = [(form, form) for form in first.right if form in second.right]
    for forms in common or product(first.right, second.right):
        for field in (None, *sorted(set(first.fields))):
            form = f"percent right by {' | '.join(dict.fromkeys(forms))}"
            yield form, field or "mean over paradigms", ((forms[0], field), (forms[1], field))
