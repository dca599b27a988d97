"""The loop that all stages share, on accelerate: exact sums over unequal batches, and a clean resume.

A step's randomness follows from its number alone. The rest of a run's state is what a checkpoint holds: the
trained weights, AdamW's moments, and where each process stands in the data.
"""

import contextlib
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.training.journal import Journal
from infinitevl.training.stages.reading import Batch

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"


@dataclass(frozen=True)
class Settings:
    """How the weights move.

    warm_up: share of all steps. identity: settings that a run and the one it resumes must have in common.
    """

    num_steps: int
    learning_rate: float
    warm_up: float = 0.05
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0
    seed: int = 0
    save_every: int = 100
    log_every: int = 1
    identity: dict[str, Any] = field(default_factory=dict)


class Feed(Protocol):
    """What a run learns from, step after step."""

    def next(self) -> Sequence[Batch]:
        """This process's part of the next step, at least one batch."""

    def state(self) -> dict[Any, Any]:
        """Where this process stands after the last step, as plain values; distinct keys in each process."""

    def go_on(self, state: dict[Any, Any]) -> None:
        """Stand where a run stood; `state` is that of all processes together."""


@dataclass(frozen=True)
class Teaching:
    """What is taught. A module with the stage's loss as its forward, so that it can be spread over processes.

    count: over how many tokens the loss of a batch is a sum.
    """

    lesson: nn.Module
    feed: Feed
    count: Callable[[Batch], int]


class Lesson(nn.Module):
    """A student, and a loss of it as forward; products are in `precision`, None for that of the weights."""

    def __init__(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        precision: torch.dtype | None = None,
    ):
        super().__init__()
        self.student, self.loss, self.precision = student, loss, precision

    def forward(self, batch: Batch) -> Tensor:
        """A sum over tokens."""
        kind = batch["input_ids"].device.type
        with torch.autocast(kind, self.precision, enabled=self.precision is not None):
            return self.loss(batch)


def learning_rate(settings: Settings, step: int) -> float:
    """Of step 0, 1, ...: a line up over the warm-up, then a cosine down to zero."""
    warm = math.ceil(settings.warm_up * settings.num_steps)
    if step < warm:
        return settings.learning_rate * (step + 1) / warm
    return (
        settings.learning_rate
        * 0.5
        * (1 + math.cos(math.pi * (step - warm) / max(settings.num_steps - warm, 1)))
    )


