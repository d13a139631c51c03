"""From a batch to the negative log-likelihood of its labelled tokens. Only their positions reach the vocabulary."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lightning_lm.models.output_head import OutputHead, forward_to_head

LOGITS_PER_CHUNK = {"cpu": 2**25, "cuda": 2**27}  # that are built at once: fewer, larger products are faster
LOGITS_PER_TILE = {"cpu": 2**20, "cuda": 2**27}  # that become their gradient at once: a CPU's cache holds them
LOGITS_AT_ONCE = 2**30  # of a compiled loss on a GPU, which keeps them and their gradient in the low precision
EVAL_ROWS = 2**10  # of logits that evaluation builds at once: no gradient needs whole rows there
ROW_ALIGNMENT = 64  # logits from one row to the next are a multiple of this, or products are slow


@dataclass
class LossSums:
    """Over the labelled tokens of a batch: their NLL in nats, and their number.

    Where hits are asked for, also which guesses were right, bool [labels], and each token's NLL, float64 [labels].
    """

    nll: Tensor
    tokens: int
    hits: Tensor | None = None
    of_tokens: Tensor | None = None


def labelled_nll(model: nn.Module, head: OutputHead, batch: dict[str, Tensor], with_hits: bool = False) -> LossSums:
    """Negative log-likelihood of the labelled tokens; ``head`` is what ``find_head(model)`` returns.

    A batch has ``input_ids`` and ``labels`` int64 [n, t], labels aligned with the outputs and −100 where there is none;
    ``attention_mask`` where there is padding, and other inputs of the model; ``labelled`` int64 [labels], positions in
    the flattened batch, or they are looked for, which makes a GPU's queue run dry. ``with_hits`` also tells where the
    likeliest token is the right one; it is for evaluation, without gradients.
    """
    labels, where = batch["labels"].flatten(), batch.get("labelled")
    where = (labels != -100).nonzero().squeeze(1) if where is None else where
    labels = labels[where]
    hidden, logits = forward_to_head(model, head, batch, where)
    if hidden is None or not len(labels):
        return _score([([head.logits(hidden) if logits is None else logits.float()], labels)], with_hits)
    if not torch.is_grad_enabled():
        pieces = zip(hidden.split(EVAL_ROWS), labels.split(EVAL_ROWS), strict=True)
        return _score(((head.tiles(rows), of_rows) for rows, of_rows in pieces), with_hits)
    weight, bias = head.linear.weight, head.linear.bias
    if head.compiled and hidden.is_cuda and len(labels) * len(weight) <= LOGITS_AT_ONCE:
        return LossSums(_compiled(whole_nll)(hidden, weight, bias, labels, head), len(labels))
    return LossSums(ChunkedNLL.apply(hidden, weight, bias, labels, head), len(labels))


def whole_nll(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, head: OutputHead) -> Tensor:
    """Sum of the labels' NLL in float32, from what enters a head's last layer; for torch.compile, which fuses it."""
    return F.cross_entropy(head.finish(F.linear(hidden, weight, bias).float()), labels, reduction="sum")


class ChunkedNLL(torch.autograd.Function):
    """Sum of the labels' NLL in float32, from what enters a head's last layer.

    The gradients of each chunk of the labels are computed along with its loss, so that its logits need neither be kept
    nor computed again (Hsu et al., 2024, Liger Kernel).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, head: OutputHead) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        low_hidden = hidden.to(dtype)
        padded_weight, padded_bias = head.align(weight.to(dtype), None if bias is None else bias.to(dtype))
        gradients = _Gradients(low_hidden, padded_weight, None if bias is None else padded_bias)
        differentiate = _compiled(_differentiate) if head.compiled else _differentiate
        vocabulary = len(padded_weight)
        chunks = math.ceil(len(labels) / max(16, LOGITS_PER_CHUNK.get(device, LOGITS_PER_CHUNK["cuda"]) // vocabulary))
        tile = max(16, LOGITS_PER_TILE.get(device, LOGITS_PER_TILE["cuda"]) // vocabulary)
        # One buffer serves all chunks; first it holds their logits, then these logits' gradients
        buffer = low_hidden.new_empty(math.ceil(len(labels) / chunks), vocabulary + -vocabulary % ROW_ALIGNMENT)
        buffer[:, vocabulary:] = 0  # a product in bfloat16 may read one column beyond its rows' end, and NaN · 0 is NaN
        nll = 0.0
        pieces = (tensor.tensor_split(chunks) for tensor in (low_hidden, labels, gradients.hidden))
        for states, of_states, for_states in zip(*pieces, strict=True):
            logits = buffer[: len(states), :vocabulary]
            if padded_bias is None:
                torch.mm(states, padded_weight.T, out=logits)
            else:
                torch.addmm(padded_bias, states, padded_weight.T, out=logits)
            for rows, of_rows in zip(logits.split(tile), of_states.split(tile), strict=True):
                nll = nll + differentiate(head, rows, of_rows)
            gradients.add(states, logits, padded_weight, for_states)
        ctx.gradients = gradients.like(hidden, weight, bias)
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor):
        if ctx.gradients is None:
            raise RuntimeError("the gradients of this loss are given away: a second backward pass needs another loss")
        gradients, ctx.gradients = ctx.gradients, None
        return *(None if gradient is None else gradient.mul_(factor) for gradient in gradients), None, None


class _Gradients:
    """Of the last layer's input, weight and bias, added up chunk by chunk; the latter two in float32."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None):
        self.hidden = torch.empty_like(hidden)
        self.weight = torch.zeros_like(weight, dtype=torch.float32)
        self.bias = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)

    def add(self, states: Tensor, for_logits: Tensor, weight: Tensor, for_states: Tensor) -> None:
        """One chunk: from the gradient of its logits to those of ``states`` (written to ``for_states``) and weights."""
        torch.mm(for_logits, weight, out=for_states)
        if weight.dtype == torch.float32:
            self.weight.addmm_(for_logits.T, states)
        else:
            self.weight += for_logits.T @ states
        if self.bias is not None:
            self.bias += for_logits.sum(0, dtype=torch.float32)

    def like(self, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> list[Tensor | None]:
        """The gradients in these tensors' types and shapes: without the tokens that were added to the vocabulary."""
        for_weight = self.weight
        if len(for_weight) > len(weight):  # only then: autograd adds a tied embedding's in place, but to no view
            for_weight = for_weight[: len(weight)]
        for_bias = None if bias is None else self.bias[: len(weight)].to(bias.dtype)
        return [self.hidden.to(hidden.dtype), for_weight.to(weight.dtype), for_bias]


def _differentiate(head: OutputHead, raw: Tensor, labels: Tensor) -> Tensor:
    """The sum of the labels' NLL; its gradient replaces the last layer's products, ``raw`` [labels, columns]."""
    logits, at = head.finish(raw.float()), labels.unsqueeze(-1)
    shares = logits.softmax(-1)
    total = logits.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log()
    of_label = logits.gather(-1, at)
    raw.copy_(head.chain(logits, shares))
    raw.scatter_(-1, at, head.chain(of_label, shares.gather(-1, at) - 1).to(raw.dtype))
    return (total - of_label).sum()


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


def _score(pieces: Iterable[tuple[Iterable[Tensor], Tensor]], with_hits: bool) -> LossSums:
    """Over pieces of the labels, for each of which the logits come in parts of the vocabulary."""
    nll, tokens, hits, of_tokens = 0.0, 0, [], []
    for tiles, labels in pieces:
        # a list of the tiles' would lie between the large blocks that come and go, and each tile would need new memory
        first, of_label = 0, torch.zeros(len(labels), device=labels.device)
        total = torch.full_like(of_label, -math.inf, dtype=torch.float64)
        best, guess = torch.full_like(of_label, -math.inf), torch.zeros_like(labels)
        for logits in tiles:
            total = torch.logaddexp(total, logits.logsumexp(-1))
            column = labels - first
            inside = (column >= 0) & (column < logits.shape[-1])
            in_tile = logits.gather(-1, column.clamp(0, logits.shape[-1] - 1).unsqueeze(1)).squeeze(1)
            of_label = torch.where(inside, in_tile, of_label)
            if with_hits:
                top, at = logits.max(-1)
                guess = torch.where(top > best, at + first, guess)
                best = torch.maximum(top, best)
            first += logits.shape[-1]
        nll = nll + (total - of_label).sum()
        tokens += len(labels)
        if with_hits:
            hits.append(guess == labels)
            of_tokens.append(total - of_label)
    return LossSums(nll, tokens, torch.cat(hits), torch.cat(of_tokens)) if with_hits else LossSums(nll, tokens)
