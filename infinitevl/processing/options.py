"""The keywords of a call of the processor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from infinitevl.errors import InputError
from infinitevl.processing.image_settings import check_size
from infinitevl.processing.settings import check_positive

OTHER_NAMES = {"nframes": "num_frames", "video_fps": "fps"}  # as other libraries call them
_POSITIVE = ("num_frames", "min_pixels", "max_pixels", "max_length", "pad_to_multiple_of")
NESTED_KEYWORDS = ("text_kwargs", "images_kwargs", "videos_kwargs", "common_kwargs")


@dataclass(frozen=True)
class CallOptions:
    """What a call of the processor takes beside text, images and videos, with transformers' names."""

    padding: bool | str = False
    padding_side: str | None = None
    pad_to_multiple_of: int | None = None
    truncation: bool = False
    max_length: int | None = None
    add_special_tokens: bool = True
    return_tensors: str | None = None
    return_mm_token_type_ids: bool = True
    fps: float | Sequence[float] | None = None
    num_frames: int | None = None
    do_sample_frames: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    size: dict[str, int] | None = None
    do_resize: bool = True

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> "CallOptions":
        """Reads keywords, also those nested as transformers nests them; InputError for unknown ones."""
        flat = _flat(kwargs)
        known = cls.names()
        if unknown := sorted(set(flat) - set(known)):
            raise InputError(f"The processor does not know {unknown}; valid keywords are {known}.")
        options = cls(**flat)
        options._check()
        if options.do_sample_frames:
            raise InputError("Frames are chosen before the call: pass fps or nframes to process_vision_info.")
        return options

    def _check(self) -> None:
        for name in _POSITIVE:
            if (value := getattr(self, name)) is not None:
                check_positive(value, name)
        rates = self.fps if isinstance(self.fps, list | tuple) else [self.fps]
        for rate in (rate for rate in rates if rate is not None):
            check_positive(rate, "fps")
        if self.fps is not None and self.num_frames is not None:
            raise InputError("A video takes fps or num_frames, not both.")
        if self.padding_side not in (None, "left", "right"):
            raise InputError(f"padding_side is {self.padding_side!r}; valid are 'left' and 'right'.")
        if self.size is not None:
            check_size(self.size)

    @classmethod
    def names(cls) -> list[str]:
        """All keywords."""
        return [field.name for field in fields(cls)]

    def limits(self, size: Mapping[str, int]) -> tuple[int, int]:
        """The fewest and most pixels of a picture or frame, where the call is silent those of `size`."""
        asked = self.size or {}
        least = self.min_pixels or asked.get("shortest_edge") or asked.get("min_pixels")
        most = self.max_pixels or asked.get("longest_edge") or asked.get("max_pixels")
        return least or size["shortest_edge"], most or size["longest_edge"]


def _flat(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Keywords and those in groups by one name each; InputError for one that is given twice, differently."""
    flat: dict[str, Any] = {}
    for group in (None, *NESTED_KEYWORDS):
        given = kwargs if group is None else kwargs.get(group) or {}
        if not isinstance(given, Mapping):
            raise InputError(f"{group} is {given!r}; give a dict of keywords.")
        for key, value in given.items():
            if group is None and key in NESTED_KEYWORDS:
                continue
            name = OTHER_NAMES.get(key, key)
            if name in flat and flat[name] != value:
                raise InputError(f"{key} is given as {flat[name]!r} and as {value!r}. Give it once.")
            flat[name] = value
    return flat
