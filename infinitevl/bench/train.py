"""Measure a step of a training stage on random weights: time, memory, speed against a large product.

Under torchrun the processes share the rows of each step, weights are sharded (FSDP2), and losses are compared
with those of one process in the same file.
"""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import Timing, measure, synchronize
from infinitevl.bench.record import Record, read_records
from infinitevl.bench.sizes import FRAME_SIZES, random_model
from infinitevl.config import FULL, InfiniteVLConfig
from infinitevl.training.losses import IGNORED
from infinitevl.training.model_setup import checkpoint_layers_, fast_kernels
from infinitevl.training.parts import DISTILL_LAYERS, DISTILL_LOGITS, LONG_SFT, SFT, Part, part_of
from infinitevl.training.recipes import Recipe, parse_recipe
from infinitevl.training.settings import TrainerSettings
from infinitevl.training.sharding import FSDP
from infinitevl.training.stage import Stage, prepare_stage, set_trainable_
from infinitevl.training.stages.inputs import Batch
from infinitevl.training.trainer import Trainer, processes, to_device

TOKENS = {SFT: 8192, LONG_SFT: 32768, DISTILL_LAYERS: 8192, DISTILL_LOGITS: 8192}
STEPS = {SFT: 20, LONG_SFT: 6, DISTILL_LAYERS: 10, DISTILL_LOGITS: 10}
_PARTS = (2, 4, 8, 8)  # a packed row: its half, its quarter and two eighths
_PRODUCT = {"cuda": 8192, "cpu": 512}


@dataclass(frozen=True)
class Plan:
    """What is measured.

    tokens: of a packed row. rows: of a step, over all processes. checkpointed: layers that recompute their
    activations; None tries quarters until a step fits. sharding: of weights over several processes.
    """

    stage: str
    tokens: int
    rows: int
    steps: int
    checkpointed: int | None
    sharding: str = FSDP


