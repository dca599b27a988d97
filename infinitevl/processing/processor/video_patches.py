"""Turns videos of any form into the patches that the vision encoder takes."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.pictures.patches import clip_patches
from infinitevl.processing.pictures.pixels import (
    check_num_pixels,
    check_range,
    check_video_size,
    to_array,
    to_uint8,
)
from infinitevl.processing.pictures.scaling import check_one_size, resize_bicubic, resize_frame, smart_resize
from infinitevl.processing.sources.frames import DEFAULT_FPS, Frame

_PLAIN_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Clip(NamedTuple):
    """A video for the model: patches float32 [n, 1176], its grid (t, h, w) in patches, seconds per t."""

    patches: Tensor
    grid: tuple[int, int, int]
    seconds: float


def split_videos(videos: Any) -> list[Any]:
    """Flattens one video, a list of them, or lists for each text."""
    if _is_video(videos):
        return [videos]
    if not isinstance(videos, list | tuple):
        raise InputError(
            f"A {type(videos).__name__} is not a video. Give frames, a tensor [T, C, H, W] or a path."
        )
    return [video for each in videos for video in split_videos(each)]


def _is_video(value: Any) -> bool:
    """Recognizes an array [T, ...], an address, process_vision_info's (array, metadata), a list of frames."""
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim == 4
    if isinstance(value, list | tuple):
        if len(value) == 2 and isinstance(value[1], dict):
            return True
        return all(_is_frame(each) for each in value)
    return isinstance(value, str | os.PathLike)


def _is_frame(value: Any) -> bool:
    if isinstance(value, Tensor | np.ndarray):
        return value.ndim in (2, 3)
    return not isinstance(value, list | tuple | str | os.PathLike)


def video_clip(
    video: Any,
    fps: float | None,
    image_processor: Qwen2VLImageProcessorPil,
    limits: tuple[int, int] | None,
) -> Clip:
    """Turns every frame of a video into patches; without `fps` its metadata's rate holds, or 2.

    Frames are scaled to between `limits` = (fewest, most) pixels; None: not scaled. The last frame is
    repeated to fill the last temporal patch. Raises InputError for a video without frames, or an fps that is
    not positive.
    """
    frames, own_fps = _frames(video, fps, image_processor.patch_size * image_processor.merge_size, limits)
    fps = own_fps if fps is None else fps
    if not 0 < fps < float("inf"):
        raise InputError(f"fps is {fps}; give the positive number of frames a second of the video.")
    steps, patch_size = image_processor.temporal_patch_size, image_processor.patch_size
    frames = torch.cat([frames, frames[-1:].expand(-len(frames) % steps, -1, -1, -1)])
    clips = frames.unflatten(0, (-1, steps))  # [T, C, H, W] -> [t, S, C, H, W]
    patches = clip_patches(
        clips, patch_size, image_processor.merge_size, image_processor.image_mean, image_processor.image_std
    )
    height, width = (side // patch_size for side in frames.shape[2:])
    return Clip(patches, (len(clips), height, width), steps / fps)


def _frames(
    video: Any, fps: float | None, factor: int, limits: tuple[int, int] | None
) -> tuple[Tensor, float]:
    """Returns ([T, 3, H, W] of 0 to 255 with whole patches, frames a second)."""
    own_fps = DEFAULT_FPS
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], dict):
        video, own_fps = video[0], _sampled_fps(video[1])
    if len(video) == 0:
        raise InputError("The video has no frames. Give at least one.")
    if isinstance(video, Tensor | np.ndarray):
        return _scale_array(_channels_first(video), factor, limits), own_fps
    return _scale_pictures(video, factor, limits), own_fps


def _sampled_fps(metadata: dict[str, Any]) -> float:
    """Returns the frames a second that were sampled, from process_vision_info's metadata."""
    return len(metadata["frames_indices"]) / metadata["total_num_frames"] * metadata["fps"]


def _channels_first(video: Tensor | np.ndarray) -> Tensor:
    """Returns [T, 3, H, W] of 0 to 255, uint8 or float; a float tensor stays on its device."""
    if not isinstance(video, Tensor) or not _is_plain(video):
        array = to_array(video)
        array = array if array.dtype.kind == "f" else to_uint8(array)
        video = torch.from_numpy(np.require(array, requirements=["C", "W"]))
    if video.shape[1] != 3 and video.shape[3] == 3:
        video = video.permute(0, 3, 1, 2)
    if video.shape[1] != 3:
        raise InputError(f"A video of shape {list(video.shape)} is not [T, 3, H, W] or [T, H, W, 3].")
    if 0 in video.shape:
        raise InputError(f"A video of shape {list(video.shape)} has no pixels.")
    check_num_pixels("A frame", video.shape[3], video.shape[2])
    if video.dtype != torch.uint8:
        check_range(float(video.min()), float(video.max()), video.is_floating_point())
    return video


def _is_plain(video: Tensor) -> bool:
    """Tells whether a tensor's values can be used as they are, on its device."""
    return video.dtype in _PLAIN_TYPES and video.layout == torch.strided and not video.is_meta


def _scale_array(video: Tensor, factor: int, limits: tuple[int, int] | None) -> Tensor:
    height, width = video.shape[2:]
    size = _frame_size(len(video), height, width, factor, limits)
    if size == (height, width):
        return video
    return torch.stack([resize_bicubic(frame, size) for frame in video])


def _scale_pictures(pictures: Sequence[Any], factor: int, limits: tuple[int, int] | None) -> Tensor:
    images = [open_image(each.image if isinstance(each, Frame) else each) for each in pictures]
    check_one_size(images)
    width, height = images[0].size
    size = _frame_size(len(images), height, width, factor, limits)
    return torch.stack([resize_frame(image, size) for image in images])


def _frame_size(
    count: int, height: int, width: int, factor: int, limits: tuple[int, int] | None
) -> tuple[int, int]:
    """Returns the (height, width) to which `count` frames are scaled."""
    size = smart_resize(height, width, factor, *limits) if limits else (height, width)
    check_video_size(count, *size)
    return size
