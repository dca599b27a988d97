"""Asks the rules of a server's streams: after the frame at which each is due, on a fork, beside all else.

Users come first: a rule is asked when a slot is left after their questions, and rules take half of these
slots at the most. A rule that has waited for a while gets the next slot that becomes free. One that is due
while no slot is free is asked about the newest frame of its stream when there is one.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinitevl.engine.answers import Answer
from infinitevl.engine.rules import ANSWER_TOKENS
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession, Turn
from infinitevl.server.rules import StreamRule
from infinitevl.server.streams import Stream

if TYPE_CHECKING:
    from infinitevl.server.answering import Answering
    from infinitevl.server.streams import Waiting

logger = logging.getLogger(__name__)
_PATIENCE = 1.0  # seconds after which the next free slot is for a rule
_SHORT = Sampling(max_new_tokens=ANSWER_TOKENS)


@dataclass(eq=False)
class SeenFrame:
    """The newest frame of a stream when a rule is asked about it. frame: its number, from 1."""

    stream: Stream
    image: Any
    time: float
    frame: int


@dataclass(eq=False)
class _Asked:
    """A rule whose answer grows."""

    rule: StreamRule
    seen: SeenFrame
    session: StreamSession
    answer: Answer


Listener = Callable[[StreamRule, SeenFrame, str], None]


class RuleAsking:
    """Part of a worker, and run in its thread.

    on_answer: gets each answer to a rule.
    """

    def __init__(self, answering: "Answering") -> None:
        self.answering = answering
        self.rules: dict[str, list[StreamRule]] = {}
        self.on_answer: Listener = lambda rule, seen, text: None
        self._due: dict[StreamRule, tuple[SeenFrame, float]] = {}
        self._growing: list[_Asked] = []

    @property
    def num_slots(self) -> int:
        """Slots of answers that grow."""
        return len(self._growing)

    @property
    def num_claimed(self) -> int:
        """Slots that users may not take: one, where a rule has waited for long and none is being asked."""
        oldest = min((since for _, since in self._due.values()), default=None)
        return int(not self._growing and oldest is not None and time.monotonic() - oldest > _PATIENCE)

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._growing) or (self._has_room and any(map(self._can_ask, self._due)))

    def concerns(self, stream: Stream) -> bool:
        """Whether a rule of a stream is due or being asked."""
        rules = self.rules.get(stream.id, ())
        return any(rule in self._due for rule in rules) or any(asked.rule in rules for asked in self._growing)

    @property
    def _has_room(self) -> bool:
        most = self.answering.max_slots
        return self.num_slots < max(1, most // 2) and self.answering.num_slots < most

    def _can_ask(self, rule: StreamRule) -> bool:
        return not self._due[rule][0].stream.num_kept_answers

    def after_frame(self, stream: Stream, frame: "Waiting") -> None:
        """Note which rules are due after a frame that was just read."""
        rules = self.rules.get(stream.id)
        if not rules:
            return
        seen = SeenFrame(stream, frame.image, frame.time, stream.stats.frames)
        busy = {asked.rule for asked in self._growing}
        for rule in rules:
            is_due = rule.state.is_due(frame.time)
            if is_due:
                rule.state.note_asked(frame.time)
            if rule in self._due:  # it will be asked about this frame now
                self._due[rule] = seen, self._due[rule][1]
                rule.num_skipped += is_due
            elif is_due and rule in busy:
                rule.num_skipped += 1
            elif is_due:
                self._due[rule] = seen, time.monotonic()

    def begin(self) -> None:
        """Ask what is due, as far as there is room."""
        for rule in [rule for rule in self._due if self._can_ask(rule)]:
            if not self._has_room:
                return
            seen, _ = self._due.pop(rule)
            try:
                self.answering.worker.make_resident(seen.stream, extra=1)
                session = seen.stream.session
                answer = session.begin(
                    rule.rule.question, _SHORT, turn=Turn(keep=False, system=session.system)
                )
            except Exception as error:
                self._fail(rule, error)
            else:
                self._growing.append(_Asked(rule, seen, session, answer))

    def collect(self) -> None:
        """Take the answers that are complete."""
        for asked in list(self._growing):
            answer = asked.answer
            if answer.error is None and not answer.is_known:
                continue
            self._growing.remove(asked)
            try:
                text = asked.session.finish(answer)
                self.on_answer(asked.rule, asked.seen, text)
            except Exception as error:
                self._fail(asked.rule, error)

    def drop(self, rules: list[StreamRule]) -> None:
        """Give up what is due and under way of these rules."""
        growing = [asked for asked in self._growing if asked.rule in rules]
        for rule in {asked.rule for asked in growing} | (self._due.keys() & set(rules)):
            rule.state.note_dropped()  # so that it is asked where its stream goes on
        for rule in rules:
            self._due.pop(rule, None)
        for asked in growing:
            self._growing.remove(asked)
            asked.session.cancel(asked.answer)

    def drop_all(self) -> None:
        """Give up everything, at the end."""
        self.drop([*self._due, *(asked.rule for asked in self._growing)])

    def _fail(self, rule: StreamRule, error: Exception) -> None:
        rule.num_skipped += 1
        logger.warning("%s of %s could not be asked, and is asked later: %s", rule.id, rule.stream, error)
