"""The training loop that all stages share, on accelerate: exact sums over unequal batches, exact resume.

A step's random numbers follow from its number alone. The rest of a run's state is in the checkpoint: the
trained weights, AdamW's moments, and the position of each process in the data.
"""

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.interrupt import Interrupt
from infinitevl.training.checkpoint import (
    CHECKPOINT,
    check_same_run,
    gather_moments,
    load_moments,
    only_run_in,
    read_checkpoint,
    remove_partial,
)
from infinitevl.training.optimizer import clip_gradients_, make_adamw, set_learning_rate_
from infinitevl.training.settings import TrainerSettings
from infinitevl.training.sharding import Sharded, make_sharding, trained_weights
from infinitevl.training.stages.inputs import Batch
from infinitevl.training.task import Loss, TrainTask
from infinitevl.training.training_log import LOG, TrainingLog

_FRESH_STEPS = 50  # in which the learning rate rises again where a checkpoint has no moments
_STOPPING = "Stopping after this step, with a checkpoint; Ctrl-C once more stops at once.\n"
# In torch's errors when another process no longer answers.
_LOST = ("Connection", "connection", "NCCL", "gloo", "Gloo", "Timed out", "Broken pipe")


def processes(on_cpu: bool = False) -> Accelerator:
    """Returns the accelerator of this process, one of those that torchrun started or the only one."""
    return Accelerator(cpu=on_cpu)


