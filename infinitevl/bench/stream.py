"""Measure time and memory per frame of one stream, by how many frames came before."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from infinitevl.bench.bench import Bench, warm_up
from infinitevl.bench.clock import measure, measure_period
from infinitevl.bench.ours import Watching
from infinitevl.bench.peer import EagerPeer, frame_inputs
from infinitevl.bench.record import EAGER
from infinitevl.bench.sizes import random_frames
from infinitevl.engine.arrivals import Mode

FRAMES = (50, 100, 200, 400, 800, 1600)
QUESTION = 32  # tokens
PEER_REPEATS = 5  # its frames take up to a second
TOGETHER = 10  # frames between two readings of the clock: vision runs ahead of the decoder


def run(bench: Bench, frames: Sequence[int], mode: Mode) -> None:
    """Measure ours, then the Transformer with the same number of tokens per frame."""
    model, processor = bench.model()
    bench.clear()
    watching = Watching(model, processor, mode=mode)
    frame_size = watching.frame_size
    _watch(bench, watching, sorted(frames), mode)
    _question(bench, watching)
    del model, processor, watching
    bench.clear()
    if bench.options.peer:
        peer = bench.peer()
        for count in sorted(frames):
            _peer_frame(bench, peer, frame_size, count)


def _watch(bench: Bench, watching: Watching, frames: Sequence[int], mode: Mode) -> None:
    images = cycle(random_frames(8, watching.frame_size))

    def watch() -> None:
        watching.watch([next(images)])

    def see_patch() -> None:  # in video mode the second of two frames is the one that is read
        for _ in range(watching.patch_frames):
            watch()
        watching.settle()

    for count in frames:
        while watching.num_frames < count:
            watch()
        repeats = bench.options.repeats
        settings: dict[str, Any] = {"frames_seen": count, "mode": mode, "frame_size": watching.frame_size[0]}
        period = measure_period(watch, bench.device, repeats=repeats, group=TOGETHER, stream=watching.stream)
        bench.time("frame", period, **settings)
        latency = measure(see_patch, bench.device, repeats=repeats, wall=True)
        bench.time("frame latency", latency, **settings)
        bench.count("memory", bench.peak_bytes(), "B", **settings)
    bench.count("state", watching.state_bytes, "B", tokens=watching.num_tokens, mode=mode)


def _question(bench: Bench, watching: Watching) -> None:
    ids = list(range(QUESTION))
    timing = measure(
        lambda: watching.first_token(ids), bench.device, repeats=bench.options.repeats, wall=True
    )
    bench.time("first token", timing, question_tokens=QUESTION)


def _peer_frame(bench: Bench, model: Any, frame_size: tuple[int, int], count: int) -> None:
    inputs = frame_inputs(model, frame_size)
    ids = inputs.pop("ids")
    settings: dict[str, Any] = {"frames_seen": count, "mode": "image", "frame_size": frame_size[0]}
    repeats = min(bench.options.repeats, PEER_REPEATS)
    bench.clear()
    with bench.out_of_memory_recorded(EAGER, **settings):
        peer = EagerPeer(model, count * ids.shape[1])
        timing = measure(
            lambda: peer.read(ids, **inputs),
            bench.device,
            repeats=repeats,
            warm_up=warm_up(repeats),
            prepare=peer.rewind,
        )
        # Its preprocessing is left out; ours is in.
        bench.time("frame", timing, who=EAGER, **settings, attention="sdpa", preprocessing=False)
        bench.count("memory", bench.peak_bytes(), "B", who=EAGER, **settings)
