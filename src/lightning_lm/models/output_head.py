"""Which part of a model is its head, and from where on the labelled positions can be served alone."""

import functools
import inspect
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import repeat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_lm.models.loading import layers

log = logging.getLogger(__name__)
EVAL_COLUMNS = {"cpu": 2**11, "cuda": 2**18}  # of logits that evaluation builds at once: a CPU's cache holds them
VOCABULARY_MULTIPLE = {"cpu": 1, "cuda": 64}  # the number of tokens in a product is a multiple of it, or it is slow
# Keys of a batch that are for us; all others are arguments of the model's forward
NO_INPUTS = {"labels", "labelled", "num_labels", "words", "bytes", "kind", "weight", "others"}


@dataclass(frozen=True)
class OutputHead:
    """How a model's hidden states become logits: ``cap · tanh(scale · linear(h) / cap)`` (Gemma 2 Team, 2024).

    After ``sparse`` the model works position by position, so that only the labelled ones go on: a module of the last
    layer, such as BERT's attention, or the whole body; None where the head mixes positions.
    """

    sparse: nn.Module | None = None
    linear: nn.Linear | None = None  # None where the logits are not a simple function of the last layer's output
    scale: float = 1.0
    cap: float | None = None  # None: the logits are scale · linear(h)
    compiled: bool = False  # whether torch.compile joins what training does to the logits

    def logits(self, hidden: Tensor) -> Tensor:
        return self.finish(self.linear(hidden).float())

    def tiles(self, hidden: Tensor) -> Iterator[Tensor]:
        """Of ``hidden`` [labels, width] the logits for one part of the vocabulary after the other."""
        size = EVAL_COLUMNS.get(hidden.device.type, EVAL_COLUMNS["cuda"])
        biases = repeat(None) if self.linear.bias is None else self.linear.bias.split(size)
        for weight, bias in zip(self.linear.weight.split(size), biases, strict=False):
            yield self.finish(F.linear(hidden, *self.align(weight, bias))[:, : len(weight)].float())

    def finish(self, raw: Tensor) -> Tensor:
        """The logits, from the last layer's products."""
        logits = raw if self.scale == 1 else raw * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)

    def align(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The last layer's, with tokens added until ``VOCABULARY_MULTIPLE`` divides their number.

        Their bias of −∞ rules these tokens out. A cap would make their logits finite, so with one nothing is added.
        """
        missing = -len(weight) % VOCABULARY_MULTIPLE.get(weight.device.type, VOCABULARY_MULTIPLE["cuda"])
        if not missing or self.cap is not None:
            return weight, bias
        bias = torch.zeros_like(weight[:, 0]) if bias is None else bias
        return F.pad(weight, (0, 0, 0, missing)), F.pad(bias, (0, missing), value=-math.inf)

    def chain(self, logits: Tensor, gradient: Tensor) -> Tensor:
        """From the gradient of ``logits``, as ``finish`` returns them, to that of its argument."""
        gradient = gradient if self.scale == 1 else gradient * self.scale
        return gradient if self.cap is None else gradient * (1 - (logits / self.cap).square())


def forward_to_head(
    model: nn.Module, head: OutputHead, batch: dict[str, Tensor], where: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Run the model up to its head's last layer, from ``head.sparse`` on with the labelled positions alone.

    ``where`` is int64 [labels], positions in the flattened batch. Returns what enters the last layer there, [labels,
    width], and None; or, where the head has no such layer, None and the logits there, [labels, vocabulary].
    """
    inputs = model_inputs(model, batch)
    entering: list[Tensor] = []  # the last layer
    selected = False

    def select_labelled(body: nn.Module, args: tuple, output):
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

    def take_hidden_states(linear: nn.Module, args: tuple):
        entering.append(args[0].flatten(0, -2))
        return (args[0][..., :1, :],)  # for form's sake: the logits that the model returns aren't used

    with ExitStack() as hooks:
        if head.sparse is not None:
            hooks.enter_context(head.sparse.register_forward_hook(select_labelled))
        if head.linear is not None:
            hooks.enter_context(head.linear.register_forward_pre_hook(take_hidden_states))
        logits = model(**inputs).logits
    if head.sparse is not None and not selected:
        raise ValueError("this part of the model was not called")
    states = entering[0] if entering else logits.flatten(0, 1)
    states = states if selected else states.index_select(0, where)
    return (states, None) if entering else (None, states)


def model_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of a batch what the model's forward takes; a key that it doesn't know would have no effect, so it is an error."""
    arguments = _arguments(type(model))
    inputs = {name: batch[name] for name in batch if name not in NO_INPUTS}
    foreign = sorted(inputs.keys() - arguments)
    if foreign and "input_ids" in arguments:  # a wrapper may name none of them
        raise ValueError(f"{type(model).__name__} takes no {', '.join(foreign)}: the batch has it from the objective")
    if "use_cache" in arguments:
        inputs["use_cache"] = False  # keys and values are for generating
    return inputs


@functools.cache
def _arguments(architecture: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(architecture.forward).parameters)


def find_head(model: nn.Module, compiled: bool = False) -> OutputHead:
    """Finds out, on a few tokens, which positions and which layer of a model's head can be served by themselves.

    What can't is computed by the model's own code, and the log says so. Layers that are compiled, or computed again in
    the backward pass, are left whole.
    """
    whole = compiled or any(getattr(part, "gradient_checkpointing", False) for part in model.modules())
    places = [] if whole else [part for layer in layers(model)[-1:] for part in layer.children()]
    training, eager = model.training, torch.compiler.set_stance("force_eager")
    silent = [p for p in model.parameters() if not p.any()]  # such as biases: what adds them would be overlooked
    with torch.no_grad(), torch.autocast(model.device.type, enabled=False), eager:
        try:
            for parameter in silent:
                parameter.copy_(torch.linspace(-0.1, 0.1, parameter.numel()).view_as(parameter))
            head = _probe(model.eval(), [*places, model.base_model])
        finally:
            for parameter in silent:
                parameter.zero_()
            model.train(training)
    if head.linear is None:
        at = "all positions" if head.sparse is None else "the labelled positions"
        log.info("%s: its head can't be computed in chunks; the logits of %s exist at once", type(model).__name__, at)
    return replace(head, compiled=compiled)


def _probe(model: nn.Module, places: Sequence[nn.Module]) -> OutputHead:
    """Tries heads, those first that drop unlabelled positions early; returns the first with the model's own logits."""
    ids = torch.arange(8, device=model.device).view(2, 4) % model.config.get_text_config().vocab_size
    batch, everywhere = {"input_ids": ids}, torch.arange(8, device=model.device)
    where = everywhere[[0, 1, 2, 5, 6]]  # more than a block has positions: what cuts to its length would show
    try:
        expected = forward_to_head(model, OutputHead(), batch, where)[1]
    except Exception:  # some pool or pad their input, and can't do with so few tokens
        return OutputHead()

    def is_right(head: OutputHead) -> bool:
        try:
            hidden, logits = forward_to_head(model, head, batch, where)
            return same_logits(head.logits(hidden) if logits is None else logits.float(), expected.float())
        except Exception:  # what the model's own code raises where it wants the whole batch, or other shapes
            return False

    dense = _last_layer(model, batch, everywhere)
    heads = [*(replace(dense, sparse=place) for place in places), dense] if dense else []
    return next(filter(is_right, [*heads, *map(OutputHead, places)]), OutputHead())


def same_logits(logits: Tensor, expected: Tensor) -> bool:
    """Whether they differ by rounding alone, which grows with the largest logit; large models have hundreds."""
    return torch.allclose(logits, expected, rtol=1e-4, atol=1e-5 * max(1.0, float(expected.abs().max())))


def _last_layer(model: nn.Module, batch: dict[str, Tensor], where: Tensor) -> OutputHead | None:
    """The head's last layer and what the model does to its outputs: seen on logits so large that a cap would show."""
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return None
    products: list[Tensor] = []

    def enlarge(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        products.append(output * (50 / output.abs().max()))
        return products[0]

    with linear.register_forward_hook(enlarge):
        logits = forward_to_head(model, OutputHead(), batch, where)[1]
    if not products or products[0].shape[-1] != logits.shape[-1]:
        return None
    raw, logits = products[0].flatten(0, -2).float(), logits.float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    scale = 1.0 if cap else float((raw * logits).sum(dtype=torch.float64) / raw.square().sum(dtype=torch.float64))
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-5) else scale
    head = OutputHead(None, linear, scale, cap)
    return head if torch.allclose(head.finish(raw), logits, rtol=1e-4, atol=1e-4) else None
