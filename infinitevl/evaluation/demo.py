"""The demo: a stream that no model was trained on, questions about it, and answers beside the truth.

The stream and the questions are data of the package; `builtin/demo_stream.py` in the repository made them.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError
from infinitevl.evaluation.questions import TimedQuestion, tidy
from infinitevl.evaluation.streaming import Answered, Event, StreamLike, Summary, WatchSettings, watch
from infinitevl.processing.sources.frames import Frame, Source


@dataclass(frozen=True)
class KnownQuestion:
    """A question asked at second `at` of the stream, its true answer, and others that are as right."""

    at: float
    question: str
    answer: str
    also: tuple[str, ...] = ()

    def accepts(self, text: str) -> bool:
        """Whether `text` answers it: letter case, spaces and a final stop do not matter."""
        return tidy(text) in {tidy(self.answer), *map(tidy, self.also)}


@dataclass(frozen=True)
class Demo:
    """A stream, and questions with their true answers."""

    source: Source
    questions: list[KnownQuestion]


class StoredFrames(Source):
    """The first frames of an animated picture, at the given seconds."""

    def __init__(self, path: Path, times: list[float]) -> None:
        self.num_frames = len(times)
        self._path, self._times = path, times

    def __iter__(self) -> Iterator[Frame]:
        with Image.open(self._path) as picture:
            for index, time in enumerate(self._times):
                picture.seek(index)
                yield Frame(np.asarray(picture.convert("RGB")), time)

    def close(self) -> None:
        """Do nothing; no file stays open between iterations."""


def stored_folder() -> Path:
    """Return the folder of frames and questions in the package."""
    return Path(str(resources.files("infinitevl"))) / "assets" / "demo"


def open_demo(num_frames: int | None = None) -> Demo:
    """Open the first `num_frames` frames, all if None, and the questions about them.

    Raises:
        InputError: so many frames are not stored.
    """
    folder = stored_folder()
    facts = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    times = facts["times"]
    if num_frames is not None and not 1 <= num_frames <= len(times):
        raise InputError(f"the demo has {len(times)} frames, not {num_frames}; ask for 1 to {len(times)}.")
    kept = times[:num_frames]
    questions = [
        KnownQuestion(times[each["after"] - 1], each["question"], each["answer"], tuple(each["also"]))
        for each in facts["questions"]
        if each["after"] <= len(kept)
    ]
    return Demo(StoredFrames(folder / "frames.webp", kept), questions)


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
    """The result of a demo; times are wall-clock seconds."""

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


def watch_demo(
    session: StreamLike,
    demo: Demo,
    on_event: Callable[[Event], None],
    on_mark: Callable[[Answered, Mark], None],
    *,
    max_new_tokens: int = 32,
) -> DemoResult:
    """Show the stream to `session`, and mark each answer.

    An answer goes to `on_mark` with its mark; everything else that happens goes to `on_event`.
    """
    known = sorted(demo.questions, key=lambda question: question.at)
    timed = _Stopwatch(session)
    marks: list[Mark] = []

    def listen(event: Event) -> None:
        if not isinstance(event, Answered):
            return on_event(event)
        question = known[len(marks)]
        right = question.accepts(event.answer)
        marks.append(Mark(event.at, event.question, event.answer, question.answer, right))
        on_mark(event, marks[-1])

    settings = WatchSettings(Sampling(max_new_tokens=max_new_tokens))
    asked = [TimedQuestion(question.question, question.at) for question in known]
    summary = watch(timed, demo.source, asked, listen, settings=settings).summary
    return DemoResult(summary, marks, timed.watching_seconds, timed.answering_seconds)


class _Stopwatch:
    """Measures how long a session watches and answers."""

    def __init__(self, session: StreamLike) -> None:
        self._session = session
        self.watching_seconds = self.answering_seconds = 0.0

    def observe(self, frame: Any) -> None:
        start = time.perf_counter()
        self._session.observe(frame)
        self.watching_seconds += time.perf_counter() - start

    def observe_all(self, frames: Sequence[Any]) -> None:
        start = time.perf_counter()
        self._session.observe_all(frames)
        self.watching_seconds += time.perf_counter() - start

    def ask(self, question: str, **sampling: Any) -> str:
        start = time.perf_counter()
        answer = self._session.ask(question, **sampling)
        self.answering_seconds += time.perf_counter() - start
        return answer

    def stats(self) -> Any:
        return self._session.stats()
