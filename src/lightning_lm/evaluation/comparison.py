"""Two models on the same text: which predicts it better, and whether another text of the kind would say so, too."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lm.certainty.pairs import FEWEST_DOCUMENTS, Estimate, over_documents
from lightning_lm.errors import refuse
from lightning_lm.evaluation.nll import read_token_losses
from lightning_lm.evaluation.scoring import evaluate
from lightning_lm.inference.sources import locate, trained_for
from lightning_lm.objectives.schema import OBJECTIVES
from lightning_lm.runs.protocol import differing

MOST_SHOWN = 3  # documents for each side


@dataclass(frozen=True)
class ModelComparison:
    """Two models on one text. Figures are nats per token, or bits per byte where the tokenizers differ."""

    names: tuple[str, str]
    unit: str
    losses: tuple[float, float]
    difference: Estimate  # B's less A's
    documents: int
    kind: str  # of them: document or block
    cautions: list[str]
    furthest: list[tuple[int, float, str]]  # documents that move the difference most: number, by how much, beginning

    def __str__(self) -> str:
        lines = [f"{side}  {name}: {loss:.4f}" for side, name, loss in zip("AB", self.names, self.losses, strict=True)]
        lines += [f"these two models, in {self.unit}, over {self.documents} {self.kind}s of the same text:"]
        lines += [shown(self.difference), *verdict_lines(self.difference, "model")]
        lines += [f"note: {caution}" for caution in self.cautions]
        if any(share for _, share, _ in self.furthest):
            lines += ["", f"where they differ most ({self.kind}, its share of the difference, its beginning):"]
            lines += [f"{number:>7} {share:>+9.4f}  {beginning}" for number, share, beginning in self.furthest]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        return {"question": "models", **vars(self), "difference": vars(self.difference)}


def compare_models(a: str, b: str, data: str | None = None, split: str = "test") -> ModelComparison:
    """Compare two models; each is a file of ``evaluate --nll``, or a run or model, which is scored on the text.

    Raises:
        Refused: there is no such model or text, the texts differ, or what was scored can't be compared.
    """
    names = (a, b)
    tables = [read_token_losses(Path(name)) if Path(name).suffix == ".parquet" else None for name in names]
    objectives = [
        trained_for(*locate(name)) if table is None else table.facts["protocol"]["objective"]
        for name, table in zip(names, tables, strict=True)
    ]
    if len({OBJECTIVES[name].facts.kind for name in objectives if name is not None}) > 1:
        wrong = f"{' and '.join(map(str, objectives))} losses mean different things"
        raise refuse("B", b, wrong, "give --words or --blimp, which compare what both can do")
    losses = [table or evaluate(name, data, split).token_losses for name, table in zip(names, tables, strict=True)]
    first, second = (loss.facts["protocol"] for loss in losses)
    if first["text"] != second["text"]:
        raise refuse("B", b, "it was scored on another text than A", "score both on the same with --data and --split")
    nll, scored = zip(*(loss.by_document() for loss in losses), strict=True)
    if first["tokenizer"] == second["tokenizer"] and first["separator"] == second["separator"]:
        if not np.array_equal(*(np.isnan(loss.nll) for loss in losses)):
            raise refuse("B", b, "other tokens of the text were scored than of A", "score both in the same way")
        unit, sizes = "nats per token", scored[0]
    elif first["masking"]:
        raise refuse(
            "B", b, "masked models with unlike tokenizers predict unlike things", "name two with the same tokenizer"
        )
    else:
        unit, sizes = "bits per byte", np.array(losses[0].facts["bytes"]) * math.log(2)
    kind, held = losses[0].facts["unit"], sizes > 0
    if held.sum() < FEWEST_DOCUMENTS:
        wrong = f"the text has {held.sum()} {kind}s, too few to tell chance from a difference"
        raise refuse("A", a, wrong, f"give a text of {FEWEST_DOCUMENTS} or more")
    gain = (nll[1] - nll[0])[held]
    shares, numbers = gain / sizes.sum(), np.flatnonzero(held)
    order = np.argsort(shares)
    shown_ones = [*order[:MOST_SHOWN], *order[MOST_SHOWN:][-MOST_SHOWN:]]
    beginnings = losses[0].facts["beginnings"]
    return ModelComparison(
        names,
        unit,
        (nll[0].sum() / sizes.sum(), nll[1].sum() / sizes.sum()),
        over_documents(gain, sizes[held]),
        int(held.sum()),
        kind,
        conditions(first, second),
        [(int(numbers[i]), float(shares[i]), beginnings[numbers[i]]) for i in shown_ones],
    )


def conditions(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """What differs in how they were scored and can move the figures."""
    unlike = {name: pair for name, pair in differing([first, second]).items() if name not in ("tokenizer", "objective")}
    parts = [f"{name.replace('_', ' ')} {a} for A, {b} for B" for name, (a, b) in unlike.items()]
    return [f"they were scored in different ways: {'; '.join(parts)}"] if parts else []


def shown(estimate: Estimate) -> str:
    p_value = "< 0.001" if estimate.p_value < 0.001 else f"= {estimate.p_value:.3f}"
    return f"B − A = {estimate.value:+.4f}, 95 % interval {estimate.low:+.4f} to {estimate.high:+.4f}, p {p_value}"


def verdict_lines(estimate: Estimate, thing: str, higher_is_better: bool = False) -> list[str]:
    """The answer in words."""
    if not estimate.differs:
        return [f"No difference between the {thing}s can be told from chance."]
    better = "B" if (estimate.value > 0) == higher_is_better else "A"
    return [f"The better {thing} is {better}."]
