"""Videos of any form as frames, and frames as the patches that the vision encoder takes."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from infinitevl.errors import InputError
from infinitevl.processing.frames import DEFAULT_FPS, Frame
from infinitevl.processing.images import (
    ImageSource,
    clip_patches,
    open_image,
    resize_bicubic,
    resize_frame,
    smart_resize,
)
from infinitevl.processing.pixels import check_num_pixels, check_range, to_array, to_uint8

VideoInput: TypeAlias = Tensor | np.ndarray | Sequence[ImageSource]


_PLAIN_TYPES = (torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Clip(NamedTuple):
    """One video for the model: patches float32 [n, 1176], its grid (t, h, w) in patches, seconds per t."""

    patches: Tensor
    grid: tuple[int, int, int]
    seconds: float


def split_videos(videos: Any) -> list[Any]:
    """One video, a list of them, or lists of them for each text, as a flat list of videos."""
    if _is_video(videos):
        return [videos]
    if not isinstance(videos, list | tuple):
        raise InputError(
            f"A {type(videos).__name__} is not a video. Give frames, a tensor [T, C, H, W] or a path."
        )
    return [video for each in videos for video in split_videos(each)]


def _is_video(value: Any) -> bool:
    """An array [T, ...], an address, (array, metadata) of process_vision_info, or a list of frames."""
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
    """A video as a clip, every frame of it; `fps` None means what its metadata say, or else 2.

    Frames are scaled to between `limits` = (fewest, most) pixels, or not at all; a missing last partner is
    doubled. Raises InputError for a video without frames, or an fps that is not positive.
    """
    frames, own_fps = _frames(video, fps, image_processor.patch_size * image_processor.merge_size, limits)
    fps = own_fps if fps is None else fps
    if not 0 < fps < float("inf"):
        raise InputError(f"fps is {fps}; give the positive number of frames a second of the video.")
    look, steps = image_processor, image_processor.temporal_patch_size
    frames = torch.cat([frames, frames[-1:].expand(-len(frames) % steps, -1, -1, -1)])
    clips = frames.unflatten(0, (-1, steps))  # [T, C, H, W] -> [t, S, C, H, W]
    patches = clip_patches(clips, look.patch_size, look.merge_size, look.image_mean, look.image_std)
    height, width = (side // look.patch_size for side in frames.shape[2:])
    return Clip(patches, (len(clips), height, width), steps / fps)


def _frames(
    video: Any, fps: float | None, factor: int, limits: tuple[int, int] | None
) -> tuple[Tensor, float]:
    """([T, 3, H, W] of 0 to 255 with whole patches, frames a second)."""
    own_fps = DEFAULT_FPS
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], dict):
        video, own_fps = video[0], _sampled_fps(video[1])
    if len(video) == 0:
        raise InputError("The video has no frames. Give at least one.")
    if isinstance(video, Tensor | np.ndarray):
        return _scale_array(_channels_first(video), factor, limits), own_fps
    return _scale_pictures(video, factor, limits), own_fps


def _sampled_fps(metadata: dict[str, Any]) -> float:
    """Frames a second that were taken, from the metadata of process_vision_info."""
    return len(metadata["frames_indices"]) / metadata["total_num_frames"] * metadata["fps"]


def _channels_first(video: Tensor | np.ndarray) -> Tensor:
    """[T, 3, H, W] of 0 to 255, in bytes or floats; a float tensor stays where it is."""
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
    """Whether torch can work on a tensor's values where they lie."""
    return video.dtype in _PLAIN_TYPES and video.layout == torch.strided and not video.is_meta


def _scale_array(video: Tensor, factor: int, limits: tuple[int, int] | None) -> Tensor:
    height, width = video.shape[2:]
    size = smart_resize(height, width, factor, *limits) if limits else (height, width)
    if size == (height, width):
        return video
    return torch.stack([resize_bicubic(frame, size) for frame in video])


def _scale_pictures(pictures: Sequence[Any], factor: int, limits: tuple[int, int] | None) -> Tensor:
    images = [open_image(each.image if isinstance(each, Frame) else each) for each in pictures]
    sizes = sorted({image.size for image in images})
    if len(sizes) > 1:
        raise InputError(f"The frames of a video must have one size, not {sizes}. Resize them first.")
    width, height = sizes[0]
    size = smart_resize(height, width, factor, *limits) if limits else (height, width)
    return torch.stack([resize_frame(image, size) for image in images])
