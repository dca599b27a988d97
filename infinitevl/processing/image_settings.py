"""The settings of the image processor in a folder, and which of them a caller may change."""

import os
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.settings import check_positive, is_number

PUBLISHED_SIZE = {"shortest_edge": 3136, "longest_edge": 12_845_056}  # fewest and most pixels of a picture
LIMITS = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}
COUNTS = ("min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size")
COLOURS = ("image_mean", "image_std")
CHANGEABLE = (*COUNTS, *COLOURS, "size")
# Videos and streams are prepared on other paths, which know no other values.
FIXED = {
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "do_convert_rgb": True,
    "rescale_factor": 1 / 255,
    "resample": 3,
}
_CLASS_NAMES = ("image_processor_type", "feature_extractor_type", "processor_class", "auto_map")


def check_image_settings(settings: dict[str, Any]) -> None:
    """InputError, which names the setting, for a value that cannot be meant or would not take effect."""
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
    """InputError unless a size gives the fewest and the most pixels, or one of them."""
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
    """Qwen's image processor in its PIL form, whichever form the folder names, with changed settings.

    Raises InputError for settings that this processor does not know.
    """
    settings, _ = Qwen2VLImageProcessorPil.get_image_processor_dict(name, **hub)
    settings = {key: value for key, value in settings.items() if key not in _CLASS_NAMES}
    stated = dict(settings.pop("size", None) or {})
    asked = dict(changes.get("size") or {})
    size = dict(PUBLISHED_SIZE)  # the class of transformers has a default too, but calls may change it
    for edge, limit in LIMITS.items():
        own = settings.pop(limit, None) or stated.get(edge) or stated.get(limit) or size[edge]
        size[edge] = changes.get(limit) or asked.get(edge) or asked.get(limit) or own
    other = {key: value for key, value in changes.items() if key not in (*LIMITS.values(), "size")}
    settings = {**settings, **other, "size": size}
    check_image_settings(settings)
    return Qwen2VLImageProcessorPil.from_dict(settings)
