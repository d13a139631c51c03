"""Minimal pairs, as BLiMP has them (Warstadt et al., 2020): which of two sentences is likelier to a model."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lightning_lm.certainty.pairs import Estimate, over_strata
from lightning_lm.data.corpora.corpus import content_hash
from lightning_lm.data.token_stream import tokenizer_fingerprint
from lightning_lm.errors import refuse
from lightning_lm.evaluation.items import Items
from lightning_lm.evaluation.pseudo_likelihood import encode_sentence, text_nll
from lightning_lm.inference.sources import open_model
from lightning_lm.runs.protocol import made_with, short_hash

BLIMP = "nyu-mll/blimp"  # on the Hub, with a configuration for each paradigm
NEEDED = ("sentence_good", "sentence_bad", "field", "UID")


@dataclass(frozen=True)
class MinimalPairs:
    """How often a model is right; ``right`` has form of the likelihood → float64 [pairs]: 1, 0, or ½ for a tie."""

    model: str
    objective: str
    paradigms: np.ndarray  # [pairs], their names
    fields: np.ndarray  # likewise
    right: dict[str, np.ndarray]
    protocol: dict[str, Any]
    made_with: dict[str, Any]

    @cached_property
    def items(self) -> dict[tuple[str, str | None], Items]:
        """Form and field, None for all of them → percent right, of which the mean is that over paradigms."""
        parts = {None: np.full(len(self.fields), True)} | {name: self.fields == name for name in set(self.fields)}
        return {
            (form, field): Items(100 * right[part], partial(over_strata, strata=self.paradigms[part]), 100.0)
            for form, right in self.right.items()
            for field, part in parts.items()
        }

    def accuracy(self, form: str, field: str | None = None) -> Estimate:
        """The mean over paradigms, in percent, with its interval; ``field``: over those of one."""
        return self.items[form, field].estimate

    def __str__(self) -> str:
        forms, head = list(self.right), f"{self.model}: minimal pairs that it has right, in percent"
        lines = [head, f"{'':<48}" + "".join(f"{f'({n})':>26}" for n in range(1, len(forms) + 1))]
        for field in [*sorted(set(self.fields)), None]:
            means = [self.accuracy(form, field) for form in forms]
            cells = [f"{mean.value:.1f}  {mean.low:.1f} to {mean.high:.1f}" for mean in means]
            lines.append(f"{field or 'mean over paradigms':<48}" + "".join(f"{cell:>26}" for cell in cells))
        for paradigm in sorted(set(self.paradigms)):
            of_paradigm = self.paradigms == paradigm
            cells = [f"{100 * self.right[form][of_paradigm].mean():.1f}" for form in forms]
            lines.append(f"  {paradigm:<46}" + "".join(f"{cell:>26}" for cell in cells))
        legend = ", ".join(f"({n}) {form}" for n, form in enumerate(forms, 1))
        setup = (
            f"{len(self.fields):,} pairs of {len(set(self.paradigms))} paradigms, read as {self.protocol['sentence']}"
        )
        return "\n".join([*lines, f"{legend}; 95 % intervals", f"protocol {short_hash(self.protocol)}: {setup}"])

    def as_json(self) -> str:
        forms = {}
        for form, right in self.right.items():
            by_field = {field: vars(self.accuracy(form, field)) for field in sorted(set(self.fields))}
            by_paradigm = {name: 100 * right[self.paradigms == name].mean() for name in sorted(set(self.paradigms))}
            forms[form] = {"mean": vars(self.accuracy(form)), "fields": by_field, "paradigms": by_paradigm}
        facts = {"model": self.model, "objective": self.objective, "pairs": len(self.fields), "accuracy": forms}
        facts |= {"protocol": self.protocol, "protocol_hash": short_hash(self.protocol), "made_with": self.made_with}
        return json.dumps(facts, indent=2, ensure_ascii=False)


def score_pairs(
    model: str, data: str | None = None, most: int | None = None, objective: str | None = None
) -> MinimalPairs:
    """How a run's or another model does on minimal pairs.

    Args:
        model: a run folder, a model folder, or an id of the Hub.
        data: a folder of BLiMP's JSON lines, one such file, or a data set of the Hub; None: BLiMP there.
        most: pairs of each paradigm, its first ones; None: all.
        objective: ``clm`` or ``mlm``; None: the one that the model was trained for.

    Raises:
        Refused: there is no such model, it can't do the objective, or there are no such pairs.
    """
    pairs = read_pairs(data or BLIMP, most)
    opened = open_model(model, objective, strict=False, dataset=None)
    right: dict[str, list[np.ndarray]] = {}
    for of_paradigm in tqdm(pairs.values(), desc="scoring", unit="paradigm", leave=False, disable=None):
        sentences = [pair[side] for pair in of_paradigm for side in NEEDED[:2]]
        for form, nll in text_nll(opened, sentences).items():
            good, bad = nll.reshape(-1, 2).T
            right.setdefault(form, []).append((np.sign(bad - good) + 1) / 2)
    flat = [pair for of_paradigm in pairs.values() for pair in of_paradigm]
    causal = opened.objective.facts.kind == "causal"
    ids, words = encode_sentence(opened.tokenizer, "a", causal or opened.objective.shift)
    names = opened.tokenizer.convert_ids_to_tokens(ids)
    read = ["TEXT" if word is not None else name for name, word in zip(names, words, strict=True)]
    protocol = {
        "task": "minimal pairs",
        "pairs": content_hash(*([pair[name] for name in NEEDED] for pair in flat)),
        "tokenizer": tokenizer_fingerprint(opened.tokenizer),
        "forms": list(right),
        "sentence": " ".join(read[:2] if causal else read),  # with the special tokens around it
        "dtype": "float32",
    }
    return MinimalPairs(
        model,
        opened.objective.facts.name,
        np.array([pair["UID"] for pair in flat]),
        np.array([pair["field"] for pair in flat]),
        {form: np.concatenate(parts) for form, parts in right.items()},
        protocol,
        made_with(opened.place),
    )


def read_pairs(data: str, most: int | None) -> dict[str, list[dict[str, str]]]:
    """Paradigm → its first pairs, in the order of the files' names or of the data set's configurations.

    Raises:
        Refused: there are none, a line lacks a field of BLiMP's, or a paradigm has a single pair.
    """
    path, pairs = Path(data).expanduser(), {}
    for pair in _of_files(path) if path.exists() else _of_hub(data):
        if missing := [name for name in NEEDED if not (isinstance(pair.get(name), str) and pair[name].strip())]:
            raise refuse("minimal pairs", data, f"a pair lacks {', '.join(missing)}", "give files as BLiMP has them")
        of_paradigm = pairs.setdefault(pair["UID"], [])
        if most is None or len(of_paradigm) < most:
            of_paradigm.append(pair | {"field": pair["field"].replace("/", "_")})  # BLiMP spells one in two ways
    if not pairs:
        raise refuse("minimal pairs", data, "there are no pairs", "give a folder of BLiMP's JSON lines")
    if single := [name for name, of_paradigm in pairs.items() if len(of_paradigm) < 2]:
        raise refuse("minimal pairs", data, f"{single[0]} has a single pair", "give two or more of each paradigm")
    return pairs


def _of_files(path: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise refuse("minimal pairs", file, f"line {number} is no JSON object", "correct it") from error


def _of_hub(name: str) -> Iterator[dict[str, Any]]:
    from datasets import get_dataset_config_names, load_dataset

    try:
        for paradigm in sorted(get_dataset_config_names(name)):
            yield from load_dataset(name, paradigm, split="train")
    except Exception as error:  # the Hub's, the network's and the library's own have nothing in common
        remedy = "give a folder of BLiMP's JSON lines, or check the name and the network"
        raise refuse("minimal pairs", name, "its pairs can't be loaded", remedy) from error
