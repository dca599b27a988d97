"""Run measurements: build the models, keep the records, show and write them."""

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from infinitevl.bench.clock import Timing
from infinitevl.bench.peer import build_peer
from infinitevl.bench.quantization import quantize_
from infinitevl.bench.record import OURS, Place, Record, append, counted, timed
from infinitevl.bench.sizes import check_memory, model_of_size

PEER_BYTES = 8e9  # 3.75 B weights in 16 bits


@dataclass(frozen=True)
class Options:
    """What a user chooses for every benchmark.

    peer: measure the stock Transformer too. out: file to append the lines to. commit: of the source, if git
    cannot tell it. quantization: of the large products, where it is lower than dtype. attention: the
    variant of attention, where it is not the size's own.
    """

    size: str = "4b"
    device: str = "cuda"
    dtype: torch.dtype = torch.bfloat16
    repeats: int = 20
    peer: bool = True
    out: str | None = None
    commit: str | None = None
    quantization: str | None = None
    attention: str | None = None


class Bench:
    """Builds models on demand, and keeps what was measured.

    Args:
        name: of the benchmark. show: called with each record's row.
    """

    def __init__(self, name: str, options: Options, show: Callable[[str], None] = print):
        self.name, self.options, self.device = name, options, torch.device(options.device)
        self.records: list[Record] = []
        self._quality: dict[str, Any] = {}
        self._show = show
        self._place = Place.here(options.size, self.device, options.commit)

    def model(self) -> tuple[Any, Any]:
        """Build our model, quantized if that is wanted, and its processor.

        Our lines say from then on what quantization does to logits and to the tokens of a picture.
        """
        options = self.options
        model, processor = model_of_size(options.size, self.device, options.dtype, options.attention)
        if self.options.quantization is not None:
            fidelity = quantize_(model, self.options.quantization)
            self._quality = {
                "quantization": self.options.quantization,
                "logits_error": round(fidelity.error, 5),
                "same_token": round(fidelity.agreement, 4),
                "vision_error": round(fidelity.vision_error, 5),
            }
            self.clear()
        return model, processor

    def peer(self) -> Any:
        """Build the stock Transformer.

        Raises:
            InputError: there is none of this size, or not enough memory for it.
        """
        if self.options.size == "4b":
            check_memory(PEER_BYTES, self.device, "the Transformer beside it")
        return build_peer(self.options.size, self.device, self.options.dtype)

    def time(self, what: str, timing: Timing, *, who: str = OURS, **settings: Any) -> None:
        """Record a time."""
        self._keep(timed(self._place, self.name, what, timing, who=who, **self._common(who, settings)))

    def count(self, what: str, value: float, unit: str, *, who: str = OURS, **settings: Any) -> None:
        """Record a value."""
        self._keep(counted(self._place, self.name, what, value, unit, who=who, **self._common(who, settings)))

    def _common(self, who: str, settings: dict[str, Any]) -> dict[str, Any]:
        common = {"dtype": str(self.options.dtype).removeprefix("torch.")}
        if who != OURS:
            return {**settings, **common}
        if self.options.attention is not None:
            common["attention_variant"] = self.options.attention
        return {**settings, **self._quality, **common}

    def _keep(self, record: Record) -> None:
        self.records.append(record)
        self._show(record.row())
        if self.options.out is not None:
            append(record, self.options.out)

    def clear(self) -> None:
        """Free unused memory, and reset the peak of memory."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_bytes(self) -> int:
        """The allocator's peak since `clear`; without a GPU, what the process holds now."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        return psutil.Process(os.getpid()).memory_info().rss

    def held_bytes(self) -> tuple[int, int]:
        """Bytes in use and bytes reserved, now."""
        if self.device.type == "cuda":
            return torch.cuda.memory_allocated(self.device), torch.cuda.memory_reserved(self.device)
        return (psutil.Process(os.getpid()).memory_info().rss,) * 2

    @contextmanager
    def out_of_memory_recorded(self, who: str, **settings: Any) -> Iterator[None]:
        """Record running out of memory inside the block as a result."""
        try:
            yield
        except torch.cuda.OutOfMemoryError:
            self.count("out of memory", self.peak_bytes(), "B", who=who, **settings)


def warm_up(repeats: int) -> int:
    """How many calls run before the timed ones: few if few are timed, because those take long."""
    return 1 if repeats < 5 else 3
