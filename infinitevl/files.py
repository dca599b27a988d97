"""Files that are either complete or absent."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from infinitevl.errors import InfiniteVLError

# What torch.save says, as a plain RuntimeError and without the system's reason.
_TORCH_WRITE_ERRORS = ("PytorchStreamWriter", "unexpected pos", "file write failed", "No space left")
_LONGEST_NAME = 150  # characters of a name that a temporary one repeats: file systems bear 255 bytes
_PART = re.compile(r"\.(?P<name>.*)\.(?P<host>[0-9a-f]+)-(?P<process>\d+)-[0-9a-f]+\.part", re.DOTALL)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there becomes `path` on success.

    A symbolic link stays one: what it leads to is replaced. What a killed process left of an earlier save of
    the same file is removed.

    Raises:
        InfiniteVLError: the folder is missing or not writable, or the disk is full. Nothing is left behind
            and an older file at `path` stays as it was.
    """
    target = Path(path)
    part = None
    try:
        target = Path(os.path.realpath(target))
        if target.exists() and not target.is_file() and not target.is_dir():
            raise InfiniteVLError(f"could not write {path}: it is a device or a pipe. Give a file's name.")
        part = _new_part(target)
        yield part
        _sync(part)
        part.replace(target)
        part = None
        _remove_stale(target)
    except InfiniteVLError:
        raise
    except RuntimeError as error:
        if not any(text in str(error) for text in _TORCH_WRITE_ERRORS):
            raise
        raise InfiniteVLError(_cannot_write(path, "the disk is full or broken")) from error
    except (OSError, SafetensorError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        if _is_folder(target):
            raise InfiniteVLError(f"could not write {path}: it is a folder. Give a file's name.") from error
        raise InfiniteVLError(_cannot_write(path, reason)) from error
    except ValueError as error:
        if "null byte" not in str(error) and "null character" not in str(error):
            raise
        raise InfiniteVLError(f"could not write {str(path)!r}: a name has no null characters.") from error
    finally:
        if part is not None:
            with contextlib.suppress(OSError):  # whoever could not write may not remove either
                part.unlink(missing_ok=True)


@contextlib.contextmanager
def folder_aside(folder: Path) -> Iterator[Path]:
    """Yield a new folder within `folder`, to prepare files in; it is removed afterwards.

    Those that killed processes left there go first: they may hold the space that is needed.

    Raises:
        OSError: `folder` is missing or not writable.
    """
    part = _part_path(folder / "aside")
    _remove_stale(folder / "aside")
    part.mkdir()
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _new_part(target: Path) -> Path:
    """Make an empty file beside the target, with the mode that the umask leaves."""
    part = _part_path(target)
    part.touch(exist_ok=False)
    return part


def _part_path(target: Path) -> Path:
    """A new name beside the target that says who writes there."""
    return target.parent / f".{_short(target.name)}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.part"


def _short(name: str) -> str:
    """The end of a name, in at most so many bytes."""
    return os.fsdecode(os.fsencode(name)[-_LONGEST_NAME:])


def _host() -> str:
    """Where numbers of processes mean what they mean here: this machine, since it started, this container."""
    known = socket.gethostname()
    with contextlib.suppress(OSError):  # other systems than Linux have neither
        known += Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(known.encode(errors="replace")).hexdigest()[:12]


def remove_stale(folder: Path) -> None:
    """Remove what processes of this machine that are gone left of any save in a folder."""
    _remove_stale_of(folder, None)


def _remove_stale(target: Path) -> None:
    _remove_stale_of(target.parent, _short(target.name))


def _remove_stale_of(folder: Path, name: str | None) -> None:
    for part in folder.glob(".*.part"):
        found = _PART.fullmatch(part.name)
        if found is None or name not in (None, found["name"]) or found["host"] != _host():
            continue
        if not _is_alive(int(found["process"])):
            with contextlib.suppress(OSError):
                shutil.rmtree(part) if part.is_dir() else part.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or a system that does not tell
        return True
    return True


def _is_folder(target: Path) -> bool:
    try:
        return target.is_dir()
    except OSError:
        return False


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _cannot_write(target: str | os.PathLike[str], reason: object) -> str:
    return (
        f"could not write {target}: {reason}. Nothing was changed there; "
        "free some space or choose another folder, and save again."
    )
