"""The loop that all stages share, on accelerate: exact sums over unequal batches, and a clean resume.

A step's randomness follows from its number alone. The rest of a run's state is what a checkpoint holds: the
trained weights, AdamW's moments, and where each process stands in the data. A checkpoint is the same file
whatever the number of processes and however weights are spread over them.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor, nn

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.interrupt import Interrupt
from infinitevl.training.journal import Journal
from infinitevl.training.sharding import NONE, Sharded, Spread, spread, trained_weights
from infinitevl.training.stages.reading import Batch

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
_STOPPING = "Stopping after this step, with a checkpoint; Ctrl-C once more stops at once.\n"
# How torch words it when another process does not answer any more.
_LOST = ("Connection", "connection", "NCCL", "gloo", "Gloo", "Timed out", "Broken pipe")


@dataclass(frozen=True)
class Settings:
    """How the weights move.

    warm_up: share of all steps. identity: settings that a run and the one it resumes must have in common.
    sharding: how weights are spread over processes (`training.sharding`).
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
    sharding: str = NONE
    log_to: Sequence[str] = ()


class Feed(Protocol):
    """What a run learns from, step after step."""

    @property
    def skipped(self) -> dict[str, str]:
        """Bad samples of this process so far: the reason by place."""

    def next(self) -> Sequence[Batch]:
        """This process's part of the next step, at least one batch."""

    def state(self) -> dict[Any, Any]:
        """Where this process stands after the last step, as plain values; distinct keys in each process."""

    def go_on(self, state: dict[Any, Any]) -> None:
        """Stand where a run stood; `state` is that of all processes together."""


@dataclass(frozen=True)
class Teaching:
    """What is taught. A module with the stage's loss as its forward, so that it can be spread over processes.

    count: over how many tokens the loss of a batch is a sum. flops: operations of a batch, if they are known.
    """

    lesson: "Lesson"
    feed: Feed
    count: Callable[[Batch], int]
    flops: Callable[[Batch], float] | None = None


