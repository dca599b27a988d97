"""Streams on disk: saved every few seconds and at the end, found again at the next start.

A stream is two files: `<id>.json`, written when it is opened, and `<id>.safetensors`, its state as of the
last save. Both are written aside and renamed, so that a death at any moment leaves whole files.
"""

import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from infinitevl.engine.base import Snapshot
from infinitevl.engine.session import StreamSession
from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write, remove_stale
from infinitevl.server.streams import Settings, Stream
from infinitevl.server.worker import EngineWorker

logger = logging.getLogger(__name__)


class StateKeeper:
    """Keeps the streams of one server in a folder.

    Args:
        every: seconds between two saves of a stream that goes on.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self.every = folder / "streams", every
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._writer = ThreadPoolExecutor(1, "states")
        self._writing: Future[None] | None = None
        self._due: dict[str, float] = {}
        self.is_failing = False
        self.num_saves = self.num_failures = 0

    def register(self, stream: Stream) -> None:
        """Remember that a stream is open; one that has seen something is saved as soon as possible.

        Raises:
            InfiniteVLError: the disk is full, or the folder cannot be written.
        """
        with atomic_write(self._record(stream.id)) as part:
            part.chmod(0o600)
            part.write_text(json.dumps(asdict(stream.settings)))
        if stream.stats.frames:
            self.hurry(stream)

    def hurry(self, stream: Stream) -> None:
        """Save a stream before others."""
        self._due[stream.id] = 0.0

    def forget(self, stream: Stream) -> "Future[None]":
        """Delete what is kept of a stream; it is gone once the future is done."""
        self._due.pop(stream.id, None)
        return self._writer.submit(self._delete, stream.id)

    def _delete(self, stream_id: str) -> None:
        self._record(stream_id).unlink(missing_ok=True)  # first: a state without a record is not found
        self._state(stream_id).unlink(missing_ok=True)

    def tick(self, worker: EngineWorker) -> None:
        """Save the stream that has been due for longest, if any: copied now, written by another thread."""
        if self._writing is not None and not self._writing.done():
            return
        now = time.monotonic()
        changed = [each for each in list(worker.streams.values()) if each.changes != each.saved_changes]
        for stream in changed:
            self._due.setdefault(stream.id, now + self.every)
        first = min(changed, key=lambda stream: self._due[stream.id], default=None)
        if first is not None and self._due[first.id] <= now:
            self._due.pop(first.id)
            self._writing = self._save(first)

    def save_all(self, worker: EngineWorker) -> None:
        """Save every stream that has changed, and wait for it."""
        for stream in list(worker.streams.values()):
            if stream.changes != stream.saved_changes:
                try:
                    self._save(stream).result()
                except Exception:  # the others are saved all the same
                    logger.exception("%s was not saved", stream.id)
        self._writer.shutdown()

    def _save(self, stream: Stream) -> "Future[None]":
        changes, frames = stream.changes, stream.stats.frames
        return self._writer.submit(self._write, stream, stream.session.snapshot(), changes, frames)

    def _write(self, stream: Stream, snapshot: Snapshot, changes: int, frames: int) -> None:
        if not self._record(stream.id).exists():  # deleted meanwhile
            return
        try:
            snapshot.save(self._state(stream.id))
        except Exception as error:
            self.num_failures += 1
            if not self.is_failing:
                logger.error("streams cannot be saved; this goes on being tried: %s", error)
            self.is_failing = True
        else:
            self.num_saves += 1
            if self.is_failing:
                logger.info("streams are saved again")
            self.is_failing = False
            stream.saved_changes, stream.saved_frames = changes, frames

    def restore(self, worker: EngineWorker) -> None:
        """Open every stream of the folder again; in the worker's thread, before it takes calls."""
        remove_stale(self.folder)
        for record in sorted(self.folder.glob("*.json")):
            try:
                worker.make_room(1)
                stream = self._restored(worker, record)
            except (InfiniteVLError, ValueError, TypeError, OSError) as error:
                logger.error("%s is left out, and stays where it is: %s", record, error)
            else:
                worker.streams[stream.id] = stream

    def _restored(self, worker: EngineWorker, record: Path) -> Stream:
        settings = Settings(**json.loads(record.read_text()))
        state = self._state(record.stem)
        if state.exists():
            session = StreamSession.load_on(state, worker.engine)
        else:
            session = settings.open_on(worker.engine)
        settings = replace(settings, keep_turns=session.keep_turns, system=session.system)
        stream = Stream(settings, session, worker.engine.mode, id=record.stem)
        stream.saved_frames = stream.stats.frames if state.exists() else None
        return stream

    def _record(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.json"

    def _state(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.safetensors"
