"""Pictures and videos of a conversation, with the meaning and the sizes of qwen-vl-utils 0.0.14."""

import io
import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.decode import VideoFile
from infinitevl.processing.fetch import fetch
from infinitevl.processing.frames import DEFAULT_FPS
from infinitevl.processing.addresses import local_path
from infinitevl.processing.images import open_image, resize_bicubic, smart_resize
from infinitevl.processing.prompt import check_type

Message: TypeAlias = dict[str, Any]
Conversation: TypeAlias = Sequence[Message]
Video: TypeAlias = "Tensor | tuple[Tensor, dict[str, Any]]"

MERGE_SIZE = 2
IMAGE_MIN_TOKENS, IMAGE_MAX_TOKENS = 4, 16384
VIDEO_MIN_TOKENS, VIDEO_MAX_TOKENS = 128, 768
FRAME_FACTOR = 2
MIN_FRAMES, MAX_FRAMES = 4, 768
SEQUENCE_TOKENS = 128_000
MAX_VIDEO_BYTES = 2**30

_KINDS = ("image", "image_url", "video")

logger = logging.getLogger(__name__)


def process_vision_info(
    conversations: Conversation | Sequence[Conversation],
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int = 14,
    *,
    allow_private: bool = False,
) -> tuple[Any, ...]:
    """The pictures and videos of one conversation or of several, in order: (images, videos[, video_kwargs]).

    images: PIL pictures, or None. videos: float tensors [T, C, H, W] of 0 to 255, or pairs of such a tensor
    and its metadata with `return_video_metadata`, or None. video_kwargs: `fps` holds the frames a second of
    each video, ready for the processor. An element of a message's content has one of `image`, `image_url`,
    `video`, and optionally min_pixels, max_pixels, resized_height with resized_width; for videos also fps or
    nframes, min_frames, max_frames, total_pixels, video_start, video_end, and sample_fps of frames in a list.
    http(s) addresses of private hosts are refused unless `allow_private`. Raises InputError or SourceError.
    """
    images: list[Image.Image] = []
    videos: list[Any] = []
    rates: list[float] = []
    for element in extract_vision_info(conversations):
        if "image" in element or "image_url" in element:
            images.append(fetch_image(element, image_patch_size, allow_private=allow_private))
        else:
            video, rate = fetch_video(
                element, image_patch_size, True, return_video_metadata, allow_private=allow_private
            )
            videos.append(video)
            rates.append(rate)
    if not return_video_kwargs:
        return images or None, videos or None
    video_kwargs = {"do_sample_frames": False} | ({} if return_video_metadata else {"fps": rates})
    return images or None, videos or None, video_kwargs


def extract_vision_info(conversations: Conversation | Sequence[Conversation]) -> list[dict[str, Any]]:
    """The elements of all messages that hold a picture or a video, in order.

    Raises InputError, which names the element, for one of an unknown type, or of a known one that holds none.
    """
    if not conversations:
        raise InputError("There is no message. Give a list of messages with role and content.")
    if isinstance(conversations[0], dict):
        return _of_conversation(conversations, "messages")
    batch: Any = enumerate(conversations)
    return [each for i, one in batch for each in _of_conversation(one, f"conversations[{i}]")]


def _of_conversation(messages: Any, path: str) -> list[dict[str, Any]]:
    found = []
    for i, message in enumerate(messages):
        content = message["content"] if isinstance(message["content"], list) else []
        for j, element in enumerate(content):
            if isinstance(element, dict):
                _check_element(element, f"{path}[{i}].content[{j}]")
            if _is_vision(element):
                found.append(element)
    return found


def _check_element(element: dict[str, Any], path: str) -> None:
    check_type(element, path)
    if _is_vision(element) and not any(kind in element for kind in _KINDS):
        raise InputError(f"field {path}: {sorted(element)} needs a key image, image_url or video.")


def _is_vision(element: Any) -> bool:
    return isinstance(element, dict) and (
        any(kind in element for kind in _KINDS) or element.get("type", "text") in _KINDS
    )