class Run:
    """One stage, from its start or from the checkpoint in its folder."""

    def __init__(self, teaching: Teaching, settings: Settings, folder: Path, accelerator: Accelerator):
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.feed, self.count = teaching.feed, teaching.count
        self.trained = {n: p for n, p in teaching.lesson.named_parameters() if p.requires_grad}
        if not self.trained:
            raise InfiniteVLError("nothing trains in this stage; see the table of `infinitevl train init`.")
        optimizer = torch.optim.AdamW(_groups(self.trained.values(), settings), betas=settings.betas)
        self.lesson, self.optimizer = accelerator.prepare(teaching.lesson, optimizer)
        self.step = 0
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(folder / LOG, accelerator.is_main_process)

    def go(self, stop_after: int | None = None) -> bool:
        """Learn until the last step, or for `stop_after` steps; returns whether the stage is complete.

        Raises:
            InfiniteVLError: the loss or the gradient is no number, or the disk is full; the last checkpoint
                is whole in any case.
        """
        last = self.settings.num_steps if stop_after is None else self.step + stop_after
        self.lesson.train()
        self.journal.start(self.step, self.settings.num_steps)
        while self.step < min(last, self.settings.num_steps):
            self._learn()
            if self.step % self.settings.save_every == 0 or self.step == self.settings.num_steps:
                self.save()
        return self.step == self.settings.num_steps

    def _learn(self) -> None:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = [to_device(batch, self.accelerator.device) for batch in self.feed.next()]
        # after the data, whose loader may draw numbers too
        torch.manual_seed((self.settings.seed * 1_000_003 + self.step) * world + rank)
        num_tokens, num_counted = self._sums(
            [sum(batch["input_ids"].numel() for batch in batches), sum(map(self.count, batches))]
        )
        rate = learning_rate(self.settings, self.step)
        loss = self._backward(batches, world / max(num_counted, 1))
        norm = float(self.accelerator.clip_grad_norm_(self.trained.values(), self.settings.clip))
        (total,) = self._sums([loss / world])
        self._check_finite(total, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        facts = {"loss": total, "gradient_norm": norm, "learning_rate": rate, "answers": int(num_counted)}
        if self.step % self.settings.log_every == 0 or self.step == self.settings.num_steps:
            self.journal.write(self.step, int(num_tokens), facts)

    def _backward(self, batches: Sequence[Batch], scale: float) -> float:
        """Gradients of all batches of the step together; processes exchange them once, with the last one."""
        total = 0.0
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            alone = contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.lesson)
            with alone:
                loss = self.lesson(batch) * scale
                self.accelerator.backward(loss)
            total += loss.item()
        return total

    def _sums(self, numbers: Sequence[float]) -> list[float]:
        """Over all processes."""
        mine = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
        return self.accelerator.reduce(mine, "sum").tolist()

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        path = self.folder / CHECKPOINT
        kept = f"{path} holds the last good step" if path.exists() else "no step was saved yet"
        raise InfiniteVLError(
            f"step {self.step + 1}: the loss is {loss} and the gradient's norm {norm}. The weights were not "
            f"moved, and {kept}. Look at this step's samples, or resume with a lower learning_rate or clip."
        )

    def save(self) -> None:
        """Everything that the run needs to go on, whole or not at all."""
        places = gather_object([self.feed.state()])
        if not self.accelerator.is_main_process:
            return
        state = {
            "step": self.step,
            "trained": {name: weight.detach() for name, weight in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "feed": {key: value for place in places for key, value in place.items()},
            "identity": self.settings.identity,
        }
        with atomic_write(self.folder / CHECKPOINT) as path:
            torch.save(state, path)

    def resume(self) -> None:
        """Go on from the checkpoint in the run's folder.

        Raises:
            InfiniteVLError: there is none, or it is of a run with other settings.
        """
        state = read_checkpoint(self.folder)
        check_same_run(state["identity"], self.settings.identity)
        if set(state["trained"]) != set(self.trained):
            raise InfiniteVLError(f"{self.folder / CHECKPOINT} holds other weights than this stage trains.")
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["trained"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.feed.go_on(state["feed"])
        self.step = state["step"]


def read_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `Run.save` wrote, on the CPU. Raises InfiniteVLError where there is nothing usable."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise InfiniteVLError(f"there is no {path} to resume from. Start the stage without --resume.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError) as error:
        raise InfiniteVLError(f"{path} is damaged: {error}. Remove it and start the stage again.") from error


def check_same_run(saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raises InfiniteVLError that names the settings in which two runs differ."""
    other = [
        f"{key}: {saved.get(key)!r} then, {wanted.get(key)!r} now"
        for key in sorted({*saved, *wanted})
        if saved.get(key) != wanted.get(key)
    ]
    if other:
        raise InfiniteVLError(
            f"the checkpoint is of a run with other settings ({'; '.join(other)}). Take them back, or start "
            "in another folder."
        )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch with its tensors on `device`."""
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def _groups(trained: Any, settings: Settings) -> list[dict[str, Any]]:
    """Matrices decay; norms, biases, convolution taps and decays of the memory do not."""
    weights = list(trained)
    matrices = [weight for weight in weights if weight.dim() == 2]
    others = [weight for weight in weights if weight.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "lr": settings.learning_rate},
        {"params": others, "weight_decay": 0.0, "lr": settings.learning_rate},
    ]
    return [group for group in groups if group["params"]]
