"""Opens pictures of any kind as RGB."""

import io
import os
import re
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.processing.fetching.addresses import is_data_uri, local_path, printable, read_file
from infinitevl.processing.fetching.fetch import read_remote
from infinitevl.processing.pictures.pixels import MAX_PIXELS, check_num_pixels, narrow, to_array, to_uint8

ImageSource: TypeAlias = Image.Image | np.ndarray | Tensor | bytes | str | os.PathLike[str]


_SOURCES = "a PIL image, an array or tensor, bytes, a path, a data: URI, or a file:// or http(s):// address"
_WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")


def open_image(source: ImageSource, *, allow_private: bool = False) -> Image.Image:
    """Opens a picture as RGB: EXIF rotation applied, transparency on white, the first frame of several.

    `source`: a PIL image, an array [H, W], [H, W, C] or [C, H, W] or tensor [C, H, W] with values 0 to 255,
    encoded bytes, a path, a data: URI, or a file:// or http(s):// address (private hosts only with
    `allow_private`). 16-bit grey is scaled to 8 bit; 32-bit grey counts as 16-bit where it exceeds 255.
    Colour profiles are not applied. A boolean mask becomes black and white; an integer mask of 0 and 1 stays
    nearly black, as a dark picture does: multiply it by 255, or pass it as bool.
    Raises InputError for anything else, and for a picture that cannot be decoded.
    """
    name = _name(source)
    try:
        return _upright_rgb(_load(source, allow_private), name)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has more than {MAX_PIXELS} pixels. Make it smaller.") from error
    except Exception as error:  # on damaged bytes decoders raise exceptions of many kinds
        reason = re.sub(r" ?<[\w.]+ object at 0x\w+>", "", str(error))  # PIL adds the buffer's address
        raise InputError(f"{name} is not a readable picture: {reason}.") from error


def _name(source: ImageSource) -> str:
    """Names a source in an error message: its address, or its type and size."""
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
    if isinstance(source, Tensor | np.ndarray):
        return _from_array(to_array(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(bytes(source), _name(source))
    if isinstance(source, os.PathLike):
        return _decode(read_file(Path(source)), _name(source))
    if isinstance(source, str):
        data = read_remote(source, allow_private=allow_private)
        return _decode(read_file(local_path(source)) if data is None else data, _name(source))
    raise InputError(f"A {type(source).__name__} is not a picture. Give {_SOURCES}.")


def read_header(data: bytes) -> Image.Image:
    """Opens encoded bytes without decoding any pixel; the caller checks the number of pixels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(io.BytesIO(data))


def _decode(data: bytes, name: str) -> Image.Image:
    if not data:
        raise InputError(f"{name} is empty. Give {_SOURCES}.")
    image = read_header(data)
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
    check_num_pixels(f"The array of shape {shape}", array.shape[1], array.shape[0])
    return Image.fromarray(np.ascontiguousarray(to_uint8(array)))


def _upright_rgb(image: Image.Image, name: str) -> Image.Image:
    check_num_pixels(name, image.width, image.height)
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
