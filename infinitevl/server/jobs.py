"""Answers that clients wait for: from a prompt or a question to pieces of text."""

import asyncio
import contextlib
import itertools
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from infinitevl.engine.answers import Answer
from infinitevl.engine.logprobs import TokenLogprob
from infinitevl.engine.sampling import Sampling

if TYPE_CHECKING:
    from infinitevl.engine.reading import PromptReader, TurnReader
    from infinitevl.engine.session import StreamSession, Turn
    from infinitevl.server.streams import Stream


@dataclass(frozen=True)
class Piece:
    """Text that choice number `index` has grown by.

    logprobs: of the tokens whose first character is in it, where they were asked for.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Ended:
    """Choice number `index` is complete."""

    index: int
    finish_reason: str
    num_tokens: int


class StopText:
    """Cuts a growing text where the first of some strings begins; holds back what could begin one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops, self._held = list(stops), ""
        self.is_met = False

    def push(self, text: str) -> str:
        """What may be shown after this text came."""
        if self.is_met:
            return ""
        self._held += text
        found = [place for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.is_met = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        cut = len(self._held) - self._num_doubtful()
        shown, self._held = self._held[:cut], self._held[cut:]
        return shown

    def finish(self) -> str:
        """What was held back, when no more will come."""
        shown, self._held = self._held, ""
        return "" if self.is_met else shown

    def _num_doubtful(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for length in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-length:]) for stop in self._stops):
                return length
        return 0


@dataclass(eq=False)
class Choice:
    """One of the answers to a prompt."""

    index: int
    sampling: Sampling
    stop: StopText
    emit: Callable[[Any], None]
    answer: Answer | None = None
    is_over: bool = False
    num_shown: int = 0  # characters that were handed on
    num_logprobs: int = 0
    num_counted: int = 0

    def count_tokens(self) -> int:
        """How many tokens the answer has more than when this was asked before."""
        before, self.num_counted = self.num_counted, 0 if self.answer is None else len(self.answer.tokens)
        return self.num_counted - before

    def on_text(self, text: str) -> None:
        """Hand on text that the engine has made."""
        self._show(self.stop.push(text))

    def end(self, finish_reason: str) -> None:
        """Hand on the rest, and why it ended."""
        assert self.answer is not None
        self._show(self.stop.finish(), is_last=True)
        self.is_over = True
        self.emit(Ended(self.index, finish_reason, len(self.answer.tokens)))

    def _show(self, text: str, is_last: bool = False) -> None:
        self.num_shown += len(text)
        logprobs = self._take_logprobs(is_last and not self.stop.is_met)
        if text or logprobs:
            self.emit(Piece(self.index, text, logprobs))

    def _take_logprobs(self, is_all: bool) -> tuple[TokenLogprob, ...]:
        """Those of the tokens that begin before what was shown last ends, or of all that are left."""
        if self.sampling.logprobs is None or self.answer is None:
            return ()
        starts = self.answer.builder.starts
        end = len(starts) if is_all else bisect_left(starts, self.num_shown)
        taken = self.answer.logprobs[self.num_logprobs : end]
        self.num_logprobs = max(self.num_logprobs, end)
        return tuple(taken)


_SERIAL = itertools.count()


@dataclass(eq=False)
class Job:
    """What one client asked for. The worker's thread emits events, the client's task takes them.

    inputs: a prompt, as the processor returned it; or `stream` and `question`. after: the stream's frames up
    to this number come first.
    """

    samplings: Sequence[Sampling]
    stops: Sequence[str] = ()
    inputs: Mapping[str, Any] | None = None
    stream: "Stream | None" = None
    session: "StreamSession | None" = None  # of the stream, when the answer began
    is_kept: bool = False  # the turn becomes part of the stream
    question: str = ""
    turn: "Turn | None" = None  # how it is asked; None: as the stream was opened
    after: int = 0
    num_prompt_tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    first_token: float | None = None
    is_cancelled: bool = False
    reader: "PromptReader | TurnReader | None" = None
    seen: tuple[int, float] = (0, 0.0)
    choices: list[Choice] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.serial = next(_SERIAL)
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self.choices = [
            Choice(index, sampling, StopText(self.stops), self.emit)
            for index, sampling in enumerate(self.samplings)
        ]

    @property
    def is_over(self) -> bool:
        """Whether every choice is complete."""
        return all(choice.is_over for choice in self.choices)

    def emit(self, event: Any) -> None:
        """Hand an event to the client's task; from any thread."""
        if isinstance(event, Piece) and self.first_token is None:
            self.first_token = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop has ended, and with it the client
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def fail(self, error: BaseException) -> None:
        """End with an error, which is raised to the client's task."""
        for choice in self.choices:
            choice.is_over = True
        self.emit(error)

    async def events(self) -> AsyncIterator[Piece | Ended]:
        """Pieces and ends, until every choice is complete; raises what the job failed with."""
        missing = len(self.choices)
        while missing:
            event = await self._events.get()
            if isinstance(event, BaseException):
                raise event
            missing -= isinstance(event, Ended)
            yield event
