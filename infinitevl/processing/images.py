"""A picture from anywhere as RGB, its size in patches, and its patches."""

import io
import math
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.addresses import data_uri, is_data_uri, local_path, printable, read_file
from infinitevl.processing.fetch import fetch
from infinitevl.processing.pixels import MAX_PIXELS, check_num_pixels, narrow, to_array, to_uint8

ImageSource: TypeAlias = Image.Image | np.ndarray | Tensor | bytes | str | os.PathLike[str]

MAX_RATIO = 200
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

_SOURCES = "a PIL image, an array or tensor, bytes, a path, a data: URI, or a file:// or http(s):// address"
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def open_image(source: ImageSource, *, allow_private: bool = False) -> Image.Image:
    """Any picture as RGB, upright: EXIF rotation applied, transparency on white, the first frame of many.

    `source`: a PIL image, an array [H, W], [H, W, C] or [C, H, W] or tensor [C, H, W] with values 0 to 255,
    encoded bytes, a path, a data: URI, or a file:// or http(s):// address (private hosts only with
    `allow_private`). 16-bit grey is scaled to 8 bit; 32-bit grey counts as 16-bit where it exceeds 255.
    Raises InputError for anything that is not a usable picture.
    """
    name = _name(source)
    try:
        return _upright_rgb(_load(source, allow_private), name)
    except InputError:
        raise
    except Exception as error:  # decoders of damaged bytes raise nearly anything
        reason = re.sub(r" ?<[\w.]+ object at 0x\w+>", "", str(error))  # PIL names the buffer
        raise InputError(f"{name} is not a readable picture: {reason}.") from error


def _name(source: ImageSource) -> str:
    """What to call a source in an error: an address, or its kind and size."""
    if isinstance(source, memoryview):
        return f"The picture given as {source.nbytes} bytes"
    if isinstance(source, bytes | bytearray):
        return f"The picture given as {len(source)} bytes"
    if isinstance(source, str | os.PathLike):
        text = printable(str(os.fspath(source)))
        return f"{text[:60]}..." if is_data_uri(text) and len(text) > 60 else text
    return f"The {type(source).__name__}"


def _load(source: ImageSource, allow_private: bool) -> Image.Image:
    if isinstance(source, Image.Image):
        return source
    if isinstance(source, Tensor):
        return _from_array(to_array(source))
    if isinstance(source, np.ndarray):
        return _from_array(to_array(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), _name(source))
    if isinstance(source, os.PathLike):
        return _decode(read_file(Path(source)), _name(source))
    if isinstance(source, str):
        return _decode(read_bytes(source, allow_private=allow_private), _name(source))
    raise InputError(f"A {type(source).__name__} is not a picture. Give {_SOURCES}.")


