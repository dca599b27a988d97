"""What the commands put on a terminal, and what a person types into it."""

import codecs
import contextlib
import os
import queue
import re
import select
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from infinitevl.cli.output import harmless, print_error, print_json, write
from infinitevl.evaluation.streaming import Answered, Asked, Event, Noticed, Piece, Refused, Seen, Summary
from infinitevl.evaluation.units import show_bytes, show_time

_TOLD_EVERY = 10.0  # seconds
_ARROW_KEYS = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")


def on_a_terminal() -> bool:
    """Whether a person sits at both ends: progress can be shown and questions can be typed."""
    return sys.platform != "win32" and sys.stdin.isatty() and sys.stderr.isatty()


class Display(Protocol):
    """Shows the events of a stream as they happen, and then its summary."""

    def __call__(self, event: Event) -> None: ...
    def unreached(self, ended: float, asked: float) -> None: ...
    def finish(self, summary: Summary) -> None: ...
    def pause(self) -> None: ...


class JsonDisplay:
    """Answers as `{"at", "question", "answer"}`, events as `{"at", "rule", ...}`, one a line."""

    def __call__(self, event: Event) -> None:
        """Print `event` if it is an answer or of a rule; a refused question goes to standard error."""
        if isinstance(event, Answered):
            print_json({"at": round(event.at, 3), "question": event.question, "answer": event.answer})
        elif isinstance(event, Noticed):
            print_json(event.line())
        elif isinstance(event, Refused):
            print_error(event.error)

    def unreached(self, ended: float, asked: float) -> None:
        """Say it on standard error: a line of JSON is an answer or the summary."""
        print(_unreached(ended, asked), file=sys.stderr)

    def finish(self, summary: Summary) -> None:
        """Print the last line."""
        print_json(summary.line())

    def pause(self) -> None:
        """Nothing stands in the way here."""


