"""Pictures of any kind as the bytes of a file."""

import io
import os
from pathlib import Path
from typing import Any

from infinitevl.errors import InputError


def encoded(picture: Any) -> bytes:
    """The bytes of a JPEG, PNG or WebP file.

    Args:
        picture: such bytes, as they are; a path; or a PIL picture or an array [H, W, 3] of uint8, which
            become a PNG, so that no pixel changes.

    Raises:
        InputError: none of these, or a file that cannot be read.
    """
    if isinstance(picture, bytes | bytearray | memoryview):
        return bytes(picture)
    if isinstance(picture, str | os.PathLike):
        try:
            return Path(picture).read_bytes()
        except (OSError, ValueError) as error:
            raise InputError(f"the picture {str(picture)[:200]!r} cannot be read: {error}") from error
    if hasattr(picture, "save") and hasattr(picture, "convert"):
        return _png(picture.convert("RGB"))
    if hasattr(picture, "__array__"):
        return _png(_of_array(picture))
    raise InputError(
        f"a {type(picture).__name__} is no picture: give the bytes of a JPEG or PNG, a path, a PIL picture, "
        "or an array [height, width, 3] of uint8."
    )


def _of_array(picture: Any) -> Any:
    import numpy as np
    from PIL import Image

    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise InputError(
            f"the array is {array.dtype} {list(array.shape)}; give uint8 [height, width, 3], red first."
        )
    return Image.fromarray(array)


def _png(picture: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png", compress_level=1)  # quick, and as exact as any
    return file.getvalue()
