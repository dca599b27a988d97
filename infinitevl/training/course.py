"""A stage of a recipe, from its folders to a finished model."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.model.fused import fuse_, training_kernels
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.processor import InfiniteVLProcessor
from infinitevl.training.data.loading import describe_skipped
from infinitevl.training.feed import PackedFeed
from infinitevl.training.flops import Weights, stage_flops
from infinitevl.training.journal import draw_loss
from infinitevl.training.lora import add_adapters, merged, save_adapter
from infinitevl.training.parts import freeze_
from infinitevl.training.recipes import DistillLayers, DistillLogits, LongSft, Recipe, identity
from infinitevl.training.run import (
    CHECKPOINT,
    LOG,
    Feed,
    Lesson,
    Run,
    Settings,
    Teaching,
    processes,
    read_checkpoint,
)
from infinitevl.training.sharding import Sharded
from infinitevl.training.stages.distill import distill_layers, distill_logits, same_layers, share_frozen_
from infinitevl.training.stages.reading import Batch, answers, real_tokens, work
from infinitevl.training.stages.sft import sft
from infinitevl.training.starts import ADAPTER, MODEL, open_processor, open_start, place_of
from infinitevl.training.teacher import load_teacher


@dataclass
class Course:
    """Everything that a stage works with; `adapted` is the peft model around the student, if there is one.

    bytes_shared: of weights that teacher and student hold once. same: layers that they hold once, whole.
    dtype: of the student's folder.
    """

    recipe: Recipe
    student: InfiniteVLForConditionalGeneration
    teacher: InfiniteVLForConditionalGeneration | None
    adapted: Any
    processor: InfiniteVLProcessor
    feed: Feed
    dtype: torch.dtype
    bytes_shared: int
    same: frozenset[int]
    weights: Weights

    def loss(self, batch: Batch) -> torch.Tensor:
        """The stage's loss, summed over the tokens that `count` counts."""
        recipe, teacher = self.recipe, self.teacher
        if isinstance(recipe, DistillLayers):
            assert teacher is not None
            return distill_layers(self.student, teacher, batch, self.same)
        if isinstance(recipe, DistillLogits):
            assert teacher is not None
            return distill_logits(self.student, teacher, batch, recipe.temperature, recipe.all_tokens)
        return sft(self.student, batch)

    def count(self, batch: Batch) -> int:
        """Over how many tokens the loss of a batch is a sum."""
        recipe = self.recipe
        if isinstance(recipe, DistillLayers) or (isinstance(recipe, DistillLogits) and recipe.all_tokens):
            return int(real_tokens(batch).sum())
        return len(answers(batch)[1])

    def flops(self, batch: Batch) -> float:
        """Operations that a batch needs, forward and backward."""
        teacher = None if self.teacher is None else self.teacher.config
        asked = work(batch, self.count(batch))
        return stage_flops(self.recipe.stage, self.student.config, self.weights, asked, teacher)


def open_student(recipe: Recipe) -> tuple[InfiniteVLForConditionalGeneration, Any]:
    """The model to start from, where exactly the weights of the stage train; and the peft model around it, if
    there are adapters."""
    student = open_start(recipe.student)
    return student, choose_weights_(student, recipe)


def choose_weights_(student: InfiniteVLForConditionalGeneration, recipe: Recipe) -> Any:
    """Let exactly the weights of the stage train; returns the peft model around it, if there are adapters."""
    torch.manual_seed(recipe.seed)
    if isinstance(recipe, LongSft):
        return add_adapters(student, recipe.lora.rank, recipe.lora.alpha, recipe.lora.dropout)
    freeze_(student, student.config.text_config.layer_types, recipe.stage)
    return None


