"""Pictures on their way to a stream, in the order in which they came."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from infinitevl.server.errors import ApiError, as_api_error, busy, invalid
from infinitevl.server.realtime.items import Item
from infinitevl.server.streams import SECONDS_PER_FRAME, Stream
from infinitevl.server.worker import EngineWorker, until_done

MOST_BYTES = 128 * 2**20  # of pictures that wait


class Clock:
    """The time of frames that come without one: as they arrive, from zero or from where the stream was."""

    def __init__(self, stream: Stream) -> None:
        self._newest = stream.last_time
        self._offset: float | None = None  # seconds of the stream at zero of the machine's clock

    def time(self, stream: Stream, given: float | None, is_next: bool) -> float:
        """The time of a frame that has just come.

        Args:
            given: by the client. is_next: in one message with the frame before: one second after it.

        Raises:
            ApiError: 400, it is before the newest frame's.
        """
        now, newest = time.monotonic(), self.newest(stream)
        if given is not None and newest is not None and given < newest:
            raise invalid(f"time goes backwards: the newest frame was at {newest:g} s.", "time")
        if given is not None:
            seconds = given
        elif newest is None:
            seconds = 0.0
        elif is_next or self._offset is None:
            seconds = newest + SECONDS_PER_FRAME
        else:
            seconds = max(newest, self._offset + now)
        self._newest, self._offset = seconds, seconds - now
        return seconds

    def newest(self, stream: Stream) -> float | None:
        """The time of the newest frame, whoever sent it."""
        times = [each for each in (self._newest, stream.last_time) if each is not None]
        return max(times, default=None)


@dataclass(eq=False)
class _Picture:
    """item: that shows it; a picture of none gives way to newer ones."""

    image: np.ndarray
    time: float
    item: Item | None


class Feed:
    """Sends pictures to a stream as fast as it takes them. Those of items are never dropped.

    Args:
        report: is told why a picture was not read.
    """

    def __init__(self, stream: Stream, worker: EngineWorker, report: Callable[[ApiError], None]) -> None:
        self.stream, self.worker, self._report = stream, worker, report
        self._waiting: deque[_Picture] = deque()
        self._sent: deque[Future[bool]] = deque()
        self._moved = asyncio.Event()
        self._num_dropped = 0  # since the last that was sent
        self._is_closed = False
        self._task = asyncio.create_task(self._run())

    def add(self, image: np.ndarray, seconds: float, item: Item | None = None) -> None:
        """Queue a picture.

        Raises:
            ApiError: 429, a picture of an item for which there is no room.
        """
        if item is None:
            while self._loose and (
                self._is_full(image) or len(self._loose) >= self.stream.settings.queue_size
            ):
                self._waiting.remove(self._loose[0])
                self._num_dropped += 1
        if self._is_full(image):
            if item is not None:
                raise busy("too many pictures wait to be read; send this one again later.")
            self._num_dropped += 1
            return
        self._waiting.append(_Picture(image, seconds, item))
        self._moved.set()

    @property
    def _loose(self) -> list[_Picture]:
        return [each for each in self._waiting if each.item is None]

    def _is_full(self, image: np.ndarray) -> bool:
        waiting = sum(each.image.nbytes for each in self._waiting)
        return bool(waiting) and waiting + image.nbytes > MOST_BYTES

    def remove(self, item: Item) -> None:
        """Forget the pictures of an item that have not been sent."""
        self._waiting = deque(each for each in self._waiting if each.item is not item)
        self._moved.set()

    async def until_sent(self, is_wanted: Callable[[], bool]) -> None:
        """Wait until the pictures that are here now went to the stream, or nobody wants to know."""
        last = self._waiting[-1] if self._waiting else None
        while last in self._waiting and is_wanted() and not self._is_closed:
            self._moved.clear()
            await self._moved.wait()

    def wake(self) -> None:
        """Let those who wait look again."""
        self._moved.set()

    def close(self) -> None:
        """Send nothing more."""
        self._is_closed = True
        self._task.cancel()
        self._waiting.clear()
        self._moved.set()

    async def _run(self) -> None:
        while True:
            while not self._waiting:
                self._moved.clear()
                await self._moved.wait()
            await self._until_there_is_room()
            if self._waiting:
                self._send(self._waiting.popleft())
                self._moved.set()
                await asyncio.sleep(0)

    async def _until_there_is_room(self) -> None:
        """Wait until the stream's queue takes another one without dropping one of ours."""
        while len(self._sent) >= self.stream.settings.queue_size:
            with contextlib.suppress(Exception):  # `_note` tells of it
                await until_done(self._sent.popleft())

    def _send(self, picture: _Picture) -> None:
        try:
            done = self.worker.push(self.stream, picture.image, picture.time, self._num_dropped)
        except ApiError as error:
            self._report(error)
            return
        self._num_dropped = 0
        if picture.item is not None:
            picture.item.note_seen()
        self._sent.append(done)
        loop = asyncio.get_running_loop()

        def note(future: "Future[bool]") -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the client
                loop.call_soon_threadsafe(self._note, future, picture)

        done.add_done_callback(note)

    def _note(self, done: "Future[bool]", picture: _Picture) -> None:
        while self._sent and self._sent[0].done():
            self._sent.popleft()
        error = done.exception()
        if error is not None:
            self._report(as_api_error(error))
        elif not done.result() and picture.item is not None:
            text = f"a picture of {picture.item.id} gave way to newer frames of another client."
            self._report(ApiError(409, text, code="frame_dropped"))
