"""Measure the time per decoded token, by context length, beside the stock Transformer."""

from collections.abc import Sequence
from typing import Any

from infinitevl.bench.bench import Bench, warm_up
from infinitevl.bench.clock import Timing, measure, measure_period
from infinitevl.bench.ours import Decoding, capture
from infinitevl.bench.peer import EagerPeer, GraphedPeer
from infinitevl.bench.record import EAGER, GRAPHED

CONTEXTS = (1024, 4096, 16384, 61440, 131072, 262144, 368640, 409600, 1048576)
ANSWERS = (8, 64)
PEER_LIMIT = 409600  # tokens; longer ones do not change the picture


def run(bench: Bench, contexts: Sequence[int], answers: Sequence[int]) -> None:
    """Measure ours at every context, several answers at once with full windows, then the Transformer."""
    model, processor = bench.model()
    _one_answer(bench, model, processor, contexts)
    for count in answers:
        bench.clear()
        _together(bench, model, processor, count)
    del model, processor
    bench.clear()
    if bench.options.peer:
        peer = bench.peer()
        for context in sorted(contexts):
            if context <= PEER_LIMIT:
                _eager(bench, peer, context)
                _graphed(bench, peer, context)


def _one_answer(bench: Bench, model: Any, processor: Any, contexts: Sequence[int]) -> None:
    decoding = Decoding(model, processor)
    for context in sorted(contexts):
        decoding.read_to(context)
        bench.time("token", _step_time(bench, decoding), context=context, answers=1)


def _together(bench: Bench, model: Any, processor: Any, count: int) -> None:
    context = 2 * model.config.text_config.num_window_slots
    decoding = Decoding(model, processor, num_answers=count)
    decoding.read_to(context)
    bench.time("token", _step_time(bench, decoding), context=context, answers=count)


def _step_time(bench: Bench, decoding: Decoding) -> Timing:
    """Time one more token for each answer, as in use: with stop tokens, text and the host's polling."""
    timing = measure_period(
        decoding.step, bench.device, repeats=bench.options.repeats, stream=decoding.stream
    )
    return timing.per(decoding.tokens_per_step)


def _eager(bench: Bench, model: Any, context: int) -> None:
    bench.clear()
    with bench.out_of_memory_recorded(EAGER, context=context, answers=1):
        peer = EagerPeer(model, context)
        timing = measure(
            peer.step,
            bench.device,
            repeats=bench.options.repeats,
            warm_up=warm_up(bench.options.repeats),
            prepare=peer.rewind,
        )
        bench.time("token", timing, who=EAGER, context=context, answers=1, attention="sdpa")


def _graphed(bench: Bench, model: Any, context: int) -> None:
    bench.clear()
    with bench.out_of_memory_recorded(GRAPHED, context=context, answers=1):
        peer = GraphedPeer(model, context, capture(bench.device))
        timing = measure_period(peer.step, bench.device, repeats=bench.options.repeats)
        bench.time("token", timing, who=GRAPHED, context=context, answers=1, attention=peer.attention.name)
