"""Files that are either complete or absent."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from infinitevl.errors import InfiniteVLError


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` on success.

    Raises:
        InfiniteVLError: the folder is missing or not writable, or the disk is full. Nothing is left behind
            and an older file at `path` stays as it was.
    """
    target = Path(path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent)
        os.close(handle)
    except OSError as error:
        raise InfiniteVLError(_cannot_write(target, error)) from error
    part = Path(name)
    try:
        yield part
        _sync(part)
        part.replace(target)
    except OSError as error:
        raise InfiniteVLError(_cannot_write(target, error)) from error
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _cannot_write(target: Path, error: OSError) -> str:
    return (
        f"could not write {target}: {error.strerror or error}. Nothing was changed there; "
        "free some space or choose another folder, and save again."
    )