def fetch_image(
    element: dict[str, Any], image_patch_size: int = 14, *, allow_private: bool = False
) -> Image.Image:
    """The picture of a content element as RGB, scaled (bicubic) to sides of whole merged patches."""
    source = element["image"] if "image" in element else element["image_url"]
    if isinstance(source, dict) and "url" in source:
        source = source["url"]
    image = open_image(source, allow_private=allow_private)
    factor = image_patch_size * MERGE_SIZE
    limits = (IMAGE_MIN_TOKENS * factor**2, IMAGE_MAX_TOKENS * factor**2)
    height, width = _target_size(element, image.height, image.width, factor, limits)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _target_size(
    element: dict[str, Any], height: int, width: int, factor: int, limits: tuple[int, float]
) -> tuple[int, int]:
    """(height, width) that an element asks for; `limits` are the fewest and most pixels."""
    if "resized_height" in element and "resized_width" in element:
        least, most = IMAGE_MIN_TOKENS * factor**2, IMAGE_MAX_TOKENS * factor**2
        return smart_resize(element["resized_height"], element["resized_width"], factor, least, most)
    least = element.get("min_pixels", limits[0])
    return smart_resize(height, width, factor, least, element.get("max_pixels", limits[1]))


def fetch_video(
    element: dict[str, Any],
    image_patch_size: int = 14,
    return_video_sample_fps: bool = False,
    return_video_metadata: bool = False,
    *,
    allow_private: bool = False,
) -> Any:
    """The chosen frames of a content element's video: float [T, C, H, W] of 0 to 255, T even.

    `video` is a file, an http(s) address (downloaded as a whole), or frames: any pictures in a list, array
    or tensor. Returns the tensor, or (tensor, metadata), or a pair of that and the frames a second.
    """
    source = element["video"]
    factor = image_patch_size * MERGE_SIZE
    if isinstance(source, str | os.PathLike):
        video, metadata, rate = _read_file(element, os.fspath(source), factor, allow_private)
    else:
        video, metadata, rate = _stack_frames(element, source, factor, allow_private)
    result = (video, metadata) if return_video_metadata else video
    return (result, rate) if return_video_sample_fps else result


def _stack_frames(
    element: dict[str, Any], frames: Iterable[Any], factor: int, allow_private: bool
) -> tuple[Tensor, dict[str, Any], float]:
    """Frames in a list; qwen-vl-utils sizes each as a picture of doubled patches first, and so do we."""
    rest = {key: value for key, value in element.items() if key not in ("type", "video")}
    pictures = [fetch_image({**rest, "image": f}, factor, allow_private=allow_private) for f in frames]
    if not pictures:
        raise InputError("The video is an empty list. Give at least one frame.")
    if len({picture.size for picture in pictures}) > 1:
        sizes = sorted({picture.size for picture in pictures})
        raise InputError(f"The frames of a video must have one size, not {sizes}. Resize them first.")
    pictures += [pictures[-1]] * (len(pictures) % FRAME_FACTOR)
    rate = element.get("sample_fps", DEFAULT_FPS)
    raw_rate = element.get("raw_fps", rate)
    metadata = {
        "fps": raw_rate,
        "frames_indices": list(range(len(pictures))),
        "total_num_frames": len(pictures) / rate * raw_rate,
    }
    pixels = (torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures)
    return _resize_all(element, pixels, len(pictures), factor), metadata, rate


def _read_file(
    element: dict[str, Any], address: str, factor: int, allow_private: bool
) -> tuple[Tensor, dict[str, Any], float]:
    reopen = _opener(address, allow_private)
    with reopen() as file:
        total, video_fps = file.count_packets(), file.fps
    first, last = _frame_range(element, total, video_fps)
    span = last - first + 1
    count = smart_nframes(element, span, video_fps)
    indices = torch.linspace(first, last, count).round().long().tolist()
    with reopen() as file:
        video = _resize_all(element, _pick(file, indices), count, factor)
    metadata = {
        "fps": video_fps,
        "frames_indices": indices,
        "total_num_frames": span,
        "video_backend": "av",
    }
    return video, metadata, count / span * video_fps


