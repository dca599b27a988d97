"""Files that are either complete or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from infinitevl.errors import InfiniteVLError

# What torch.save says, as a plain RuntimeError and without the system's reason.
_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "unexpected pos", "file write failed", "No space left")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` on success.

    Raises:
        InfiniteVLError: the folder is missing or not writable, or the disk is full. Nothing is left behind
            and an older file at `path` stays as it was.
    """
    target = Path(path)
    part = target.parent / f".{target.name}.{secrets.token_hex(8)}.part"
    try:
        part.touch(exist_ok=False)  # as any new file, with the mode that the umask leaves
        yield part
        _sync(part)
        part.replace(target)
    except InfiniteVLError:
        raise
    except RuntimeError as error:
        if not any(text in str(error) for text in _TORCH_WRITE_ERRORS):
            raise
        raise InfiniteVLError(_cannot_write(target, "the disk is full or broken")) from error
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        if target.is_dir():
            raise InfiniteVLError(f"could not write {target}: it is a folder. Give a file's name.") from error
        raise InfiniteVLError(_cannot_write(target, reason)) from error
    finally:
        part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _cannot_write(target: Path, reason: object) -> str:
    return (
        f"could not write {target}: {reason}. Nothing was changed there; "
        "free some space or choose another folder, and save again."
    )
