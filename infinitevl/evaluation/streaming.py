"""Shows a source to a session, and asks questions at their times, when typed, and at the end.

`watch` reports what happens as events; the terminal and the report show them.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.evaluation.questions import TimedQuestion, in_order
from infinitevl.interrupt import Interrupt
from infinitevl.processing.sources.frames import Frame, Source

TOGETHER = 8  # frames of a file that are observed in one call


class StreamLike(Protocol):
    """What `watch` needs of a `StreamSession`."""

    @property
    def ask(self) -> Callable[..., str]: ...
    def observe(self, frame: Any) -> None: ...
    def observe_all(self, frames: Sequence[Any]) -> None: ...
    def stats(self) -> Any: ...


@dataclass(frozen=True)
class Seen:
    """The session has observed a frame; at most one such event in `WatchSettings.report_every` seconds."""

    at: float
    image: Any
    stats: Any


@dataclass(frozen=True)
class Asked:
    """A question is about to be answered; pieces of the answer follow."""

    at: float
    question: str


@dataclass(frozen=True)
class Piece:
    """A few characters of an answer, as they are generated."""

    text: str


@dataclass(frozen=True)
class Answered:
    """A question, its whole answer, and the last frame the session had seen."""

    at: float
    question: str
    answer: str
    image: Any
    stats: Any


@dataclass(frozen=True)
class Noticed:
    """A rule has turned on: its question, what it waited for, the answer, and the frame that showed it.

    frame: its number in the stream, from 1.
    """

    at: float
    question: str
    expect: str
    answer: str
    frame: int
    image: Any
    stats: Any

    def line(self) -> dict[str, Any]:
        """The event as one JSON object."""
        return {
            "at": round(self.at, 3),
            "rule": self.question,
            "expect": self.expect,
            "answer": self.answer,
            "frame": self.frame,
        }


@dataclass(frozen=True)
class Refused:
    """A typed question that could not be answered; watching continues."""

    question: str
    error: InfiniteVLError


@dataclass(frozen=True)
class Summary:
    """The totals of a stream: the last line of `watch --json`."""

    frames: int
    tokens: int
    seconds: float
    dropped: int
    state_bytes: int

    def line(self) -> dict[str, Any]:
        """The summary as one JSON object."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


@dataclass(frozen=True)
class Outcome:
    """How a stream ended: its totals, and the error of its source if it broke."""

    summary: Summary
    broken: InfiniteVLError | None = None


Event = Seen | Asked | Piece | Answered | Noticed | Refused


