"""Loads teachers: any Qwen2.5-VL checkpoint, or an InfiniteVL with attention in every layer."""

import os
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from infinitevl.config import LINEAR, InfiniteVLConfig, InfiniteVLVisionConfig
from infinitevl.errors import CheckpointError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.starts import place_of

QWEN, OURS = "qwen2_5_vl", "infinite_vl"
_TEXT = (
    "vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads "
    "hidden_act rms_norm_eps initializer_range max_position_embeddings attention_dropout bos_token_id "
    "eos_token_id pad_token_id"
).split()
_VISION = (
    "depth hidden_size num_heads intermediate_size hidden_act in_channels patch_size spatial_merge_size "
    "temporal_patch_size window_size fullatt_block_indexes out_hidden_size tokens_per_second"
).split()
_IDS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_SECTION = (16, 24, 24)  # what Qwen2.5-VL turns with where a configuration does not say


def teacher_config(name: str | os.PathLike[str]) -> InfiniteVLConfig:
    """Reads the configuration of a teacher, with its attention layers as they are.

    Args:
        name: a folder or hub name whose config.json is of Qwen2.5-VL (flat or nested) or ours.

    Raises:
        CheckpointError: no configuration there, or of another kind of model, or one with linear layers.
    """
    place = place_of(name)
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
    teacher = InfiniteVLForConditionalGeneration.from_pretrained(place_of(name), config=config, **kwargs)
    return teacher.eval().requires_grad_(False)


def from_qwen(found: PreTrainedConfig) -> InfiniteVLConfig:
    """Converts a Qwen2.5-VL configuration to an InfiniteVL one, layer for layer."""
    text, vision = found.text_config.to_dict(), found.vision_config.to_dict()
    rope = text["rope_parameters"]
    fields = {key: text[key] for key in _TEXT if text.get(key) is not None}
    fields |= {
        "layer_types": text["layer_types"],
        "rope_theta": rope["rope_theta"],
        "mrope_section": rope.get("mrope_section", _SECTION),
        "tie_word_embeddings": found.tie_word_embeddings,
    }
    if text.get("sliding_window"):
        fields["sliding_window"] = text["sliding_window"]
    return InfiniteVLConfig(
        **fields,
        **{key: getattr(found, key) for key in _IDS},
        dtype=found.dtype or found.text_config.dtype,
        vision_config=InfiniteVLVisionConfig(**{key: vision[key] for key in _VISION}),
    )
