"""Streams on disk: saved every few seconds and at the end, found again at the next start.

A stream is two files: `<id>.json`, written when it is opened, and `<id>.safetensors`, its state as of the
last save. Both are written aside and renamed, so that a death at any moment leaves whole files. A server
touches the files of those streams alone whose lease it holds (see `leases`).
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
from infinitevl.server.errors import MOVING, ApiError, moving
from infinitevl.server.handover import HandOver
from infinitevl.server.leases import Leases
from infinitevl.server.streams import Settings, Stream, is_id
from infinitevl.server.worker import EngineWorker

logger = logging.getLogger(__name__)


class StateKeeper:
    """Keeps the streams of one server in a folder, which other servers may use as well.

    Args:
        every: seconds between two saves of a stream that goes on.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.folder, self.every = folder / "streams", every
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.leases = Leases(self.folder)
        self._hand_over = HandOver(self)
        self._writer = ThreadPoolExecutor(1, "states")
        self._writing: Future[None] | None = None
        self._due: dict[str, float] = {}
        self.is_failing = False
        self.num_saves = self.num_failures = 0

    def register(self, stream: Stream) -> None:
        """Hold a stream that is open, and remember it; one that has seen something is saved at once.

        Raises:
            ApiError: 503, another server holds it.
            InfiniteVLError: the disk is full, or the folder cannot be written.
        """
        if not self.leases.claim(stream.id):
            raise moving(stream.id)
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
        if self.leases.holds(stream_id):
            self._record(stream_id).unlink(missing_ok=True)  # first: a state without a record is not found
            self._state(stream_id).unlink(missing_ok=True)
        self.leases.forget(stream_id)

    def tick(self, worker: EngineWorker) -> None:
        """Save the stream that has been due for longest, if any: copied now, written by another thread."""
        self._hand_over.step(worker)
        if self.is_writing:
            return
        now = time.monotonic()
        changed = [each for each in list(worker.streams.values()) if each.changes != each.saved_changes]
        for stream in changed:
            self._due.setdefault(stream.id, now + self.every)
        first = min(changed, key=lambda stream: self._due[stream.id], default=None)
        if first is not None and self._due[first.id] <= now:
            self.save(first)

    @property
    def is_writing(self) -> bool:
        """Whether a save is under way."""
        return self._writing is not None and not self._writing.done()

    def save_all(self, worker: EngineWorker) -> None:
        """Save every stream that has changed, wait for it, and let all streams go."""
        streams = list(worker.streams.values())
        for stream in streams:
            if stream.changes != stream.saved_changes:
                try:
                    self.save(stream).result()
                except Exception:  # the others are saved all the same
                    logger.exception("%s was not saved", stream.id)
        kept = sum(stream.changes == stream.saved_changes for stream in streams)
        logger.info("%d of %d streams are kept in %s", kept, len(streams), self.folder)
        self._writer.shutdown()
        self.leases.release_all()

    def save(self, stream: Stream) -> "Future[None]":
        """Copy a stream now, and have it written; the future ends then."""
        self._due.pop(stream.id, None)
        changes, frames = stream.changes, stream.stats.frames
        self._writing = self._writer.submit(self._write, stream, stream.session.snapshot(), changes, frames)
        return self._writing

    def _write(self, stream: Stream, snapshot: Snapshot, changes: int, frames: int) -> None:
        if not self._record(stream.id).exists():  # deleted meanwhile
            return
        try:
            with atomic_write(self._state(stream.id)) as part:
                snapshot.save(part)
                if not self.leases.holds(stream.id):
                    self._hand_over.lost.append(stream)
                    raise InfiniteVLError(f"{stream.id}: its lease was lost, another server may hold it.")
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

    def owner_of(self, stream_id: str) -> str | None:
        """Whose stream the folder has under this id, whoever holds it; None where there is none."""
        try:
            return (
                Settings(**json.loads(self._record(stream_id).read_text())).owner
                if is_id(stream_id)
                else None
            )
        except (OSError, ValueError, TypeError):
            return None

    def restore(self, worker: EngineWorker) -> None:
        """Open every stream of the folder again; in the worker's thread, before it takes calls."""
        remove_stale(self.folder)
        held = 0
        for record in sorted(self.folder.glob("*.json")):
            try:
                self.open(worker, record.stem)
            except ApiError as error:
                held += error.code == MOVING
                if error.code != MOVING:
                    logger.warning("%s is not opened: %s", record.stem, error)
            except (InfiniteVLError, ValueError, TypeError, OSError) as error:
                logger.error("%s is left out, and stays where it is: %s", record, error)
        logger.info("%d streams found in %s", len(worker.streams), self.folder)
        if held:
            logger.warning("%d streams there are held by another server, and left to it", held)

    def open(self, worker: EngineWorker, stream_id: str) -> Stream | None:
        """Open a stream of the folder; in the worker's thread. None where it is open, or there is none.

        Raises:
            ApiError: 503, another server holds it.
            InfiniteVLError, ValueError, TypeError, OSError: its files cannot be used.
        """
        if stream_id in worker.streams or not is_id(stream_id) or not self._record(stream_id).exists():
            return None
        if not self.leases.claim(stream_id):
            raise moving(stream_id)
        if not self._record(stream_id).exists():  # deleted before it was ours
            self.leases.forget(stream_id)
            return None
        try:
            worker.make_room(1)
            stream = self._restored(worker, stream_id)
        except BaseException:
            self.leases.release(stream_id)
            raise
        worker.streams[stream.id] = stream
        return stream

    def _restored(self, worker: EngineWorker, stream_id: str) -> Stream:
        settings = Settings(**json.loads(self._record(stream_id).read_text()))
        state = self._state(stream_id)
        if state.exists():
            session = StreamSession.load_on(state, worker.engine)
        else:
            session = settings.open_on(worker.engine)
        settings = replace(settings, keep_turns=session.keep_turns, system=session.system)
        stream = Stream(settings, session, worker.engine.mode, id=stream_id)
        stream.saved_frames = stream.stats.frames if state.exists() else None
        return stream

    def _record(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.json"

    def _state(self, stream_id: str) -> Path:
        return self.folder / f"{stream_id}.safetensors"
