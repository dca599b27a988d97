"""A stream of a server: a session, a small queue of frames in which the newest win, and its counts."""

import asyncio
import math
import re
import secrets
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infinitevl.engine.engine import Engine
from infinitevl.engine.session import StreamSession
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.sources.frames import Frame
from infinitevl.server.errors import invalid, moving

_RATE_WINDOW = 5.0  # seconds over which frames a second are counted
_LOOK_PIXELS = 1920 * 1088  # of a picture that is kept to look at; 6 MB
SECONDS_PER_FRAME = 1.0  # where a frame comes without a time


_ID = re.compile(r"stream_[0-9a-f]{24}(_[0-9a-f]{24})?")


def new_id(parent: str | None = None) -> str:
    """An id that nobody can guess; a fork's begins as its parent's, so that one replica has both."""
    return f"{'stream' if parent is None else root_of(parent)}_{secrets.token_hex(12)}"


def root_of(stream_id: str) -> str:
    """What the ids of a stream and of all its forks begin with."""
    return "_".join(stream_id.split("_")[:2])


def is_id(text: str) -> bool:
    """Whether a text could be the id of a stream."""
    return _ID.fullmatch(text) is not None


@dataclass(eq=False)
class Waiting:
    """A frame in the queue. dropped: before it. serial: its number in its stream. done: True once read."""

    image: np.ndarray
    time: float
    dropped: int
    serial: int
    arrived: float
    done: "Future[bool]"


@dataclass(frozen=True)
class Settings:
    """What a stream was opened with; kept beside its state.

    idle_seconds: it is deleted after so many without a use and a client of /v1/realtime; None: never.
    """

    owner: str
    name: str | None = None
    system: str | None = None
    keep_turns: bool = False
    queue_size: int = 4
    source: str | None = None
    fps: float | None = None
    parent: str | None = None
    idle_seconds: float | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    def open_on(self, engine: Engine) -> StreamSession:
        """A session that has seen nothing; StateError where all slots are taken."""
        return StreamSession.on(engine, keep_turns=self.keep_turns, system=self.system)


