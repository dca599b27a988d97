"""Measure the time to read a long text prompt, beside the stock Transformer."""

from collections.abc import Sequence
from typing import Any

from infinitevl.bench import peer as stock
from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import measure
from infinitevl.bench.ours import Prefill
from infinitevl.bench.record import EAGER
from infinitevl.bench.sizes import random_ids

LENGTHS = (4096, 32768, 262144)
_LONG = 100_000  # tokens from which on few repeats are enough


def run(bench: Bench, lengths: Sequence[int]) -> None:
    """Measure ours, then the Transformer, each from an empty past to the first token."""
    model, processor = bench.model()
    reading = Prefill(model, processor)
    for length in sorted(lengths):
        _ours(bench, reading, length)
    del model, processor, reading
    bench.clear()
    if bench.options.peer:
        peer = bench.peer()
        for length in sorted(lengths):
            _peer(bench, peer, length)


def _ours(bench: Bench, reading: Prefill, length: int) -> None:
    ids = random_ids(reading.engine.model.config, length, "cpu")[0].tolist()
    timing = measure(lambda: reading.prefill(ids), bench.device, wall=True, **_repeats(bench, length))
    bench.time("prefill", timing, tokens=length)


def _peer(bench: Bench, model: Any, length: int) -> None:
    bench.clear()
    ids = random_ids(model.config, length, bench.device)
    with bench.out_of_memory_recorded(EAGER, tokens=length):
        timing = measure(
            lambda: int(stock.prefill(model, ids).argmax()),
            bench.device,
            wall=True,
            **_repeats(bench, length),
        )
        bench.time("prefill", timing, who=EAGER, tokens=length, attention="sdpa")


def _repeats(bench: Bench, length: int) -> dict[str, Any]:
    """Long prompts take the Transformer tens of seconds; a shorter one before them has warmed it up."""
    is_long = length >= _LONG
    return {"repeats": min(bench.options.repeats, 2 if is_long else 5), "warm_up": 0 if is_long else 1}
