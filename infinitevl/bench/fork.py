"""Copying a stream, so that a question or another future leaves it untouched."""

from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import measure
from infinitevl.bench.ours import Watching


def run(bench: Bench) -> None:
    """One fork of a stream, and the speed at which its bytes were read and written."""
    model, processor = bench.model()
    watching = Watching(model, processor)
    watching.watch(bench.frames(watching.frame_size, 1))
    timing = measure(watching.fork, bench.device, repeats=bench.options.repeats)
    bench.time("fork", timing, state_bytes=watching.state_bytes)
    speed = 2 * watching.state_bytes / timing.median / 1e6
    bench.count("read and written", speed, "GB/s", state_bytes=watching.state_bytes)
