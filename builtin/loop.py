"""The supervised loop: plan a batch, draw it, read it, learn its answers; by the clock, and ready to be
stopped."""

import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from builtin.feed.batches import Batch, Planner, endless
from builtin.learner import DeviceBatch, Learner, inherit_, start_weights_
from builtin.log import Log
from builtin.recipe import Recipe
from builtin.schedule import Clock, is_dense, joint_progress, learning_rate
from builtin.world.packs import Textures, World
from builtin.world.render import PatchNamer, PicturePlan, render
from builtin.world.splits import TRAIN
from infinitevl.files import atomic_write
from infinitevl.model.fused import training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt import SPECIAL_TOKENS


@dataclass(frozen=True)
class Options:
    """How a run is carried out; none of it changes what is learnt.

    num_steps: end after so many steps instead of the recipe's minutes. stop_after: end this call, not the
    run, after
    so many minutes. save_every: minutes between checkpoints. log_every: steps between lines of the log.
    """

    folder: Path
    device: torch.device
    workers: int = 0
    compile: bool = False
    num_steps: int | None = None
    stop_after: float = 1e9
    stop_at_step: int | None = None
    save_every: float = 3.0
    log_every: int = 25


class Trainer:
    """A run of a recipe, from its start or from the checkpoint in its folder."""

    def __init__(
        self, recipe: Recipe, world: World, textures: Textures, tokenizer: Tokenizer, options: Options
    ):
        torch.manual_seed(recipe.seed)
        self.recipe, self.options, self.textures = recipe, options, textures
        self.device = options.device
        self.planner = Planner(
            world, tokenizer, TRAIN, recipe.seed, recipe.num_pictures, recipe.keyed_share, recipe.looks
        )
        self.namer = PatchNamer(world, textures)
        model = InfiniteVLForConditionalGeneration(recipe.config(special_ids(tokenizer)))
        start_weights_(model)
        if recipe.start_from is not None:
            inherit_(model, recipe.start_from)
        self.learner = Learner(model, self.namer.num_objects).to(self.device).train()
        self.optimizer = self._optimizer()
        self.clock = Clock(recipe.minutes, options.num_steps)
        self.phase_start = 0  # the step at which this phase began
        self.noise = torch.Generator(self.device)
        self.shared_progress = multiprocessing.Value("d", 0.0)
        self.log = Log(options.folder / "log.jsonl")
        self.started = time.perf_counter()
        if options.compile:
            self._compile()

    # ------ the run

    def run(self) -> bool:
        """Train until the run or this call's time is over, then save. Returns whether the run is complete."""
        saved = time.perf_counter()
        with training_kernels(self.learner, torch.bfloat16 if self._is_cuda else torch.float32):
            for plan, step in self._steps():
                step(plan)
                self.clock.tick()
                self.shared_progress.value = self.clock.progress
                if self.clock.step % self.options.log_every == 0:
                    self._write_log()
                if time.perf_counter() - saved > self.options.save_every * 60:
                    self.save()
                    saved = time.perf_counter()
        self.save()
        return self.clock.progress >= 1

    def _steps(self) -> Iterator[tuple[Any, Callable[[Any], None]]]:
        """Plans with the function that learns from them, phase after phase, until it is time to stop."""
        self.shared_progress.value = self.clock.progress
        for dense in (True, False):
            plans: Iterator[Any] | None = None
            while is_dense(self.recipe, self.clock.progress) == dense and not self._over():
                if plans is None:
                    plans = self._plans(dense)
                yield next(plans), self._dense_step if dense else self._joint_step
            if (
                dense
                and not is_dense(self.recipe, self.clock.progress)
                and not self._over()
                and plans is not None
            ):
                self._begin_joint()

    def _plans(self, dense: bool) -> Iterator[Any]:
        if dense:
            make: Callable[[int], Any] = self.planner.pictures
        else:
            progress = self._progress_at if self.options.num_steps else self._progress_now
            make = functools.partial(_plan_step, self.planner, progress)
        return endless(make, self.clock.step, self.options.workers)

    def _progress_now(self, step: int) -> float:
        return joint_progress(self.recipe, self.shared_progress.value)

    def _progress_at(self, step: int) -> float:
        assert self.options.num_steps is not None
        return joint_progress(self.recipe, min(1.0, step / self.options.num_steps))

    def _begin_joint(self) -> None:
        """The second phase starts with fresh moments: most of the model has had no gradient yet."""
        self.phase_start = self.clock.step
        self.optimizer = self._optimizer()

    def _over(self) -> bool:
        here = (time.perf_counter() - self.started) / 60 > self.options.stop_after
        paused = self.options.stop_at_step is not None and self.clock.step >= self.options.stop_at_step
        return self.clock.progress >= 1 or here or paused

    # ------ one step

    def _dense_step(self, plan: PicturePlan) -> None:
        with self._autocast():
            features = self.learner.features(self._draw(plan, 0))
            loss = self.learner.dense_loss(features, self.namer(plan))
        loss.backward()
        self._update({"dense": loss, "pictures": len(plan)})

    def _joint_step(self, planned: tuple[Batch, Batch, str]) -> None:
        """Single pictures with their dense names, then dialogues or streams; one update from both."""
        single, other, name = planned
        assert single.plan is not None
        with self._autocast():
            features = self.learner.features(self._draw(single.plan, 1))
            answer = self.learner.answer_loss(features, DeviceBatch(single, self.device))
            dense = self.learner.dense_loss(features, self.namer(single.plan))
        (answer + self.recipe.dense_weight * dense).backward()
        with self._autocast():
            seen = None if other.plan is None else self.learner.features(self._draw(other.plan, 2))
            second = self.learner.answer_loss(seen, DeviceBatch(other, self.device))
        second.backward()
        pictures = len(single.plan) + (0 if other.plan is None else len(other.plan))
        tokens = single.ids.size + other.ids.size
        self._update(
            {"dense": dense, "picture": answer, name: second, "pictures": pictures, "tokens": tokens}
        )

    def _draw(self, plan: PicturePlan, part: int) -> Tensor:
        self.noise.manual_seed((self.recipe.seed * 1_000_003 + self.clock.step) * 4 + part)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return render(plan, self.textures, self.noise)

    def _update(self, measured: dict[str, Any]) -> None:
        """One step of AdamW; a gradient that is not finite is left out, without waiting for the device."""
        rate = learning_rate(self.recipe, self.clock.progress, self.clock.step - self.phase_start)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.recipe.clip, foreach=True)
        if self._is_cuda:
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
            self.optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.log.measure({**measured, "gradient": norm, "rate": rate})

    # ------ parts

    @property
    def _is_cuda(self) -> bool:
        return self.device.type == "cuda"

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._is_cuda)

    def _optimizer(self) -> torch.optim.AdamW:
        visual = list(self.learner.model.model.visual.parameters())
        others = [p for p in self.learner.parameters() if all(p is not weight for weight in visual)]
        groups = []
        for parameters, share in ((visual, self.recipe.vision_rate), (others, 1.0)):
            matrices = [p for p in parameters if p.dim() > 1]
            vectors = [p for p in parameters if p.dim() <= 1]
            groups += [
                {"params": matrices, "weight_decay": self.recipe.weight_decay, "share": share},
                {"params": vectors, "weight_decay": 0.0, "share": share},
            ]
        return torch.optim.AdamW(groups, lr=1e-3, betas=self.recipe.betas, fused=self._is_cuda)

    def _compile(self) -> None:
        """One graph a layer; a part that does not compile runs as it is."""
        torch._dynamo.config.suppress_errors = True
        torch._dynamo.config.recompile_limit = 32
        for block in self.learner.model.model.visual.blocks:
            block.compile(dynamic=False)
        for layer in self.learner.model.model.language_model.layers:
            layer.compile(dynamic=True)

    def _write_log(self) -> None:
        memory = torch.cuda.max_memory_allocated() / 1e9 if self._is_cuda else 0.0
        self.log.write(
            step=self.clock.step,
            progress=round(self.clock.progress, 4),
            seconds=round(self.clock.seconds, 1),
            seconds_left=round(self.clock.seconds_left, 1),
            memory_gb=round(memory, 2),
        )

    # ------ saving and resuming

    @property
    def checkpoint(self) -> Path:
        """The file that `save` writes and `resume` reads."""
        return self.options.folder / "checkpoint.pt"

    def save(self) -> None:
        """Everything that the run needs to go on, whole or not at all."""
        state = {
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.clock.step,
            "seconds": self.clock.seconds,
            "phase_start": self.phase_start,
        }
        with atomic_write(self.checkpoint) as path:
            torch.save(state, path)

    def resume(self) -> None:
        """Go on from the checkpoint in the run's folder."""
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.clock.step, self.clock.seconds = state["step"], state["seconds"]
        self.phase_start = state["phase_start"]
        self.optimizer.load_state_dict(state["optimizer"])


def _plan_step(planner: Planner, progress: Callable[[int], float], step: int) -> tuple[Batch, Batch, str]:
    return planner.step(step, progress(step))


def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Token ids of the special tokens."""
    return {name: tokenizer.token_to_id(name) or 0 for name in SPECIAL_TOKENS}
