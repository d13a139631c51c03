"""A causal and a masked model side by side, on what both can do; never on their losses, which mean different things."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lm.certainty.pairs import Estimate, over_strata
from lightning_lm.errors import refuse
from lightning_lm.evaluation.comparison import shown, verdict
from lightning_lm.evaluation.minimal_pairs import MinimalPairs, score_pairs
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.runs.folder import read_json

COSTS = ("parameters", "tokens_seen", "labels_seen", "flops_layers", "flops_head")
PSEUDO_SAMPLE = 2000  # tokens


@dataclass(frozen=True)
class PairComparison:
    """Differences are B's percentage of minimal pairs less A's: over all paradigms, and over those of each field."""

    names: tuple[str, str]
    costs: dict[str, tuple[Any, Any]]  # of two runs
    pairs: tuple[MinimalPairs, MinimalPairs]
    differences: dict[tuple[str, str], dict[str, Estimate]]  # A's form and B's → field, "all" for all → difference
    texts: tuple[Evaluation, Evaluation]

    def __str__(self) -> str:
        lines = [f"{side}  {name}: {of.objective}" for side, name, of in zip("AB", self.names, self.pairs, strict=True)]
        for name, (a, b) in self.costs.items():
            lines.append(f"{name.replace('_', ' '):<16}{a:>14.4g}{b:>14.4g}  {'equal' if a == b else ''}".rstrip())
        of = self.pairs[0]
        lines += [
            "",
            f"minimal pairs, in percent right ({len(of.fields):,} pairs in {len(set(of.paradigms))} paradigms):",
        ]
        for forms, by_field in self.differences.items():
            for side, pairs, form in zip("AB", self.pairs, forms, strict=True):
                lines.append(f"{side}  {form}: {pairs.accuracy(form).value:.2f}")
            lines += [shown(by_field["all"]), *verdict(by_field["all"], "model", higher_is_better=True)]
            lines += [f"  {field}: {shown(of)}" for field, of in by_field.items() if field != "all"] + [""]
        if len({pairs.objective for pairs in self.pairs}) > 1:
            lines.append("bits per byte beside pseudo bits per byte, which see both sides: no winner is told by these")
        for side, text in zip("AB", self.texts, strict=True):
            name = "bits_per_byte" if "bits_per_byte" in text.figures else "pseudo_bits_per_byte"
            low_high = " to ".join(f"{bound:.4f}" for bound in text.intervals.get(name, ()))
            lines.append(f"{side}  {text.labels[name]}: {text.figures[name]:.4f}  {low_high}".rstrip())
        return "\n".join([*lines, "This is of these two models; other seeds would give others."])

    def as_dict(self) -> dict[str, Any]:
        differences = [
            {"forms": forms, **{field: vars(of) for field, of in by_field.items()}}
            for forms, by_field in self.differences.items()
        ]
        protocols = {"minimal_pairs": [of.protocol for of in self.pairs], "texts": [of.protocol for of in self.texts]}
        accuracies = [{form: vars(of.accuracy(form)) for form in of.right} for of in self.pairs]
        figures = [of.figures | {"intervals": of.intervals} for of in self.texts]
        return {"question": "pair", "names": self.names, "costs": self.costs, "minimal_pairs": accuracies} | {
            "differences": differences,
            "texts": figures,
            "protocols": protocols,
        }


def compare_pair(a: str, b: str, blimp: str, most: int | None, data: str | None, split: str) -> PairComparison:
    """Two runs or models of either objective, by minimal pairs, paired, and by a text.

    Args:
        blimp: where the pairs are, as for ``score_pairs``; ``most`` of each paradigm.
        data: the text, as for ``evaluate``, of the ``split``.

    Raises:
        Refused: there is no such model, text or pairs.
    """
    for side, name in (("A", a), ("B", b)):
        if Path(name).suffix == ".parquet":
            raise refuse(side, name, "losses tell nothing about minimal pairs", "name a run or a model")
    pairs = first, second = score_pairs(a, blimp, most), score_pairs(b, blimp, most)
    differences = {}
    for forms in [(one, other) for one in first.right for other in second.right]:
        gain = 100 * (second.right[forms[1]] - first.right[forms[0]])
        parts = {"all": np.full(len(gain), True)} | {f: first.fields == f for f in sorted(set(first.fields))}
        differences[forms] = {name: over_strata(gain[part], first.paradigms[part]) for name, part in parts.items()}
    texts = tuple(
        evaluate(name, data, split, pseudo=PSEUDO_SAMPLE if of.objective == "mlm" else None)
        for name, of in zip((a, b), pairs, strict=True)
    )
    if texts[0].protocol["text"] != texts[1].protocol["text"]:
        raise refuse("B", b, "it was scored on another text than A", "score both on the same with --data and --split")
    known = [read_json(Path(name).expanduser() / "summary.json") or {} for name in (a, b)]
    costs = {name: (known[0][name], known[1][name]) for name in COSTS if all(name in summary for summary in known)}
    return PairComparison((a, b), costs, pairs, differences, texts)
