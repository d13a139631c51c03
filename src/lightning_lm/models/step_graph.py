"""The loss of a training batch as one graph of torch.compile: model, last layer and loss together."""

import logging
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

from lightning_lm.models.loss import LOGITS_AT_ONCE, LossSums, labelled_nll, whole_nll
from lightning_lm.models.output_head import OutputHead, model_inputs

log = logging.getLogger(__name__)


class StepGraph:
    """Computes what ``labelled_nll`` does, so that one graph joins all of it: no logits in float32, no break.

    In the graph the model's last layer is the identity, so that the model returns what enters that layer. A model that
    does more with its logits, or whose code can't be one graph, is left to ``labelled_nll``, and the log says so. Each
    shape of a batch has a graph of its own, whatever came before it, so that a run that goes on computes the same.

    With ``label_share``, the mean number of labels per token, a GPU replays the step as CUDA graphs. Their shapes are
    fixed, so a masked batch is filled up with positions that have no label. What a step leaves in their memory, such as
    its gradients, must be let go before the next one.
    """

    def __init__(self, model: nn.Module, head: OutputHead, label_share: float | None = None):
        self.model, self.head, self.label_share = model, head, label_share
        linear = head.linear
        children = [(part, name, child) for part in model.modules() for name, child in part.named_children()]
        self.places = [(part, name) for part, name, child in children if child is linear]
        mode = None if label_share is None else "reduce-overhead"
        self.graph = torch.compile(self._nll, fullgraph=True, dynamic=False, mode=mode)
        if linear is None or head.scale != 1 or head.cap is not None:
            self._give_up("it does more to its logits than its last layer")

    def nll(self, batch: dict[str, Tensor]) -> LossSums:
        """Of a batch as ``labelled_nll`` takes it, with its ``labelled``."""
        where, tokens = batch["labelled"], len(batch["labelled"])
        room = tokens if self.label_share is None else self._room(tokens, *batch["labels"].shape)
        if self.graph is None or room * self.head.linear.out_features > LOGITS_AT_ONCE or tokens > room:
            return labelled_nll(self.model, self.head, batch)
        if self.label_share is None:
            torch._dynamo.mark_dynamic(where, 0)  # of masked models, each batch has another number of labels
        else:
            where = F.pad(where, (0, room - tokens), value=-1)
            torch.compiler.cudagraph_mark_step_begin()  # the last step's results may be overwritten
        for part, name in self.places:
            setattr(part, name, nn.Identity())
        try:
            inputs, linear = model_inputs(self.model, batch), self.head.linear
            return LossSums(self.graph(inputs, batch["labels"], where, linear.weight, linear.bias), tokens)
        # While it is traced, before anything is computed; the limit is of shapes, and thus of graphs
        except (TorchDynamoException, FailOnRecompileLimitHit) as error:
            self._give_up(str(error).splitlines()[0])
        finally:
            for part, name in self.places:
                setattr(part, name, self.head.linear)
        return labelled_nll(self.model, self.head, batch)

    def _nll(
        self, inputs: dict[str, Tensor], labels: Tensor, where: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        at = where if self.label_share is None else where.clamp(min=0)  # −1 stands for no position
        labels = labels.flatten().index_select(0, at)
        if self.label_share is not None:
            labels = labels.masked_fill(where < 0, -100)
        states = self.model(**inputs).logits.flatten(0, 1).index_select(0, at)
        return whole_nll(states, weight, bias, labels, self.head)

    def _room(self, labels: int, blocks: int, size: int) -> int:
        """For how many labels a graph of this shape is made: more than any but a rare masked batch has."""
        if labels == blocks * (size - 1):  # of a causal model, which has as many in each batch
            return labels
        mean = self.label_share * blocks * size
        return math.ceil(mean + 8 * math.sqrt(mean))  # more than eight standard deviations

    def _give_up(self, reason: str) -> None:
        self.graph = None
        log.info("hardware.compile=step: %s can't be one graph (%s); its layers are", type(self.model).__name__, reason)
