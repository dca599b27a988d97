"""Loads the parts of a processor from a folder: which settings may change, and their values."""

import os
from pathlib import Path
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.prompt.media_settings import check_positive, is_number

PUBLISHED_SIZE = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # fewest and most pixels of a picture
LIMITS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
COUNTS = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
COLOURS = ("image_mean", "image_std")
CHANGEABLE = (*COUNTS, *COLOURS, "size")
# Videos and streams take other paths, which only know these values.
FIXED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
_HUB_KEYS = (
    *("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies"),
    *("code_revision", "_commit_hash", "_from_auto", "user_agent"),
)
_TOKENIZER_KEYS = ("padding_side", "truncation_side", "model_max_length")
_OWN_KEYS = ("frame_size", "chat_template")
_CLASS_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")


def check_image_settings(settings: dict[str, Any]) -> None:
    """Raises InputError, with the setting's name, for values that are invalid or would have no effect."""
    for name, value in settings.items():
        if name in COUNTS:
            check_positive(value, name)
        elif name in COLOURS:
            if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(is_number, value)):
                raise InputError(f"{name} is {value!r}; give three numbers, for red, green and blue.")
        elif name == "size":
            check_size(value)
        elif name in FIXED and value is not None and not _is_same(value, FIXED[name]):
            raise InputError(
                f"{name} is {value!r}; this processor knows {FIXED[name]!r} alone. Leave it out."
            )


def check_size(size: Any) -> None:
    """Raises InputError unless a size gives the fewest pixels, the most pixels, or both."""
    if not isinstance(size, dict) or not size:
        raise InputError(f"size is {size!r}; give {{'shortest_edge': ..., 'longest_edge': ...}}, in pixels.")
    for edge, value in size.items():
        if edge not in (*LIMITS, *LIMITS.values()):
            raise InputError(f"size has no {edge!r}; give shortest_edge and longest_edge, in pixels.")
        check_positive(value, f"size {edge}")


def _is_same(value: Any, fixed: Any) -> bool:
    return is_number(value) and abs(value - fixed) < 1e-6 if not isinstance(fixed, bool) else value is fixed


def load_image_processor(
    name: str | os.PathLike[str], changes: dict[str, Any], hub: dict[str, Any]
) -> Qwen2VLImageProcessorPil:
    """Loads Qwen's PIL image processor, whichever class the folder names, with changed settings.

    Raises InputError for settings with other values than this processor supports.
    """
    settings, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(name, **hub)
    settings = {key: value for key, value in settings.items() if key not in _CLASS_NAMES}
    stated = dict(settings.pop("size", None) or {})
    asked = dict(changes.get("size") or {})
    size = dict(PUBLISHED_SIZE)  # transformers' class has a default too, but calls may change it
    for edge, limit in LIMITS.items():
        own = settings.pop(limit, None) or stated.get(edge) or stated.get(limit) or size[edge]
        size[edge] = changes.get(limit) or asked.get(edge) or asked.get(limit) or own
    other = {key: value for key, value in changes.items() if key not in (*LIMITS.values(), "size")}
    settings = {**settings, **other, "size": size}
    check_image_settings(settings)
    return Qwen2VLImageProcessorPil.from_dict(settings)


def sort_keywords(kwargs: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    """Sorts from_pretrained's keywords: for the image processor, the processor, the hub, the tokenizer."""
    groups = (CHANGEABLE, _OWN_KEYS, _HUB_KEYS, _TOKENIZER_KEYS)
    known = {name for group in groups for name in group} | {*FIXED, "trust_remote_code", "use_fast"}
    if unknown := sorted(set(kwargs) - known):
        valid = sorted(name for name in known if name[0] != "_")
        raise InputError(f"A processor cannot be loaded with {unknown}; valid keywords are {valid}.")
    return tuple({name: kwargs[name] for name in group if name in kwargs} for group in groups)


def move_files(source: Path, target: Path) -> None:
    """Moves all files below a folder to the same places below another, replacing what is there."""
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(exist_ok=True)
        file.replace(place)
