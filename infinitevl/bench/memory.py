"""Measure the memory of one stream after twenty thousand and after a million tokens."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from infinitevl.bench.bench import Bench
from infinitevl.bench.ours import Watching
from infinitevl.bench.sizes import random_frames
from infinitevl.engine.arrivals import Mode

TOKENS = (20_000, 1_000_000)


def run(bench: Bench, tokens: Sequence[int], mode: Mode) -> None:
    """Record bytes in use, reserved and at the peak after each number of tokens."""
    model, processor = bench.model()
    bench.clear()  # the peak is that of watching, not of making weights
    watching = Watching(model, processor, mode=mode)
    images = cycle(random_frames(8, watching.frame_size))
    for count in sorted(tokens):
        while watching.num_tokens < count:
            watching.watch([next(images)])
        watching.settle()
        allocated, reserved = bench.held_bytes()
        settings: dict[str, Any] = {"tokens": count, "mode": mode}
        bench.count("allocated", allocated, "B", **settings)
        bench.count("reserved", reserved, "B", **settings)
        bench.count("peak reserved", bench.peak_bytes(), "B", **settings)
