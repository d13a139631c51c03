"""Which part of a model is its head, and from where on the labelled positions can be served alone."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_lm.loss import Head, run
from lightning_lm.model import layers

log = logging.getLogger(__name__)


def find_head(model: nn.Module, compiled: bool = False) -> Head:
    """Finds out, on a few tokens, which positions and which layer of a model's head can be served by themselves.

    What can't is computed by the model's own code, and the log says so. Layers that are compiled, or computed again in
    the backward pass, are left whole.
    """
    whole = compiled or getattr(model, "is_gradient_checkpointing", False)
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


def _probe(model: nn.Module, places: Sequence[nn.Module]) -> Head:
    """The first that is right, of heads that drop what isn't labelled as early as can be."""
    ids = torch.arange(8, device=model.device).view(2, 4) % model.config.get_text_config().vocab_size
    batch, everywhere = {"input_ids": ids}, torch.arange(8, device=model.device)
    where = everywhere[[1, 2, 5]]
    logits = run(model, Head(), batch, where)[1]

    def right(head: Head) -> bool:
        try:
            hidden, found = run(model, head, batch, where)
        except Exception:  # what the model's own code raises where it wants the whole batch
            return False
        found = head.logits(hidden) if found is None else found.float()
        return torch.allclose(found, logits.float(), rtol=1e-4, atol=1e-5)

    dense = _last_layer(model, batch, everywhere)
    heads = [*(replace(dense, sparse=place) for place in places), dense] if dense else []
    return next(filter(right, [*heads, *map(Head, places)]), Head())


def _last_layer(model: nn.Module, batch: dict[str, Tensor], where: Tensor) -> Head | None:
    """The head's last layer and what the model does to its outputs: seen on logits so large that a cap would show."""
    linear = model.get_output_embeddings()
    if type(linear) is not nn.Linear:
        return None
    raw: list[Tensor] = []

    def enlarge(layer: nn.Module, args: tuple, output: Tensor) -> Tensor:
        raw.append(output * (50 / output.abs().max()))
        return raw[0]

    handle = linear.register_forward_hook(enlarge)
    try:
        logits = run(model, Head(), batch, where)[1]
    finally:
        handle.remove()
    if not raw or raw[0].shape[-1] != logits.shape[-1]:
        return None
    before, logits = raw[0].flatten(0, -2).float(), logits.float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    scale = 1.0 if cap else float((before * logits).sum(dtype=torch.float64) / before.square().sum(dtype=torch.float64))
    scale = 1.0 if math.isclose(scale, 1, rel_tol=1e-5) else scale
    found = Head(None, linear, scale, cap)
    return found if torch.allclose(found.finish(before), logits, rtol=1e-4, atol=1e-4) else None
