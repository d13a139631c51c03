"""What the ranks tell one another beside their gradients: no rank waits for another's answer, nor for its device."""

from datetime import timedelta

import lightning as L
import torch
import torch.distributed as dist


class Agreement:
    """The largest of the numbers that the ranks know, one question later, so that all act on it at the same place.

    The answers go from host to host, by gloo, while the ranks compute. A process that is the only one answers at once.
    """

    def __init__(self, timeout: float):
        self.timeout = timedelta(seconds=timeout)
        self._group: dist.ProcessGroup | None = None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    def begin(self, trainer: L.Trainer) -> None:
        """To be called by all ranks, before the first question."""
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo", timeout=self.timeout)

    def largest_before(self, *values: float) -> list[float]:
        """Ask for the largest of each value; returns the answer to the question before, zeros where there is none."""
        if self._group is None:
            return list(values)
        answer = self._answer() or [0.0] * len(values)
        asked = torch.tensor(values, dtype=torch.float64)
        self._asked = asked, dist.all_reduce(asked, dist.ReduceOp.MAX, self._group, async_op=True)
        return answer

    def largest_now(self, *values: float) -> list[float]:
        """The same, with this question's answer, for which the ranks wait."""
        before = self.largest_before(*values)
        return [max(pair) for pair in zip(before, self._answer() or before, strict=True)]

    def _answer(self) -> list[float] | None:
        if self._asked is None:
            return None
        (answer, work), self._asked = self._asked, None
        work.wait()
        return answer.tolist()
