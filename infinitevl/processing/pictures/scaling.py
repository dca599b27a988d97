"""Scales pictures to sizes that the vision encoder takes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.pictures.opening import ImageSource, open_image
from infinitevl.processing.pictures.pixels import check_num_pixels

MAX_RATIO = 200


def check_ratio(height: int, width: int) -> None:
    """Raises InputError for a picture more than 200 times as long as it is wide (Qwen's limit)."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise InputError(
            f"A picture of {width}x{height} is more than {MAX_RATIO} times as long as it is wide. "
            "Crop it or cut it into parts."
        )


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 4 * 28 * 28,
    max_pixels: int = 16384 * 28 * 28,
) -> tuple[int, int]:
    """Returns (height, width): multiples of `factor`, about the same ratio, an area within the limits.

    The rule of qwen-vl-utils 0.0.14; a side that it would round down to nothing keeps one `factor`.
    Raises InputError for a ratio above 200, a side below 1, too many pixels, or limits that exclude each
    other.
    """
    if min(height, width) < 1:
        raise InputError(f"A picture of {width}x{height} has no pixels.")
    if min_pixels > max_pixels:
        raise InputError(f"min_pixels {min_pixels} is greater than max_pixels {max_pixels}.")
    check_ratio(height, width)
    rounded = tuple(max(factor, round(side / factor) * factor) for side in (height, width))
    if math.prod(rounded) > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rounded = tuple(max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif math.prod(rounded) < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rounded = tuple(math.ceil(side * grow / factor) * factor for side in (height, width))
    check_num_pixels("The picture, as it should be scaled,", rounded[1], rounded[0])
    return rounded[0], rounded[1]


def check_one_size(pictures: Sequence[Image.Image]) -> None:
    """Raises InputError unless all frames of a video have the same size."""
    if len(sizes := sorted({picture.size for picture in pictures})) > 1:
        raise InputError(f"The frames of a video must have one size, not {sizes}. Resize them first.")


def resize_frame(frame: ImageSource, size: tuple[int, int]) -> Tensor:
    """Scales a picture to `size` = (height, width) by PIL's bicubic filter: uint8 [3, H, W], on the CPU."""
    height, width = size
    image = open_image(frame)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_bicubic(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """Scales a frame [3, H, W] to float [3, *size] of whole values, by torch's antialiased bicubic filter."""
    if tuple(frame.shape[1:]) == size:
        return frame.float()
    scaled = torch.nn.functional.interpolate(
        frame[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return scaled[0].clamp(0, 255).round()
