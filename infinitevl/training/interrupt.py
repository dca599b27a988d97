"""Ctrl-C that ends a run between two steps, never in the middle of one."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

_TOLD = b"Stopping after this step, with a checkpoint; Ctrl-C once more stops at once.\n"


class Interrupt:
    """While entered, the first Ctrl-C sets `pressed`; the second is a KeyboardInterrupt as usual.

    Outside the main thread, where Python does not deliver signals, it changes nothing.

    Args:
        tells: whether this process says what it does, on standard error.
    """

    def __init__(self, tells: bool = True) -> None:
        self.pressed, self.tells = False, tells
        self._previous: Any = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _press(self, number: int, frame: FrameType | None) -> None:
        again, self.pressed = self.pressed, True
        if again:
            raise KeyboardInterrupt
        if self.tells:
            os.write(2, _TOLD)  # print may be interrupted within itself, and then refuses


def ignore_interrupts(*_: object) -> None:
    """For processes that read ahead: Ctrl-C in a terminal reaches them too, and the run needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
