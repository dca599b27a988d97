"""Reads live sources in a thread: the newest frame wins, a lost source is opened again."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from infinitevl.errors import InfiniteVLError, SourceError
from infinitevl.processing.sources.container import READ_TIMEOUT
from infinitevl.processing.sources.frames import Frame, Sampler, Source

logger = logging.getLogger(__name__)

Opener = Callable[[], Iterable[Frame]]
Clock = Callable[[], float]

FIRST_WAIT = 0.5
LONGEST_WAIT = 8.0
MAX_ATTEMPTS = 10
_MAX_DRIFT = 2.0


class Mailbox:
    """Room for one frame: a newer one replaces it, and counts those that it replaced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._frame: Frame | None = None
        self._error: Exception | None = None
        self._closed = False
        self.dropped = 0

    def put(self, frame: Frame) -> None:
        """Leaves a frame; one that nobody took is dropped."""
        with self._changed:
            if self._frame is not None:
                self.dropped += 1
                frame = replace(frame, dropped=frame.dropped + self._frame.dropped + 1)
            self._frame = frame
            self._changed.notify_all()

    def close(self, error: Exception | None = None) -> None:
        """Says that no frame will follow; `error` is raised once the waiting frame was taken."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    def take(self) -> Frame | None:
        """Waits for the newest frame; None after the end. Raises the error that `close` was given."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._closed)
            frame, self._frame = self._frame, None
            if frame is None and self._error is not None:
                raise self._error
            return frame


class LiveSource(Source):
    """Gives the newest frame of `opener`'s, read in a thread that starts with the first iteration.

    A source that ends or breaks is opened again after 0.5, 1, 2, ... 8 seconds; `max_attempts` failures in a
    row, or a failure of the very first opening, raise SourceError. With reconnects=False its end is the end.
    `wait(seconds)` and the clock can be replaced in tests; `reconnected` counts the new openings that worked.
    """

    live = True

    def __init__(
        self,
        opener: Opener,
        name: str,
        *,
        fps: float | None = None,
        reconnects: bool = True,
        max_attempts: int = MAX_ATTEMPTS,
        wait: Callable[[float], Any] | None = None,
    ) -> None:
        self._opener, self._name, self._fps = opener, name, fps
        self._reconnects, self._max_attempts = reconnects, max_attempts
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._read, name=f"frames of {name}", daemon=True)
        self.reconnected = 0

    @property
    def dropped(self) -> int:  # type: ignore[override]
        """Number of frames that newer ones replaced before anyone took them."""
        return self._mailbox.dropped

    def __iter__(self) -> Iterator[Frame]:
        if not self._thread.ident and not self._stopped.is_set():
            self._thread.start()
        while (frame := self._mailbox.take()) is not None:
            self.size = frame.image.shape[:2]
            yield frame

    def close(self) -> None:
        self._stopped.set()
        self._mailbox.close()
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(READ_TIMEOUT + 1)

    def _read(self) -> None:
        error: Exception | None = None
        try:
            self._read_until_lost_for_good()
        except InfiniteVLError as known:
            error = known
        except BaseException as unknown:  # SystemExit and its like too: whoever waits for a frame must know
            reason = (isinstance(unknown, Exception) and str(unknown)) or repr(unknown)
            error = SourceError(f"{self._name} broke: {reason}.")
            error.__cause__ = unknown
        self._mailbox.close(error)

    def _read_until_lost_for_good(self) -> None:
        sampler = Sampler(self._fps)
        failures, seen = 0, False
        while not self._stopped.is_set():
            got_frame, error = self._read_connection(sampler)
            if self._stopped.is_set() or (error is None and not self._reconnects):
                return
            failures = 1 if got_frame else failures + 1
            self.reconnected += seen and got_frame
            seen = seen or got_frame
            if not seen or not self._reconnects or failures >= self._max_attempts:
                raise self._lost(error, failures, seen)
            pause = min(FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)
            logger.warning(
                "%s is lost, and opened again in %g s: %s", self._name, pause, error or "it ended."
            )
            self._wait(pause)

    def _read_connection(self, sampler: Sampler) -> tuple[bool, SourceError | None]:
        """Reads one connection to its end: (whether it gave a frame, how it failed)."""
        got_frame = False
        frames: Any = None
        try:
            frames = iter(self._opener())
            for frame in frames:
                got_frame = True
                if self._stopped.is_set():
                    break
                if sampler.keeps(frame.time):
                    self._mailbox.put(frame)
        except SourceError as error:
            return got_frame, error
        finally:
            if hasattr(frames, "close"):
                frames.close()
        return got_frame, None

    def _lost(self, error: SourceError | None, failures: int, seen: bool) -> SourceError:
        """The error of a source that does not come back, or that never gave a frame."""
        told = str(error or "it ended.")
        if seen:
            again = f" after {failures} attempts" if failures > 1 else ""
            told = f"{self._name} is lost{again}: {told}"
        elif error is None:
            told = f"{self._name} ended before its first frame."
        lost = SourceError(f"{told} Check that it is on and can be reached.")
        lost.__cause__ = error
        return lost


class WallClock:
    """Times the frames of a live source over all its connections, in seconds since the first one.

    Within a connection the stream's own time stamps count, because frames arrive unevenly. A connection
    starts at the time of its first frame; stamps that leave the clock by 2 seconds start anew from it.
    """

    def __init__(self, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._start: float | None = None
        self._last = 0.0

    def connection(self) -> Callable[[float | None], float]:
        """Returns a function from a new connection's time stamps to times that never go back."""
        offset: float | None = None

        def place(stamp: float | None) -> float:
            nonlocal offset
            now = self._now()
            if stamp is None:
                placed = now
            else:
                if offset is None or abs(stamp + offset - now) > _MAX_DRIFT:
                    offset = now - stamp
                placed = stamp + offset
            self._last = max(placed, self._last)
            return self._last

        return place

    def _now(self) -> float:
        now = self._clock()
        if self._start is None:
            self._start = now
        return now - self._start


def paced(
    frames: Iterable[Frame], clock: Clock = time.monotonic, sleep: Callable[[float], Any] = time.sleep
) -> Iterator[Frame]:
    """Yields recorded frames at the pace of their times."""
    start = clock()
    for frame in frames:
        delay = start + frame.time - clock()
        if delay > 0:
            sleep(delay)
        yield frame
