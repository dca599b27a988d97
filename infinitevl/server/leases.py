"""Leases: which server may touch a stream that is kept in a folder; never two at a time.

The protocol of a stream ID:

1. Whoever has the lock (`flock`) of the file `ID.lease` holds the stream; nobody else reads or writes it.
2. The system frees the lock when its holder ends, however it ends. There is no clock and no expiry: a holder
   that is slow or stopped keeps its streams, and of one that was killed nothing has to be waited for.
3. Claim: lock without waiting, then see that the locked file still has its name; only then read the stream.
4. Save: write aside, see that the lock is held and its file has its name, rename. Who lost that stops.
5. Release: unlock, after the last save; the file stays.
6. Ask: who wants a stream that another holds makes the file `wanted/ID`. The holder looks there often, takes
   no more work for the stream, saves it and releases it. Whoever claims it next removes the request.
7. Delete: remove the stream, then `ID.lease`, then unlock. Who locked the removed file sees it at step 3.

On a network folder the locks must hold between machines, as those of NFS 4 do. Where the system has no
`flock` (Windows), nothing keeps a second server away.
"""

import contextlib
import os
import threading
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover
    fcntl = None  # type: ignore[assignment]

from infinitevl.errors import InfiniteVLError


class Leases:
    """The streams of a folder that one server holds.

    Raises:
        InfiniteVLError: the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self._wanted = folder, folder / "wanted"
        try:
            self._wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise InfiniteVLError(f"{folder} cannot be used: {error}") from error
        self._files: dict[str, int] = {}  # descriptors of the locked files
        self._changing = threading.RLock()

    def claim(self, stream_id: str) -> bool:
        """Hold a stream from now on; False where another server does, or where it was lost.

        Raises:
            InfiniteVLError: the folder takes no file, or no lock.
        """
        with self._changing:
            if stream_id in self._files:
                return self.holds(stream_id)
            try:
                file = self._lock(self._path(stream_id))
            except OSError as error:
                raise InfiniteVLError(
                    f"{self._path(stream_id)} cannot be locked: {error}. Choose a folder of a file system "
                    "with locks, and allow more open files (ulimit -n) where these have run out."
                ) from error
            if file is None:
                return False
            self._files[stream_id] = file
        (self._wanted / stream_id).unlink(missing_ok=True)
        return True

    def holds(self, stream_id: str) -> bool:
        """Whether this server holds a stream: the file that it has locked is still the one of this name."""
        with self._changing:
            file = self._files.get(stream_id)
            return file is not None and _has_name(file, self._path(stream_id))

    def release(self, stream_id: str) -> None:
        """Let a stream go; nothing happens if it is not held."""
        with self._changing:
            file = self._files.pop(stream_id, None)
            if file is not None:
                os.close(file)

    def forget(self, stream_id: str) -> None:
        """Let a stream go that was deleted."""
        if self.holds(stream_id):
            self._path(stream_id).unlink(missing_ok=True)
        self.release(stream_id)

    def release_all(self) -> None:
        """Let all streams go."""
        for stream_id in list(self._files):
            self.release(stream_id)

    def ask(self, stream_id: str) -> None:
        """Ask whoever holds a stream to let it go."""
        with contextlib.suppress(OSError):  # asked again at the next attempt
            (self._wanted / stream_id).touch(mode=0o600)

    def wanted(self) -> list[str]:
        """The streams that are held here and asked for by another server."""
        return [stream_id for stream_id in os.listdir(self._wanted) if stream_id in self._files]

    def _path(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.lease"

    def _lock(self, path: Path) -> int | None:
        """A descriptor of the locked file; None where another has it."""
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                if not _is_locked(file):
                    os.close(file)
                    return None
                if _has_name(file, path):
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)  # it was deleted between the opening and the locking


def is_held(folder: Path, stream_id: str) -> bool:
    """Whether any server holds a stream now; nothing is changed."""
    try:
        file = os.open(folder / f"{stream_id}.lease", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _is_locked(file)
    finally:
        os.close(file)


def _is_locked(file: int) -> bool:
    """Lock an open file; False where another has it."""
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
    return True


def _has_name(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
