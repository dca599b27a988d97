"""A stage of a recipe, from its folders to a finished model."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import quiet_progress
from infinitevl.processing.processor.processor import InfiniteVLProcessor
from infinitevl.training.checkpoint import CHECKPOINT, read_checkpoint
from infinitevl.training.data.loading import describe_skipped
from infinitevl.training.feed import PackedFeed
from infinitevl.training.flops import Weights, stage_flops
from infinitevl.training.lora import add_adapters, check_installed, merged, save_adapter
from infinitevl.training.model_setup import (
    checkpoint_layers_,
    compile_layers_,
    fast_kernels,
    keep_activations_,
    move_,
)
from infinitevl.training.parts import SFT_PARTS, freeze_
from infinitevl.training.recipes import DistillLayers, DistillLogits, LongSft, Recipe, Sft, identity
from infinitevl.training.sharding import Sharded
from infinitevl.training.stages.distill import distill_layers, distill_logits, same_layers, share_frozen_
from infinitevl.training.stages.inputs import Batch, answers, real_tokens, work
from infinitevl.training.stages.sft import sft
from infinitevl.training.starts import ADAPTER, MODEL, find_start, open_processor, open_start
from infinitevl.training.task import Feed, LossModule, TrainTask
from infinitevl.training.teacher import load_teacher
from infinitevl.training.trainer import Trainer, processes
from infinitevl.training.training_log import LOG, draw_loss

Model = InfiniteVLForConditionalGeneration


@dataclass
class Stage:
    """The models, data and loss of one stage.

    adapted: the peft model around the student, if there is one. saved_dtype: of the start and of the finished
    model. bytes_shared: of frozen weights that teacher and student share. same: numbers of the layers whose
    weights they share.
    """

    recipe: Recipe
    student: Model
    teacher: Model | None
    adapted: Any
    processor: InfiniteVLProcessor
    feed: Feed
    saved_dtype: torch.dtype
    bytes_shared: int
    same: frozenset[int]
    weights: Weights

    def loss(self, batch: Batch) -> torch.Tensor:
        """Computes the stage's loss, summed over the tokens that `count` counts."""
        recipe, teacher = self.recipe, self.teacher
        if isinstance(recipe, DistillLayers):
            assert teacher is not None
            return distill_layers(self.student, teacher, batch, self.same)
        if isinstance(recipe, DistillLogits):
            assert teacher is not None
            return distill_logits(self.student, teacher, batch, recipe.temperature, recipe.all_tokens)
        return sft(self.student, batch)

    def count(self, batch: Batch) -> int:
        """Counts the tokens over which the loss of a batch is a sum."""
        recipe = self.recipe
        if isinstance(recipe, DistillLayers) or (isinstance(recipe, DistillLogits) and recipe.all_tokens):
            return int(real_tokens(batch).sum())
        return len(answers(batch)[1])

    def flops(self, batch: Batch) -> float:
        """Counts the operations that a batch needs, forward and backward."""
        teacher = None if self.teacher is None else self.teacher.config
        asked = work(batch, self.count(batch))
        return stage_flops(self.recipe.stage, self.student.config, self.weights, asked, teacher)

    def task(self, with_flops: bool = True) -> TrainTask:
        """Returns what a `Trainer` needs of the stage."""
        dtype = None if self.recipe.torch_dtype == torch.float32 else self.recipe.torch_dtype
        module = LossModule(self.student, self.loss, dtype, self.teacher)
        return TrainTask(module, self.feed, self.count, self.flops if with_flops else None)


def open_student(recipe: Recipe) -> tuple[Model, Any]:
    """Loads the model to start from; returns it and the peft model around it, as `set_trainable_` does."""
    student = open_start(recipe.student, recipe.attention)
    return student, set_trainable_(student, recipe)


def set_trainable_(student: Model, recipe: Recipe) -> Any:
    """Freezes all that the stage does not train; returns the peft model around it if it adds LoRA."""
    torch.manual_seed(recipe.seed)
    if isinstance(recipe, LongSft):
        return add_adapters(student, recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout)
    parts = SFT_PARTS[recipe.trains] if isinstance(recipe, Sft) else None
    freeze_(student, student.config.text_config.layer_types, recipe.stage, parts)
    return None


def open_stage(recipe: Recipe, accelerator: Accelerator, feed: Feed | None = None) -> Stage:
    """Loads the models and data of a recipe; only the weights of its stage are trainable.

    Args:
        feed: what to learn from instead of the recipe's `data`.

    Raises:
        InfiniteVLError: a model, its processor or data that cannot be used.
    """
    taught = recipe.teacher if isinstance(recipe, DistillLayers | DistillLogits) else None
    for name in (recipe.student, taught):
        if name is not None:
            find_start(name)  # a wrong path fails before anything large is loaded
    if isinstance(recipe, LongSft):
        check_installed()
    student, adapted = open_student(recipe)
    processor = open_processor(recipe.student)
    teacher = None if taught is None else load_teacher(taught)
    if feed is None:
        feed = _open_feed(recipe, processor, student, accelerator)
    return prepare_stage(recipe, student, adapted, teacher, processor, feed, accelerator.device)


