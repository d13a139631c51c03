"""Settings of the axis ``model``: where tokenizer and weights come from, how a model is built. Loads nothing heavy."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_lm.constraints import REPOSITORY, Settings, is_hub_id, looks_local, setting
from lightning_lm.errors import Problem

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedTokenizerBase

TRAIN = "train"  # as a tokenizer: one that learns its vocabulary from the corpus


class TokenizerKind(StrEnum):
    bpe = "bpe"  # byte-level, as GPT-2's
    wordpiece = "wordpiece"  # as BERT's; it has a mask token

    @property
    def smallest(self) -> int:
        """Tokens that a vocabulary begins with: all bytes and the end; the special tokens and a letter."""
        return 257 if self is TokenizerKind.bpe else 6


@dataclass
class ModelConfig(Settings):
    """A model of transformers' Auto classes."""

    name_or_path: str | None = None  # Hub id or folder; null: a new model of `model_type`
    model_type: str | None = None  # transformers' name of the architecture, used where name_or_path is null
    revision: str | None = None  # branch, tag or commit of a Hub id
    pretrained: bool = True  # true: from_pretrained, false: from_config (random weights)
    tokenizer: str | None = None  # Hub id, folder, or `train`; null: the one that belongs to name_or_path
    vocab_size: int = 8000  # of a trained tokenizer
    tokenizer_kind: TokenizerKind | None = None  # likewise; null: bpe for clm, wordpiece for mlm
    config: dict[str, Any] = setting({})  # fields of the model's config class

    @property
    def tag(self) -> str:
        """What a dashboard calls the model."""
        return Path(self.name_or_path or self.model_type or "").name

    @property
    def hub_ids(self) -> dict[str, str]:
        """Setting → id, of what must come from the Hub."""
        places = {"model.name_or_path": self.name_or_path, "model.tokenizer": self.tokenizer}
        return {name: place for name, place in places.items() if place and place != TRAIN and is_hub_id(place)}

    def problems(self) -> Iterator[Problem]:
        for name, place in (("model.name_or_path", self.name_or_path), ("model.tokenizer", self.tokenizer)):
            local = place is not None and looks_local(place)
            if local and not Path(place).expanduser().is_dir():
                yield Problem(name, place, "no such folder", "check the path, or give an id of the Hub")
            if place is not None and not local and not REPOSITORY.fullmatch(place):
                yield Problem(name, repr(place), "neither a path nor an id of the Hub", "write ORG/NAME or a path")
        if self.name_or_path is None and self.pretrained:
            remedy = "give model.name_or_path, or model.pretrained=false for random weights"
            yield Problem("model.pretrained", "true", "there is no model to load weights from", remedy)
        if self.name_or_path is None and not self.model_type:
            remedy = "give model.name_or_path, or an architecture such as model.model_type=gpt2"
            yield Problem("model.model_type", "null", "nothing says which architecture to build", remedy)
        if self.name_or_path is None and self.tokenizer is None:
            yield Problem("model.tokenizer", "null", "nothing says which tokenizer", "give an id, a folder, or train")
        if self.name_or_path is not None and self.tokenizer == TRAIN and self.pretrained:
            remedy = "add model.pretrained=false, or leave model.tokenizer out"
            yield Problem("model.tokenizer", TRAIN, "pretrained weights belong to their own tokenizer", remedy)

    def build(self, tokenizer: "PreTrainedTokenizerBase", auto_class: str, objective: str) -> "nn.Module":
        """A float32 model of transformers' class of this name, with weights or without.

        Raises Refused where there is none, it doesn't fit the settings, or it can't do the ``objective``.
        """
        from lightning_lm.models.loading import load_config, load_model

        place, revision = self.name_or_path, self.revision
        config = load_config(
            place, self.model_type, self.config, tokenizer, pretrained=self.pretrained, revision=revision
        )
        return load_model(config, auto_class, place if self.pretrained else None, revision, objective=objective)


MODELS: dict[str, type[ModelConfig]] = {
    "auto": ModelConfig,
    # a new kind of model goes here: docs/extending.md
}
