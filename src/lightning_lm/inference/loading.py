"""Trained models and their tokenizers, loaded and checked."""

from dataclasses import replace

from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase

from lightning_lm.errors import Refused
from lightning_lm.models import loading
from lightning_lm.objectives.objective import Objective
from lightning_lm.objectives.schema import OBJECTIVES

MODEL = "give a run folder, a model folder, or an id of the Hub"


def load_trained_model(place: str, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model of a folder or Hub id, in float32 and eval mode, checked to suit the objective and the tokenizer.

    Raises:
        Refused: there is no such model, or it can't do the objective.
    """
    facts = objective.facts
    try:
        config = loading.load_config(place, None, {}, tokenizer, pretrained=True)
        model = loading.load_model(config, facts.auto_class, place, objective=facts.name, trained=True)
    except Refused as error:
        raise as_model(error) from error
    loading.fit_together(model, tokenizer, block_size=1)
    objective.check_model(model)
    return model.eval()


def load_trained_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id.

    Raises:
        Refused: there is none.
    """
    try:
        return loading.load_tokenizer(place)
    except Refused as error:
        raise as_model(error) from error


def as_model(error: Refused) -> Refused:
    """The same problems, told to someone who named a model and not the settings of a training run."""
    settings = ("model.tokenizer", "model.name_or_path")
    remedies = {loading.UNREACHABLE: MODEL}
    return Refused(
        *(
            replace(p, setting="model", remedy=remedies.get(p.remedy, p.remedy)) if p.setting in settings else p
            for p in error.problems
        )
    )


def objective_of(place: str) -> str | None:
    """The objective's name, by the architecture that a model was saved with; None where it tells none.

    Raises:
        Refused: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except Exception as error:
        raise as_model(loading.refusal("model.name_or_path", place, "no model found", error)) from error
    for architecture in config.architectures or []:
        for name, option in OBJECTIVES.items():
            if architecture.endswith(option.facts.architectures):
                return name
    return None