def read_bytes(address: str, *, allow_private: bool = False) -> bytes:
    """The bytes behind a path, a data: URI, or a file:// or http(s):// address; InputError if unreadable."""
    if address[:8].lower().startswith(("http://", "https://")):
        return fetch(address, allow_private=allow_private)
    if is_data_uri(address) and not os.path.isfile(address):
        return data_uri(address)
    return read_file(local_path(address))


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise InputError(f"{name} is empty. Give {_SOURCES}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit is checked here
        image = Image.open(io.BytesIO(data))
    if image.format == "EPS":
        raise InputError(f"{name} is PostScript, a program that would be run. Convert it to PNG.")
    return image


def _from_array(array: np.ndarray) -> Image.Image:
    shape = tuple(array.shape)
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise InputError(f"An array of shape {shape} is not a picture: give [H, W], [H, W, C] or [C, H, W].")
    if array.size == 0:
        raise InputError(f"The array of shape {shape} has no pixels.")
    check_num_pixels(f"The array of shape {shape}", array.shape[1], array.shape[0], MAX_PIXELS)
    return Image.fromarray(np.ascontiguousarray(to_uint8(array)))


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    check_num_pixels(name, image.width, image.height, MAX_PIXELS)
    if image.width == 0 or image.height == 0:
        raise InputError(f"{name} has no pixels ({image.width}x{image.height}).")
    image.load()
    return _to_rgb(ImageOps.exif_transpose(image))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _WIDE_MODES:
        return Image.fromarray(narrow(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _on_white(image.convert("RGBA"))
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def check_ratio(height: int, width: int) -> None:
    """InputError if a picture is more than 200 times as long as it is broad (Qwen's limit)."""
    if max(height, width) > MAX_RATIO * min(height, width):
        raise InputError(
            f"A picture of {width}x{height} is more than {MAX_RATIO} times as long as it is broad. "
            "Crop it or cut it into parts."
        )


def smart_resize(
    height: int,
    width: int,
    factor: int = 28,
    min_pixels: int = 4 * 28 * 28,
    max_pixels: int = 16384 * 28 * 28,
) -> tuple[int, int]:
    """(height, width) as multiples of `factor` with about the same ratio, and an area within the limits.

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


def resize_frame(frame: ImageSource, size: tuple[int, int]) -> Tensor:
    """A picture scaled to `size` = (height, width) by PIL's bicubic filter: uint8 [3, H, W], on the CPU."""
    height, width = size
    image = open_image(frame)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def resize_bicubic(frame: Tensor, size: tuple[int, int]) -> Tensor:
    """A frame [3, H, W] as float [3, *size] of whole values, by torch's antialiased bicubic filter."""
    if tuple(frame.shape[1:]) == size:
        return frame.float()
    scaled = torch.nn.functional.interpolate(
        frame[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
    )
    return scaled[0].clamp(0, 255).round()


def frame_patches(
    frames: Tensor,
    patch_size: int = 14,
    merge_size: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Patches of pictures, each one doubled in time: uint8 [n, 3, H, W] -> float32 [n * h * w, 1176].

    Works on the frames' device without synchronisation; h, w count patches, which stand in merge-block order.
    """
    pixels = _normalize(frames[:, None], mean, std)
    return _lay_out(pixels.expand(-1, 2, -1, -1, -1), patch_size, merge_size)


def clip_patches(
    clips: Tensor,
    patch_size: int = 14,
    merge_size: int = 2,
    mean: Sequence[float] = CLIP_MEAN,
    std: Sequence[float] = CLIP_STD,
) -> Tensor:
    """Patches of short clips of S frames: [n, S, 3, H, W] of 0..255 -> float32 [n * h * w, 3 * S * p * p].

    S is the temporal patch size. Raises InputError where H or W is no multiple of patch and merge size.
    """
    return _lay_out(_normalize(clips, mean, std), patch_size, merge_size)


def _normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(value / 255 - mean) / std in float32, by Python numbers: a tensor would have to be copied over."""
    if clips.ndim != 5 or clips.shape[2] != 3:
        raise InputError(f"Frames have shape {list(clips.shape)}; each must be [3, height, width].")
    pixels = clips.to(torch.float32, copy=True)
    for channel in range(3):
        pixels[:, :, channel].mul_(1 / (255 * std[channel])).sub_(mean[channel] / std[channel])
    return pixels


def _lay_out(pixels: Tensor, patch_size: int, merge_size: int) -> Tensor:
    count, steps, channels, height, width = pixels.shape
    block = patch_size * merge_size
    if height % block or width % block:
        raise InputError(f"Frames of {width}x{height} have no whole patches: give multiples of {block}.")
    rows, columns = height // block, width // block
    # [n, S, C, row, m, p, column, m, p] -> [n, row, column, m, m, C, S, p, p]
    pixels = pixels.reshape(
        count, steps, channels, rows, merge_size, patch_size, columns, merge_size, patch_size
    )
    pixels = pixels.permute(0, 3, 6, 4, 7, 2, 1, 5, 8)
    return pixels.reshape(count * rows * columns * merge_size**2, channels * steps * patch_size**2)
