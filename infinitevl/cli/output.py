"""Lines in and out of the commands, whatever standard input and output are joined to."""

import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from infinitevl.errors import InfiniteVLError, InputError

_CREDENTIALS = re.compile(r"://[^/\s?#]*@")


def prepare_streams() -> None:
    """Make text that a terminal has no characters for show as `?`.

    A closed standard input is an empty one, and closed outputs take all that comes.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by the caller, as in `>&-`
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def without_password(text: str) -> str:
    """A text whose addresses name no user and no password, as in `rtsp://***@camera/1`."""
    return _CREDENTIALS.sub("://***@", text)


def print_error(error: Exception) -> None:
    """One clear message in red on standard error."""
    Console(stderr=True).print(
        Text(f"error: {without_password(str(error))}", style="bold red"), soft_wrap=True
    )


def print_json(value: Mapping[str, Any]) -> None:
    """One object on one line of standard output, at once; escaped where that is not in UTF-8."""
    is_utf = (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    write(json.dumps(value, ensure_ascii=not is_utf) + "\n")


def write(text: str) -> None:
    """Text on standard output, at once.

    Raises:
        InfiniteVLError: it cannot be written: the reader of a pipe has gone, or a disk is full.
    """
    with writing_errors():
        sys.stdout.write(text)
        sys.stdout.flush()


@contextlib.contextmanager
def writing_errors() -> Iterator[None]:
    """Turn an error of standard output into ours; whatever is written there afterwards is dropped."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # a stream of a test has no file number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        gone = error.errno == errno.EPIPE
        reason = "who read it has gone" if gone else error.strerror or error
        raise InfiniteVLError(f"standard output could not be written: {reason}.") from error


def read_line(sign: str = "") -> str:
    """A line of standard input, without its end; `sign` is shown in front of it.

    Raises:
        EOFError: there are no more lines.
        InputError: the line is not UTF-8, or whatever this terminal's encoding is.
    """
    try:
        return input(sign)
    except UnicodeDecodeError as error:
        raise InputError(
            f"a line of standard input is not {error.encoding.upper()} text; convert it, as with iconv."
        ) from error
    except RuntimeError as error:  # "lost sys.stdin", when it was closed by the caller
        raise EOFError from error


def harmless(text: str) -> str:
    """What a model wrote, without characters that steer a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