def _opener(address: str, allow_private: bool) -> Callable[[], VideoFile]:
    """Opens the video anew at each call; one at an http(s) address is downloaded once."""
    if not address.lower().startswith(("http://", "https://")):
        return lambda: VideoFile(local_path(address))
    data = fetch(address, allow_private=allow_private, max_bytes=MAX_VIDEO_BYTES, total_timeout=600.0)
    return lambda: VideoFile(io.BytesIO(data))


def _pick(file: VideoFile, indices: list[int]) -> Iterator[Tensor]:
    """The frames with these rising indices, [3, H, W] each; what a damaged end lacks is its last frame."""
    wanted = iter(indices)
    index = next(wanted)
    pixels = torch.empty(0)
    for position, frame in enumerate(file):
        pixels = torch.from_numpy(frame.image).permute(2, 0, 1)
        while position == index:
            yield pixels
            index = next(wanted, -1)
        if index < 0:
            return
    yield from (pixels for _ in (index, *wanted))


def _frame_range(element: dict[str, Any], total: int, video_fps: float) -> tuple[int, int]:
    """First and last frame between video_start and video_end, both included."""
    start, end = element.get("video_start"), element.get("video_end")
    duration = total / video_fps
    first = 0 if start is None else math.ceil(min(max(start, 0.0), duration) * video_fps)
    last = total - 1 if end is None else math.floor(min(max(end, 0.0), duration) * video_fps)
    last = min(last, total - 1)
    if first >= last and (start is not None or end is not None):
        raise InputError(
            f"video_start {start} and video_end {end} leave no two frames of a video of {duration:.2f} s. "
            "Give seconds, the start before the end."
        )
    return first, last


def smart_nframes(element: dict[str, Any], total_frames: int, video_fps: float) -> int:
    """How many frames to take: an even number, from `nframes`, or from `fps`, min_frames and max_frames."""
    if "fps" in element and "nframes" in element:
        raise InputError("A video takes fps or nframes, not both.")
    if "nframes" in element:
        count = round(element["nframes"] / FRAME_FACTOR) * FRAME_FACTOR
    else:
        least = _whole(math.ceil, element.get("min_frames", MIN_FRAMES))
        most = _whole(math.floor, element.get("max_frames", min(MAX_FRAMES, total_frames)))
        wished = total_frames / video_fps * element.get("fps", DEFAULT_FPS)
        count = _whole(math.floor, min(max(wished, least), most, total_frames))
    if not FRAME_FACTOR <= count <= total_frames:
        raise InputError(
            f"{count} frames were asked of a video of {total_frames}; valid are {FRAME_FACTOR} to "
            f"{total_frames}. Change nframes, or fps, min_frames, max_frames; show a single frame as image."
        )
    return count


def _whole(rounding: Any, count: float) -> int:
    return rounding(count / FRAME_FACTOR) * FRAME_FACTOR


def _resize_all(element: dict[str, Any], frames: Iterator[Tensor], count: int, factor: int) -> Tensor:
    """uint8 frames [3, H, W] scaled one by one into float [count, 3, height, width]: a video may be long."""
    size: tuple[int, int] | None = None
    video = torch.empty(0)
    for index, frame in enumerate(frames):
        if size is None:
            limits = _video_limits(element, count, factor)
            height, width = frame.shape[1:]
            size = _target_size({**element, **limits}, height, width, factor, (0, 0))
            video = torch.empty(count, 3, *size)
        video[index] = resize_bicubic(frame, size)
    return video


def _video_limits(element: dict[str, Any], count: int, factor: int) -> dict[str, float]:
    """The fewest and most pixels of a frame: all frames together must fit into `total_pixels`."""
    least = element.get("min_pixels", VIDEO_MIN_TOKENS * factor**2)
    total = element.get("total_pixels", SEQUENCE_TOKENS * factor**2 * 0.9)
    most = max(min(VIDEO_MAX_TOKENS * factor**2, total / count * FRAME_FACTOR), int(least * 1.05))
    asked = element.get("max_pixels", most)
    if asked > most:
        logger.warning("max_pixels %d is above the limit of %d for %d frames.", asked, most, count)
    return {"min_pixels": least, "max_pixels": min(asked, most)}
