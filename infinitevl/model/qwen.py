"""Qwen2.5-VL as a model of ours: the same layers, all of them attention."""

from typing import Any

from transformers import PreTrainedConfig

from infinitevl.config import InfiniteVLConfig, InfiniteVLVisionConfig
from infinitevl.errors import CheckpointError

QWEN = "qwen2_5_vl"
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


def foreign_config(place: str) -> InfiniteVLConfig | None:
    """The configuration of a folder or hub name of Qwen2.5-VL as ours; None where it is one of ours.

    Raises:
        CheckpointError: it is of another kind of model, or does not make one.
        OSError: there is no configuration.
    """
    found, _ = InfiniteVLConfig.get_config_dict(place)
    kind = found.get("model_type")
    if kind == QWEN:
        return _read_qwen(place, found)
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    if isinstance(kind, str) and kind in CONFIG_MAPPING_NAMES and kind != InfiniteVLConfig.model_type:
        raise CheckpointError(
            f"{place} is a {kind!r}. Give a folder of an InfiniteVL ({InfiniteVLConfig.model_type!r}) or of "
            f"Qwen2.5-VL ({QWEN!r})."
        )
    return None


def _read_qwen(place: str, found: dict[str, Any]) -> InfiniteVLConfig:
    from transformers import Qwen2_5_VLConfig

    try:
        return from_qwen(Qwen2_5_VLConfig.from_dict(found))
    except CheckpointError:
        raise
    except Exception as error:  # transformers checks its fields only as it uses them
        raise CheckpointError(f"the configuration of {place} makes no {QWEN}: {error!r}.") from error


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
