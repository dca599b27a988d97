"""Write one self-contained HTML page about a stream: key frames, questions with answers, state size."""

import base64
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from html import escape
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from infinitevl.evaluation.chart import MemoryPoint, memory_chart
from infinitevl.evaluation.page import PAGE
from infinitevl.evaluation.streaming import Answered, Event, Noticed, Seen, Summary
from infinitevl.evaluation.units import show_bytes, show_time
from infinitevl.files import atomic_write

T = TypeVar("T")
THUMBNAIL = (208, 156)


@dataclass(frozen=True)
class Talk:
    """A question, its answer, and the true answer if known; or an event of a rule."""

    question: str
    answer: str
    truth: str | None = None
    right: bool | None = None
    is_event: bool = False


@dataclass(frozen=True)
class Moment:
    """A key frame as a small JPEG, and the questions asked right after it."""

    at: float
    tokens: int
    jpeg: bytes
    talks: list[Talk] = field(default_factory=list)


class Recorder:
    """Collects what the page shows. Key frames are bounded, however long the stream is.

    Key frames are evenly spaced: at `max_frames`, every second one is dropped, and from then on only every
    second one is taken. All questions and events are kept.
    """

    def __init__(self, max_frames: int = 24, max_points: int = 240) -> None:
        self.key_frames: Thinned[Moment] = Thinned(max_frames)
        self.memory: Thinned[MemoryPoint] = Thinned(max_points)
        self.asked: list[Moment] = []

    def __call__(self, event: Event, *, truth: str | None = None, right: bool | None = None) -> None:
        """Record an event of `watch`; the demo also gives the true answer of a question."""
        if isinstance(event, Seen):
            self.memory.offer(lambda: MemoryPoint(event.stats.tokens, event.stats.state_bytes))
            self.key_frames.offer(lambda: Moment(event.at, event.stats.tokens, thumbnail(event.image)))
        elif isinstance(event, Answered | Noticed):
            if not self.asked or self.asked[-1].tokens != event.stats.tokens:
                self.asked.append(Moment(event.at, event.stats.tokens, thumbnail(event.image)))
            self.asked[-1].talks.append(_talk_of(event, truth, right))

    def moments(self) -> list[Moment]:
        """Key frames and questions in the order of the stream, a frame before the questions about it."""
        return sorted([*self.key_frames.items, *self.asked], key=lambda m: (m.tokens, bool(m.talks)))

    def talks(self) -> list[Talk]:
        """All questions in the order in which they were asked."""
        return [talk for moment in self.asked for talk in moment.talks]


def _talk_of(event: Answered | Noticed, truth: str | None, right: bool | None) -> Talk:
    return Talk(event.question, event.answer, truth, right, isinstance(event, Noticed))


class Thinned(Generic[T]):
    """An evenly spaced sample of at most `limit` of the items offered."""

    def __init__(self, limit: int) -> None:
        self.items: list[T] = []
        self._limit, self._stride, self._offered = limit, 1, 0

    def offer(self, make: Callable[[], T]) -> None:
        """Keep the result of `make()` if this item belongs to the sample; otherwise do not call `make`."""
        if self._offered % self._stride == 0:
            if len(self.items) == self._limit:
                del self.items[1::2]
                self._stride *= 2
            if self._offered % self._stride == 0:
                self.items.append(make())
        self._offered += 1


def thumbnail(image: Any) -> bytes:
    """Encode a PIL picture or an HxWx3 uint8 array as a small JPEG."""
    picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image.convert("RGB")
    picture.thumbnail(THUMBNAIL)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def write_report(
    path: str | os.PathLike[str],
    recorder: Recorder,
    summary: Summary,
    *,
    title: str,
    model: str,
    growth_per_token: int = 0,
) -> None:
    """Write the page to `path`, completely or not at all.

    Args:
        title, model: what was watched, and by which model; shown as plain text.
        growth_per_token: bytes that a full-attention cache of the same shape would add per token, to compare.

    Raises:
        InfiniteVLError: the folder is missing or the disk is full; nothing is left behind.
    """
    page = build_page(recorder, summary, title=title, model=model, growth_per_token=growth_per_token)
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8")


def build_page(
    recorder: Recorder, summary: Summary, *, title: str, model: str, growth_per_token: int = 0
) -> str:
    """Build the page's HTML, dated now, without scripts or external files."""
    return PAGE.substitute(
        title=escape(title),
        model=escape(model),
        date=f"{datetime.now():%Y-%m-%d %H:%M}",
        facts="".join(_facts(summary, recorder.talks())),
        chart=memory_chart(recorder.memory.items, growth_per_token),
        moments="".join(_moment(moment) for moment in recorder.moments()),
    )


def _facts(summary: Summary, talks: list[Talk]) -> Iterator[str]:
    yield _fact("frames", f"{summary.frames:,}")
    yield _fact("tokens", f"{summary.tokens:,}")
    yield _fact("of stream", show_time(summary.seconds))
    yield _fact("dropped", f"{summary.dropped:,}")
    yield _fact("state", show_bytes(summary.state_bytes))
    known = [talk for talk in talks if talk.right is not None]
    if known:
        yield _fact("right answers", f"{sum(talk.right is True for talk in known)} of {len(known)}")


def _fact(name: str, value: str) -> str:
    return f"<li><b>{value}</b> {name}</li>"


def _moment(moment: Moment) -> str:
    caption = f"{show_time(moment.at)} · {moment.tokens:,} tokens"
    source = f"data:image/jpeg;base64,{base64.b64encode(moment.jpeg).decode()}"
    figure = (
        f'<figure><img src="{source}" alt="frame at {show_time(moment.at)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )
    if not moment.talks:
        return f"<li>{figure}</li>"
    return f'<li class="asked">{figure}<div>{"".join(map(_talk, moment.talks))}</div></li>'


def _talk(talk: Talk) -> str:
    question = f'<p class="question">{escape(talk.question)}</p>'
    answer = f'<p class="answer">{escape(talk.answer) or "<i>no words</i>"}</p>'
    return f'<div class="talk">{question}{answer}{_verdict(talk)}</div>'


def _verdict(talk: Talk) -> str:
    if talk.is_event:
        return '<p class="verdict right">noticed</p>'
    if talk.truth is None:
        return ""
    name, word = ("right", "right") if talk.right else ("wrong", f"true answer: {talk.truth}")
    return f'<p class="verdict {name}">{escape(word)}</p>'
