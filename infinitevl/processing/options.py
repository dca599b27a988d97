"""The keywords of a call of the processor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from infinitevl.errors import InputError

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
    do_sample_frames: bool = False
    min_pixels: int | None = None
    max_pixels: int | None = None
    size: dict[str, int] | None = None
    do_resize: bool = True

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> "CallOptions":
        """Reads keywords, also those nested as transformers nests them; InputError for unknown ones."""
        flat = {key: value for key, value in kwargs.items() if key not in NESTED_KEYWORDS}
        for group in NESTED_KEYWORDS:
            flat.update(kwargs.get(group) or {})
        known = cls.names()
        if unknown := sorted(set(flat) - set(known)):
            raise InputError(f"The processor does not know {unknown}; valid keywords are {known}.")
        options = cls(**flat)
        if options.do_sample_frames:
            raise InputError("Frames are chosen before the call: pass fps or nframes to process_vision_info.")
        return options

    @classmethod
    def names(cls) -> list[str]:
        """All keywords."""
        return [field.name for field in fields(cls)]

    def limits(self, size: Mapping[str, int]) -> tuple[int, int]:
        """The fewest and most pixels of a picture or frame, where the call is silent those of `size`."""
        asked = self.size or {}
        least = self.min_pixels or asked.get("shortest_edge") or size["shortest_edge"]
        return least, self.max_pixels or asked.get("longest_edge") or size["longest_edge"]
