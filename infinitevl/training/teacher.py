"""Loads teachers: any Qwen2.5-VL checkpoint, or an InfiniteVL with attention in every layer."""

import os
from typing import Any

from transformers import AutoConfig

from infinitevl.config import LINEAR, InfiniteVLConfig
from infinitevl.errors import CheckpointError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.qwen import QWEN, from_qwen
from infinitevl.training.starts import find_start

OURS = InfiniteVLConfig.model_type


def teacher_config(name: str | os.PathLike[str]) -> InfiniteVLConfig:
    """Reads the configuration of a teacher, with its attention layers as they are.

    Args:
        name: a folder or hub name whose config.json is of Qwen2.5-VL (flat or nested) or ours.

    Raises:
        CheckpointError: no configuration there, or of another kind of model, or one with linear layers.
    """
    place = find_start(name)
    try:
        found = AutoConfig.from_pretrained(place)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"no configuration of a teacher could be read from {str(name)!r}: {str(error).splitlines()[0]} "
            "Give a folder with config.json and weights, or a hub name."
        ) from error
    if found.model_type == QWEN:
        return from_qwen(found)
    if not isinstance(found, InfiniteVLConfig):
        raise CheckpointError(
            f"{str(name)!r} is a {found.model_type!r}; a teacher is {QWEN!r} (Qwen2.5-VL) or {OURS!r}."
        )
    if LINEAR in found.text_config.layer_types:
        raise CheckpointError(
            f"{str(name)!r} cannot be a teacher: it already has {LINEAR} layers, which have no attention to "
            "inherit. Give a model of attention layers alone, such as Qwen/Qwen2.5-VL-3B-Instruct."
        )
    return found


def load_teacher(name: str | os.PathLike[str], **kwargs: Any) -> InfiniteVLForConditionalGeneration:
    """Loads a teacher, frozen; keywords as in `from_pretrained`.

    Raises:
        CheckpointError: as `teacher_config`, or weights that do not fill the model.
    """
    kwargs.setdefault("dtype", "auto")
    config = teacher_config(name)
    teacher = InfiniteVLForConditionalGeneration.from_pretrained(find_start(name), config=config, **kwargs)
    return teacher.eval().requires_grad_(False)
