"""Describes a stage before it runs: what would train, memory, tokens a step, and the first row."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt.template import IMAGE_PAD, VIDEO_PAD
from infinitevl.training.feed import PackedFeed
from infinitevl.training.losses import CHUNK_TOKENS, IGNORED
from infinitevl.training.parts import part_of
from infinitevl.training.pictures import write_pictures
from infinitevl.training.recipes import Recipe
from infinitevl.training.stage import Stage, open_stage
from infinitevl.training.stages.inputs import Batch
from infinitevl.training.task import Feed

_SHOWN = 4  # samples of the first row
_MEDIA = re.compile(rf"((?:{re.escape(IMAGE_PAD)})+|(?:{re.escape(VIDEO_PAD)})+)")


def preview(recipe: Recipe, pictures: Path | None = None, feed: Feed | None = None) -> str:
    """Returns what `--dry-run` prints, and writes the first row's pictures to a folder; `feed` as in `teach`.

    Raises as `open_stage`.
    """
    stage = open_stage(recipe, Accelerator(), feed)
    first = stage.feed.next_batches()
    row = first[0]
    sections = [trainable_set(stage), memory(stage, row), tokens(stage, first)]
    if isinstance(stage.feed, PackedFeed):
        sections.append(workers(stage.feed))
    sections.append(first_row(stage, row))
    if pictures is not None:
        written = write_pictures(row, pictures, stage.student.config.vision_config, stage.processor)
        sections.append(f"{len(written)} pictures of this row are in {pictures}")
    return "\n\n".join(sections)


def trainable_set(stage: Stage) -> str:
    """Counts the parameters that train and that do not, by part."""
    kinds = stage.student.config.text_config.layer_types
    trained: Counter[str] = Counter()
    frozen: Counter[str] = Counter()
    for name, weight in stage.student.named_parameters():
        part = "LoRA adapters" if ".lora_" in name else part_of(name, kinds)
        (trained if weight.requires_grad else frozen)[part] += weight.numel()
    lines = [f"  trains  {count:>15,}  {part}" for part, count in trained.items()]
    lines += [f"  frozen  {count:>15,}  {part}" for part, count in frozen.items()]
    return "\n".join([f"{stage.recipe.stage}: {trained.total():,} parameters train", *lines])


def memory(stage: Stage, batch: Batch) -> str:
    """Estimates the memory of one device, without sharding."""
    parts = estimate(stage, _num_tokens(stage, batch))
    lines = [f"  {_size(size):>11}  {what}" for what, size in parts.items()]
    return "\n".join([f"memory of one device: about {_size(sum(parts.values()))}", *lines])


def _size(num_bytes: float) -> str:
    """Bytes in GB, or in MB where that would be nearly 0."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.2f} MB"


def _num_tokens(stage: Stage, batch: Batch) -> int:
    """Counts the tokens of a packed row, or of a batch if a feed was given."""
    data = stage.recipe.data
    return batch["input_ids"].numel() if data is None else data.row_tokens


def estimate(stage: Stage, row: int) -> dict[str, int]:
    """Estimates bytes by what they hold, for `row` tokens at once."""
    held = {weight.data_ptr(): weight for weight in stage.student.parameters()}
    trained = sum(weight.numel() for weight in held.values() if weight.requires_grad)
    parts = {"student's weights": sum(weight.nbytes for weight in held.values())}
    if stage.teacher is not None:
        own = {w.data_ptr(): w for w in stage.teacher.parameters() if w.data_ptr() not in held}
        parts["teacher's weights that the student has not"] = sum(weight.nbytes for weight in own.values())
    parts["gradients and both moments of AdamW, float32"] = 12 * trained
    return parts | _activations(stage.student, stage.recipe, row)


def _activations(student: InfiniteVLForConditionalGeneration, recipe: Recipe, row: int) -> dict[str, int]:
    """Estimates what a row keeps for the backward pass: each product's input and output once."""
    text, size = student.config.text_config, recipe.torch_dtype.itemsize
    mixer = 2 * text.hidden_size + 2 * text.conv_channels + 2 * text.value_dim
    layer = mixer + 2 * text.hidden_size + 3 * text.intermediate_size
    kept = text.hidden_size * text.num_hidden_layers + layer
    if not recipe.gradient_checkpointing:
        kept = layer * text.num_hidden_layers
    logits = 0 if recipe.stage == "distill-layers" else 4 * 4 * CHUNK_TOKENS * text.vocab_size
    return {f"activations of a row of {row:,} tokens": kept * row * size, "logits of a chunk": logits}


def tokens(stage: Stage, first: Sequence[Batch]) -> str:
    """Counts the tokens of a step, at most and in the first one."""
    data = stage.recipe.data
    found = sum(batch["input_ids"].numel() for batch in first)
    counted = sum(stage.count(batch) for batch in first)
    samples = sum(len(_rows(batch, "input_ids")) for batch in first)
    limit = ""
    if data is not None:
        most = data.rows_per_step * data.row_tokens
        limit = f"at most {most:,} in {data.rows_per_step} rows, over all processes"
    return (
        f"tokens of a step: {limit}\n  the first step here: {found:,} tokens of {samples} samples in "
        f"{len(first)} {'rows' if data else 'batches'}; the loss is over {counted:,} of them"
    )


def workers(feed: PackedFeed) -> str:
    """Says how many processes really read ahead, which is at most as many as the recipe asks for."""
    asked, used, shards = feed.place["num_workers"], feed.loader.num_workers, len(feed.loader.own)
    why = f", because that many divide the {shards} shards of the data here" if used != asked else ""
    return f"workers: {used} of the {asked} that the recipe asks for read ahead{why}"


def first_row(stage: Stage, batch: Batch) -> str:
    """Shows the first samples of a row as text; what is learned stands between [[ and ]]."""
    ids, labels = _rows(batch, "input_ids"), _rows(batch, "labels")
    shown = [_as_text(stage, *pair) for pair in zip(ids[:_SHOWN], labels[:_SHOWN], strict=True)]
    more = [f"... and {len(ids) - _SHOWN} more samples"] if len(ids) > _SHOWN else []
    media = [f"  {name}: {_grids_text(value)}" for name, value in batch.items() if name.endswith("grid_thw")]
    return "\n".join(["the first row (what is learned between [[ and ]]):", *shown, *more, *media])


def _rows(batch: Batch, name: str) -> Sequence[torch.Tensor]:
    """Splits int64 [B, T] into samples, which have a row each or share one row."""
    lengths = batch.get("sequence_lengths")
    return batch[name].unbind() if lengths is None else batch[name][0].split(lengths)


def _grids_text(grids: torch.Tensor) -> str:
    """Writes equal grids as one of them and their number."""
    first, count = grids[0].tolist(), len(grids)
    return f"{first} x {count}" if count > 1 and bool((grids == grids[0]).all()) else str(grids.tolist())


def _as_text(stage: Stage, ids: torch.Tensor, labels: torch.Tensor) -> str:
    learned = labels != IGNORED
    runs = torch.tensor_split(ids, (learned.diff().nonzero().flatten() + 1).tolist())
    texts = [_MEDIA.sub(_counted, stage.processor.tokenizer.decode(run)) for run in runs]
    odd = 0 if learned[0] else 1  # learned and given runs alternate
    return "".join(f"[[{text}]]" if i % 2 == odd else text for i, text in enumerate(texts))


def _counted(found: re.Match[str]) -> str:
    """Writes a run of pads as one of them and their number."""
    pad = IMAGE_PAD if found[0].startswith(IMAGE_PAD) else VIDEO_PAD
    return f"{pad} x {len(found[0]) // len(pad)}"
