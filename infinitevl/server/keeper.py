"""Streams on disk: saved every few seconds and at the end, found again at the next start.

A stream is two files: `<id>.json`, written when it is opened, and `<id>.safetensors`, its state as of the
last save. Both are written aside and renamed, so that a death at any moment leaves whole files.
"""

import json
import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from infinitevl.engine.base import Snapshot
from infinitevl.engine.session import StreamSession
from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
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

    def register(self, stream: Stream) -> None:
        """Remember that a stream is open."""
        with atomic_write(self._record(stream.id)) as part:
            part.chmod(0o600)
            part.write_text(json.dumps(asdict(stream.settings)))

    def forget(self, stream: Stream) -> None:
        """Delete what is kept of a stream."""
        self._writer.submit(self._delete, stream.id)

    def _delete(self, stream_id: str) -> None:
        self._record(stream_id).unlink(missing_ok=True)  # first: a state without a record is not found
        self._state(stream_id).unlink(missing_ok=True)

    def tick(self, worker: EngineWorker) -> None:
        """Save the stream whose turn it is, if any: copied now, written by another thread."""
        if self._writing is not None and not self._writing.done():
            return
        now = time.monotonic()
        for stream in list(worker.streams.values()):
            is_changed = stream.changes != stream.saved_changes
            if is_changed and self._due.setdefault(stream.id, now + self.every) <= now:
                self._due.pop(stream.id)
                self._writing = self._save(stream, worker)
                return

    def save_all(self, worker: EngineWorker) -> None:
        """Save every stream that has changed, and wait for it."""
        for stream in list(worker.streams.values()):
            if stream.changes != stream.saved_changes:
                self._save(stream, worker).result()
        self._writer.shutdown()

    def _save(self, stream: Stream, worker: EngineWorker) -> "Future[None]":
        worker.make_resident(stream)
        changes, frames = stream.changes, stream.stats.frames
        return self._writer.submit(self._write, stream, stream.session.snapshot(), changes, frames)

    def _write(self, stream: Stream, snapshot: Snapshot, changes: int, frames: int) -> None:
        if not self._record(stream.id).exists():  # deleted meanwhile
            return
        try:
            snapshot.save(self._state(stream.id))
        except InfiniteVLError as error:
            logger.error("%s was not saved: %s", stream.id, error)
        else:
            stream.saved_changes, stream.saved_frames = changes, frames

    def restore(self, worker: EngineWorker) -> None:
        """Open every stream of the folder again; in the worker's thread, before it takes calls."""
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
        stream = Stream(settings, session, worker.engine.mode, id=record.stem)
        stream.saved_frames = stream.stats.frames if state.exists() else None
        return stream

    def _record(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.json"

    def _state(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.safetensors"
