"""Reading a long text prompt, beside the stock Transformer."""

from collections.abc import Sequence
from typing import Any

from infinitevl.bench import ours
from infinitevl.bench import peer as stock
from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import measure
from infinitevl.bench.record import EAGER
from infinitevl.bench.sizes import random_ids

LENGTHS = (4096, 32768, 262144)
CHUNK = 2048
_LONG = 100_000  # tokens from which on few repeats are enough


def run(bench: Bench, lengths: Sequence[int], chunk_size: int) -> None:
    """Ours in chunks, then the Transformer at once."""
    model, processor = bench.model()
    for length in sorted(lengths):
        _ours(bench, model, length, chunk_size)
    del model, processor
    bench.clear()
    if bench.options.peer:
        peer = bench.peer()
        for length in sorted(lengths):
            _peer(bench, peer, length)


def _ours(bench: Bench, model: Any, length: int, chunk_size: int) -> None:
    ids = random_ids(model.config, length, bench.device)
    timing = measure(lambda: ours.prefill(model, ids, chunk_size), bench.device, **_repeats(bench, length))
    bench.time("prefill", timing, tokens=length, chunk_size=chunk_size)


def _peer(bench: Bench, model: Any, length: int) -> None:
    bench.clear()
    ids = random_ids(model.config, length, bench.device)
    with bench.room(EAGER, tokens=length):
        timing = measure(lambda: stock.prefill(model, ids), bench.device, **_repeats(bench, length))
        bench.time("prefill", timing, who=EAGER, tokens=length, attention="sdpa")


def _repeats(bench: Bench, length: int) -> dict[str, Any]:
    most = 2 if length >= _LONG else 5
    return {"repeats": min(bench.options.repeats, most), "warm_up": 1}
