"""A watch rule of a server's stream: how it stands, what a client is told of it, and its record on disk."""

import secrets
import time
from collections import deque
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from infinitevl.engine.rules import RuleState, WatchRule
from infinitevl.server.webhooks import Webhook

MAX_UNDELIVERED = 256  # events that wait for the webhook of a rule; beyond it the oldest is given up


@dataclass(eq=False)
class StreamRule:
    """A rule of one stream. The worker's thread asks and counts; the worker's lock guards state and events.

    num_asked, num_skipped, num_events: questions that were answered, that came due while the one before was
    under way or failed, and events. undelivered: events that the webhook has not taken yet.
    """

    stream: str
    owner: str
    rule: WatchRule
    name: str | None = None
    webhook: Webhook | None = None
    id: str = field(default_factory=lambda: f"rule_{secrets.token_hex(12)}")
    num_asked: int = 0
    num_skipped: int = 0
    num_events: int = 0
    last_answer: str | None = None
    last_time: float | None = None
    undelivered: deque[dict[str, Any]] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.state = RuleState(self.rule)

    def push(self, answer: str, time_: float, frame: int) -> dict[str, Any] | None:
        """Take the answer about a frame; return the event that it makes, if it makes one."""
        self.num_asked += 1
        self.last_answer, self.last_time = answer, time_
        if not self.state.push(answer, time_):
            return None
        self.num_events += 1
        event = self._event(answer, time_, frame)
        if self.webhook is not None:
            self.undelivered.append(event)
            if len(self.undelivered) > MAX_UNDELIVERED:
                self.undelivered.popleft()
        return event

    def _event(self, answer: str, time_: float, frame: int) -> dict[str, Any]:
        number = f"event_{secrets.token_hex(12)}"
        return {
            "id": number,
            "object": "stream.event",
            "stream": self.stream,
            "rule": self.id,
            "name": self.name,
            "question": self.rule.question,
            "answer": answer,
            "time": time_,
            "frame": frame,
            "created": int(time.time()),
            "picture": f"/v1/streams/{self.stream}/events/{number}/picture",
        }

    def as_json(self) -> dict[str, Any]:
        """What a client is told of it; no secret is in it."""
        return {
            "id": self.id,
            "object": "stream.rule",
            "stream": self.stream,
            "name": self.name,
            **asdict(self.rule),
            "webhook": None if self.webhook is None else self.webhook.printable,
            "is_on": self.state.is_on,
            "asked": self.num_asked,
            "skipped": self.num_skipped,
            "events": self.num_events,
            "last_answer": self.last_answer,
            "last_time": self.last_time,
        }

    def as_record(self) -> dict[str, Any]:
        """All that is kept of it on disk, the secret of its webhook too."""
        own = {name: getattr(self, name) for name in _OWN}
        state = {
            each.name: getattr(self.state, each.name) for each in fields(RuleState) if each.name != "rule"
        }
        return own | {
            "rule": asdict(self.rule),
            "webhook": None if self.webhook is None else asdict(self.webhook),
            "undelivered": list(self.undelivered.copy()),
            "state": state,
        }

    @classmethod
    def of_record(cls, record: dict[str, Any], newest: float | None) -> "StreamRule":
        """A rule as it was kept, for a stream whose newest frame is at this second.

        The stream may be of a moment before: what it sees again is asked about again.

        Raises:
            TypeError, KeyError, ValueError, InfiniteVLError: no such record.
        """
        hook = record["webhook"]
        rule = cls(
            rule=WatchRule(**record["rule"]),
            webhook=None if hook is None else Webhook(**hook),
            undelivered=deque(record["undelivered"]),
            **{name: record[name] for name in _OWN},
        )
        rule.state = RuleState(rule.rule, **record["state"])
        asked = rule.state.asked_in
        if asked is not None:
            rule.state.asked_in = None if newest is None else min(asked, rule.rule.period_of(newest))
        return rule


_OWN = tuple(
    each.name for each in fields(StreamRule) if each.name not in ("rule", "webhook", "undelivered", "state")
)