class TextDisplay:
    """Questions, their answers as they are generated, and the progress of the stream on standard error.

    On a terminal the progress is a line below the answers; elsewhere it is another line every 10 seconds.
    `note` is said once, under the first answer.
    """

    def __init__(
        self, num_frames: int | None = None, typed: "TypedLines | None" = None, note: str = ""
    ) -> None:
        self._num_frames, self._typed, self._note = num_frames, typed, note
        self._console = Console(stderr=True)
        self._live: Live | None = None
        self._first: Seen | None = None
        self._last: Seen | None = None
        self._started = self._newest = self._told = 0.0

    def __call__(self, event: Event) -> None:
        """Show `event`."""
        if isinstance(event, Seen):
            self._progress(event)
        elif isinstance(event, Asked):
            self.pause()
            write(f"[{show_time(event.at)}] {event.question}\n  ")
        elif isinstance(event, Piece):
            write(harmless(event.text))
        elif isinstance(event, Answered):
            write("\n")
            if self._note:
                print(self._note, file=sys.stderr)
                self._note = ""
            self._resume()
        elif isinstance(event, Noticed):
            self.pause()
            write(f"[{show_time(event.at)}] noticed: {event.question} {harmless(event.answer.strip())}\n")
            self._resume()
        elif isinstance(event, Refused):
            self.pause()
            print_error(event.error)
            self._resume()

    def unreached(self, ended: float, asked: float) -> None:
        """Say that a stream whose last frame was at second `ended` was to be asked at second `asked`."""
        self.pause()
        write(f"{_unreached(ended, asked)}\n")

    def finish(self, summary: Summary) -> None:
        """Take the progress away and print the summary."""
        self.pause()
        facts = (
            f"{summary.frames:,} frames, {summary.tokens:,} tokens, {show_time(summary.seconds)} of stream"
        )
        write(f"{facts}, {summary.dropped:,} dropped, state {show_bytes(summary.state_bytes)}\n")

    def pause(self) -> None:
        """Take the progress away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _progress(self, event: Seen) -> None:
        self._last, self._newest = event, time.monotonic()
        if self._first is None:
            self._first, self._started, self._told = event, self._newest, self._newest
        if self._console.is_terminal:
            self._resume()
        elif self._newest - self._told >= _TOLD_EVERY:
            self._told = self._newest
            print(self._told_progress(event), file=sys.stderr, flush=True)

    def _told_progress(self, event: Seen) -> str:
        stats = event.stats
        told = f"[{show_time(event.at)}] {stats.frames:,} frames, {self._speed(event):.1f} frames/s"
        return f"{told}, {stats.dropped:,} dropped"

    def _speed(self, event: Seen) -> float:
        """Frames a second since the first one was seen."""
        if self._first is None or self._newest <= self._started:
            return 0.0
        return float(event.stats.frames - self._first.stats.frames) / (self._newest - self._started)

    def _resume(self) -> None:
        if self._live is None and self._console.is_terminal and self._last is not None:
            self._live = Live(
                get_renderable=self._render, console=self._console, transient=True, refresh_per_second=10
            )
            self._live.start()

    def _render(self) -> RenderableType:
        if self._first is None or self._last is None:
            return Text()
        stats = self._last.stats
        row = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [Text(show_time(self._last.at), style="bold cyan")]
        if self._num_frames:
            done = stats.frames - self._first.stats.frames + 1
            cells.append(ProgressBar(total=self._num_frames, completed=done, width=24))
        cells += [f"{stats.frames:,} frames", f"{stats.tokens:,} tokens"]
        cells.append(f"state {show_bytes(stats.state_bytes)}")
        if stats.dropped:
            cells.append(f"{stats.dropped:,} dropped")
        if self._newest > self._started:
            cells.append(f"{self._speed(self._last):.1f} frames/s")
        row.add_row(*cells)
        return row if self._typed is None else Group(row, self._input_line(self._typed))

    @staticmethod
    def _input_line(typed: "TypedLines") -> Text:
        text = typed.unfinished()
        return Text("ask> ").append(text or Text(typed.hint, "dim"))


def _unreached(ended: float, asked: float) -> str:
    return f"[{show_time(ended)}] (the stream ended before {show_time(asked)}: it was asked here instead)"


class TypedLines:
    """Reads typed lines in the background; inside the context it takes over the terminal's input.

    The terminal neither shows nor edits what is typed meanwhile: `unfinished` is for showing it, and
    backspace works. Ctrl-C stays Ctrl-C. `hint` is for showing while nothing has been typed.
    """

    def __init__(self, hint: str = "") -> None:
        self.hint = hint
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._unfinished = ""
        self._done = threading.Event()
        self._restore = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._restore.enter_context(_one_key_at_a_time())
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        self._restore.callback(reader.join)
        self._restore.callback(self._done.set)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore.close()

    def unfinished(self) -> str:
        """What has been typed since the last Enter."""
        return self._unfinished

    def __call__(self) -> list[str]:
        """The lines finished since the last call, empty ones left out."""
        lines = []
        with contextlib.suppress(queue.Empty):
            while True:
                lines.append(self._lines.get_nowait())
        return [line for line in lines if line]

    def until_empty(self) -> Iterator[str]:
        """Wait for line after line, until one is empty."""
        while True:
            try:
                line = self._lines.get(timeout=0.2)
            except queue.Empty:
                continue
            if not line:
                return
            yield line

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")
        while not self._done.is_set():
            if select.select([sys.stdin], [], [], 0.1)[0]:
                text = decoder.decode(os.read(sys.stdin.fileno(), 1024))
                for key in _ARROW_KEYS.sub("", text):
                    self._press(key)

    def _press(self, key: str) -> None:
        if key in "\r\n":
            self._lines.put(self._unfinished.strip())
            self._unfinished = ""
        elif key in "\b\x7f":
            self._unfinished = self._unfinished[:-1]
        elif key.isprintable():
            self._unfinished += key


@contextlib.contextmanager
def _one_key_at_a_time() -> Iterator[None]:
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    tty.setcbreak(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
