"""Asks the rules of streams that are due after a frame, on forks, and tells their events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinitevl.engine.rules import ANSWER_TOKENS, RuleState, WatchEvent, WatchRule
from infinitevl.engine.sampling import Sampling
from infinitevl.errors import InputError

if TYPE_CHECKING:
    from infinitevl.engine.answers import Answer
    from infinitevl.engine.session import StreamSession, Turn

_SHORT = Sampling(max_new_tokens=ANSWER_TOKENS)


class Watch:
    """A rule that a stream is watched with, as `StreamSession.watch` returns it.

    state: how it stands. on_event: gets each event, in the thread that observed the frame.
    num_asked, num_events, last_answer: what came of it so far.
    """

    def __init__(self, session: "StreamSession", rule: WatchRule, on_event: Callable[[WatchEvent], Any]):
        if not callable(on_event):
            raise InputError(f"on_event is {on_event!r}; give a function of one WatchEvent.")
        self.session, self.rule, self.on_event = session, rule, on_event
        self.state = RuleState(rule)
        self.num_asked = self.num_events = 0
        self.last_answer: str | None = None

    def stop(self) -> None:
        """Ask no more. May be called twice."""
        self.session.watches = [other for other in self.session.watches if other is not self]


@dataclass(eq=False)
class Due:
    """A rule that is due, and the frame that it is asked about: the newest of so many."""

    watch: Watch
    turn: "Turn"
    picture: Any
    time: float
    num_frames: int
    answer: "Answer | None" = None

    def begin(self) -> None:
        """Start the answer, unless another thread has gone on with the stream, and so asks by itself."""
        session = self.watch.session
        with session.engine.lock:
            if session.stats().frames == self.num_frames:
                self.answer = session.begin(self.watch.rule.question, _SHORT, turn=self.turn)
                self.watch.state.note_asked(self.time)

    def finish(self) -> WatchEvent | None:
        """Wait for the answer; return the event that it makes, if it makes one."""
        if self.answer is None:
            return None
        watch, rule = self.watch, self.watch.rule
        text = watch.session.finish(self.answer)
        watch.num_asked, watch.last_answer = watch.num_asked + 1, text
        if not watch.state.push(text, self.time):
            return None
        watch.num_events += 1
        return WatchEvent(rule, rule.question, text, self.time, self.num_frames - 1, self.picture)

    def drop(self) -> None:
        """Free the slot of the answer, however it ended."""
        if self.answer is not None:
            self.watch.session.cancel(self.answer)


def ask(due: Sequence[Due]) -> None:
    """Ask rules in common steps, as many at a time as slots are free, and hand out their events.

    Where no slot is free, they stay due, and are asked after a later frame.

    Raises:
        Exception: what `on_event` raised. StateError: a question does not fit into full-attention layers.
    """
    events: list[tuple[Watch, WatchEvent]] = []
    while due and (free := due[0].watch.session.engine.pool.num_free):
        batch, due = due[:free], due[free:]
        try:
            for each in batch:
                each.begin()
            events += [(each.watch, event) for each in batch if (event := each.finish()) is not None]
        finally:
            for each in batch:
                each.drop()
    for watch, event in events:
        watch.on_event(event)
