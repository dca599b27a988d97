"""Measures how many streams a model keeps up with, at one frame a second each."""

import time
from pathlib import Path

import torch

from infinitevl.cli.sizes import weight_bytes
from infinitevl.config import InfiniteVLConfig
from infinitevl.engine.engine import Engine
from infinitevl.engine.loading import find, load
from infinitevl.engine.session import StreamSession

SECONDS = 1.0  # of measuring
_TOGETHER = 4  # streams that share a step
_LARGEST = 2_000_000_000  # bytes of weights that are loaded for this


def is_quick(model: str | None, config: InfiniteVLConfig, dtype: torch.dtype) -> bool:
    """Whether the model lies here and is small enough to be loaded for a measurement."""
    return Path(find(model)).is_dir() and weight_bytes(config, dtype) <= _LARGEST


def frames_per_second(
    model: str | None, device: torch.device, dtype: torch.dtype, fit: int, attention: str | None = None
) -> float:
    """Measure the frames that all streams together read in a second, preprocessing included.

    fit: streams for which there is memory; some of them share each step.

    Raises:
        InfiniteVLError: the model cannot be loaded, or cannot watch a stream without end.
    """
    loaded, processor = load(model, device=device, dtype=dtype, attention=attention)
    count = min(_TOGETHER, fit)
    engine = Engine(loaded, processor, num_slots=count)
    streams = [StreamSession.on(engine) for _ in range(count)]
    frame = torch.randint(0, 256, (3, *engine.frame_size), dtype=torch.uint8)

    def see() -> None:
        engine.observe([(stream, frame, None) for stream in streams])

    for _ in range(2):  # kernels are chosen and captured
        see()
    steps, started = 0, _now(device)
    while (passed := _now(device) - started) < SECONDS or not steps:
        see()
        steps += 1
    return count * steps / passed


def _now(device: torch.device) -> float:
    """Seconds, when the device has done all that was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
