"""The keywords of a call to the processor, and what they set for the media of a message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.processor.loading import check_size
from infinitevl.processing.processor.vision_info import IMAGE_MIN_TOKENS, VIDEO_MAX_TOKENS
from infinitevl.processing.prompt.media_settings import check_positive
from infinitevl.processing.prompt.messages import MEDIA_KEYS, vision_kind

OTHER_NAMES = {"nframes": "num_frames", "video_fps": "fps"}  # as other libraries call them
_POSITIVE = ("num_frames", "min_pixels", "max_pixels", "max_length", "pad_to_multiple_of")
_KINDS = {"images_kwargs": "image", "videos_kwargs": "video"}
NESTED_KEYWORDS = ("text_kwargs", "common_kwargs", *_KINDS)
_SIZING = ("min_pixels", "max_pixels", "size", "do_resize")  # may differ between pictures and videos


@dataclass(frozen=True)
class CallOptions:
    """The keywords of a call beside text, images and videos, with transformers' names.

    by_kind: sizes that hold for "image" or for "video" alone, as images_kwargs and videos_kwargs give them.
    """

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
    by_kind: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def from_kwargs(cls, kwargs: dict[str, Any]) -> "CallOptions":
        """Reads keywords, plain or nested as transformers nests them. Raises InputError for unknown ones."""
        flat, by_kind = _flat(kwargs)
        known = cls.names()
        if unknown := sorted(set(flat) - set(known)):
            raise InputError(f"The processor does not know {unknown}; valid keywords are {known}.")
        options = cls(**flat, by_kind=by_kind)
        for each in (options, *map(options.of, by_kind)):
            each._check()
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
        """Returns all keywords."""
        return [each.name for each in fields(cls) if each.name != "by_kind"]

    def of(self, kind: str) -> "CallOptions":
        """Returns the options that hold for an "image" or a "video"."""
        return replace(self, **self.by_kind.get(kind, {}), by_kind={})

    def asked_limits(self) -> tuple[int | None, int | None]:
        """Returns the fewest and most pixels of a picture or frame that the call gives."""
        size = self.size or {}
        least = self.min_pixels or size.get("shortest_edge") or size.get("min_pixels")
        return least, self.max_pixels or size.get("longest_edge") or size.get("max_pixels")

    def limits(self, size: Mapping[str, int]) -> tuple[int, int]:
        """Returns the fewest and most pixels of a picture or frame; `size` gives the missing ones."""
        least, most = self.asked_limits()
        return least or size["shortest_edge"], most or size["longest_edge"]


def _flat(kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Returns keywords without their groups, and the sizes that hold for one kind of media.

    Raises InputError for a keyword that is given twice with different values.
    """
    flat: dict[str, Any] = {}
    by_kind: dict[str, dict[str, Any]] = {}
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
            if group in _KINDS and name in _SIZING and name not in flat:
                by_kind.setdefault(_KINDS[group], {})[name] = value
            else:
                flat[name] = value
    return flat, by_kind


def sized_media(
    content: str | Sequence[dict[str, Any]],
    options: CallOptions,
    image_processor: Qwen2VLImageProcessorPil,
) -> Any:
    """Gives the media of a message's content qwen-vl-utils' names, and limits on their pixels.

    A part's own settings come first, then the call's, then the image processor's. Expects content that
    `check_shown` accepts.
    """
    if isinstance(content, str):
        return content
    least, most = options.of("image").limits(image_processor.size)
    defaults = {
        "image": {"min_pixels": least, "max_pixels": most},
        "video": _frame_limits(options, image_processor) | _sampling(options),
    }
    return [_sized_part(part, defaults) for part in content]


def _frame_limits(options: CallOptions, image_processor: Qwen2VLImageProcessorPil) -> dict[str, int]:
    """Returns the limits of a frame: those for videos alone, or the general one where it is below Qwen's."""
    token = (image_processor.patch_size * image_processor.merge_size) ** 2  # pixels
    if {"min_pixels", "max_pixels", "size"} & set(options.by_kind.get("video", {})):
        least, most = options.of("video").asked_limits()
    else:
        least, most = None, options.limits(image_processor.size)[1]
        most = most if most < VIDEO_MAX_TOKENS * token else None
    if most is not None:
        least = least or IMAGE_MIN_TOKENS * token
    return {key: value for key, value in (("min_pixels", least), ("max_pixels", most)) if value is not None}


def _sampling(options: CallOptions) -> dict[str, Any]:
    """Returns the sampling of videos without their own; frames in a list count as taken at that rate."""
    if options.num_frames is not None:
        return {"nframes": options.num_frames}
    return {} if options.fps is None else {"fps": options.fps, "sample_fps": options.fps}


def _sized_part(part: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    kind = vision_kind(part)
    if kind is None:
        return part
    rest = {key: value for key, value in part.items() if key not in MEDIA_KEYS}
    settings = dict(defaults[kind])
    if "nframes" in rest or "num_frames" in rest:
        settings.pop("fps", None)
    if {"fps", "nframes", "num_frames"} & set(rest):
        settings.pop("nframes", None)
    return {**settings, **rest, kind: _source(part)}


def _source(part: dict[str, Any]) -> Any:
    """Returns what a part shows, whichever of transformers' and qwen-vl-utils' keys holds it."""
    if part.get("base64") is not None:
        return f"data:;base64,{part['base64']}"
    return next(part[key] for key in MEDIA_KEYS if part.get(key) is not None)
