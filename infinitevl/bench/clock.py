"""Time calls on a device, with their spread."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of repeated calls: the median, and the range of the middle 90 %."""

    median: float
    low: float  # 5th percentile
    high: float  # 95th percentile
    repeats: int

    @classmethod
    def of(cls, samples: list[float]) -> "Timing":
        """Summarise the milliseconds of single calls."""
        return cls(statistics.median(samples), quantile(samples, 0.05), quantile(samples, 0.95), len(samples))

    def per(self, count: int) -> "Timing":
        """The time of one of `count` equal parts of a call."""
        return Timing(self.median / count, self.low / count, self.high / count, self.repeats)


def quantile(samples: list[float], share: float) -> float:
    """The value below which `share` of the samples lie, interpolated between neighbours."""
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def measure(
    call: Call,
    device: str | torch.device,
    *,
    repeats: int = 20,
    warm_up: int = 3,
    prepare: Call | None = None,
    wall: bool = False,
    stream: "torch.cuda.Stream | None" = None,
) -> Timing:
    """Time single calls, and wait for the end of each.

    Args:
        call: what is timed. prepare: runs before each call and is not timed.
        repeats, warm_up: calls that are timed, and calls before them that are not.
        wall: use the host's clock on a GPU too, for a call that waits for its own end; otherwise CUDA events.
        stream: on which the device does the work; default: the current one.
    """
    where = torch.device(device)
    samples = []
    for index in range(warm_up + repeats):
        if prepare is not None:
            prepare()
        synchronize(where)
        taken = _wall_time(call) if wall else _event_time(call, where, stream)
        if index >= warm_up:
            samples.append(taken)
    return Timing.of(samples)


def measure_period(
    call: Call,
    device: str | torch.device,
    *,
    repeats: int = 50,
    warm_up: int = 5,
    group: int = 1,
    stream: "torch.cuda.Stream | None" = None,
) -> Timing:
    """Time calls that follow each other without waiting: from the end of one to the end of the next.

    Args:
        group: calls between two readings of the clock; several if calls differ in a cycle.
        stream: on which the device does the work; default: the current one.
    """
    where = torch.device(device)
    for _ in range(warm_up):
        call()
    synchronize(where)
    marks = [_mark(where, stream)]
    for _ in range(repeats):
        for _ in range(group):
            call()
        marks.append(_mark(where, stream))
    synchronize(where)
    return Timing.of([_between(start, end) / group for start, end in pairwise(marks)])


def synchronize(device: str | torch.device) -> None:
    """Wait until the device has finished all its work."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def _wall_time(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def _event_time(call: Call, device: torch.device, stream: "torch.cuda.Stream | None") -> float:
    start = _mark(device, stream)
    call()
    end = _mark(device, stream)
    synchronize(device)
    return _between(start, end)


def _mark(device: torch.device, stream: "torch.cuda.Stream | None") -> "float | torch.cuda.Event":
    """Mark this moment: an event at the end of the queued work on a GPU, seconds on a CPU."""
    if device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record(stream or torch.cuda.current_stream(device))
    return event


def _between(start: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    """Milliseconds between two marks."""
    if isinstance(start, float):
        assert isinstance(end, float)
        return 1e3 * (end - start)
    assert not isinstance(end, float)
    return start.elapsed_time(end)
