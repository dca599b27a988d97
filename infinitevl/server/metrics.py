"""What a server counts, for Prometheus.

No stream or key has a label of its own: labels would tell their names to whoever reads this, and their number
would grow without bound. The slowest and the fastest of the busy streams show whether one is starved.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from infinitevl.server.parking import is_on_disk

if TYPE_CHECKING:
    from infinitevl.server.keeper import StateKeeper
    from infinitevl.server.streams import Stream
    from infinitevl.server.worker import EngineWorker

_OF_STREAMS: dict[str, Callable[[list[float]], float]] = {
    "slowest": min,
    "median": statistics.median,
    "fastest": max,
}
_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "WEBSOCKET")


class Metrics:
    """The counts of one server, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str) -> Counter:
            return Counter(f"infinitevl_{name}", text, registry=registry)

        def seconds(name: str, text: str) -> Histogram:
            return Histogram(f"infinitevl_{name}_seconds", text, registry=registry)

        self.frames = counter("frames", "Frames that streams have read.")
        self.dropped = counter("frames_dropped", "Frames that newer ones have replaced.")
        self.refused = counter("frames_refused", "Frames that could not be read.")
        self.answers = counter("answers", "Answers that were completed.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts and questions.")
        self.answer_tokens = counter("answer_tokens", "Tokens of answers.")
        self.frame_seconds = seconds("frame", "From the arrival of a frame until it was read.")
        self.first_token_seconds = seconds("first_token", "From a request to the first text of its answer.")
        self.answer_seconds = seconds("answer", "From a request to the end of its answer.")
        self.rules_asked = counter("rules_asked", "Answers to the questions of rules.")
        self.events = counter("events", "Events of rules.")
        self.webhooks = Counter(
            "infinitevl_webhooks", "Events that webhooks took or not.", ["taken"], registry=registry
        )
        self.requests = Counter(
            "infinitevl_requests", "Requests by status.", ["method", "status"], registry=registry
        )

    def count_request(self, method: str, status: int) -> None:
        """Count a request by what became of it."""
        self.requests.labels(method if method in _METHODS else "other", str(status)).inc()

    def count_webhook(self, is_taken: bool) -> None:
        """Count an event that a webhook took, or for which it was given up."""
        self.webhooks.labels("yes" if is_taken else "no").inc()

    def watch(self, worker: "EngineWorker", keeper: "StateKeeper | None") -> None:
        """Let gauges say how a worker and its keeper stand at the moment of asking."""

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"infinitevl_{name}", text, registry=self.registry).set_function(value)

        self._watch_slots(worker, gauge)
        self._watch_streams(lambda: list(worker.streams.values()), gauge)
        if keeper is not None:
            gauge("saves", "States written to --state-dir.", lambda: keeper.num_saves)
            gauge("saves_failed", "States that could not be written.", lambda: keeper.num_failures)

    def _watch_slots(self, worker: "EngineWorker", gauge: "_AddGauge") -> None:
        gauge("slots", "Slots on the device.", lambda: worker.engine.pool.num_slots)
        gauge("slots_free", "Slots that nobody has.", lambda: worker.engine.pool.num_free)
        gauge("answers_waiting", "Answers that wait for a slot.", lambda: len(worker.answering.waiting))
        gauge("prompts_reading", "Prompts and questions being read.", lambda: len(worker.answering.reading))
        gauge("answers_growing", "Answers under way.", lambda: len(worker.answering.growing))

    def _watch_streams(self, streams: "Callable[[], list[Stream]]", gauge: "_AddGauge") -> None:
        gauge("streams", "Streams that are open.", lambda: len(streams()))
        gauge(
            "streams_parked",
            "Streams without a slot, in host memory and on disk.",
            lambda: sum(stream.session.is_parked for stream in streams()),
        )
        gauge(
            "streams_on_disk",
            "Streams without a slot, on disk.",
            lambda: sum(is_on_disk(stream) for stream in streams()),
        )
        gauge(
            "frames_queued",
            "Frames that wait.",
            lambda: sum(len(stream.queue) for stream in streams()),
        )
        gauge(
            "frames_per_second",
            "Frames read a second, over the last seconds.",
            lambda: sum(stream.frames_per_second() for stream in streams()),
        )
        rates = Gauge(
            "infinitevl_stream_frames_per_second",
            "Of the streams that frames come to: read a second, over the last seconds.",
            ["stream"],
            registry=self.registry,
        )
        for which, choose in _OF_STREAMS.items():
            rates.labels(which).set_function(partial(_rate_of, choose, streams))
        gauge(
            "state_bytes",
            "Of all states, on the device and parked.",
            lambda: sum(stream.stats.state_bytes for stream in streams()),
        )


_AddGauge = Callable[[str, str, Callable[[], float]], None]


def _rate_of(choose: Callable[[list[float]], float], streams: "Callable[[], list[Stream]]") -> float:
    return choose(_rates(streams()) or [0.0])


def _rates(streams: "list[Stream]") -> list[float]:
    """Frames a second of each stream that has read one lately, or has one waiting."""
    rates = [(stream.frames_per_second(), len(stream.queue)) for stream in streams]
    return [rate for rate, num_waiting in rates if rate or num_waiting]