def open_course(recipe: Recipe, accelerator: Accelerator, feed: Feed | None = None) -> Course:
    """Load what the recipe names, and let exactly the weights of its stage train.

    Args:
        feed: what to learn from, in the place of the recipe's data.

    Raises:
        InfiniteVLError: a model, its processor or data that cannot be used.
    """
    taught = recipe.teacher if isinstance(recipe, DistillLayers | DistillLogits) else None
    for name in (recipe.student, taught):
        if name is not None:
            place_of(name)  # a wrong path is told before anything large is loaded
    student, adapted = open_student(recipe)
    processor = open_processor(recipe.student)
    teacher = None if taught is None else load_teacher(taught)
    if feed is None:
        feed = _open_feed(recipe, processor, student, accelerator)
    return set_up(recipe, student, adapted, teacher, processor, feed, accelerator.device)


def set_up(
    recipe: Recipe,
    student: InfiniteVLForConditionalGeneration,
    adapted: Any,
    teacher: InfiniteVLForConditionalGeneration | None,
    processor: InfiniteVLProcessor,
    feed: Feed,
    device: torch.device,
) -> Course:
    """Models whose trainable weights are chosen, ready to learn on a device; what both hold is held once."""
    dtype, weights = student.dtype, Weights.of(student, len(student.config.text_config.layer_types))
    _place_(student, recipe.precision, device)
    checkpoint_layers_(student, recipe.checkpointed_layers if recipe.gradient_checkpointing else 0)
    shared, same = 0, frozenset[int]()
    if teacher is not None:
        _place_(teacher, recipe.precision, device)
        shared, same = share_frozen_(student, teacher), same_layers(student, teacher)
    if recipe.compile:
        for model in (student, teacher):
            if model is not None:
                compile_layers_(model)
    return Course(recipe, student, teacher, adapted, processor, feed, dtype, shared, same, weights)


def checkpoint_layers_(student: InfiniteVLForConditionalGeneration, count: int | None) -> None:
    """Let the first `count` layers of the decoder (None: all) compute their activations again when needed."""
    student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for block in student.model.visual.blocks:
        block.gradient_checkpointing = False  # frozen: it keeps nothing in any case
    for number, layer in enumerate(student.model.language_model.layers):
        layer.gradient_checkpointing = count is None or number < count


def compile_layers_(model: InfiniteVLForConditionalGeneration) -> None:
    """One graph for all decoder layers of a kind; a part that does not compile runs as it is."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = 32
    for layer in model.model.language_model.layers:
        layer.compile(dynamic=True)


def _open_feed(
    recipe: Recipe,
    processor: InfiniteVLProcessor,
    student: InfiniteVLForConditionalGeneration,
    accelerator: Accelerator,
) -> PackedFeed:
    if recipe.data is None:
        raise InputError("the recipe has no data, and no feed was given: give one of them.")
    rank, world_size = accelerator.process_index, accelerator.num_processes
    return PackedFeed(recipe.data, processor, student.config, recipe.seed, rank, world_size)


def teach(
    recipe: Recipe, *, feed: Feed | None = None, resume: bool = False, stop_after: int | None = None
) -> Path | None:
    """Run a stage to its end, or for `stop_after` steps.

    Args:
        feed: what to learn from, in the place of the recipe's data.

    Returns:
        The folder of the finished model, or None where steps are left, which are told.

    Raises:
        KeyboardInterrupt: Ctrl-C before the first step or twice; the message says what is kept.
        InfiniteVLError: the run stopped; the message says why, and the last checkpoint is whole.
    """
    folder = Path(recipe.out)
    if not resume and (folder / CHECKPOINT).exists():
        raise InfiniteVLError(f"{folder} holds a run already. Add --resume, or give another folder as `out`.")
    accelerator = processes()
    course = open_course(recipe, accelerator, feed)
    precision = None if recipe.precision == "float32" else getattr(torch, recipe.precision)
    lesson = Lesson(course.student, course.loss, precision, course.teacher)
    flops = course.flops if accelerator.device.type == "cuda" else None  # whose peak may be known
    teaching = Teaching(lesson, course.feed, course.count, flops)
    run = Run(teaching, settings(recipe), folder, accelerator)
    if resume:
        run.resume()
    with fast_kernels(course):
        complete = run.go(stop_after)
    if course.feed.skipped:
        print(describe_skipped(course.feed.skipped), flush=True)
    if not complete:
        _leave(run)
        return None
    take_back(course, run)
    if accelerator.is_main_process:
        finish(course, folder)
    accelerator.wait_for_everyone()
    return folder / MODEL


def _leave(run: Run) -> None:
    """Save a run that has steps left, and say how it goes on."""
    if run.saved != run.step:
        run.save()
    if run.accelerator.is_main_process:
        print(
            f"Stopped after step {run.step} of {run.settings.num_steps}; {run.folder / CHECKPOINT} holds it. "
            "The same command with --resume goes on from there.",
            flush=True,
        )


def take_back(course: Course, run: Run) -> None:
    """Let the course's student hold the trained weights, whole, in the first process; all must ask."""
    if not isinstance(run.spread, Sharded):
        run.spread.restore()
        return
    trained = run.whole_weights()
    if trained:
        course.student, course.adapted = open_student(course.recipe)
        for name, weight in Lesson(course.student, course.loss).named_parameters():
            if name in trained:
                weight.data = trained[name]


