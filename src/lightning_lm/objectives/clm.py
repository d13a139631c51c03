"""Causal language modelling: each output predicts the next token (Radford et al., 2019)."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from lightning_lm.data.token_stream import begin_token
from lightning_lm.data.windows import WindowBatch
from lightning_lm.errors import Problem, Refused, refuse
from lightning_lm.models.loading import positions
from lightning_lm.models.output_head import same_logits
from lightning_lm.objectives.facts import CLM, ObjectiveFacts
from lightning_lm.objectives.objective import Objective, shortened


@dataclass
class Clm(Objective):
    prompts: list[str] = field(default_factory=list)
    preview_tokens: int = 40
    facts: ObjectiveFacts = CLM
    text_metrics = True
    shift = 1

    def stride(self, block_size: int) -> int:
        return block_size - 1  # a window's first token is only context

    def labelled(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> np.ndarray:
        labelled = np.zeros_like(windows.scored)
        labelled[:, :-1] = windows.scored[:, 1:]
        return labelled

    def collate(self, windows: WindowBatch, key: np.uint64, word_starts: np.ndarray | None) -> dict[str, np.ndarray]:
        following = np.roll(windows.tokens, -1, axis=1)
        labels = np.where(self.labelled(windows, key, word_starts), following, -100)
        return {"input_ids": windows.tokens, "labels": labels}

    def check_model(self, model: PreTrainedModel) -> None:
        if sees_the_future(model):
            wrong = f"{model.config.model_type} looks at the tokens that it should predict"
            raise refuse("objective", self.facts.name, wrong, "set model.config.is_decoder=true, or objective=mlm")

    def check_prompts(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        encode_prompts(model, tokenizer, self.prompts, new_tokens=1)

    def preview(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int) -> list[str]:
        texts, limit = [], positions(model)
        with torch.random.fork_rng():  # sampling must not move the generators that dropout uses
            torch.manual_seed(seed)
            for prompt in self.prompts:
                ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
                room = self.preview_tokens if limit is None else min(self.preview_tokens, limit - len(ids))
                out = continue_prompt(model, tokenizer, ids, max_new_tokens=room, top_k=50, temperature=0.8)
                texts.append(str(tokenizer.decode(out, skip_special_tokens=True)))
        return texts


@torch.no_grad()
def sees_the_future(model: PreTrainedModel) -> bool:
    """Whether outputs change when a later token does, on a short probe."""
    training = model.training
    model.eval()
    embeddings: Any = model.get_input_embeddings()
    ids = torch.arange(8).repeat(2, 1) % embeddings.num_embeddings
    ids[1, -1] = 0
    logits = model(input_ids=ids).logits
    model.train(training)
    if not logits.isfinite().all():
        wrong = "its logits are no finite numbers, though its weights are"
        raise refuse("model", model.config.model_type, wrong, "choose another checkpoint")
    return not same_logits(*logits[:, :-1])


def encode_prompts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], new_tokens: int
) -> list[list[int]]:
    """The prompts' tokens, each with room for ``new_tokens`` after it.

    What the tokenizer adds before a text is kept, what it adds after one isn't: the text shall go on. An empty prompt
    becomes the token that begins or ends a text. Raises Refused for prompts that are too long, or are empty where there
    is no such token.
    """
    encoded, problems, limit = [], [], positions(model)
    for prompt in prompts:
        inputs = tokenizer(prompt, return_special_tokens_mask=True, verbose=False)
        ids, added = inputs["input_ids"], inputs["special_tokens_mask"]
        while ids and added[len(ids) - 1]:
            ids.pop()
        if not ids and (begin := begin_token(tokenizer)) is None:
            problems.append(Problem("prompt", repr(prompt), "the tokenizer has no token to begin with", "give a text"))
        encoded.append(ids or [begin])
        if limit is not None and len(encoded[-1]) + new_tokens > limit:
            wrong = f"{len(encoded[-1])} tokens and {new_tokens} new ones exceed the model's {limit} positions"
            problems.append(Problem("prompt", repr(shortened(prompt)), wrong, "shorten it, or lower max-new-tokens"))
    if problems:
        raise Refused(*problems)
    return encoded


def continue_prompt(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: list[int],
    *,
    max_new_tokens: int,
    greedy: bool = False,  # always take the likeliest token; drawing has no effect then
    streamer: BaseStreamer | None = None,  # gets the tokens as they come
    **drawing: Any,
) -> list[int]:
    """The prompt ``ids`` (not empty) and the tokens that the model puts after it.

    ``drawing`` is ``temperature``, ``top_k`` (draw from so many likeliest tokens; 0: from all) and ``top_p`` (from the
    likeliest that together have this probability), as transformers' ``generate`` has them.
    """
    tokens = torch.tensor([ids], device=model.device)
    generate: Any = model.generate  # its wrappers hide its type
    continued = generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=max_new_tokens,
        do_sample=not greedy,
        pad_token_id=tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
        streamer=streamer,
        **(dict.fromkeys(drawing) if greedy else drawing),
    )
    return continued[0].tolist()
