"""Trained models at work: loading them, continuing prompts, guessing masked tokens."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase, TextStreamer

from lightning_lm import model as models
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.objectives import Objective
from lightning_lm.objectives.mlm import PLACEHOLDER

MODEL = "give a run folder, a model folder, or an id of the Hub"


def load(place: str, objective: Objective, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model of a folder or Hub id, in float32 and eval mode, checked to suit the objective and the tokenizer.

    Raises:
        Refused: there is no such model, or it can't do the objective.
    """
    try:
        config = models.load_config(place, None, {}, tokenizer, pretrained=True)
        model = models.load_model(config, objective, place)
    except Refused as error:
        raise as_model(error) from error
    models.fit_together(model, tokenizer, objective, block_size=1)
    return model.eval()


def load_tokenizer(place: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or Hub id.

    Raises:
        Refused: there is none.
    """
    try:
        return models.load_tokenizer(place)
    except Refused as error:
        raise as_model(error) from error


def as_model(error: Refused) -> Refused:
    """The same problems, told to someone who named a model and not the settings of a training run."""
    settings = ("model.tokenizer", "model.name_or_path")
    return Refused(*(replace(p, setting="model", remedy=MODEL) if p.setting in settings else p for p in error.problems))


def objective_of(place: str) -> str | None:
    """The objective's name, by the architecture that a model was saved with; None where it tells none.

    Raises:
        Refused: there is no such model.
    """
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise refuse("model", place, f"no model found ({reason})", MODEL) from error
    for architecture in config.architectures or []:
        if architecture.endswith(("ForCausalLM", "LMHeadModel")):
            return "clm"
        if architecture.endswith("ForMaskedLM"):
            return "mlm"
    return None


def positions(model: nn.Module) -> int | None:
    """The longest sequence that a model's position table allows, in tokens; None where it has no such table."""
    size = getattr(model.config, "max_position_embeddings", None)
    return None if size is None else size - models._position_offset(model)


def encode_prompts(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str], new_tokens: int
) -> list[list[int]]:
    """The prompts' tokens, each with room for ``new_tokens`` after it.

    What the tokenizer adds before a text is kept, what it adds after one isn't: the text shall go on. An empty prompt
    becomes the token that begins or ends a text.

    Raises:
        Refused: for each prompt that is too long, or empty where the tokenizer has no such token.
    """
    encoded, problems = [], []
    limit = positions(model)
    for prompt in prompts:
        inputs = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
        ids, added = inputs["input_ids"], inputs["special_tokens_mask"]
        while ids and added[len(ids) - 1]:
            ids.pop()
        begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if not ids and begin is None:
            problems.append(Problem("prompt", repr(prompt), "the tokenizer has no token to begin with", "give a text"))
        encoded.append(ids or [begin])
        if limit is not None and len(encoded[-1]) + new_tokens > limit:
            wrong = f"{len(encoded[-1])} tokens and {new_tokens} new ones exceed the model's {limit} positions"
            problems.append(Problem("prompt", repr(shortened(prompt)), wrong, "shorten it, or lower max-new-tokens"))
    if problems:
        raise Refused(*problems)
    return encoded


class Writer(TextStreamer):
    """Hands text on as soon as its words are complete."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, write: Callable[[str], object]):
        super().__init__(tokenizer, skip_special_tokens=True)
        self.write = write

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.write(text + "\n" * stream_end)


def generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    write: Callable[[str], object],
    *,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    greedy: bool = False,
) -> None:
    """Hand the prompt ``ids`` and what the model makes of it to ``write``, piece by piece, and at last a line's end.

    Args:
        ids: the prompt's tokens, not empty.
        seed: of the draws; nothing else that was generated before has a say.
        top_k: draw from so many likeliest tokens; 0: from all.
        top_p: draw from the likeliest tokens that together have this probability.
        greedy: always take the likeliest token; the settings for drawing have no effect then.
    """
    tokens = torch.tensor([ids], device=model.device)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    pad_id = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    torch.manual_seed(seed)
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        pad_token_id=pad_id,
        streamer=Writer(tokenizer, write),
        **dict.fromkeys(drawing) if greedy else drawing,
    )


def encode_masked(model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[torch.Tensor]:
    """The texts' tokens, int64 [t] each; ``<mask>`` stands for the tokenizer's mask token, which may be used as well.

    Raises:
        Refused: for each text that has no mask or is too long.
    """
    encoded, problems = [], []
    limit = positions(model)
    for text in texts:
        inputs = tokenizer(text.replace(PLACEHOLDER, tokenizer.mask_token), return_tensors="pt", verbose=False)
        encoded.append(ids := inputs["input_ids"][0])
        if not (ids == tokenizer.mask_token_id).any():
            problems.append(Problem("text", repr(shortened(text)), "nothing to fill in", f"write {PLACEHOLDER} there"))
        if limit is not None and len(ids) > limit:
            wrong = f"its {len(ids)} tokens exceed the model's {limit} positions"
            problems.append(Problem("text", repr(shortened(text)), wrong, "shorten it"))
    if problems:
        raise Refused(*problems)
    return encoded


def guesses(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, top_k: int
) -> list[list[tuple[str, float]]]:
    """For each mask in ``ids`` [t] the ``top_k`` likeliest tokens and their probabilities, the others being masked."""
    tokens = ids[None].to(model.device)
    with torch.inference_mode():
        logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).logits[0]
    top = logits[tokens[0] == tokenizer.mask_token_id].softmax(-1).topk(min(top_k, len(tokenizer)))
    return [
        [(tokenizer.decode([i]), p) for i, p in zip(row, shares, strict=True)]
        for row, shares in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def shortened(text: str, length: int = 40) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
