"""What a `Trainer` trains: a module with its loss, and the batches it learns from."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from infinitevl.training.optimizer import Schedule, cosine
from infinitevl.training.stages.inputs import Batch

# One loss, or its named terms, whose sum is the loss; the log shows each of them.
Loss = Tensor | Mapping[str, Tensor]


class Feed(Protocol):
    """Yields the batches of each step, and can continue from any of them."""

    @property
    def skipped(self) -> Mapping[str, str]:
        """Bad samples of this process so far: the reason by place."""

    def next_batches(self) -> Sequence[Batch]:
        """Returns this process's batches of the next step, at least one."""

    def state_dict(self) -> dict[Any, Any]:
        """Returns the position after the last step, as plain values. Keys of two processes differ."""

    def load_state_dict(self, state: dict[Any, Any]) -> None:
        """Continues from `state`, the positions of all processes merged into one dict."""


class LossModule(nn.Module):
    """Wraps a student and its loss as one module, so that weights can be sharded over processes.

    Args:
        student: what trains; a model, or a module of a model and auxiliary heads.
        loss: of a batch, summed over the tokens (or whatever `TrainTask.count` counts).
        dtype: of products (autocast); None for the dtype of the weights.
        teacher: frozen, read by the loss; named here so that its weights are sharded as well.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Loss],
        dtype: torch.dtype | None = None,
        teacher: nn.Module | None = None,
    ):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.loss, self.dtype = loss, dtype

    def forward(self, batch: Batch) -> Loss:
        """Computes the loss of a batch, as a sum."""
        device_type = next(self.student.parameters()).device.type
        with torch.autocast(device_type, self.dtype, enabled=self.dtype is not None):
            return self.loss(batch)

    def train(self, mode: bool = True) -> Self:
        """Sets training mode on all but the teacher."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


@dataclass(frozen=True)
class TrainTask:
    """A module with its loss, and the data for it.

    Args:
        module: with the loss as its forward pass.
        feed: batches of each step.
        count: over how many tokens the loss of a batch is a sum. The loss of a step is the sum over all its
            batches divided by the sum of these; `lambda batch: 1` gives the mean over batches.
        flops: floating-point operations of a batch, if known.
        lr_scale: factor of the learning rate for a weight, by its name in `module`.
        schedule: learning rate of a step.
    """

    module: LossModule
    feed: Feed
    count: Callable[[Batch], int]
    flops: Callable[[Batch], float] | None = None
    lr_scale: Callable[[str], float] = lambda name: 1.0
    schedule: Schedule = cosine