@dataclass(eq=False)
class Stream:
    """One open stream.

    The queue and its counts are guarded by the worker's lock; the session belongs to the worker's thread.
    last_time: of the newest frame that was sent. changes: of the session; saved_changes: in its last save.
    num_kept_answers: under way, that will become part of the stream; its frames wait for them.
    is_leaving: takes no more work, because another server asks for it. ended_by: why it is closed.
    newest_image: uint8 [H, W, 3], of the newest frame that was read, for whoever wants to look at it.
    """

    settings: Settings
    session: StreamSession
    mode: str
    id: str = field(default_factory=new_id)
    queue: deque[Waiting] = field(default_factory=deque)
    last_time: float | None = None
    num_sent: int = 0
    used: float = field(default_factory=time.monotonic)
    last_read: int = 0  # number of its newest frame among those of all streams; see `Turns`
    turn_frames: int = 0  # frames read in this turn
    stamps: deque[float] = field(default_factory=lambda: deque(maxlen=256))
    stats: Any = None
    changes: int = 0
    saved_changes: int = 0
    saved_frames: int | None = None
    num_kept_answers: int = 0
    is_leaving: bool = False
    ended_by: Exception | None = None
    arrivals: asyncio.Lock = field(default_factory=asyncio.Lock)
    newest_image: np.ndarray | None = None
    source_status: str | None = None
    source_error: str | None = None

    def __post_init__(self) -> None:
        self.refresh()
        self.last_time = self.stats.seconds if self.stats.frames else None

    @property
    def is_closed(self) -> bool:
        """Whether it was deleted, or is another server's now."""
        return self.ended_by is not None

    def check_open(self) -> None:
        """See that it takes frames and questions.

        Raises:
            ApiError: 404, it was deleted; 503, another server has it, or will.
        """
        if self.ended_by is not None:
            raise self.ended_by
        if self.is_leaving:
            raise moving(self.id)

    def refresh(self) -> None:
        """Take over the session's counts; in the worker's thread, while it has a slot."""
        self.stats = self.session.stats()

    def next_time(self, given: float | None) -> float:
        """The time of a new frame.

        Raises:
            ApiError: 400, it is before the newest frame's.
        """
        if given is None:
            return 0.0 if self.last_time is None else self.last_time + SECONDS_PER_FRAME
        if self.last_time is not None and given < self.last_time:
            raise invalid(
                f"time goes backwards: the newest frame was at {self.last_time:g} s, this one is at "
                f"{given:g} s. Frames come in time order.",
                "time",
            )
        return given

    def put(self, image: np.ndarray, time_: float, dropped: int = 0) -> "Future[bool]":
        """Queue a frame; where there is no room the oldest one is dropped."""
        if len(self.queue) >= self.settings.queue_size:
            oldest = self.queue.popleft()
            self._carry(oldest.dropped + 1)
            oldest.done.set_result(False)
            if not self.queue:
                dropped += oldest.dropped + 1
        self.num_sent += 1
        self.last_time = time_
        frame = Waiting(image, time_, dropped, self.num_sent, time.monotonic(), Future())
        self.queue.append(frame)
        return frame.done

    def _carry(self, dropped: int) -> None:
        if self.queue:
            self.queue[0].dropped += dropped

    @property
    def num_dropped(self) -> int:
        """Frames that were dropped, those included that the session does not know of yet."""
        return self.stats.dropped + sum(frame.dropped for frame in tuple(self.queue))  # others may change it

    @property
    def can_read(self) -> bool:
        """Whether a frame waits and nothing forbids to read it."""
        return bool(self.queue) and not self.num_kept_answers and not self.is_closed

    def note_read(self, frame: Waiting) -> None:
        """Count a frame that the session has read."""
        self.used = time.monotonic()
        self.stamps.append(self.used)
        self.newest_image = _to_look_at(frame.image)
        self.changes += 1
        self.refresh()

    def frames_per_second(self) -> float:
        """Of the last seconds."""
        since = time.monotonic() - _RATE_WINDOW
        return sum(stamp >= since for stamp in list(self.stamps)) / _RATE_WINDOW

    def drop_queue(self) -> None:
        """Drop all frames that wait."""
        while self.queue:
            self.queue.popleft().done.set_result(False)

    def close(self, reason: Exception) -> None:
        """Take no more frames, and tell those who wait for one."""
        self.ended_by = reason
        while self.queue:
            self.queue.popleft().done.set_exception(reason)

    def as_json(self) -> dict[str, Any]:
        """What a client is told of it."""
        kept, parked = self.settings, self.session.parked
        return {
            "id": self.id,
            "object": "stream",
            "created": kept.created,
            "name": kept.name,
            "mode": self.mode,
            "system": kept.system,
            "keep_turns": kept.keep_turns,
            "queue_size": kept.queue_size,
            "parent": kept.parent,
            "idle_seconds": kept.idle_seconds,
            "source": None if kept.source is None else printable(kept.source),
            "source_status": self.source_status,
            "source_error": self.source_error,
            "frames": self.stats.frames,
            "dropped": self.num_dropped,
            "queued": len(self.queue),
            "time": self.stats.seconds if self.stats.frames else None,
            "tokens": self.stats.tokens,
            "state_bytes": self.stats.state_bytes,
            "frames_per_second": round(self.frames_per_second(), 2),
            "resident": not self.session.is_parked,
            "parked": None if parked is None else "disk" if parked.is_on_disk else "memory",
            "saved_frames": self.saved_frames,
        }


def _to_look_at(image: np.ndarray) -> np.ndarray:
    """The picture itself; where it is large, a copy of every second (or third ...) pixel of it."""
    step = math.ceil(math.sqrt(image.shape[0] * image.shape[1] / _LOOK_PIXELS))
    return image if step <= 1 else image[::step, ::step].copy()


def to_frame(waiting: Waiting) -> Frame:
    """As a session takes it."""
    return Frame(waiting.image, waiting.time, waiting.dropped)
