"""A conversation at the terminal: lines in, slash commands, answers out as they are generated."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from infinitevl.cli.output import harmless, print_error, print_json, read_line, without_password, write
from infinitevl.errors import InfiniteVLError, InputError

HELP = "/image PATH or /video PATH: show it with the next message    /reset: forget everything    /quit"


class Conversation(Protocol):
    """What a `Chat` needs of a `ChatSession`."""

    def say(
        self,
        content: str | Sequence[dict[str, Any]],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        on_text: Callable[[str], None] | None = None,
        allow_private: bool = False,
    ) -> str: ...


class Quit(Exception):
    """The user ended the conversation."""


class Chat:
    """Turns of one conversation; pictures and videos wait for the message that goes with them.

    `settings` are those of `ChatSession.say`. `note` is what is to be said once, after the first answer.
    """

    note = ""

    def __init__(self, start: Callable[[], Conversation], **settings: Any) -> None:
        self._start, self._settings = start, settings
        self._conversation = start()
        self._attached: list[dict[str, Any]] = []

    def attach(self, kind: str, path: str) -> None:
        """Show a picture (kind "image") or a video (kind "video") with the next message.

        Raises:
            InputError: no file at `path`, which may also be an address or a data URI.
        """
        if not path.strip() or (":" not in path and not os.path.exists(path)):
            raise InputError(f"no {kind} at {path!r}; give the path of a file, or an http address")
        self._attached.append({"type": kind, kind: path})

    def take(self, line: str) -> str | None:
        """Run a slash command and return the text to show, or return None for a message.

        Raises:
            Quit: on /quit.
            InputError: a command that does not exist, or lacks its path.
        """
        name, *rest = line.split(maxsplit=1)
        if not name.startswith("/"):
            return None
        if name == "/quit":
            raise Quit
        if name == "/reset":
            self._conversation, self._attached = self._start(), []
            return "forgotten"
        if name in ("/image", "/video"):
            if not rest:
                raise InputError(f"{name} needs a path: {name} PATH")
            path = rest[0].strip()
            self.attach(name[1:], path)
            return f"{without_password(path)} goes with your next message"
        if name == "/help":
            return HELP
        raise InputError(f"{line.strip()!r} is not a command; there are:\n{HELP}")

    def say(self, text: str, on_text: Callable[[str], None]) -> str:
        """Answer `text` and all that is attached; pieces go to `on_text` as they come.

        A message that cannot be read is given up together with what was attached to it.
        """
        parts, self._attached = [*self._attached, {"type": "text", "text": text}], []
        return self._conversation.say(parts, on_text=on_text, **self._settings)


def run_chat(
    attached: list[tuple[str, str]],
    prompt: str | None,
    settings: dict[str, Any],
    *,
    as_json: bool,
    model: str | None,
    device: str | None,
    dtype: str,
    quantization: str,
    attention: str | None,
) -> None:
    """Answer one prompt, or every line of a conversation.

    Raises:
        InputError: something attached or said cannot be used; a conversation on a terminal continues instead.
    """
    from infinitevl.cli.command import load_model, note_of
    from infinitevl.engine.chat import ChatSession

    network, processor = load_model(model, device, dtype, quantization, attention)
    chat = Chat(lambda: ChatSession(network, processor), **settings)
    chat.note = note_of(model)
    for kind, path in attached:
        chat.attach(kind, path)
    if prompt is not None:
        _answer(chat, prompt, as_json)
    else:
        _converse(chat, as_json)


def _converse(chat: Chat, as_json: bool) -> None:
    person = sys.stdin.isatty()
    if person:
        print(HELP)
        with contextlib.suppress(ImportError):  # arrow keys and history, where Python has them
            import readline  # noqa: F401
    for line in _lines("> " if person else ""):
        try:
            message = chat.take(line)
            if message is None:
                _answer(chat, line, as_json)
            else:
                print(message, file=sys.stderr)
        except Quit:
            return
        except InfiniteVLError as error:
            if not person:
                raise
            print_error(error)


def _lines(sign: str) -> Iterator[str]:
    """Lines from standard input that are not empty, until it ends."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            line = read_line(sign)
            if line.strip():
                yield line


def _answer(chat: Chat, text: str, as_json: bool) -> None:
    if as_json:
        print_json({"question": text, "answer": chat.say(text, on_text=lambda piece: None)})
        return
    chat.say(text, on_text=lambda piece: write(harmless(piece)))
    write("\n")
    if chat.note:
        print(chat.note, file=sys.stderr)
        chat.note = ""
