"""Ctrl-C that ends work between two frames or two steps, never in the middle of one."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")


class Interrupt:
    """While entered, the first Ctrl-C sets `pressed`, which ends `until_pressed`; the second is a
    KeyboardInterrupt as usual.

    Outside the main thread, where Python does not deliver signals, it changes nothing.

    Args:
        told: what the first one says on standard error.
    """

    def __init__(self, told: str = "") -> None:
        self.pressed, self.told = False, told.encode()
        self._waiting = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

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
        os.write(2, self.told)  # print may be interrupted within itself, and then refuses


def ignore_interrupts(*_: object) -> None:
    """For processes that read ahead: Ctrl-C in a terminal reaches them too, and the work needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
