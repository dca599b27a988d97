"""Ctrl-C that ends work between two frames or two steps, never in the middle of one; other ends are as it."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")

# Schedulers, `kill` and `timeout` send SIGTERM, a terminal that is closed SIGHUP (which Windows lacks).
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_GRACE = 30.0  # seconds for which a process that reads ahead outlives SIGTERM


class Interrupt:
    """While entered, the first Ctrl-C sets `pressed`, which ends `until_pressed`; the second is a
    KeyboardInterrupt as usual. SIGTERM and SIGHUP count as Ctrl-C; one that is ignored (`nohup`) stays so.

    Outside the main thread, where Python does not deliver signals, it changes nothing.

    Args:
        told: what the first one says on standard error.
    """

    def __init__(self, told: str = "") -> None:
        self.pressed, self.told = False, told.encode()
        self._waiting = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        while self._previous:
            signal.signal(*self._previous.popitem())

    def until_pressed(self, items: Iterable[T]) -> Iterator[T]:
        """Yield from `items` until Ctrl-C; a wait for the next item is cut short."""
        iterator = iter(items)
        while not self.pressed:
            try:
                self._waiting = True
                item = next(iterator)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._waiting = False
            yield item

    def _press(self, number: int, frame: FrameType | None) -> None:
        again, self.pressed = self.pressed, True
        if again or self._waiting:
            raise KeyboardInterrupt
        try:
            os.write(2, self.told)  # print may be interrupted within itself, and then refuses
        except OSError:  # the terminal is gone
            self.told = b""


def ignore_interrupts(*_: object) -> None:
    """For processes that read ahead: a terminal's Ctrl-C, and the SIGTERM that `timeout` sends to all, reach
    them too, while the work needs them for what it is at."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGTERM, lambda *_: signal.setitimer(signal.ITIMER_REAL, _GRACE))
