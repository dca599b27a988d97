"""Drive the engine for all benchmarks: watch streams, decode answers, read prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from infinitevl.bench.sizes import random_ids
from infinitevl.engine.answers import Answer
from infinitevl.engine.arrivals import Mode
from infinitevl.engine.engine import Engine
from infinitevl.engine.graphs import Lanes
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession
from infinitevl.engine.slots import Slot
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

_PIECE = 1 << 16  # random tokens that are made at once
_ENDLESS = 1 << 30  # tokens of an answer that never ends


class Watching:
    """Streams that each see one frame per step.

    spare: additional slots, for questions and forks.
    """

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        num_streams: int = 1,
        mode: Mode = "image",
        spare: int = 1,
    ):
        self.engine = Engine(model, processor, num_slots=num_streams + spare, mode=mode)
        self.sessions = [StreamSession.on(self.engine) for _ in range(num_streams)]
        self.frame_size = self.engine.frame_size
        self.patch_frames = 2 if mode == "video" else 1
        self.num_frames = 0

    def watch(self, frames: Sequence[NDArray[Any]]) -> None:
        """Observe one frame per stream, uint8 [H, W, 3] in host memory; return before the device is done."""
        at = self.num_frames / 2
        self.engine.observe(
            [(stream, frame, at) for stream, frame in zip(self.sessions, frames, strict=True)]
        )
        self.num_frames += 1

    def settle(self) -> None:
        """Wait until all frames are read."""
        self.engine.settle()

    def first_token(self, token_ids: list[int]) -> int:
        """Ask the first stream this question; return the answer's first token, on the host."""
        slot = self.engine.fork(self.sessions[0].slot)
        try:
            return _first_token(self.engine, slot, self.engine.read_turn(slot, token_ids))
        finally:
            self.engine.release(slot)

    def fork(self) -> Slot:
        """Copy the first stream; the caller releases the copy."""
        return self.engine.fork(self.sessions[0].slot)

    def release(self, slot: Slot) -> None:
        """Release a copy."""
        self.engine.release(slot)

    @property
    def stream(self) -> "torch.cuda.Stream | None":
        """The CUDA stream to time; None without a GPU."""
        return main_stream(self.engine)

    @property
    def state_bytes(self) -> int:
        """Bytes of one stream's state."""
        return self.sessions[0].slot.state.num_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that each stream has read, counted on the host."""
        return bool(self.num_frames) + self.num_frames // self.patch_frames * self.engine.steps.num_tokens


class Decoding:
    """Answers that are decoded together and never end."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, processor: Any, *, num_answers: int = 1):
        self.engine = Engine(model, processor, num_slots=num_answers)
        # Random text must not end an answer: no token has this number.
        self.engine.answers.stop_ids.fill_(-1)
        self.slots = [self.engine.take()]
        self.num_answers, self.num_tokens = num_answers, 0
        self._answers: list[Answer] = []

    def read_to(self, context: int) -> None:
        """Read random text until each sequence is at least `context` tokens long, and begin an answer."""
        for answer in self._answers:
            self.engine.scheduler.end(answer)
        for slot in self.slots[1:]:
            self.engine.release(slot)
        first = self.slots[0]
        self.engine.settle()
        missing = max(1, context - int(first.state.length))
        hidden = _read_random(self.engine, first, missing)
        self.slots = [first, *(self.engine.fork(first) for _ in range(self.num_answers - 1))]
        self._answers = [self.engine.scheduler.begin(slot, hidden, Sampling(_ENDLESS)) for slot in self.slots]

    def step(self) -> None:
        """Decode `tokens_per_step` more tokens for each answer."""
        self.engine.step()

    @property
    def tokens_per_step(self) -> int:
        """Tokens between two reports of the answers to the host."""
        return self.engine.runner.tokens_per_poll

    @property
    def stream(self) -> "torch.cuda.Stream | None":
        """The CUDA stream to time; None without a GPU."""
        return main_stream(self.engine)


class Prefill:
    """Reads prompts into an empty slot."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, processor: Any):
        self.engine = Engine(model, processor, num_slots=1)

    def prefill(self, token_ids: list[int]) -> int:
        """Read a prompt; return the first token after it, on the host."""
        slot = self.engine.take()
        try:
            return _first_token(self.engine, slot, self.engine.read(slot, token_ids))
        finally:
            self.engine.release(slot)


def main_stream(engine: Engine) -> "torch.cuda.Stream | None":
    """Return the CUDA stream of an engine's decoder; None without a GPU."""
    return engine.runner.stream


def capture(device: str | torch.device) -> Callable[[Callable[[], None]], Callable[[], object]] | None:
    """Return a function that captures a call and returns its replay; None without CUDA."""
    where = torch.device(device)
    if where.type != "cuda":
        return None
    lanes = Lanes(where)
    return lambda call: lanes.capture("main", call)


def _read_random(engine: Engine, slot: Slot, count: int) -> torch.Tensor:
    """Read random text; return the last hidden state [1, C]."""
    pieces = [_PIECE] * (count // _PIECE) + [count % _PIECE]
    for seed, piece in enumerate(pieces):
        if piece:
            hidden = engine.read(slot, random_ids(engine.model.config, piece, "cpu", seed)[0].tolist())
    return hidden


def _first_token(engine: Engine, slot: Slot, hidden: torch.Tensor) -> int:
    """Return the first token after a text, or the stop token if the answer ends at once."""
    answer = engine.scheduler.begin(slot, hidden, Sampling(1))
    engine.scheduler.finish(answer, to_the_end=False)
    return answer.tokens[0] if answer.tokens else int(engine.answers.token[slot.index])