class Lesson(nn.Module):
    """A student, and a loss of it as forward; products are in `precision`, None for that of the weights.

    teacher: whose weights the loss reads too, so that they can be sharded with the student's.
    """

    def __init__(
        self,
        student: nn.Module,
        loss: Callable[[Batch], Tensor],
        precision: torch.dtype | None = None,
        teacher: nn.Module | None = None,
    ):
        super().__init__()
        self.student, self.teacher = student, teacher
        self.loss, self.precision = loss, precision

    def forward(self, batch: Batch) -> Tensor:
        """A sum over tokens."""
        kind = batch["input_ids"].device.type
        with torch.autocast(kind, self.precision, enabled=self.precision is not None):
            return self.loss(batch)

    def train(self, mode: bool = True) -> Self:
        """As any module; a teacher never trains."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self


def processes(on_cpu: bool = False) -> Accelerator:
    """This process among those that torchrun started, if it did, each with a device of its own."""
    return Accelerator(cpu=on_cpu)


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
        self.feed, self.count, self.flops = teaching.feed, teaching.count, teaching.flops
        if not trained_weights(teaching.lesson):
            raise InfiniteVLError("nothing trains in this stage; see the table of `infinitevl train init`.")
        self.spread: Spread = spread(
            teaching.lesson, accelerator, settings.sharding, teaching.lesson.precision
        )
        self.lesson, self.trained = self.spread.lesson, self.spread.trained
        fused = True if accelerator.device.type == "cuda" else None
        groups = _groups(self.trained.values(), settings)
        self.optimizer = torch.optim.AdamW(groups, betas=settings.betas, fused=fused)
        self.step, self.stops = 0, False  # stops: after this step
        self.saved: int | None = None  # the step that the checkpoint holds
        self.interrupt = Interrupt(_STOPPING if accelerator.is_main_process else "")
        folder.mkdir(parents=True, exist_ok=True)
        self.journal = Journal(
            folder / LOG, accelerator.is_main_process, accelerator.num_processes, settings.log_to
        )

    def go(self, stop_after: int | None = None) -> bool:
        """Learn until the last step, for `stop_after` steps, or until Ctrl-C; returns whether it is complete.

        Raises:
            KeyboardInterrupt: a second Ctrl-C, in the middle of a step; says what is kept.
            InfiniteVLError: the loss or the gradient is no number, the disk is full, or another process is
                gone; the last checkpoint is whole in any case.
        """
        last = self.settings.num_steps if stop_after is None else self.step + stop_after
        self.lesson.train()
        self.journal.start(self.step, self.settings.num_steps)
        with self._all_here(), self.interrupt:
            while self.step < min(last, self.settings.num_steps) and not self.stops:
                self.learn()
                if self.step % self.settings.save_every == 0 or self.step == self.settings.num_steps:
                    self.save()
                if self.accelerator.num_processes == 1:
                    self.stops = self.interrupt.pressed
        self.journal.close()
        return self.step == self.settings.num_steps

    def learn(self) -> dict[str, Any]:
        """One step; returns its loss and what else the log says of it. Raises as `go`."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.feed.next()
        facts = self._facts(batches)
        batches = [self.placed(batch) for batch in batches]
        # after the data, whose loader may draw numbers too
        torch.manual_seed((self.settings.seed * 1_000_003 + self.step) * world + rank)
        mine = self.gradients(batches, world / max(facts["answers"], 1)) / world
        norm = self.spread.norm()
        loss, gradient = torch.stack([self._sum(mine), norm.to(mine)]).tolist()
        self._check_finite(loss, gradient)
        self._move(learning_rate(self.settings, self.step), gradient)
        self.step += 1
        told = {
            "loss": loss,
            "gradient_norm": gradient,
            "learning_rate": self.optimizer.param_groups[0]["lr"],
        }
        flops = facts.pop("flops")
        self.journal.add(facts["tokens"], flops)
        if self.step % self.settings.log_every == 0 or self.step == self.settings.num_steps:
            self.journal.write(self.step, told | facts)
        return {**told, **facts, "flops": flops}

    def placed(self, batch: Batch) -> Batch:
        """A batch on this process's device."""
        return to_device(batch, self.accelerator.device)

    def _facts(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """Tokens, those that the loss is over, and operations of the step, over all processes."""
        flops = 0.0 if self.flops is None else sum(map(self.flops, batches))
        tokens = sum(batch["input_ids"].numel() for batch in batches)
        numbers = [tokens, sum(map(self.count, batches)), flops, len(batches), len(batches) ** 2]
        numbers.append(self.interrupt.pressed)
        if self.accelerator.num_processes > 1:
            mine = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
            numbers = self._sum(mine).tolist()
            self._check_equal(*numbers[3:5])
            self.stops = numbers[5] > 0  # Ctrl-C in one of them stops all after the same step
        return {"tokens": int(numbers[0]), "answers": int(numbers[1]), "flops": numbers[2]}

    def _check_equal(self, batches: float, squares: float) -> None:
        """Processes that share layers compute them together, and must do so equally often."""
        world = self.accelerator.num_processes
        if isinstance(self.spread, Sharded) and world * squares != batches**2:
            raise InfiniteVLError(
                f"step {self.step + 1} has {batches:.0f} batches for {world} processes; with sharding each "
                "must have equally many. Choose a rows_per_step that the number of processes divides."
            )

    def gradients(self, batches: Sequence[Batch], scale: float) -> Tensor:
        """Gradients of all batches of the step together; processes exchange them once, with the last one.

        Returns the loss, which stays on the device: a look at it would make the host wait.
        """
        total = torch.zeros((), dtype=torch.float64, device=self.accelerator.device)
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.spread.accumulating():
                loss = self.lesson(batch) * scale
                loss.backward()
            total += loss.detach()
        self.spread.collect()
        return total

    @torch.no_grad()
    def _move(self, rate: float, norm: float) -> None:
        """AdamW's step with the gradient cut to its largest norm."""
        if norm > self.settings.clip:
            gradients = [weight.grad for weight in self.trained.values() if weight.grad is not None]
            torch._foreach_mul_(gradients, self.settings.clip / (norm + 1e-6))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.spread.publish()

    def _sum(self, mine: Tensor) -> Tensor:
        """Over all processes."""
        return self.accelerator.reduce(mine, "sum") if self.accelerator.num_processes > 1 else mine

    @contextlib.contextmanager
    def _all_here(self) -> Iterator[None]:
        """Within it the loss of another process, and Ctrl-C in the middle of a step, are told as such."""
        try:
            yield
        except KeyboardInterrupt as error:
            raise KeyboardInterrupt(f"Stopped in step {self.step + 1}; {self._kept()}.") from error
        except RuntimeError as error:
            alone = self.accelerator.num_processes == 1
            if alone or isinstance(error, InfiniteVLError) or not any(word in str(error) for word in _LOST):
                raise
            raise InfiniteVLError(
                f"step {self.step + 1}: another process of this run does not answer any more, so this one "
                f"stops too; {self._kept()}. Look at the other processes' output, and start all of them "
                f"again with --resume. ({str(error).splitlines()[0]})"
            ) from error

    def _check_finite(self, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        raise InfiniteVLError(
            f"step {self.step + 1}: the loss is {loss} and the gradient's norm {norm}. The weights were not "
            f"moved, and {self._kept()}. Look at this step's samples, or resume with a lower learning_rate "
            "or clip."
        )

    def _kept(self) -> str:
        if self.saved is None:
            return "no step was saved yet"
        return f"{self.folder / CHECKPOINT} holds the last good step that was saved, {self.saved}"

    def save(self) -> None:
        """Everything that the run needs to go on, whole or not at all."""
        places = gather_object([self.feed.state()])
        trained, moments = self.whole_weights(), self._whole_moments()
        if not self.accelerator.is_main_process:
            self.saved = self.step
            return
        state = {
            "step": self.step,
            "trained": trained,
            "moments": moments,
            "feed": {key: value for place in places for key, value in place.items()},
            "identity": self.settings.identity,
        }
        with atomic_write(self.folder / CHECKPOINT) as path:
            torch.save(state, path)
        self.saved = self.step

    def whole_weights(self) -> dict[str, Tensor]:
        """The trained weights, float32, in the first process; nothing in the others. All must ask."""
        whole = {name: self.spread.whole(name, weight) for name, weight in self.trained.items()}
        return {name: weight for name, weight in whole.items() if weight is not None}

    def _whole_moments(self) -> dict[str, dict[str, Tensor]]:
        """AdamW's, by the weight's name, where `whole_weights` is."""
        found: dict[str, dict[str, Tensor]] = {}
        for name, weight in self.trained.items():
            for key, value in self.optimizer.state[weight].items():
                whole = self.spread.whole(name, value) if value.dim() else value
                if whole is not None:
                    found.setdefault(name, {})[key] = whole
        return found

    def resume(self) -> None:
        """Go on from the checkpoint in the run's folder.

        Raises:
            InfiniteVLError: there is none, or it is of a run with other settings.
        """
        state = read_checkpoint(self.folder)
        if self.accelerator.is_main_process:
            # of a process that was killed while it wrote
            for half in self.folder.glob(f".{CHECKPOINT}.*.part"):
                half.unlink()
        check_same_run(state["identity"], self.settings.identity)
        if set(state["trained"]) != set(self.trained):
            raise InfiniteVLError(f"{self.folder / CHECKPOINT} holds other weights than this stage trains.")
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(self.spread.part(name, state["trained"][name]))
        self._load_moments(state["moments"])
        self.spread.publish()
        self.feed.go_on(state["feed"])
        self.step = self.saved = state["step"]

    def _load_moments(self, moments: dict[str, dict[str, Tensor]]) -> None:
        names = {weight: name for name, weight in self.trained.items()}
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        parts = {
            number: {
                key: self.spread.part(names[weight], value) if value.dim() else value
                for key, value in moments[names[weight]].items()
            }
            for number, weight in enumerate(weights)
            if names[weight] in moments
        }
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": parts, "param_groups": groups})


def read_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """What `Run.save` wrote, on the CPU. Raises InfiniteVLError where there is nothing usable."""
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise InfiniteVLError(f"there is no {path} to resume from. Start the stage without --resume.")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
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
    """Matrices decay; norms, biases, convolution weights and decays do not."""
    weights = list(trained)
    matrices = [weight for weight in weights if weight.dim() == 2]
    others = [weight for weight in weights if weight.dim() != 2]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay, "lr": settings.learning_rate},
        {"params": others, "weight_decay": 0.0, "lr": settings.learning_rate},
    ]
    return [group for group in groups if group["params"]]
