"""The LightningModule: a transformers model, an objective's loss, an optimizer."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_lm.models.activations import recomputed
from lightning_lm.models.attention import needs_no_mask, unmasked
from lightning_lm.models.loss import labelled_nll
from lightning_lm.models.output_head import find_head
from lightning_lm.models.step_graph import StepGraph
from lightning_lm.objectives.objective import Objective
from lightning_lm.optim.groups import build_optimizer, update_unless
from lightning_lm.optim.schema import AdamWConfig, SchedulerConfig, build_scheduler
from lightning_lm.training.metrics import TokenNLL

BESIDE = ("loss", "accuracy")  # figures of a mixture's further parts


class LanguageModel(L.LightningModule):
    """Trains ``model`` so that the loss is the mean over the labelled tokens of the global batch.

    ``model`` is of the objective's Auto class. ``configure`` makes the optimizer and its scheduler for a model, once it
    is on its device; None: AdamW with the defaults of ``optimizer=adamw`` and a constant rate. With ``compiled``,
    torch.compile joins what happens to the logits; with "step", all that leads to the loss. With ``skips``, a step
    whose gradients are no numbers changes neither weights nor optimizer. Without ``exact_norm``, the norm of the
    gradients is summed in float32. With ``label_share``, the mean number of labels per token, a GPU replays a compiled
    "step" as CUDA graphs.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        configure: Callable[[nn.Module], tuple[Optimizer, LRScheduler]] | None = None,
        compiled: bool | str = False,
        skips: bool = False,
        exact_norm: bool = True,
        label_share: float | None = None,
    ):
        super().__init__()
        self.model = model.train()  # from_pretrained leaves it in eval mode, without dropout
        self.head = find_head(model, bool(compiled))
        self.training_nll = (
            StepGraph(model, self.head, label_share).nll
            if compiled == "step"
            else partial(labelled_nll, model, self.head)
        )
        self.objective = objective
        self.needs_no_mask: dict[int, bool] = {}  # kind → that, from its first batch on
        self.recomputes_nothing = 0  # positions of the largest batch whose activations were all small
        self.skips = skips
        self.exact_norm = exact_norm
        self.configure = configure or _configure_adamw
        self.train_nll = TokenNLL()
        self.eval_nll = nn.ModuleList(TokenNLL() for _ in objective.parts)
        self.gradient_norm = torch.zeros(())
        self.figures: dict[str, float] = {}  # of the latest evaluation

    def configure_optimizers(self):
        optimizer, scheduler = self.configure(self.model)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        # Ranks' gradients will be averaged and micro batches' losses divided by their number: both are undone here.
        passes = self.trainer.world_size * self.trainer.accumulate_grad_batches
        parts = self.objective.passes(self.model, batch)
        return sum(self._nll(part, kind) * (part.get("weight", 1) * passes) for kind, part in parts)

    def _nll(self, batch: dict[str, Any], kind: int) -> Tensor:
        """Over the batch's labels, divided by all that the step has of this kind."""
        if kind not in self.needs_no_mask:
            self.needs_no_mask[kind] = needs_no_mask(self.model, self.head, batch)
        positions = batch["input_ids"].numel()
        recomputes = not self.head.compiled and positions > self.recomputes_nothing
        with (
            recomputed(self.model) if recomputes else nullcontext() as large,
            unmasked(self.model) if self.needs_no_mask[kind] else nullcontext(),
        ):
            sums = self.training_nll(batch)
        if recomputes and not large:
            self.recomputes_nothing = positions
        nll = sums.nll.detach()
        counts = torch.isfinite(nll) if self.skips else 1
        self.train_nll.update(torch.where(counts, nll, 0) if self.skips else nll, sums.tokens * counts)
        return sums.nll / batch["num_labels"]

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.gradient_norm = self._total_norm([p.grad for p in parameters]).float()
        if self.skips:
            update_unless(~torch.isfinite(self.gradient_norm), optimizer)
        if gradient_clip_val is not None:
            nn.utils.clip_grads_with_norm_(parameters, gradient_clip_val, self.gradient_norm)

    def _total_norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of all gradients together, float64. In float32 are sums over one row: those over millions are 1e-4 off."""
        if not self.exact_norm:
            return nn.utils.get_total_norm(gradients)
        rows = [torch.linalg.vector_norm(g, dim=-1, dtype=torch.float32) if g.ndim > 1 else g for g in gradients]
        return torch.linalg.vector_norm(torch.cat([norms.flatten() for norms in rows]), dtype=torch.float64)

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure=None) -> None:
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        optimizer.zero_grad()  # Lightning would keep the gradients through the next forward pass

    def _score(self, batch: dict[str, Any], batch_idx: int) -> None:
        for kind, part in self.objective.passes(self.model, batch):
            sums = labelled_nll(self.model, self.head, part, with_hits=True)
            of_text = self.objective.parts[kind].text_metrics
            text = {"words": part["words"], "bytes": part["bytes"]} if of_text else {}
            self.eval_nll[kind].update(sums.nll, sums.tokens, sums.hits.sum(), **text)

    validation_step = test_step = _score

    def on_validation_epoch_end(self) -> None:
        self._keep_figures("val")

    def on_test_epoch_end(self) -> None:
        self._keep_figures("test")

    def _keep_figures(self, split: str) -> None:
        first, *others = (nll.compute() for nll in self.eval_nll)
        for part, of_part in zip(self.objective.parts[1:], others, strict=True):
            first |= {f"{part.facts.kind}_{name}": of_part[name] for name in BESIDE if name in of_part}
        self.figures = {f"{split}/{name}": value for name, value in first.items()}
        for nll in self.eval_nll:
            nll.reset()
        for name, value in self.figures.items():  # for checkpoints, early stopping and the progress bar
            exact = torch.tensor(value, dtype=torch.float64)
            self.log(name, exact, logger=False, prog_bar=name == "val/loss")


def _configure_adamw(model: nn.Module) -> tuple[Optimizer, LRScheduler]:
    optimizer = build_optimizer(model, AdamWConfig())
    return optimizer, build_scheduler(optimizer, SchedulerConfig("constant"), total_steps=1)
