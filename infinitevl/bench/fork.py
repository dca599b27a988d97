"""Measure how long it takes to copy a stream's state."""

from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import measure
from infinitevl.bench.ours import Watching
from infinitevl.bench.sizes import random_frames
from infinitevl.engine.slots import Slot


def run(bench: Bench) -> None:
    """Time one fork of a stream, and the speed at which its bytes are read and written."""
    watching = Watching(*bench.model())
    watching.watch(list(random_frames(1, watching.frame_size)))
    copies: list[Slot] = []

    def release() -> None:
        while copies:
            watching.release(copies.pop())

    timing = measure(
        lambda: copies.append(watching.fork()),
        bench.device,
        repeats=bench.options.repeats,
        prepare=release,
        stream=watching.stream,
    )
    bench.time("fork", timing, state_bytes=watching.state_bytes)
    speed = 2 * watching.state_bytes / timing.median / 1e6
    bench.count("read and written", speed, "GB/s", state_bytes=watching.state_bytes)
