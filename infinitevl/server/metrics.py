"""What a server counts, for Prometheus; no name of a stream or a key is in it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

if TYPE_CHECKING:
    from infinitevl.server.worker import EngineWorker

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
        self.requests = Counter(
            "infinitevl_requests", "Requests by status.", ["method", "status"], registry=registry
        )

    def count_request(self, method: str, status: int) -> None:
        """Count a request by what became of it."""
        self.requests.labels(method if method in _METHODS else "other", str(status)).inc()

    def watch(self, worker: "EngineWorker") -> None:
        """Let gauges say how a worker stands at the moment of asking."""
        streams = worker.streams

        def gauge(name: str, text: str, value: Callable[[], float]) -> None:
            Gauge(f"infinitevl_{name}", text, registry=self.registry).set_function(value)

        gauge("slots", "Slots on the device.", lambda: worker.engine.pool.num_slots)
        gauge("slots_free", "Slots that nobody has.", lambda: worker.engine.pool.num_free)
        gauge("streams", "Streams that are open.", lambda: len(streams))
        gauge(
            "streams_parked",
            "Streams in host memory.",
            lambda: sum(stream.session.is_parked for stream in list(streams.values())),
        )
        gauge(
            "frames_queued",
            "Frames that wait.",
            lambda: sum(len(stream.queue) for stream in list(streams.values())),
        )
        gauge("answers_waiting", "Answers that wait for a slot.", lambda: len(worker.answering.waiting))
        gauge("answers_growing", "Answers under way.", lambda: len(worker.answering.growing))
        gauge(
            "frames_per_second",
            "Frames read a second, over the last seconds.",
            lambda: sum(stream.frames_per_second() for stream in list(streams.values())),
        )
        gauge(
            "state_bytes",
            "Of all states, on the device and parked.",
            lambda: sum(stream.stats.state_bytes for stream in list(streams.values())),
        )
