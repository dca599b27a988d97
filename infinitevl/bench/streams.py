"""Measure the time of a step in which each of many streams sees a frame."""

from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

from infinitevl.bench.bench import Bench
from infinitevl.bench.clock import measure, measure_period
from infinitevl.bench.ours import Watching
from infinitevl.bench.sizes import random_frames
from infinitevl.engine.arrivals import Mode

COUNTS = (1, 2, 4, 8, 16)
TOGETHER = 4  # steps between two readings of the clock, since vision runs ahead of the decoder


def run(bench: Bench, counts: Sequence[int], mode: Mode) -> None:
    """Measure each number of streams; windows are full before anything is timed."""
    model, processor = bench.model()
    for count in sorted(counts):
        bench.clear()
        watching = Watching(model, processor, num_streams=count, mode=mode, spare=0)
        images = cycle(random_frames(8, watching.frame_size))

        def watch(watching: Watching = watching, images: cycle = images, count: int = count) -> None:
            watching.watch([next(images) for _ in range(count)])

        def watch_patch(watching: Watching = watching, watch: Callable[[], None] = watch) -> None:
            for _ in range(watching.patch_frames):
                watch()
            watching.settle()

        while watching.num_tokens < model.config.text_config.num_window_slots:
            watch()
        timing = measure_period(
            watch, bench.device, repeats=bench.options.repeats, group=TOGETHER, stream=watching.stream
        )
        settings: dict[str, Any] = {"streams": count, "mode": mode, "frame_size": watching.frame_size[0]}
        bench.time("step", timing, **settings)
        latency = measure(watch_patch, bench.device, repeats=bench.options.repeats, wall=True)
        bench.time("step latency", latency, **settings)
        bench.count("frames in sum", 1e3 * count / timing.median, "frames/s", **settings)
        bench.count("memory", bench.peak_bytes(), "B", **settings)
