"""Reads the pictures and videos of a conversation as qwen-vl-utils 0.0.14 does, to the same sizes."""

import io
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.fetching.addresses import local_path, printable
from infinitevl.processing.fetching.fetch import read_remote
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.pixels import check_video_size
from infinitevl.processing.pictures.scaling import check_one_size, resize_bicubic, smart_resize
from infinitevl.processing.processor.frame_selection import FRAME_FACTOR, select_frames
from infinitevl.processing.prompt.media_settings import check_settings
from infinitevl.processing.prompt.messages import check_type, vision_kind
from infinitevl.processing.sources.frames import DEFAULT_FPS
from infinitevl.processing.sources.opening import open_recording
from infinitevl.processing.sources.recording import Recording

Message: TypeAlias = dict[str, Any]
Conversation: TypeAlias = Sequence[Message]
Video: TypeAlias = "Tensor | tuple[Tensor, dict[str, Any]]"

MERGE_SIZE = 2
IMAGE_MIN_TOKENS, IMAGE_MAX_TOKENS = 4, 16384
VIDEO_MIN_TOKENS, VIDEO_MAX_TOKENS = 128, 768
SEQUENCE_TOKENS = 128_000
MAX_VIDEO_BYTES, MAX_VIDEO_SECONDS = 2**30, 600.0  # of a download

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
    """Reads the media of one or several conversations, in order: (images, videos[, video_kwargs]).

    images: PIL pictures, or None. videos: float tensors [T, C, H, W] of 0 to 255, or pairs of such a tensor
    and its metadata with `return_video_metadata`, or None. video_kwargs: `fps` holds the frames a second of
    each video, ready for the processor. An element of a message's content has one of `image`, `image_url`,
    `video`, and optionally min_pixels, max_pixels, resized_height with resized_width; for videos also fps or
    nframes (or num_frames), min_frames, max_frames, total_pixels, video_start, video_end, and sample_fps of
    frames in a list.
    http(s) addresses of private hosts are refused unless `allow_private`. Raises InputError or SourceError,
    also for a video whose chosen frames have more than MAX_VIDEO_PIXELS pixels together.
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
    """Lists the elements of all messages that hold a picture or a video, in order.

    Raises InputError, which names the element, for one of an unknown type, or of a known one that holds none.
    """
    if not isinstance(conversations, list | tuple) or not conversations:
        raise InputError("There is no message. Give a list of messages with role and content.")
    if isinstance(conversations[0], dict):
        return _of_conversation(conversations, "messages")
    batch: Any = enumerate(conversations)
    return [each for i, one in batch for each in _of_conversation(one, f"conversations[{i}]")]


def _of_conversation(messages: Any, path: str) -> list[dict[str, Any]]:
    found = []
    if not isinstance(messages, list | tuple):
        raise InputError(f"field {path}: is {type(messages).__name__}; give a list of messages.")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or "content" not in message:
            raise InputError(f"field {path}[{i}]: a message is a dict with role and content.")
        content = message["content"] if isinstance(message["content"], list) else []
        for j, element in enumerate(content):
            if isinstance(element, dict):
                _check_element(element, f"{path}[{i}].content[{j}]")
            if _is_vision(element):
                found.append(element)
    return found


def _check_element(element: dict[str, Any], path: str) -> None:
    check_type(element, path)
    if _is_vision(element):
        check_settings(element, path)
        if not any(kind in element for kind in _KINDS):
            raise InputError(f"field {path}: {sorted(element)} needs a key image, image_url or video.")


def _is_vision(element: Any) -> bool:
    return isinstance(element, dict) and (vision_kind(element) or element.get("type")) in _KINDS


def fetch_image(
    element: dict[str, Any], image_patch_size: int = 14, *, allow_private: bool = False
) -> Image.Image:
    """Reads the picture of a content element as RGB, scaled (bicubic) to whole merged patches."""
    check_settings(element, "image")
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
    """Returns the (height, width) that an element asks for; `limits`: the fewest and most pixels."""
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
    """Reads the chosen frames of a content element's video: float [T, C, H, W] of 0 to 255, T even.

    `video` is a file, an http(s) address (downloaded as a whole), or frames: any pictures in a list, array
    or tensor. Returns the tensor, or (tensor, metadata), or a pair of that and the frames a second.
    """
    check_settings(element, "video")
    if "num_frames" in element:  # transformers' name
        element = {**element, "nframes": element["num_frames"]}
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
    """Stacks frames of a list; as in qwen-vl-utils, each is first scaled as a picture of doubled patches."""
    if isinstance(frames, bytes | bytearray | dict) or not isinstance(frames, Iterable):
        raise InputError(f"A {type(frames).__name__} is not a video. Give a file, an address, or frames.")
    rest = {key: value for key, value in element.items() if key not in ("type", "video")}
    pictures: list[Image.Image] = []
    for frame in frames:
        pictures.append(fetch_image({**rest, "image": frame}, factor, allow_private=allow_private))
        check_video_size(len(pictures), pictures[-1].height, pictures[-1].width)
    if not pictures:
        raise InputError("The video is an empty list. Give at least one frame.")
    check_one_size(pictures)
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
        shown = file.shown()
    if not shown.times:
        raise SourceError(f"{printable(address)} holds no frame that can be read. Is it a whole video?")
    chosen = select_frames(element, shown)
    gaps = np.diff(shown.times)
    tolerance = float(gaps[gaps > 0].min(initial=1.0)) / 2
    with reopen() as file:
        frames = (torch.from_numpy(each).permute(2, 0, 1) for each in file.frames_at(chosen.times, tolerance))
        video = _resize_all(element, frames, len(chosen.times), factor)
    metadata = {
        "fps": chosen.fps,
        "frames_indices": chosen.indices,
        "total_num_frames": chosen.num_shown,
        "video_backend": "av",
    }
    return video, metadata, chosen.rate


def _opener(address: str, allow_private: bool) -> Callable[[], Recording]:
    """Returns a function that opens the video anew; one at an http(s) address is downloaded once."""
    limits = {"max_bytes": MAX_VIDEO_BYTES, "total_timeout": MAX_VIDEO_SECONDS}
    data = read_remote(address, allow_private=allow_private, **limits)
    if data is None:
        return lambda: open_recording(local_path(address))
    return lambda: open_recording(io.BytesIO(data))


def _resize_all(element: dict[str, Any], frames: Iterator[Tensor], count: int, factor: int) -> Tensor:
    """Scales uint8 frames [3, H, W] one by one, to save memory: float [count, 3, height, width]."""
    size: tuple[int, int] | None = None
    video = torch.empty(0)
    for index, frame in enumerate(frames):
        if size is None:
            limits = _video_limits(element, count, factor)
            height, width = frame.shape[1:]
            size = _target_size({**element, **limits}, height, width, factor, (0, 0))
            check_video_size(count, *size)
            video = torch.empty(count, 3, *size)
        video[index] = resize_bicubic(frame, size)
    return video


def _video_limits(element: dict[str, Any], count: int, factor: int) -> dict[str, float]:
    """Returns a frame's fewest and most pixels: all frames together must fit into `total_pixels`."""
    least = element.get("min_pixels", VIDEO_MIN_TOKENS * factor**2)
    total = element.get("total_pixels", SEQUENCE_TOKENS * factor**2 * 0.9)
    most = max(min(VIDEO_MAX_TOKENS * factor**2, total / count * FRAME_FACTOR), int(least * 1.05))
    asked = element.get("max_pixels", most)
    if asked > most:
        logger.warning("max_pixels %d is above the limit of %d for %d frames.", asked, most, count)
    return {"min_pixels": least, "max_pixels": min(asked, most)}
