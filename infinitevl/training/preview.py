"""A stage before it runs: what would train, how much memory and how many tokens, and what is read first."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt import IMAGE_PAD, VIDEO_PAD
from infinitevl.training.course import Course, open_course
from infinitevl.training.losses import CHUNK_TOKENS, IGNORED
from infinitevl.training.parts import part_of
from infinitevl.training.pictures import write_pictures
from infinitevl.training.recipes import Recipe
from infinitevl.training.run import Feed
from infinitevl.training.stages.reading import Batch

_SHOWN = 4  # samples of the first row
_MEDIA = re.compile(rf"((?:{re.escape(IMAGE_PAD)})+|(?:{re.escape(VIDEO_PAD)})+)")


def preview(recipe: Recipe, pictures: Path | None = None, feed: Feed | None = None) -> str:
    """What `--dry-run` prints; pictures of the first row go to that folder; `feed` as in `teach`.

    Raises as `open_course`.
    """
    course = open_course(recipe, Accelerator(), feed)
    first = course.feed.next()
    row = first[0]
    sections = [trainable_set(course), memory(course, row), tokens(course, first), first_row(course, row)]
    if pictures is not None:
        written = write_pictures(row, pictures, course.student.config.vision_config, course.processor)
        sections.append(f"{len(written)} pictures of this row are in {pictures}")
    return "\n\n".join(sections)


def trainable_set(course: Course) -> str:
    """Parameters that train and that do not, by part."""
    kinds = course.student.config.text_config.layer_types
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, weight in course.student.named_parameters():
        part = "LoRA adapters" if ".lora_" in name else part_of(name, kinds)
        (trained if weight.requires_grad else frozen)[part] += weight.numel()
    lines = [f"  trains  {count:>15,}  {part}" for part, count in trained.items()]
    lines += [f"  frozen  {count:>15,}  {part}" for part, count in frozen.items()]
    return "\n".join([f"{course.recipe.stage}: {trained.total():,} parameters train", *lines])


def memory(course: Course, batch: Batch) -> str:
    """An estimate of what one device holds, in GB, where nothing is sharded."""
    parts = estimate(course, _num_tokens(course, batch))
    lines = [f"  {size / 1e9:8.2f} GB  {what}" for what, size in parts.items()]
    return "\n".join([f"memory of one device: about {sum(parts.values()) / 1e9:.2f} GB", *lines])


def _num_tokens(course: Course, batch: Batch) -> int:
    """Of a packed row, or of a batch where the feed was given."""
    data = course.recipe.data
    return batch["input_ids"].numel() if data is None else data.row_tokens


def estimate(course: Course, row: int) -> dict[str, int]:
    """Bytes, by what they hold, where `row` tokens are read at once."""
    held = {weight.data_ptr(): weight for weight in course.student.parameters()}
    trained = sum(weight.numel() for weight in held.values() if weight.requires_grad)
    parts = {"student's weights": sum(weight.nbytes for weight in held.values())}
    if course.teacher is not None:
        own = {w.data_ptr(): w for w in course.teacher.parameters() if w.data_ptr() not in held}
        parts["teacher's weights that the student has not"] = sum(weight.nbytes for weight in own.values())
    parts["gradients and both moments of AdamW, float32"] = 12 * trained
    return parts | _activations(course.student, course.recipe, row)


def _activations(student: InfiniteVLForConditionalGeneration, recipe: Recipe, row: int) -> dict[str, int]:
    """What a row of tokens leaves for the backward pass, roughly: each product's input and output once."""
    text, size = student.config.text_config, getattr(torch, recipe.precision).itemsize
    mixer = 2 * text.hidden_size + 2 * text.conv_channels + 2 * text.value_dim
    layer = mixer + 2 * text.hidden_size + 3 * text.intermediate_size
    kept = text.hidden_size * text.num_hidden_layers + layer
    if not recipe.gradient_checkpointing:
        kept = layer * text.num_hidden_layers
    logits = 0 if recipe.stage == "distill-layers" else 4 * 4 * CHUNK_TOKENS * text.vocab_size
    return {f"activations of a row of {row:,} tokens": kept * row * size, "logits of a chunk": logits}


def tokens(course: Course, first: Sequence[Batch]) -> str:
    """How many tokens a step has, at most and in the first one."""
    data = course.recipe.data
    found = sum(batch["input_ids"].numel() for batch in first)
    counted = sum(course.count(batch) for batch in first)
    samples = sum(len(_rows(batch, "input_ids")) for batch in first)
    told = ""
    if data is not None:
        most = data.rows_per_step * data.row_tokens
        told = f"at most {most:,} in {data.rows_per_step} rows, over all processes"
    return (
        f"tokens of a step: {told}\n  the first step here: {found:,} tokens of {samples} samples in "
        f"{len(first)} {'rows' if data else 'batches'}; the loss is over {counted:,} of them"
    )


def first_row(course: Course, batch: Batch) -> str:
    """The first samples of a row as text; what is learned stands between [[ and ]]."""
    ids, labels = _rows(batch, "input_ids"), _rows(batch, "labels")
    shown = [_as_text(course, *pair) for pair in zip(ids[:_SHOWN], labels[:_SHOWN], strict=True)]
    more = [f"... and {len(ids) - _SHOWN} more samples"] if len(ids) > _SHOWN else []
    media = [f"  {name}: {_told(value)}" for name, value in batch.items() if name.endswith("grid_thw")]
    return "\n".join(["the first row (what is learned between [[ and ]]):", *shown, *more, *media])


def _rows(batch: Batch, name: str) -> Sequence[torch.Tensor]:
    """int64 [B, T] as its samples, which have a row each or share the one row."""
    lengths = batch.get("sequence_lengths")
    return batch[name].unbind() if lengths is None else batch[name][0].split(lengths)


def _told(grids: torch.Tensor) -> str:
    """Equal grids as one of them and how many."""
    first, count = grids[0].tolist(), len(grids)
    return f"{first} x {count}" if count > 1 and bool((grids == grids[0]).all()) else str(grids.tolist())


def _as_text(course: Course, ids: torch.Tensor, labels: torch.Tensor) -> str:
    learned = labels != IGNORED
    runs = torch.tensor_split(ids, (learned.diff().nonzero().flatten() + 1).tolist())
    texts = [_MEDIA.sub(_counted, course.processor.tokenizer.decode(run)) for run in runs]
    odd = 0 if learned[0] else 1  # learned and given runs take turns
    return "".join(f"[[{text}]]" if i % 2 == odd else text for i, text in enumerate(texts))


def _counted(found: re.Match[str]) -> str:
    """A run of pads as the first of them and how many."""
    pad = IMAGE_PAD if found[0].startswith(IMAGE_PAD) else VIDEO_PAD
    return f"{pad} x {len(found[0]) // len(pad)}"