class Trainer:
    """Trains a task, from its start or from the checkpoint in its folder.

    Args:
        task: the module with its loss, and the data.
        settings: of the optimizer, the checkpoints and the log; a recipe has them.
        folder: for the checkpoint and the log.
        accelerator: this process among others, from `processes`.
        identity: settings that a checkpoint and the run that resumes from it must share.
    """

    def __init__(
        self,
        task: TrainTask,
        settings: TrainerSettings,
        folder: Path,
        accelerator: Accelerator,
        identity: Mapping[str, Any] | None = None,
    ):
        self.settings, self.folder, self.accelerator = settings, folder, accelerator
        self.task, self.feed, self.identity = task, task.feed, dict(identity or {})
        if not trained_weights(task.module):
            raise InfiniteVLError("nothing trains in this stage; see the table of `infinitevl train init`.")
        self.sharding = make_sharding(task.module, accelerator, settings.sharding, task.module.dtype)
        self.module, self.trained = self.sharding.module, self.sharding.trained
        self.optimizer = make_adamw(self.trained, settings, task.lr_scale)
        self.step, self.should_stop = 0, False  # should_stop: after this step
        self.ends_at = math.inf  # by the clock of time.monotonic
        self.fresh_since: int | None = None  # the step from which AdamW's moments are collected anew
        self.saved_step: int | None = None  # the step of the checkpoint
        self.interrupt = Interrupt(_STOPPING if accelerator.is_main_process else "")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            raise InfiniteVLError(
                f"no run can lie in {str(folder)!r}: {error}. Give another `out`."
            ) from error
        self.log = TrainingLog(
            folder / LOG, accelerator.is_main_process, accelerator.num_processes, settings.log_to
        )

    def train(self, stop_after: int | None = None, seconds: float = math.inf) -> bool:
        """Trains until the last step, for `stop_after` steps, for so many seconds, or until Ctrl-C.

        Returns:
            Whether the run is complete.

        Raises:
            KeyboardInterrupt: a second Ctrl-C, in the middle of a step; says what is kept.
            InfiniteVLError: the loss or the gradient is not finite, the disk is full, or another process is
                gone; the last checkpoint is complete in any case.
        """
        num_steps = self.settings.num_steps
        last = num_steps if stop_after is None else min(num_steps, self.step + stop_after)
        self.ends_at, self.should_stop = time.monotonic() + seconds, False
        self.module.train()
        with self._alone(), self._clear_failures(), self.interrupt, self.log.progress:
            self.log.start(self.step, num_steps)
            while self.step < last and not self.should_stop:
                self.train_step()
                if self.step % self.settings.save_every == 0 or self.step == num_steps:
                    self.save()
                if self.accelerator.num_processes == 1:
                    self.should_stop = self._is_to_stop
        self.log.close()
        return self.step == num_steps

    @property
    def _is_to_stop(self) -> bool:
        """Whether this process was told to stop, or its time is over."""
        return self.interrupt.pressed or time.monotonic() > self.ends_at

    def _alone(self) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs out of the folder."""
        return only_run_in(self.folder) if self.accelerator.is_main_process else contextlib.nullcontext()

    def train_step(self) -> dict[str, Any]:
        """Runs one step; returns its loss and what else the log says of it. Raises as `train`."""
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        batches = self.feed.next_batches()
        counts = self._counts(batches)
        batches = [to_device(batch, self.accelerator.device) for batch in batches]
        # after the data, whose loader may draw numbers too
        torch.manual_seed((self.settings.seed * 1_000_003 + self.step) * world + rank)
        sums = self.backward(batches, world / max(counts["answers"], 1))
        loss, named, norm = self._read_losses(sums)
        self._check_finite(loss, norm)
        rate = self.task.schedule(self.settings, self.step) * self._warmth
        self._update(rate, norm)
        self.step += 1
        facts = {"loss": loss, **named, "gradient_norm": norm, "learning_rate": rate}
        flops = counts.pop("flops")
        self.log.add(counts["tokens"], flops)
        if self.step % self.settings.log_every == 0 or self.step == self.settings.num_steps:
            self.log.write(self.step, facts | counts)
        return {**facts, **counts, "flops": flops}

    @property
    def _warmth(self) -> float:
        """Factor of the learning rate: below 1 while AdamW's moments are still those of few steps."""
        if self.fresh_since is None:
            return 1.0
        return min(1.0, (self.step - self.fresh_since + 1) / _FRESH_STEPS)

    def backward(self, batches: Sequence[Batch], scale: float) -> dict[str, Tensor]:
        """Adds up the gradients of a step's batches; processes exchange them once, with the last one.

        Returns:
            The "loss", and its named terms if it has any, times `scale`. They stay on the device, because
            reading them would make the host wait.
        """
        sums = {"loss": torch.zeros((), dtype=torch.float64, device=self.accelerator.device)}
        for number, batch in enumerate(batches):
            is_last = number == len(batches) - 1
            with contextlib.nullcontext() if is_last else self.sharding.no_sync():
                total, named = _terms(self.module(batch))
                loss = total * scale
                loss.backward()
            sums["loss"] += loss.detach()
            for name, term in named.items():
                sums.setdefault(name, torch.zeros_like(sums["loss"])).add_(term.detach() * scale)
        self.sharding.reduce_gradients()
        return sums

    def _counts(self, batches: Sequence[Batch]) -> dict[str, Any]:
        """Returns tokens, those that the loss is over, and operations of the step, over all processes."""
        flops = 0.0 if self.task.flops is None else sum(map(self.task.flops, batches))
        tokens = sum(batch["input_ids"].numel() for batch in batches if "input_ids" in batch)
        numbers = [tokens, sum(map(self.task.count, batches)), flops, len(batches), len(batches) ** 2]
        numbers.append(self._is_to_stop)
        if self.accelerator.num_processes > 1:
            mine = torch.tensor(numbers, dtype=torch.float64, device=self.accelerator.device)
            numbers = self._sum(mine).tolist()
            self._check_equal(*numbers[3:5])
            self.should_stop = numbers[5] > 0  # one of them stops all after the same step
        return {"tokens": int(numbers[0]), "answers": int(numbers[1]), "flops": numbers[2]}

    def _check_equal(self, batches: float, squares: float) -> None:
        """Checks that processes which compute layers together have equally many batches."""
        world = self.accelerator.num_processes
        if isinstance(self.sharding, Sharded) and world * squares != batches**2:
            raise InfiniteVLError(
                f"step {self.step + 1} has {batches:.0f} batches for {world} processes; with sharding each "
                "must have equally many. Choose a rows_per_step that the number of processes divides."
            )

    def _read_losses(self, sums: dict[str, Tensor]) -> tuple[float, dict[str, float], float]:
        """Returns the loss, its named terms and the norm of the gradient, over all processes."""
        world = self.accelerator.num_processes
        total, *terms = (value / world for value in sums.values())
        norm = self.sharding.gradient_norm()
        loss, gradient, *rest = torch.stack([self._sum(total), norm.to(total), *terms]).tolist()
        mine = dict(zip(list(sums)[1:], rest, strict=True))
        if world == 1 or not mine:
            return loss, mine, gradient
        found: dict[str, float] = {}
        for each in gather_object([mine]):  # processes may have terms of other names
            found |= {name: found.get(name, 0.0) + value for name, value in each.items()}
        return loss, found, gradient

    @torch.no_grad()
    def _update(self, rate: float, norm: float) -> None:
        """Clips the gradient and makes AdamW's step."""
        clip_gradients_(self.trained, norm, self.settings.clip)
        set_learning_rate_(self.optimizer, rate)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.sharding.update_module()

    def _sum(self, mine: Tensor) -> Tensor:
        """Adds up a tensor over all processes."""
        return self.accelerator.reduce(mine, "sum") if self.accelerator.num_processes > 1 else mine

    @contextlib.contextmanager
    def _clear_failures(self) -> Iterator[None]:
        """Says what happened when another process is lost, or Ctrl-C comes in the middle of a step."""
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
            f"changed, and {self._kept()}. Look at this step's samples, or resume with a lower learning_rate "
            "or clip."
        )

    def _kept(self) -> str:
        if self.saved_step is None:
            return "no step was saved yet"
        return f"{self.folder / CHECKPOINT} holds the last good step that was saved, {self.saved_step}"

    def save(self) -> None:
        """Writes the checkpoint atomically. All processes must call it."""
        positions = gather_object([self.feed.state_dict()])
        weights, moments = self.gather_weights(), gather_moments(self.optimizer, self.trained, self.sharding)
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "total_tokens": self.log.total_tokens,
                "trained": weights,
                "moments": moments,
                "feed": {key: value for position in positions for key, value in position.items()},
                "identity": self.identity,
            }
            with atomic_write(self.folder / CHECKPOINT) as path:
                torch.save(state, path)
        self.saved_step = self.step

    def gather_weights(self) -> dict[str, Tensor]:
        """Returns the trained weights, float32, in the first process; nothing in the others.

        All processes must call it.
        """
        whole = {name: self.sharding.gather(name, weight) for name, weight in self.trained.items()}
        return {name: weight for name, weight in whole.items() if weight is not None}

    def resume(self) -> None:
        """Continues from the checkpoint in the run's folder.

        Raises:
            InfiniteVLError: there is none, or it is of a run with other settings.
        """
        state = read_checkpoint(self.folder)
        if self.accelerator.is_main_process:
            remove_partial(self.folder)
        check_same_run(state["identity"], self.identity)
        if set(state["trained"]) != set(self.trained):
            raise InfiniteVLError(f"{self.folder / CHECKPOINT} holds other weights than this stage trains.")
        with torch.no_grad():
            for name, weight in self.trained.items():
                if weight.shape != state["trained"][name].shape and not isinstance(self.sharding, Sharded):
                    raise InfiniteVLError(f"{self.folder / CHECKPOINT} holds another shape of {name}.")
                weight.copy_(self.sharding.local_part(name, state["trained"][name]).float())
        if state["moments"]:
            load_moments(self.optimizer, self.trained, self.sharding, state["moments"])
        else:  # of a checkpoint that was made small
            self.fresh_since = state["step"]
        self.sharding.update_module()
        self.feed.load_state_dict(state["feed"])
        self.step = self.saved_step = state["step"]
        self.log.total_tokens = state.get("total_tokens")


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Returns the batch with its tensors on `device`."""
    return {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}


def _terms(loss: Loss) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Returns the loss, and its terms by name."""
    if isinstance(loss, Tensor):
        return loss, {}
    return torch.stack(list(loss.values())).sum(), loss
