"""The demo: a stream that no model was trained on, questions about it, and answers beside the truth."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from builtin.exam import Exam
from infinitevl.engine.sampling import Sampling
from infinitevl.evaluation.questions import TimedQuestion
from infinitevl.evaluation.streaming import Answered, Event, Session, Summary, WatchSettings, watch


@dataclass(frozen=True)
class Mark:
    """One answer beside the truth."""

    at: float
    question: str
    answer: str
    truth: str
    right: bool


@dataclass(frozen=True)
class DemoResult:
    """What a demo came to; times are seconds of this machine's clock."""

    summary: Summary
    marks: list[Mark]
    watching_seconds: float
    answering_seconds: float

    @property
    def num_right(self) -> int:
        """Answers that are right."""
        return sum(mark.right for mark in self.marks)

    @property
    def frames_per_second(self) -> float:
        """Frames that the session took in per second, answers not counted."""
        return self.summary.frames / max(self.watching_seconds, 1e-9)


def examine(
    session: Session,
    exam: Exam,
    on_event: Callable[[Event], None],
    on_mark: Callable[[Answered, Mark], None],
    *,
    max_new_tokens: int = 32,
) -> DemoResult:
    """Let `session` watch the stream, and mark each answer when it is given.

    An answer goes to `on_mark` with its mark; everything else that happens goes to `on_event`.
    """
    known = sorted(exam.questions, key=lambda question: question.at)
    timed = _Stopwatch(session)
    marks: list[Mark] = []

    def listen(event: Event) -> None:
        if not isinstance(event, Answered):
            return on_event(event)
        question = known[len(marks)]
        right = question.turn.accepts(event.answer)
        marks.append(Mark(event.at, event.question, event.answer, question.turn.answer, right))
        on_mark(event, marks[-1])

    settings = WatchSettings(Sampling(max_new_tokens=max_new_tokens))
    asked = [TimedQuestion(question.turn.question, question.at) for question in known]
    summary = watch(timed, exam.source, asked, listen, settings=settings).summary
    return DemoResult(summary, marks, timed.watching_seconds, timed.answering_seconds)


class _Stopwatch:
    """A session that knows how long it has been watching and answering."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.watching_seconds = self.answering_seconds = 0.0

    def observe(self, frame: Any) -> None:
        start = time.perf_counter()
        self._session.observe(frame)
        self.watching_seconds += time.perf_counter() - start

    def ask(self, question: str, **sampling: Any) -> str:
        start = time.perf_counter()
        answer = self._session.ask(question, **sampling)
        self.answering_seconds += time.perf_counter() - start
        return answer

    def stats(self) -> Any:
        return self._session.stats()