def prepare_stage(
    recipe: Recipe,
    student: Model,
    adapted: Any,
    teacher: Model | None,
    processor: InfiniteVLProcessor,
    feed: Feed,
    device: torch.device,
) -> Stage:
    """Moves models to the device, ready to train; they share equal frozen weights."""
    saved_dtype, weights = student.dtype, Weights.of(student, len(student.config.text_config.layer_types))
    move_(student, recipe.torch_dtype, device)
    checkpoint_layers_(student, recipe.checkpointed_layers if recipe.gradient_checkpointing else 0)
    shared, same = 0, frozenset[int]()
    if teacher is not None:
        move_(teacher, recipe.torch_dtype, device)
        shared, same = share_frozen_(student, teacher), same_layers(student, teacher)
    if recipe.compile:
        for model in (student, teacher):
            if model is not None:
                compile_layers_(model)
    return Stage(recipe, student, teacher, adapted, processor, feed, saved_dtype, shared, same, weights)


def _open_feed(
    recipe: Recipe, processor: InfiniteVLProcessor, student: Model, accelerator: Accelerator
) -> PackedFeed:
    if recipe.data is None:
        raise InputError("the recipe has no data, and no feed was given: give one of them.")
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return PackedFeed(recipe.data, processor, student.config, recipe.seed, rank, world_size)


def teach(
    recipe: Recipe,
    *,
    feed: Feed | None = None,
    resume: bool = False,
    stop_after: int | None = None,
    seconds: float = math.inf,
) -> Path | None:
    """Runs a stage to its end, for `stop_after` steps or for so many seconds.

    Args:
        feed: what to learn from instead of the recipe's `data`.
        resume: continue from the checkpoint in the recipe's folder.

    Returns:
        The folder of the finished model, or None if steps are left; how many is printed.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first step or twice; the message says what is kept.
        InfiniteVLError: the run stopped; the message says why, and the last checkpoint is complete.
    """
    folder = Path(recipe.out)
    check_new_run(folder, resume)
    accelerator = processes()
    stage = open_stage(recipe, accelerator, feed)
    trainer = make_trainer(stage, accelerator)
    if resume:
        trainer.resume()
    with fast_kernels(stage.student, stage.teacher, recipe.torch_dtype):
        complete = trainer.train(stop_after, seconds)
    if stage.feed.skipped:
        print(describe_skipped(stage.feed.skipped), flush=True)
    if not complete:
        leave(trainer)
        return None
    take_weights(stage, trainer)
    if accelerator.is_main_process:
        finish(stage, folder)
    accelerator.wait_for_everyone()
    return folder / MODEL


def make_trainer(stage: Stage, accelerator: Accelerator) -> Trainer:
    """Makes the trainer of a stage; operations are counted on a GPU, whose peak may be known."""
    task = stage.task(with_flops=accelerator.device.type == "cuda")
    return Trainer(task, stage.recipe, Path(stage.recipe.out), accelerator, identity(stage.recipe))


def check_new_run(folder: Path, resume: bool) -> None:
    """Raises InfiniteVLError if a run is to start where another one left its checkpoint."""
    if not resume and os.path.exists(folder / CHECKPOINT):
        raise InfiniteVLError(f"{folder} holds a run already. Add --resume, or give another folder as `out`.")


def leave(trainer: Trainer) -> None:
    """Saves a run that has steps left, and says how to continue."""
    if trainer.saved_step != trainer.step:
        trainer.save()
    if trainer.accelerator.is_main_process:
        print(
            f"Stopped after step {trainer.step} of {trainer.settings.num_steps}; "
            f"{trainer.folder / CHECKPOINT} holds it. The same command with --resume continues it.",
            flush=True,
        )


def take_weights(stage: Stage, trainer: Trainer) -> None:
    """Gives the stage's student the complete trained weights, in the first process. All must call it."""
    if not isinstance(trainer.sharding, Sharded):
        trainer.sharding.restore_module()
        return
    trained = trainer.gather_weights()
    if trained:
        stage.student, stage.adapted = open_student(stage.recipe)
        for name, weight in LossModule(stage.student, stage.loss).named_parameters():
            if name in trained:
                weight.data = trained[name]


def finish(stage: Stage, folder: Path) -> None:
    """Writes the model (and the adapter) with its processor, and the curve of the loss."""
    if stage.adapted is not None:
        save_adapter(stage.adapted, stage.recipe.student, folder / ADAPTER)
    write_model(stage, folder / MODEL)
    draw_curve(folder, stage.recipe.stage)


def draw_curve(folder: Path, title: str) -> None:
    """Draws the loss of the run in `folder`, or says why not."""
    try:
        draw_loss(folder / LOG, folder / "loss.png", title)
    except ImportError as error:  # a figure is a convenience
        print(
            f"loss.png was not drawn, which needs {error.name}: pip install 'infinitevl[train]'. The numbers "
            f"are in {folder / LOG}.",
            flush=True,
        )


def write_model(stage: Stage, folder: Path) -> None:
    """Writes a folder for `infinitevl.load`, in the dtype of the start; the student is then merged."""
    student = stage.student if stage.adapted is None else merged(stage.adapted)
    keep_activations_(student)
    with quiet_progress():
        student.eval().to(stage.saved_dtype).save_pretrained(folder)
    stage.processor.save_pretrained(folder)


def export(recipe: Recipe, feed: Feed | None = None) -> Path:
    """Writes the model of an unfinished run's checkpoint as a folder beside it, and returns that folder.

    Raises:
        InfiniteVLError: there is no checkpoint of this recipe.
    """
    folder = Path(recipe.out)
    read_checkpoint(folder)  # before anything large is loaded
    accelerator = processes()
    stage = open_stage(recipe, accelerator, feed)
    trainer = make_trainer(stage, accelerator)
    trainer.resume()
    take_weights(stage, trainer)
    out = folder / f"{MODEL}-{trainer.step}"
    write_model(stage, out)
    return out
