"""Makes a student from a teacher: chosen layers get new Gated DeltaNets, the rest is inherited exactly."""

import copy
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from infinitevl.config import LINEAR, InfiniteVLConfig, InfiniteVLTextConfig, hybrid_layer_types
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.files import atomic_write
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.opening import quiet_progress
from infinitevl.training.parts import STAGES, role
from infinitevl.training.starts import open_processor
from infinitevl.training.teacher import load_teacher

TABLE_FILE = "weights.tsv"
INHERITED, NEW = "inherited", "new"


@dataclass(frozen=True)
class StudentPlan:
    """How a student differs from its teacher; None takes the teacher's value.

    layer_types: of each layer, or None for blocks of `period`: one window layer, then Gated DeltaNets.
    window, sinks: the last keys that a window layer sees, and the first ones, which it never forgets.
    num_linear_heads, linear_head_dim: of the new mixers, by default those of attention. expand: value width
    of a new head over its key width. initializer_range: standard deviation of fresh projections; small models
    need about hidden_size^-0.5.
    """

    layer_types: Sequence[str] | None = None
    period: int = 4
    window: int = 8192
    sinks: int = 0
    num_linear_heads: int | None = None
    linear_head_dim: int | None = None
    expand: float = 2
    initializer_range: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One weight: where it comes from, and what each stage does with it."""

    name: str
    shape: tuple[int, ...]
    origin: str
    roles: tuple[str, ...]


def student_config(teacher: InfiniteVLConfig, plan: StudentPlan) -> InfiniteVLConfig:
    """Returns the teacher's configuration with other mixers.

    Raises:
        InputError: a period below 1.
        CheckpointError: sizes or layer types that do not make a model.
    """
    if plan.period < 1:
        raise InputError(f"period is {plan.period}; give the number of layers in a block, at least 1.")
    before = teacher.text_config
    own = {*type(before).__dataclass_fields__, "dtype"}
    text = {key: value for key, value in before.to_dict().items() if key in own}
    text["layer_types"] = list(plan.layer_types or hybrid_layer_types(before.num_hidden_layers, plan.period))
    text["sliding_window"], text["num_sink_tokens"] = plan.window, plan.sinks
    heads = plan.num_linear_heads or before.num_attention_heads
    text["num_linear_heads"] = text["num_linear_key_value_heads"] = heads
    text["linear_head_dim"] = plan.linear_head_dim or before.head_dim
    text["expand_v"] = plan.expand
    text["initializer_range"] = plan.initializer_range or before.initializer_range
    config = copy.deepcopy(teacher)
    config.text_config = InfiniteVLTextConfig(**text)
    return config


def make_student(name: str | os.PathLike[str], plan: StudentPlan) -> InfiniteVLForConditionalGeneration:
    """Makes the student of the teacher at `name`, in the teacher's dtype.

    Raises:
        CheckpointError: the teacher is unusable, or the plan does not make a model.
        InputError: a period below 1.
    """
    teacher = load_teacher(name)
    config = student_config(teacher.config, plan)
    with torch.device("meta"):
        student = InfiniteVLForConditionalGeneration(config)
    kinds = config.text_config.layer_types
    inherited = {key: value for key, value in teacher.state_dict().items() if not _is_new(key, kinds)}
    student.load_state_dict(inherited, assign=True, strict=False)
    student.tie_weights()
    student.model.language_model.rotary.to_empty(device="cpu").reset_buffers_()
    torch.manual_seed(plan.seed)
    for layer, kind in zip(student.model.language_model.layers, kinds, strict=True):
        if kind == LINEAR:
            layer.self_attn.to(teacher.dtype).to_empty(device="cpu")
            layer.self_attn.apply(student._init_weights)
    student.generation_config = teacher.generation_config
    return student.eval().requires_grad_(True)


def weight_table(student: InfiniteVLForConditionalGeneration) -> list[Row]:
    """Lists every weight of a fresh student, in the model's order."""
    kinds = student.config.text_config.layer_types
    return [
        Row(
            name,
            tuple(weight.shape),
            NEW if _is_new(name, kinds) else INHERITED,
            tuple(role(name, kinds, stage) for stage in STAGES),
        )
        for name, weight in student.named_parameters()
    ]


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Writes one line a weight: name, shape, origin, and its role in each stage, separated by tabs."""
    lines = ["\t".join(["weight", "shape", "origin", *STAGES])]
    lines += ["\t".join([row.name, "x".join(map(str, row.shape)), row.origin, *row.roles]) for row in rows]
    with atomic_write(path) as part:
        part.write_text("\n".join(lines) + "\n")


def folded(rows: Sequence[Row]) -> list[tuple[str, Row, int]]:
    """Groups rows that differ only in the number of their layer: (pattern, first row, how many)."""
    counts = Counter(_pattern(row) for row in rows)
    first = {_pattern(row): row for row in reversed(rows)}
    return [(pattern[0], first[pattern], count) for pattern, count in counts.items()]


def save_student(
    student: InfiniteVLForConditionalGeneration, name: str | os.PathLike[str], out: Path
) -> str | None:
    """Writes a folder that `infinitevl.load` takes: weights, table, and the teacher's processor.

    Returns:
        Why there is no processor in it, or None.

    Raises:
        InfiniteVLError: the folder holds something already, or cannot be written.
    """
    check_new(out)
    out.mkdir(parents=True, exist_ok=True)
    with quiet_progress():
        student.save_pretrained(out)
    write_table(weight_table(student), out / TABLE_FILE)
    try:
        open_processor(name).save_pretrained(out)
    except (OSError, ValueError) as error:
        return f"{str(name)!r} has no usable processor ({str(error).splitlines()[0]})"
    return None


def check_new(out: Path) -> None:
    """Raises InfiniteVLError if `out` exists and is not an empty folder."""
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InfiniteVLError(f"{out} is not empty. Give a new folder, so that nothing is written over.")


def _is_new(name: str, layer_types: Sequence[str]) -> bool:
    parts = name.split(".")
    return parts[1:3] == ["language_model", "layers"] and (
        layer_types[int(parts[3])] == LINEAR and parts[4] == "self_attn"
    )


def _pattern(row: Row) -> tuple[str, str, tuple[str, ...]]:
    name = ".".join("*" if part.isdigit() else part for part in row.name.split("."))
    return name, row.origin, row.roles