def finish(course: Course, folder: Path) -> None:
    """Write the model (and the adapter), with its processor, and the curve of the loss."""
    if course.adapted is not None:
        save_adapter(course.adapted, course.recipe.student, folder / ADAPTER)
    write_model(course, folder / MODEL)
    try:
        draw_loss(folder / LOG, folder / "loss.png", course.recipe.stage)
    except ImportError as error:  # a figure is a convenience
        print(
            f"loss.png was not drawn, which needs {error.name}: pip install 'infinitevl[train]'. The numbers "
            f"are in {folder / LOG}.",
            flush=True,
        )


def write_model(course: Course, folder: Path) -> None:
    """A folder that loads and answers, in the start's number format; the course is over with it."""
    student = course.student if course.adapted is None else merged(course.adapted)
    student.gradient_checkpointing_disable()
    student.eval().to(course.dtype).save_pretrained(folder)
    course.processor.save_pretrained(folder)


def export(recipe: Recipe, feed: Feed | None = None) -> Path:
    """The model of a run's checkpoint, wherever the run stands, as a folder beside it; `feed` as in `teach`.

    Raises:
        InfiniteVLError: there is no checkpoint of this recipe.
    """
    folder = Path(recipe.out)
    read_checkpoint(folder)  # before anything large is loaded
    accelerator = processes()
    course = open_course(recipe, accelerator, feed)
    teaching = Teaching(Lesson(course.student, course.loss), course.feed, course.count)
    run = Run(teaching, settings(recipe), folder, accelerator)
    run.resume()
    out = folder / f"{MODEL}-{run.step}"
    write_model(course, out)
    return out


@contextlib.contextmanager
def fast_kernels(course: Course) -> Iterator[None]:
    """Within it student and teacher run on kernels that train fast."""
    dtype = getattr(torch, course.recipe.precision)
    reader = course.student if course.teacher is None else course.teacher
    if course.recipe.precision == "bfloat16" and reader.device.type == "cuda":
        fuse_(reader.model.visual)  # frozen in every stage, and half of the work where pictures are many
    with contextlib.ExitStack() as stack:
        for model in (course.student, course.teacher):
            if model is not None:
                stack.enter_context(training_kernels(model, dtype))
        yield


def settings(recipe: Recipe) -> Settings:
    """What the loop needs of a recipe."""
    return Settings(
        num_steps=recipe.num_steps,
        learning_rate=recipe.learning_rate,
        warm_up=recipe.warm_up,
        weight_decay=recipe.weight_decay,
        betas=recipe.betas,
        clip=recipe.clip,
        seed=recipe.seed,
        save_every=recipe.save_every,
        log_every=recipe.log_every,
        identity=identity(recipe),
        sharding=recipe.sharding,
        log_to=recipe.log_to,
    )


def _place_(model: nn.Module, precision: str, device: torch.device) -> None:
    """What trains in float32, everything else in the recipe's precision, all on the device."""
    for parameter in model.parameters():
        dtype = torch.float32 if parameter.requires_grad else getattr(torch, precision)
        parameter.data = parameter.data.to(device, dtype)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
