"""Exact figures of any causal or masked model, over disjoint blocks or a sliding window."""

from functools import partial
from itertools import chain

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

from lightning_lm.data.batches import Batches, Positions
from lightning_lm.data.document_windows import bounds, evaluation_windows
from lightning_lm.data.documents import read_documents
from lightning_lm.data.token_stream import count_separators
from lightning_lm.data.windows import BatchPlan, Windows
from lightning_lm.errors import refuse
from lightning_lm.evaluation.intervals import bootstrap_intervals
from lightning_lm.evaluation.nll import token_losses
from lightning_lm.evaluation.result import Evaluation
from lightning_lm.evaluation.subject import Subject
from lightning_lm.figures import labels as figure_labels
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head
from lightning_lm.objectives.facts import ObjectiveFacts
from lightning_lm.objectives.objective import Objective
from lightning_lm.runs.protocol import build_protocol
from lightning_lm.training.metrics import TokenNLL

TOKENS_PER_BATCH = 4096  # where no batch size is given
SIZES = {"tokens": "tokens scored", "words": "words and line ends", "bytes": "bytes"}  # of the text, for people


def score_by_token(
    subject: Subject, block_size: int | None, stride: int | None, batch_size: int | None, draws: int
) -> Evaluation:
    """Our own figures, with their intervals; the arguments are those of ``evaluate``.

    Raises:
        Refused: windows that don't suit the model, or a text that has nothing to score.
    """
    model, tokenizer, objective = subject.opened.model, subject.opened.tokenizer, subject.opened.objective
    if draws > 1 and objective.facts.kind == "causal":
        raise refuse("--mask-draws", draws, "a causal model has no masks", "leave it out")
    block_size = subject.window(block_size)
    stride = check_windows(objective, block_size, stride)
    stream = subject.stream(objective.needs_word_starts)
    within = None
    if subject.text.documents:
        prefix = subject.text.prefix if objective.shift else "none"
        within = bounds(subject.corpus, subject.key, stream, tokenizer, subject.text.separator, prefix)
    of_tokens = np.full((draws, 2, len(stream.tokens)), np.nan)
    windows = evaluation_windows(stream, block_size, stride, within)
    figures = score(model, tokenizer, objective, windows, batch_size=batch_size, of_tokens=of_tokens)
    nll = of_tokens[:, 0]
    text = read_documents(subject.corpus, subject.key)
    facts = build_protocol(
        text.text, subject.text.separator, tokenizer, objective, block_size=block_size, stride=stride, within=within
    )
    if facts["masking"]:
        facts["masking"]["draws"] = draws
    return subject.evaluation(
        block_size=block_size,
        stride=stride,
        figures=figures,
        labels=scored_labels(objective.facts),
        intervals=bootstrap_intervals(stream, text, of_tokens, "bits_per_byte" in figures),
        unit=text.unit,
        protocol=facts,
        separators=count_separators(stream.tokens[~np.isnan(nll[0])], tokenizer),
        draws=np.nanmean(nll, axis=1).tolist() if draws > 1 else [],
        build_token_losses=partial(token_losses, windows, text, nll[0], tokenizer, facts) if draws == 1 else None,
    )


def check_windows(objective: Objective, block_size: int, stride: int | None) -> int:
    """The stride to use: the given one, or else the objective's own, which makes windows as disjoint as can be.

    Raises:
        Refused: with it some tokens would not be scored, or none.
    """
    if block_size < 2:
        raise refuse("--block-size", block_size, "too short to predict anything", "give 2 or more tokens")
    largest = objective.stride(block_size)
    if stride is None:
        return largest
    if not 1 <= stride <= largest:
        causal = objective.facts.kind == "causal"
        why = "each token needs one before it in its window" if causal else "tokens would be left out"
        wrong = f"with --block-size={block_size} {why}" if stride > largest else "windows must advance"
        raise refuse("--stride", stride, wrong, f"give 1 to {largest}")
    return stride


def score(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    objective: Objective,
    windows: Windows,
    *,
    batch_size: int | None = None,
    of_tokens: np.ndarray | None = None,
) -> dict[str, float]:
    """Score every token once: for CLM all that have one before them, for MLM those that the masks choose.

    A window scores the tokens that no earlier one has covered. With a smaller stride they have more context before
    them, at the price of more windows. Masks depend on positions in the stream alone.

    Args:
        model: of the objective's Auto class; put in eval mode. It stays on its device.
        windows: over a split's tokens, by the same tokenizer; their stride is one that ``check_windows`` allows.
        batch_size: windows per forward pass; None: as many as make 4096 tokens.
        of_tokens: float64 [draws of the masks, 2, tokens of the stream], gets of each token that was scored what it
            cost, in nats, and whether the likeliest guess was right. Without it the masks are drawn once.

    Returns:
        ``loss`` in nats per scored token, ``perplexity``, ``accuracy``; for CLM ``bits_per_byte`` and
        ``word_perplexity``; and the counts ``tokens`` (scored), ``words`` (with line ends) and ``bytes`` of the text.

    Raises:
        Refused: the text has nothing to score.
    """
    objective, stream = objective.for_overlapping_windows(), windows.stream
    plan = BatchPlan(len(windows), batch_size or max(1, TOKENS_PER_BATCH // windows.size), 1, 1)
    pad_id = 0 if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    draws = 1 if of_tokens is None else len(of_tokens)
    loaders = [
        DataLoader(
            Batches(windows, objective, plan, rank=0, seed=None, pad_id=pad_id, draw=draw),
            batch_size=None,
            sampler=Positions(plan, lambda: 0),
            generator=torch.Generator(),
        )
        for draw in range(draws)
    ]
    device = next(model.eval().parameters()).device
    head, metric = find_head(model), TokenNLL().to(device)
    with torch.inference_mode():
        total, batches = draws * len(loaders[0]), chain.from_iterable(loaders)
        for number, batch in enumerate(tqdm(batches, "evaluating", total, unit="batch", leave=False, disable=None)):
            text = {"words": float(batch.pop("words")), "bytes": float(batch.pop("bytes"))}
            inputs = {name: x.to(device) for name, x in batch.items() if isinstance(x, torch.Tensor)}
            sums = labelled_nll(model, head, inputs, with_hits=True)
            metric.update(sums.nll, sums.tokens, sums.hits.sum(), **(text if objective.text_metrics else {}))
            if of_tokens is not None:
                draw, step = divmod(number, plan.steps)
                window, place = np.divmod(batch["labelled"].numpy(), windows.size)
                at = windows.begin(plan.of_step(step))[window] + place + objective.shift
                of_tokens[draw][:, at] = torch.stack([sums.of_tokens, sums.hits.double()]).cpu()
    if not metric.tokens:
        wrong = f"of its {len(stream.tokens)} token(s) none is scored"
        raise refuse("data", "the text", wrong, "give a longer text")
    counts = {"tokens": int(metric.tokens), "words": int(stream.words[-1]), "bytes": int(stream.bytes[-1])}
    return {**metric.compute(), **counts}


def scored_labels(facts: ObjectiveFacts) -> dict[str, str]:
    """Name → label of the figures that ``score`` returns, for people."""
    return figure_labels(facts.perplexity_label) | SIZES