@dataclass(frozen=True)
class WatchSettings:
    """How long to watch, how to answer, and how often to report.

    `starts_at` is the stream's time of the source's first frame: a resumed stream continues after its last
    frame, whatever times the new source has. None keeps the source's own times.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_frames: int | None = None
    starts_at: float | None = None
    report_every: float = 0.1


def nothing_typed() -> list[str]:
    """Return no typed questions, for a run without a terminal."""
    return []


def watch(
    session: StreamLike,
    source: Source,
    questions: Iterable[TimedQuestion] = (),
    on_event: Callable[[Event], None] = lambda event: None,
    *,
    typed: Callable[[], list[str]] = nothing_typed,
    afterwards: Iterable[str] = (),
    settings: WatchSettings = WatchSettings(),
) -> Outcome:
    """Watch `source` to its end, to `max_frames`, or until Ctrl-C, and answer every question.

    A question for second s is asked when all frames up to s have been seen, of a live source at the first
    frame from then on; what is left is asked at the end.

    Args:
        typed: returns the questions typed since the last call.
        afterwards: questions asked after the end of the source, as they come, until Ctrl-C.

    Returns:
        The summary and, if the source broke, its error; the questions were then answered on what was seen.

    Raises:
        InfiniteVLError: the source broke before its first frame, or has none; or a question cannot be asked.
    """
    watcher = _Watcher(session, source, deque(in_order(questions)), on_event, settings)
    with Interrupt() as interrupt:
        broken = watcher.observe(interrupt, typed)
        watcher.answer_the_rest()
        watcher.answer_typed(interrupt.until_pressed(afterwards))
    return Outcome(watcher.summary(), broken)


@dataclass
class _Watcher:
    session: StreamLike
    source: Source
    waiting: deque[TimedQuestion]
    on_event: Callable[[Event], None]
    settings: WatchSettings
    at: float = 0.0
    image: Any = None
    reported: float = 0.0
    repeated: set[str] = field(default_factory=set)  # repeated questions that were asked before
    has_begun: bool = False
    unread: list[Frame] = field(default_factory=list)  # of a file, to be observed together

    def observe(self, interrupt: Interrupt, typed: Callable[[], list[str]]) -> InfiniteVLError | None:
        """Observe all frames; return the error with which the source broke, if it did."""
        broken = None
        try:
            for frame in interrupt.until_pressed(self._frames()):
                self._take(frame)
                if lines := typed():
                    self._observe_unread()
                    self.answer_typed(lines)
        except InfiniteVLError as error:
            broken = error
        try:
            self._observe_unread()
        except InfiniteVLError as error:
            broken = broken or error
        if broken is not None and self.image is None:
            raise broken
        return broken

    def _take(self, frame: Frame) -> None:
        """Observe a live frame at once, frames of a file a few at a time; ask what is due between them."""
        if not self.has_begun:
            self.has_begun = True
            self._begin_at(frame.time)
        if self.source.live:  # the next one may come much later
            self._observe([frame])
            self._answer_due(frame.time, including=True)
            return
        # No frame is lost: the next one is the first that came later.
        if self.waiting and self.waiting[0].is_due(frame.time, including=False):
            self._observe_unread()
            self._answer_due(frame.time, including=False)
        self.unread.append(frame)
        if len(self.unread) >= TOGETHER:
            self._observe_unread()

    def answer_the_rest(self) -> None:
        """Ask the questions for the end, and those whose time was not reached."""
        if self.image is None:
            raise InputError("the source holds no frame, so there is nothing to watch or to ask about")
        self._report_frame()
        while self.waiting:
            question = self.waiting.popleft()
            if question.text not in self.repeated or question.is_due(self.at, including=True):
                self._answer(question.text)

    def answer_typed(self, lines: Iterable[str]) -> None:
        """Answer each line at once; report a line that cannot be answered, and continue."""
        for line in lines:
            try:
                self._answer(line)
            except InfiniteVLError as error:
                self.on_event(Refused(line, error))

    def summary(self) -> Summary:
        stats = self.session.stats()
        return Summary(stats.frames, stats.tokens, stats.seconds, stats.dropped, stats.state_bytes)

    def _frames(self) -> Iterator[Frame]:
        shift, limit = None, self.settings.max_frames
        for number, frame in enumerate(self.source):
            if shift is None:
                starts_at = self.settings.starts_at
                shift = 0.0 if starts_at is None else starts_at - frame.time
            yield frame if shift == 0.0 else replace(frame, time=frame.time + shift)
            if limit is not None and number + 1 >= limit:
                return

    def _observe_unread(self) -> None:
        frames, self.unread = self.unread, []
        if not frames:
            return
        try:
            self.session.observe_all(frames)
        except InfiniteVLError:  # none was read; those before the one that cannot be are
            self._observe(frames)
        else:
            self._note(frames[-1])

    def _observe(self, frames: Sequence[Frame]) -> None:
        for frame in frames:
            self.session.observe(frame)
            self._note(frame)

    def _note(self, frame: Frame) -> None:
        self.at, self.image = frame.time, frame.image
        if time.monotonic() - self.reported >= self.settings.report_every:
            self._report_frame()

    def _report_frame(self) -> None:
        self.reported = time.monotonic()
        self.on_event(Seen(self.at, self.image, self.session.stats()))

    def _answer_due(self, moment: float, including: bool) -> None:
        """Ask what is meant for a time before `moment`, or at it too; a repeated question only once."""
        while self.waiting and self.waiting[0].is_due(moment, including):
            question = self.waiting.popleft()
            if question.every is not None:
                self._wait_for(question.repeated(moment, including))
                self.repeated.add(question.text)
            self._answer(question.text)

    def _begin_at(self, moment: float) -> None:
        """Schedule repeated questions for their first time after the first frame."""
        for question in [each for each in self.waiting if each.every is not None]:
            self.waiting.remove(question)
            self._wait_for(question.repeated(moment, including=True))

    def _wait_for(self, question: TimedQuestion) -> None:
        self.waiting = deque(in_order([*self.waiting, question]))

    def _answer(self, question: str) -> None:
        self.on_event(Asked(self.at, question))
        sampling = self.settings.sampling
        answer = self.session.ask(
            question,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            on_text=lambda text: self.on_event(Piece(text)),
        )
        self.on_event(Answered(self.at, question, answer, self.image, self.session.stats()))
