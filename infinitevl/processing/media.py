"""Pictures and videos of a message in the form that process_vision_info reads, sized for a processor."""

from collections.abc import Mapping, Sequence
from typing import Any

from infinitevl.processing.options import CallOptions
from infinitevl.processing.prompt import MEDIA_KEYS, vision_kind
from infinitevl.processing.vision_info import IMAGE_MIN_TOKENS, VIDEO_MAX_TOKENS


def sized_media(
    content: str | Sequence[dict[str, Any]], options: CallOptions, size: Mapping[str, int], factor: int
) -> Any:
    """A message's content whose media have the names of qwen-vl-utils and limits on their pixels.

    What a part says itself goes first, then the call's options, then `size`, the image processor's limits;
    `factor` is the side of a merged patch. Every part shows something: `check_shown` has seen them.
    """
    if isinstance(content, str):
        return content
    least, most = options.limits(size)
    image_limits = {"min_pixels": least, "max_pixels": most}
    # Frames have qwen-vl-utils' own limits, unless the processor is one for smaller pictures.
    is_small = most < VIDEO_MAX_TOKENS * factor**2
    frame_limits = {"min_pixels": IMAGE_MIN_TOKENS * factor**2, "max_pixels": most} if is_small else {}
    defaults = {"image": image_limits, "video": frame_limits | _sampling(options)}
    return [_sized_part(part, defaults) for part in content]


def _sampling(options: CallOptions) -> dict[str, Any]:
    """How videos are sampled that say nothing themselves; a list of frames was taken at that rate."""
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
    """What a part shows, under any of the names that transformers or qwen-vl-utils give it."""
    if part.get("base64") is not None:
        return f"data:;base64,{part['base64']}"
    return next(part[key] for key in MEDIA_KEYS if part.get(key) is not None)
