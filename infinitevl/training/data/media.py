"""Finds the pictures, videos and documents that a row names."""

import os
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from infinitevl.errors import InputError

_ELSEWHERE = ("http://", "https://", "data:", "file://")
_PAGE_NAMES = {".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif"}


def find_media(source: Any, root: Path, path: str) -> Any:
    """Resolves what a row names: a file below `root`, to its full path, a list of such, or an object.

    Addresses stay as they are. A dict with bytes or path is what `datasets` gives for a picture that is not
    yet decoded. Raises InputError for a missing file, with the field `path`.
    """
    if isinstance(source, list | tuple):
        return [find_media(each, root, f"{path}[{i}]") for i, each in enumerate(source)]
    if isinstance(source, dict):
        data, inner = source.get("bytes"), source.get("path") or source.get("url")
        if data is None and inner is None:
            raise InputError(f"field {path}: has neither bytes nor path, but {sorted(source)}.")
        return data if data is not None else find_media(inner, root, path)
    if not isinstance(source, str | os.PathLike):
        return source
    address = os.fspath(source)
    if address.lower().startswith(_ELSEWHERE):
        return address
    file = root / address
    if not address or not file.exists():
        raise InputError(f"field {path}: {str(file)!r} does not exist. Paths start at {str(root)!r}.")
    return str(file)


def document_pages(source: Any, path: str) -> list[Any]:
    """Lists the pages of a document: a list of pictures, a folder of them, or a file of several pages."""
    if isinstance(source, list):
        pages = source
    elif isinstance(source, str) and Path(source).is_dir():
        files = [file for file in Path(source).iterdir() if file.suffix.lower() in _PAGE_NAMES]
        pages = [str(file) for file in sorted(files, key=_natural)]
    else:
        pages = _file_pages(source, path)
    if not pages:
        raise InputError(f"field {path}: has no pages. Give a list or a folder of pictures, or a TIFF file.")
    return pages


def _natural(file: Path) -> list[tuple[int, str]]:
    """Makes a key that sorts page 10 after page 9: digits compare as numbers."""
    return [(int(run), "") if run.isdecimal() else (-1, run) for run in re.split(r"(\d+)", file.name)]


def _file_pages(source: Any, path: str) -> list[Any]:
    if not isinstance(source, str):
        return [source]
    if source.lower().endswith(".pdf"):
        raise InputError(f"field {path}: {source!r} is a PDF. Turn its pages into pictures in one folder.")
    try:
        with Image.open(source) as file:
            return [page.copy() for page in ImageSequence.Iterator(file)]
    except OSError as error:
        raise InputError(f"field {path}: {source!r} is no picture with pages: {error}.") from error
