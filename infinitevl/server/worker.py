"""The one thread that touches the engine: frames of all streams and tokens of all answers in common steps.

Each round it reads one frame of every stream that has one, then a bounded piece of prompts and questions, and
lets all answers grow by a step. So a frame waits for a piece and a step, however long the others' texts are.
"""

import asyncio
import heapq
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from infinitevl.engine.engine import Engine
from infinitevl.errors import InputError, StateError
from infinitevl.server.answering import Answering
from infinitevl.server.errors import ApiError, busy
from infinitevl.server.jobs import Job
from infinitevl.server.metrics import Metrics
from infinitevl.server.parking import Parking, ParkLimits
from infinitevl.server.streams import Stream, Waiting, to_frame
from infinitevl.server.turns import Turns

T = TypeVar("T")

logger = logging.getLogger(__name__)
_IDLE = 0.5  # seconds between two looks at the clock when nothing happens
MIN_SLOTS = 3  # a stream, its copy while it is forked, and an answer


class Keeper(Protocol):
    """Saves streams now and then (see `keeper.StateKeeper`)."""

    def tick(self, worker: "EngineWorker") -> None: ...
    def save_all(self, worker: "EngineWorker") -> None: ...


class EngineWorker:
    """Runs an engine in a thread of its own.

    Args:
        max_waiting: answers that may wait for a slot.
        keeper: is asked every round whether a stream is to be saved; None saves none.
        limits: of what streams without a slot may take.

    Raises:
        InputError: an engine with fewer than three slots.
    """

    def __init__(
        self,
        engine: Engine,
        metrics: Metrics,
        max_waiting: int,
        keeper: Keeper | None = None,
        limits: ParkLimits | None = None,
    ):
        if engine.pool.num_slots < MIN_SLOTS:
            raise InputError(f"a server needs {MIN_SLOTS} slots or more: give --slots {MIN_SLOTS}.")
        self.engine, self.metrics, self.keeper = engine, metrics, keeper
        self.streams: dict[str, Stream] = {}
        self.changed = threading.Condition()
        self.answering = Answering(self, max_waiting)
        row = sum(buffer[0].nbytes for buffer in engine.pool.state.buffers)
        self.parking = Parking(limits or ParkLimits.of(None, None, None), row)
        self._turns = Turns()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self.on_leave: Callable[[Stream], None] = lambda stream: None  # a stream goes on elsewhere
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    # ------ from any thread

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """End: what waits or grows fails, all streams are saved."""
        with self.changed:
            self._stopping = True
            self.changed.notify_all()
        if self._thread.ident:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether it works."""
        return self._thread.is_alive() and not self._stopping

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Run a function between two steps, in the worker's thread.

        Raises:
            ApiError: 503, the server is about to end.
        """
        future: Future[T] = Future()
        with self.changed:
            self._check_working()
            self._calls.append((function, future))
            self.changed.notify_all()
        return future

    def push(self, stream: Stream, image: Any, given: float | None, dropped: int = 0) -> "Future[bool]":
        """Queue a frame; the future is True once it was read, False once it was dropped.

        Raises:
            ApiError: 400, a time that goes back; 404, the stream was deleted; 503, it moves, or all ends.
        """
        with self.changed:
            self._check_working()
            stream.check_open()
            done = stream.put(image, stream.next_time(given), dropped)
            self.changed.notify_all()
        return done

    def submit(self, job: Job) -> None:
        """Queue an answer.

        Raises:
            ApiError: 429, too many wait; 404 or 503, its stream was deleted or moves; 503, the server ends.
        """
        with self.changed:
            self._check_working()
            if job.stream is not None:
                job.stream.check_open()
            self.answering.submit(job)
            self.changed.notify_all()

    def cancel(self, job: Job) -> None:
        """Give up an answer; nothing happens if it is over."""
        with self.changed:
            job.is_cancelled = True
            self.changed.notify_all()

    def _check_working(self) -> None:
        if self._stopping:
            raise ApiError(503, "the server is about to end; try again soon.", code="ending")

    # ------ in the worker's thread

    def make_room(self, count: int, keep: Collection[Stream] = ()) -> None:
        """Park the streams that were used least lately until `count` slots are free.

        Raises:
            ApiError: 429, answers have them.
        """
        missing = count - self.engine.pool.num_free
        if missing <= 0:
            return
        resident = [
            stream
            for stream in self.streams.values()
            if stream not in keep and not stream.session.is_parked and not stream.is_closed
        ]
        if len(resident) < missing:
            raise busy("all slots are taken by answers; try again soon.")
        for stream in heapq.nsmallest(missing, resident, key=lambda stream: stream.used):
            stream.session.park()
        self.parking.settle(self.streams.values(), keep)

    def make_resident(self, *streams: Stream, extra: int = 0) -> None:
        """Bring streams back to the device, and leave `extra` slots free.

        Raises:
            ApiError: 404, one was closed; 429, answers have the slots.
        """
        for stream in streams:
            if stream.ended_by is not None:
                raise stream.ended_by
            stream.used = time.monotonic()
        parked = [stream for stream in streams if stream.session.is_parked]
        self.make_room(extra + len(parked), set(streams))
        for stream in parked:
            assert stream.session.slot is not None  # taken again by being asked for

    def _run(self) -> None:
        while True:
            with self.changed:
                if not self._stopping and not self._has_work():
                    self.changed.wait(_IDLE)
                if self._stopping:
                    break
                calls, self._calls = self._calls, deque()
            for function, future in calls:
                _settle(function, future)
            for step in (self._observe, self.answering.step, self._save_some):
                try:
                    step()
                except Exception:  # whoever waited for it was told; the others go on
                    logger.exception("a step of the engine failed")
        self._end()

    def _has_work(self) -> bool:
        frames = any(stream.can_read for stream in self.streams.values())
        return bool(self._calls) or frames or self.answering.has_work

    def _save_some(self) -> None:
        if self.keeper is not None:
            self.keeper.tick(self)

    def _end(self) -> None:
        error = ApiError(503, "the server is about to end; try again soon.", code="ending")
        for _, future in self._calls:
            future.set_exception(error)
        self.answering.fail_all(error)
        while any(stream.can_read for stream in self.streams.values()):
            self._observe()
        if self.keeper is not None:
            self.keeper.save_all(self)
        self.parking.stop()
        for stream in self.streams.values():
            stream.close(error)

    def _observe(self) -> None:
        """One frame of each stream that has one, as many as there are slots for; they take turns."""
        room = self.engine.pool.num_slots - self.answering.num_slots
        with self.changed:
            ready = [stream for stream in self.streams.values() if stream.can_read]
            batch = self._turns.choose(ready, room)
            frames = [stream.queue.popleft() for stream in batch]
        if not batch:
            return
        try:
            self.make_resident(*batch)
            self.engine.observe([(s.session, to_frame(f)) for s, f in zip(batch, frames, strict=True)])
        except Exception as error:
            if len(batch) > 1:  # find out whose fault it is
                for stream, frame in zip(batch, frames, strict=True):
                    self._observe_alone(stream, frame)
            else:
                self._refuse(batch[0], frames[0], error)
            return
        for stream, frame in zip(batch, frames, strict=True):
            self._note(stream, frame)

    def _observe_alone(self, stream: Stream, frame: Waiting) -> None:
        try:
            self.make_resident(stream)
            self.engine.observe([(stream.session, to_frame(frame))])
        except Exception as error:
            self._refuse(stream, frame, error)
        else:
            self._note(stream, frame)

    def _note(self, stream: Stream, frame: Waiting) -> None:
        with self.changed:
            stream.note_read(frame)
            self.changed.notify_all()
        self.answering.rules.after_frame(stream, frame)
        self.metrics.frames.inc()
        self.metrics.dropped.inc(frame.dropped)
        self.metrics.frame_seconds.observe(time.monotonic() - frame.arrived)
        frame.done.set_result(True)

    def _refuse(self, stream: Stream, frame: Waiting, error: Exception) -> None:
        if not isinstance(error, InputError | StateError | ApiError):
            logger.exception("a frame of %s could not be read", stream.id, exc_info=error)
        self.metrics.refused.inc()
        frame.done.set_exception(error)


async def until_done(future: "Future[T]") -> T:
    """The result of what another thread does, which goes on if whoever waits is cancelled."""
    return await asyncio.shield(asyncio.wrap_future(future))


def _settle(function: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:
        future.set_exception(error)
