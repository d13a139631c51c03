"""From a batch to the negative log-likelihood of its labelled tokens. Only their positions reach the vocabulary."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

CHUNK = {"cpu": 2**25, "cuda": 2**27}  # logits that are built at once: fewer, larger products are faster
PART = {"cpu": 2**20, "cuda": 2**27}  # of them, those that become their gradient at once: a CPU's cache holds them
# Rows and columns of logits in evaluation, where no gradient needs whole rows: on a CPU they stay in its cache
ROWS, COLUMNS = 2**10, {"cpu": 2**11, "cuda": 2**18}
LINE = 64  # logits from one row to the next are a multiple of this, or products are slow
VOCABULARY = {"cpu": 1, "cuda": 64}  # what the number of tokens in a product is a multiple of, for the same reason


@dataclass(frozen=True)
class Head:
    """How a model's hidden states become logits.

    Attributes:
        sparse: the module after which the model works position by position, so that only the labelled ones go on: of
            the last layer, such as BERT's attention, or the whole body; None where the head mixes positions.
        linear: its last layer; None where the logits are not a simple function of what that returns.
        scale, cap: they are ``cap · tanh(scale · linear(h) / cap)`` (Gemma 2 Team, 2024), or without a cap
            ``scale · linear(h)``.
        compiled: whether torch.compile joins what training does to the logits.
    """

    sparse: nn.Module | None = None
    linear: nn.Linear | None = None
    scale: float = 1.0
    cap: float | None = None
    compiled: bool = False

    def logits(self, hidden: Tensor) -> Tensor:
        return self.finish(self.linear(hidden).float())

    def tiles(self, hidden: Tensor) -> Iterator[Tensor]:
        """Of ``hidden`` [labels, width] the logits for one part of the vocabulary after the other."""
        size = COLUMNS.get(hidden.device.type, COLUMNS["cuda"])
        biases = repeat(None) if self.linear.bias is None else self.linear.bias.split(size)
        for weight, bias in zip(self.linear.weight.split(size), biases, strict=False):
            yield self.finish(F.linear(hidden, *self.align(weight, bias))[:, : len(weight)].float())

    def finish(self, raw: Tensor) -> Tensor:
        logits = raw if self.scale == 1 else raw * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def align(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last layer's, with tokens added until ``VOCABULARY`` divides their number; a bias of −∞ rules them out.

        A cap would make their logits finite, so with one nothing is added.
        """
        missing = -len(weight) % VOCABULARY.get(weight.device.type, VOCABULARY["cuda"])
        if not missing or self.cap is not None:
            return weight, bias
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        return F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-math.inf)

    def chain(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient of ``logits``, as ``finish`` returns them, to that of its argument."""
        gradient = gradient if self.scale == 1 else gradient * self.scale
        return gradient if self.cap is None else gradient * (1 - (logits / self.cap).square())


@dataclass
class Sums:
    """Over the labelled tokens of a batch: their NLL in nats, their number, and the right guesses where asked for."""

    nll: Tensor
    tokens: int
    hits: Tensor | None = None


def labelled_nll(model: nn.Module, head: Head, batch: dict[str, Tensor], with_hits: bool = False) -> Sums:
    """Negative log-likelihood of the labelled tokens.

    Args:
        model: of an Auto class.
        head: ``head.find_head(model)``.
        batch: ``input_ids`` and ``labels`` int64 [n, t], labels aligned with the outputs and −100 where there is
            none; ``attention_mask`` where there is padding; ``labelled`` int64 [labels], positions in the flattened
            batch, or they are looked for, which makes a GPU's queue run dry.
        with_hits: also count where the likeliest token is the right one; for evaluation, without gradients.
    """
    labels, where = batch["labels"].flatten(), batch.get("labelled")
    where = (labels != -100).nonzero().squeeze(1) if where is None else where
    labels = labels[where]
    hidden, logits = run(model, head, batch, where)
    if hidden is None or not len(labels):
        return _score([([head.logits(hidden) if logits is None else logits.float()], labels)], with_hits)
    if not torch.is_grad_enabled():
        pieces = zip(hidden.split(ROWS), labels.split(ROWS), strict=True)
        return _score(((head.tiles(h), y) for h, y in pieces), with_hits)
    return Sums(ChunkedNLL.apply(hidden, head.linear.weight, head.linear.bias, labels, head), len(labels))


def run(model: nn.Module, head: Head, batch: dict[str, Tensor], where: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """What enters the head's last layer at the positions ``where``, [labels, width]; or None and the logits there."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    if _has_cache(type(model)):
        inputs["use_cache"] = False  # keys and values are for generating
    kept: list[Tensor] = []
    selected = False

    def keep_labelled(body: nn.Module, args: tuple, output):
        nonlocal selected
        selected = True
        states = output if isinstance(output, Tensor) else output[0]
        states = states.flatten(0, 1).index_select(0, where).unsqueeze(0)
        if isinstance(output, Tensor):
            return states
        if isinstance(output, tuple):
            return (states, *output[1:])
        output[next(iter(output))] = states
        return output

    def keep_hidden(linear: nn.Module, args: tuple):
        kept.append(args[0].flatten(0, -2))
        return (args[0][..., :1, :],)  # for form's sake: the logits that the model returns aren't used

    with ExitStack() as hooks:
        if head.sparse is not None:
            hooks.callback(head.sparse.register_forward_hook(keep_labelled).remove)
        if head.linear is not None:
            hooks.callback(head.linear.register_forward_pre_hook(keep_hidden).remove)
        logits = model(**inputs).logits
    if head.sparse is not None and not selected:
        raise ValueError("this part of the model was not called")
    found = kept[0] if kept else logits.flatten(0, 1)
    found = found if selected else found.index_select(0, where)
    return (found, None) if kept else (None, found)


class ChunkedNLL(torch.autograd.Function):
    """Sum of the labels' NLL in float32, from what enters a head's last layer.

    The gradients of each chunk of the labels are computed along with its loss, so that its logits need neither be kept
    nor computed again (Hsu et al., 2024, Liger Kernel).
    """

    @staticmethod
    def forward(ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, head: Head) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        x, (w, b) = hidden.to(dtype), head.align(weight.to(dtype), None if bias is None else bias.to(dtype))
        differentiate = _compiled() if head.compiled else _differentiate
        nll, for_x, for_w = 0.0, torch.empty_like(x), torch.zeros_like(w, dtype=torch.float32)
        for_b = None if bias is None else torch.zeros_like(b, dtype=torch.float32)
        chunks = math.ceil(len(labels) / max(16, CHUNK.get(device, CHUNK["cuda"]) // len(w)))
        part = max(16, PART.get(device, PART["cuda"]) // len(w))
        space = x.new_empty(math.ceil(len(x) / chunks), len(w) + -len(w) % LINE)
        for rows, y, gradient in zip(*(t.tensor_split(chunks) for t in (x, labels, for_x)), strict=True):
            logits = space[: len(rows), : len(w)]
            if b is None:
                torch.mm(rows, w.T, out=logits)
            else:
                torch.addmm(b, rows, w.T, out=logits)
            for z, wanted in zip(logits.split(part), y.split(part), strict=True):
                nll = nll + differentiate(head, z, wanted)
            torch.mm(logits, w, out=gradient)
            if dtype == torch.float32:
                for_w.addmm_(logits.T, rows)
            else:
                for_w += logits.T @ rows
            if bias is not None:
                for_b += logits.sum(0, dtype=torch.float32)
        if len(w) > len(weight):  # else no view: autograd adds a tied embedding's gradient in place, but not to views
            for_w = for_w[: len(weight)]
        ctx.kept = [for_x.to(hidden.dtype), for_w.to(weight.dtype)]
        ctx.kept.append(None if bias is None else for_b[: len(weight)].to(bias.dtype))
        return nll

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor):
        if ctx.kept is None:
            raise RuntimeError("the gradients of this loss are given away: a second backward pass needs another loss")
        kept, ctx.kept = ctx.kept, None
        return *(None if gradient is None else gradient.mul_(factor) for gradient in kept), None, None


def _differentiate(head: Head, raw: Tensor, labels: Tensor) -> Tensor:
    """The sum of the labels' NLL; its gradient replaces the last layer's products, ``raw`` [labels, columns]."""
    logits, at = head.finish(raw.float()), labels.unsqueeze(-1)
    shares = logits.softmax(-1)
    total = logits.amax(-1, keepdim=True) - shares.amax(-1, keepdim=True).log()
    own = logits.gather(-1, at)
    raw.copy_(head.chain(logits, shares))
    raw.scatter_(-1, at, head.chain(own, shares.gather(-1, at) - 1).to(raw.dtype))
    return (total - own).sum()


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(_differentiate)


def _score(pieces: Iterable[tuple[Iterable[Tensor], Tensor]], with_hits: bool) -> Sums:
    """Over pieces of the labels, for each of which the logits come in parts of the vocabulary."""
    nll, tokens, hits = 0.0, 0, 0
    for tiles, labels in pieces:
        # a list of the tiles' would lie between the large blocks that come and go, and each tile would need new memory
        first, own = 0, torch.zeros(len(labels), device=labels.device)
        total = torch.full_like(own, -math.inf, dtype=torch.float64)
        best, guess = torch.full_like(own, -math.inf), torch.zeros_like(labels)
        for logits in tiles:
            total = torch.logaddexp(total, logits.logsumexp(-1))
            here = labels - first
            inside = (here >= 0) & (here < logits.shape[-1])
            found = logits.gather(-1, here.clamp(0, logits.shape[-1] - 1).unsqueeze(1)).squeeze(1)
            own = torch.where(inside, found, own)
            if with_hits:
                top, at = logits.max(-1)
                guess = torch.where(top > best, at + first, guess)
                best = torch.maximum(top, best)
            first += logits.shape[-1]
        nll = nll + (total - own).sum()
        tokens += len(labels)
        hits = hits + (guess == labels).sum() if with_hits else None
    return Sums(nll, tokens, hits)


@functools.cache
def _has_cache(architecture: type[nn.Module]) -> bool:
    return "use_cache" in inspect.signature(architecture.forward).parameters
