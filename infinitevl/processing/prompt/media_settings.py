"""Checks the settings of a picture or video in a message: sizes, frames and times."""

import difflib
import math
from numbers import Real
from typing import Any

from infinitevl.errors import InputError

POSITIVE = (
    "min_pixels",
    "max_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "fps",
    "min_frames",
    "max_frames",
    "sample_fps",
    "raw_fps",
)
SECONDS = ("video_start", "video_end")
COUNTS = ("nframes", "num_frames")
SETTINGS = (*POSITIVE, *SECONDS, *COUNTS)
_ALIKE = 0.8


def is_number(value: Any) -> bool:
    """Tells whether a value is a finite number; a bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_positive(value: Any, place: str) -> None:
    """Raises InputError, beginning with `place`, unless a value is a positive number."""
    if not is_number(value) or value <= 0:
        raise InputError(f"{place} is {value!r}; give a positive number.")


def check_settings(part: dict[str, Any], path: str) -> None:
    """Checks that a part's settings are numbers, and that no key is a misspelt setting.

    Raises InputError that names the setting; `path` is the part's place.
    """
    for key, value in part.items():
        place = f"field {path}.{key}:"
        if key in POSITIVE:
            check_positive(value, place)
        elif key in SECONDS or key in COUNTS:
            if not is_number(value):
                raise InputError(f"{place} is {value!r}; give a number.")
        elif near := difflib.get_close_matches(str(key), SETTINGS, 1, _ALIKE):
            raise InputError(f"{place} is no setting; did you mean {near[0]}?")
    if "num_frames" in part and "nframes" in part:
        raise InputError(f"field {path}.num_frames: is the same as nframes; give one of them.")
