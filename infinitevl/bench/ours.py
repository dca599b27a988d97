"""Our side of every comparison: what the benchmarks ask of the engine, in one place."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.bench.sizes import random_ids
from infinitevl.engine.reading import read_embeds, read_text
from infinitevl.engine.session import Mode, StreamSession
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.positions import text_positions
from infinitevl.state import StreamState

CHUNK = 256  # tokens that are read at once where only their number matters


class Watching:
    """Streams that see a frame each at every step."""

    def __init__(
        self,
        model: InfiniteVLForConditionalGeneration,
        processor: Any,
        *,
        num_streams: int = 1,
        mode: Mode = "image",
        frame_size: int | None = None,
    ):
        self.model = model
        self.sessions = [
            StreamSession(model, processor, mode=mode, frame_size=frame_size) for _ in range(num_streams)
        ]
        self.frame_size = self.sessions[0].frame_size
        self.num_frames = 0

    def watch(self, frames: Sequence[Tensor]) -> None:
        """One frame of each stream: uint8 [3, H, W] in host memory."""
        for session, frame in zip(self.sessions, frames, strict=True):
            session.observe(frame, at=self.num_frames / 2)
        self.num_frames += 1

    @torch.no_grad()
    def first_token(self, ids: Sequence[int]) -> int:
        """Ask a question of these tokens: the first token of the answer, on the host."""
        state = self.sessions[0].state.fork()
        hidden = read_text(self.model, state, list(ids))
        return int(self.model.lm_head(hidden).argmax(-1))

    def fork(self) -> object:
        """A copy of the first stream."""
        return self.sessions[0].fork()

    @property
    def state_bytes(self) -> int:
        """Bytes of one stream's state."""
        return self.sessions[0].state.num_bytes

    @property
    def num_tokens(self) -> int:
        """Tokens that the first stream has read."""
        return int(self.sessions[0].state.length)


class Decoding:
    """Answers that grow by one token each at every step."""

    def __init__(self, model: InfiniteVLForConditionalGeneration, processor: Any, *, num_answers: int = 1):
        self.model = model
        self.state: StreamState = model.allocate_state(num_answers)
        self.device = self.state.length.device
        self.token = torch.zeros(num_answers, 1, dtype=torch.int64, device=self.device)
        self.num_tokens = 0

    @torch.no_grad()
    def read_to(self, context: int) -> None:
        """Read random text until each sequence is `context` tokens long."""
        while self.num_tokens < context:
            count = min(CHUNK, context - self.num_tokens)
            ids = random_ids(self.model.config, count, self.device, seed=self.num_tokens)
            self._read(ids.expand(len(self.token), -1))

    @torch.no_grad()
    def step(self) -> Tensor:
        """The likeliest next token of each answer, read at once: int64 [B, 1]."""
        embeds = self.model.model.embed(self.token)
        positions = text_positions(self.state.next_position, 1)
        hidden = self.model.model.language_model(embeds, positions, self.state, one_token=True)
        self.token = self.model.lm_head(hidden).argmax(-1)
        self.num_tokens += 1
        return self.token

    def _read(self, ids: Tensor) -> None:
        positions = text_positions(self.state.next_position, ids.shape[1])
        read_embeds(self.model, self.state, self.model.model.embed(ids), positions)
        self.num_tokens += ids.shape[1]


@torch.no_grad()
def prefill(model: InfiniteVLForConditionalGeneration, ids: Tensor, chunk_size: int) -> Tensor:
    """Read a prompt [1, T] into an empty state, in chunks: logits of its last token [1, vocabulary]."""
    state = model.allocate_state()
    hidden: Tensor | None = None
    for part in ids.split(chunk_size, dim=1):
        positions = text_positions(state.next_position, part.shape[1])
        hidden = read_embeds(model, state, model.model.embed(part), positions)
    assert hidden is not None, "a prompt has tokens"
    return model.lm_head(hidden)


def capture(device: str | torch.device) -> Callable[[Callable[[], None]], Callable[[], None]] | None:
    """How a function is captured and replayed on this device; None where that cannot be."""
    return _capture if torch.device(device).type == "cuda" else None


def _capture(call: Callable[[], None]) -> Callable[[], None]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