class RandomRows:
    """Packed random rows, reproducible by number: a quarter of the tokens are pictures, half answers."""

    def __init__(self, config: InfiniteVLConfig, plan: Plan, side: int, device: torch.device, place: Any):
        self.config, self.plan, self.device, self.step = config, plan, device, 0
        self.rank, self.world_size = place.process_index, place.num_processes
        self.skipped: dict[str, str] = {}
        vision = config.vision_config
        self.grid = (1, side // vision.patch_size, side // vision.patch_size)
        self.tokens_of_picture = self.grid[1] * self.grid[2] // vision.spatial_merge_size**2
        media = (config.image_token_id, config.video_token_id)
        most = min(256, config.text_config.vocab_size)
        self.words = torch.tensor([word for word in range(most) if word not in media])
        self.patches = torch.randn(self.grid[1] * self.grid[2], vision.patch_dim)

    def next_batches(self) -> Sequence[Batch]:
        """This process's rows of the next step."""
        first, self.step = self.step * self.plan.rows, self.step + 1
        return [self.row(first + number) for number in range(self.rank, self.plan.rows, self.world_size)]

    def row(self, number: int) -> Batch:
        """Build one row of four sequences."""
        generator = torch.Generator().manual_seed(number)
        lengths = [self.plan.tokens // part for part in _PARTS]
        ids = self.words[torch.randint(len(self.words), (1, sum(lengths)), generator=generator)]
        labels, start, pictures = ids.clone(), 0, 0
        for length in lengths:
            fitting = length // 4 // self.tokens_of_picture
            ids[0, start : start + fitting * self.tokens_of_picture] = self.config.image_token_id
            labels[0, start : start + length // 2] = IGNORED
            start, pictures = start + length, pictures + fitting
        positions = torch.cat([torch.arange(length) for length in lengths])
        row = {
            "input_ids": ids,
            "labels": labels,
            "position_ids": positions.expand(3, 1, -1),
            "sequence_lengths": lengths,
        }
        return row | (self._pictures(pictures) if pictures else {})

    def _pictures(self, count: int) -> dict[str, Tensor]:
        """The same picture several times: its content does not change the time."""
        patches = self.patches.to(self.device)  # as a loader that reads ahead would have it
        return {"pixel_values": patches.repeat(count, 1), "image_grid_thw": torch.tensor([self.grid] * count)}

    def state_dict(self) -> dict[str, int]:
        """The current step."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue at a step."""
        self.step = state["step"]


def run(bench: Bench, plan: Plan) -> None:
    """Train for `plan.steps` steps and record what they took; the first process reports for all."""
    accelerator = processes(on_cpu=bench.device.type == "cpu")
    bench.device = accelerator.device
    product = _product(bench)
    bench.clear()
    recipe = _recipe(plan, bench.options.dtype)
    stage = _stage(bench, recipe, plan, accelerator)
    kernels = fast_kernels(stage.student, stage.teacher, bench.options.dtype)
    with tempfile.TemporaryDirectory() as folder, kernels:
        settings = TrainerSettings(
            num_steps=plan.steps + 1,
            learning_rate=5e-5,
            warm_up=1.0,  # a real run's first steps: thousands of them belong to its warm-up
            log_every=plan.steps + 1,
            sharding=plan.sharding,  # type: ignore[arg-type]  # checked there
        )
        trainer = Trainer(stage.task(), settings, Path(folder), accelerator)
        trainer.module.train()
        checkpointed = _choose_checkpointed(bench, plan, stage, trainer)
        found = [_timed(bench, trainer) for _ in range(plan.steps)]
    if accelerator.is_main_process:
        _tell(bench, plan, found, product, accelerator.num_processes, checkpointed)


def _recipe(plan: Plan, dtype: torch.dtype) -> Recipe:
    """The stage with the settings that decide its speed."""
    own = {"teacher": "none"} if plan.stage in (DISTILL_LAYERS, DISTILL_LOGITS) else {}
    settings = {
        "stage": plan.stage,
        "student": "none",
        "out": "none",
        "data": {"sources": [{"path": "none"}], "row_tokens": plan.tokens, "rows_per_step": plan.rows},
        "num_steps": plan.steps,
        "learning_rate": 5e-5,
        "dtype": str(dtype).removeprefix("torch."),
        "checkpointed_layers": plan.checkpointed,
        **own,
    }
    return parse_recipe(settings)


def _stage(bench: Bench, recipe: Recipe, plan: Plan, accelerator: Any) -> Stage:
    """Build the models on the device; the student inherits the teacher's weights where it can."""
    student, processor = bench.model()
    student.train()
    teacher = None
    if plan.stage in (DISTILL_LAYERS, DISTILL_LOGITS):
        teacher = random_model(_teacher_config(student.config), bench.device, bench.options.dtype)
        teacher.requires_grad_(False)
        kinds, taught = student.config.text_config.layer_types, dict(teacher.named_parameters())
        for name, weight in student.named_parameters():
            if part_of(name, kinds) != Part.DELTA_NET:
                weight.data = taught[name].data
    adapted = set_trainable_(student, recipe)
    side = FRAME_SIZES.get(bench.options.size, 112)
    feed = RandomRows(student.config, plan, side, bench.device, accelerator)
    return prepare_stage(recipe, student, adapted, teacher, processor, feed, bench.device)


def _teacher_config(config: InfiniteVLConfig) -> InfiniteVLConfig:
    """The same shape with full attention in every layer."""
    plain = config.to_dict()
    plain["layer_types"] = [FULL] * len(config.text_config.layer_types)
    return InfiniteVLConfig.from_dict(plain)


def _choose_checkpointed(bench: Bench, plan: Plan, stage: Stage, trainer: Trainer) -> int:
    """Choose how many layers recompute activations: as planned, or a quarter more until a step fits.

    Several processes do not try, and take all layers: one that runs out of memory leaves the others waiting.
    """
    num_layers = len(stage.student.model.language_model.layers)
    if plan.checkpointed is not None or trainer.accelerator.num_processes > 1:
        return num_layers if plan.checkpointed is None else plan.checkpointed
    for quarters in range(5):
        count = -(-num_layers * quarters // 4)
        checkpoint_layers_(stage.student, count)
        fits = _fits(trainer)
        trainer.optimizer.zero_grad()
        trainer.feed.load_state_dict({"step": 0})
        bench.clear()
        if fits:
            break
    return count


def _fits(trainer: Trainer) -> bool:
    """Whether a row fits beside AdamW's moments and the gradients of another row."""
    batch = to_device(trainer.feed.next_batches()[0], trainer.accelerator.device)
    try:
        kept = [torch.empty_like(weight) for weight in trainer.trained.values() for _ in range(3)]
        trainer.backward([batch], 1.0)
        return bool(kept)
    except torch.cuda.OutOfMemoryError:
        return False


def _timed(bench: Bench, trainer: Trainer) -> dict[str, Any]:
    synchronize(bench.device)
    start = time.perf_counter()
    facts = trainer.train_step()
    synchronize(bench.device)
    return {**facts, "ms": 1e3 * (time.perf_counter() - start)}


def _product(bench: Bench) -> float:
    """Operations a second of a large square product in the stage's dtype, on this very device."""
    size = _PRODUCT.get(bench.device.type, 512)
    a = torch.randn(size, size, device=bench.device, dtype=bench.options.dtype)
    return 2 * size**3 / (1e-3 * measure(lambda: a @ a, bench.device, repeats=10).median)


def _tell(
    bench: Bench, plan: Plan, found: list[dict[str, Any]], product: float, world: int, checkpointed: int
) -> None:
    """Record the steps after the warm-up, and all losses."""
    warm = min(3, plan.steps // 3)
    timing = Timing.of([step["ms"] for step in found[warm:]])
    seconds, step = 1e-3 * timing.median, found[-1]
    losses = [each["loss"] for each in found]
    chosen: dict[str, Any] = {
        "stage": plan.stage,
        "processes": world,
        "row_tokens": plan.tokens,
        "rows": plan.rows,
        "checkpointed": checkpointed,
    }
    rate = step["flops"] / seconds / world
    before = _alone(bench, chosen)
    chosen |= {"sharding": plan.sharding} if world > 1 else {}
    bench.time("training step", timing, **chosen)
    bench.count("tokens in sum", step["tokens"] / seconds, "tokens/s", **chosen)
    bench.count("operations", rate / 1e12, "TFLOP/s", **chosen)
    bench.count("large product", product / 1e12, "TFLOP/s", **chosen)
    bench.count("share of product", rate / product, "", **chosen)
    bench.count("peak memory", bench.peak_bytes(), "B", **chosen)
    bench.count("last loss", losses[-1], "", losses=losses, **chosen)
    if before:
        bench.count("scaling", step["tokens"] / seconds / before["tokens in sum"].value, "x", **chosen)
        pairs = zip(losses, before["last loss"].settings["losses"], strict=False)
        bench.count("losses apart", max(abs(a - b) / abs(b) for a, b in pairs), "", **chosen)


def _alone(bench: Bench, chosen: dict[str, Any]) -> dict[str, Record]:
    """The lines of one process in the same file, if several run now."""
    path = bench.options.out
    if chosen["processes"] == 1 or path is None or not os.path.exists(path):
        return {}
    wanted = {**chosen, "processes": 1}
    return {
        record.what: record
        for record in read_records(path)
        if record.benchmark == bench.name
        and record.size == bench.options.size
        and all(record.settings.get(name) == value for name, value in wanted.items())
    }
