"""How an engine's steps run: one after the other as they are, or captured and replayed.

Both have the same methods and change the same tensors; `Eager` runs everywhere, `Captured` on one GPU.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from infinitevl.engine.answers import Answers
from infinitevl.engine.graphs import Lanes, Replay, Rerun
from infinitevl.engine.pool import Pool, Slot
from infinitevl.engine.steps import Steps
from infinitevl.model.vision import VisionPlan
from infinitevl.state import StreamState


class Runner(Protocol):
    """What an engine asks of either; see `Eager`."""

    tokens_per_look: int

    def receive(self, frame: Any) -> Any: ...
    def see(self, clips: Sequence[Tensor]) -> Any: ...
    def take_in(self, slots: Sequence[Slot], seen: Any, times: Sequence[int]) -> None: ...
    def read(self, slot: Slot, token_ids: list[int]) -> Tensor: ...
    def first(self, slot: Slot, hidden: Tensor, is_greedy: bool) -> None: ...
    def token(self, slots: Sequence[Slot], is_greedy: bool) -> None: ...
    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]: ...
    def watching(self) -> AbstractContextManager[Any]: ...
    def working(self) -> AbstractContextManager[Any]: ...
    def settle(self) -> None: ...


# Captured sizes of a chunk of text. What is longer than the last is read as it is, in pieces of LONG_CHUNK:
# so much work hides its launches, and a graph of it would hold on to gigabytes.
LONG_CHUNK = 8192
CHUNK_SIZES = (16, 32, 64, 128, 256, 512)


class Eager:
    """Steps as plain calls; the host looks at answers after every token."""

    tokens_per_look = 1

    def __init__(self, steps: Steps, pool: Pool, answers: Answers):
        self.steps, self.pool, self.answers = steps, pool, answers

    def receive(self, frame: Any) -> Any:
        """A caller's frame as it may be read from here on."""
        return frame

    def see(self, clips: Sequence[Tensor]) -> Tensor:
        """What the model sees in clips, each uint8 [1 or 2, 3, H, W]."""
        return self.steps.see(torch.stack(list(clips)))

    def take_in(self, slots: Sequence[Slot], features: Tensor, times: Sequence[int]) -> None:
        """Read the features [S, tokens, C] of frames at `times` (microseconds)."""
        state, rows = self._where(slots)
        self.steps.take_in(state, rows, features, torch.tensor(times, device=state.length.device))

    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text: the last hidden state [1, C]."""
        ids = torch.tensor([token_ids], device=slot.state.length.device)
        return self.steps.read(slot.state, None, ids, None)

    def first(self, slot: Slot, hidden: Tensor, is_greedy: bool) -> None:
        """Pick the first token of an answer."""
        self.steps.first(self.answers, self._rows([slot]), hidden, is_greedy)

    def token(self, slots: Sequence[Slot], is_greedy: bool) -> None:
        """One more token for each answer that is not over."""
        state, rows = self._where(slots)
        self.steps.token(state, rows, self.answers, self._rows(slots), is_greedy)

    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]:
        """How the answers stand now; the result waits for the device when it is called."""
        report = self.answers.report(self._rows(slots))
        return report.tolist

    def watching(self) -> AbstractContextManager[Any]:
        """Around all that prepares the next frame."""
        return nullcontext()

    def working(self) -> AbstractContextManager[Any]:
        """Around everything else."""
        return nullcontext()

    def settle(self) -> None:
        """Return when everything that was asked for is done."""

    def _rows(self, slots: Sequence[Slot]) -> Tensor:
        return torch.tensor([slot.index for slot in slots], device=self.answers.token.device)

    def _where(self, slots: Sequence[Slot]) -> tuple[StreamState, Tensor | None]:
        """One stream is its own state; of several, the pool's rows."""
        if len(slots) == 1:
            return slots[0].state, None
        return self.pool.state, self._rows(slots)


class Captured:
    """Steps as replayed graphs, a graph for every number of streams that was met.

    The pool's last row is the scratch row: it fills up batches and is what warm-ups write to.
    """

    tokens_per_look = 4

    def __init__(self, steps: Steps, pool: Pool, answers: Answers, clip_length: int, replays: bool):
        self.steps, self.pool, self.answers, self.clip_length = steps, pool, answers, clip_length
        self.device = pool.state.length.device
        self.scratch = pool.num_slots
        self.lanes = Lanes(self.device, replays)
        self._replays: dict[tuple[Any, ...], Replay | Rerun] = {}
        self._plans: dict[int, VisionPlan] = {}  # by number of pictures: captured steps read them there
        self._turn = 0  # which of two sets of buffers the next frame uses
        self._read: list[torch.cuda.Event | None] = [None, None]  # when each set may be used again
        self._fence: torch.cuda.Event | None = None  # what on the main lane the next frame must wait for
        self._readers: dict[int, torch.cuda.Stream] = {}  # of callers who were shown the state

    # ------ frames

    def receive(self, frame: Any) -> Any:
        """A caller's frame; a copy of one on the device, which lanes may read after the caller goes on."""
        return self.lanes.bring("vision", frame) if isinstance(frame, Tensor) and frame.is_cuda else frame

    def see(self, clips: Sequence[Tensor]) -> Replay | Rerun:
        """What the model will see in clips, each uint8 [1 or 2, 3, H, W], once its lane gets there."""
        turn = self._turn
        replay = self._vision(self._size(len(clips)), turn)
        if (read := self._read[turn]) is not None:
            read.synchronize()  # never more than two frames ahead of the device
        with self.lanes.on("vision"):
            for static, clip in zip(replay.inputs[0], clips, strict=False):
                static.copy_(clip, non_blocking=True)
            replay()
        return replay

    def take_in(self, slots: Sequence[Slot], seen: Replay | Rerun, times: Sequence[int]) -> None:
        """Let the decoder read what was seen, as soon as it is there."""
        turn, size = self._turn, self._size(len(slots))
        replay = self._decoder(size, turn, seen.outputs)
        self.lanes.wait("main", self.lanes.mark("vision"))
        with self.lanes.on("main"):
            filled = [*times, *[0] * (size - len(times))]
            replay(self._indices(slots, size), torch.tensor(filled))
        self._read[turn] = self.lanes.mark("main")
        self._turn = 1 - turn

    def _vision(self, size: int, turn: int) -> Replay | Rerun:
        def make() -> Replay | Rerun:
            height, width = (side * self._side for side in self.steps.grid)
            clips = torch.zeros(
                size, self.clip_length, 3, height, width, dtype=torch.uint8, device=self.device
            )
            # Not in the lane's own pool: there another graph's inner tensors may lie where the result does,
            # and the vision lane replays that graph while the main lane still reads.
            features = torch.zeros(
                size,
                self.steps.num_tokens,
                self.steps.model.config.text_config.hidden_size,
                dtype=self.steps.model.dtype,
                device=self.device,
            )
            plan = self._plans.setdefault(size, self.steps.plan(size, self.device))

            def see(clips: Tensor) -> Tensor:
                return features.copy_(self.steps.see(clips, plan))

            return self.lanes.capture("vision", see, clips)

        return self._replay(("see", size, turn), make)

    def _decoder(self, size: int, turn: int, features: Tensor) -> Replay | Rerun:
        def make() -> Replay | Rerun:
            def step(rows: Tensor, times: Tensor) -> None:
                self.steps.take_in(self.pool.state, rows, features, times)

            return self.lanes.capture("main", step, self._scratch(size), self._numbers(size))

        return self._replay(("take in", size, turn), make)

    @property
    def _side(self) -> int:
        return self.steps.model.config.vision_config.merge_factor

    # ------ text

    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text: the last hidden state [1, C], which stands until the next reading."""
        assert token_ids, "there is text to read"
        for start in range(0, len(token_ids), LONG_CHUNK):
            hidden = self._read_piece(slot, token_ids[start : start + LONG_CHUNK])
        return hidden

    def _read_piece(self, slot: Slot, token_ids: list[int]) -> Tensor:
        rows, count = self._indices([slot], 1), len(token_ids)
        size = next((size for size in CHUNK_SIZES if size >= count), None)
        if size is None:
            ids = torch.tensor([token_ids]).to(self.device)
            return self.steps.read(self.pool.state, rows.to(self.device), ids, None)
        ids = torch.tensor([token_ids + [0] * (size - count)])
        return self._text(size)(rows, ids, torch.tensor([count]))

    def _text(self, size: int) -> Replay | Rerun:
        def make() -> Replay | Rerun:
            def step(rows: Tensor, ids: Tensor, num_valid: Tensor) -> Tensor:
                return self.steps.read(self.pool.state, rows, ids, num_valid)

            return self.lanes.capture(
                "main", step, self._scratch(1), self._numbers(1, size), self._numbers(1) + 1
            )

        return self._replay(("read", size), make)

    def first(self, slot: Slot, hidden: Tensor, is_greedy: bool) -> None:
        """Pick the first token of an answer."""

        def make() -> Replay | Rerun:
            def step(rows: Tensor, hidden: Tensor) -> None:
                self.steps.first(self.answers, rows, hidden, is_greedy)

            return self.lanes.capture("main", step, self._scratch(1), hidden.clone())

        self._replay(("first", is_greedy), make)(self._indices([slot], 1), hidden)

    def token(self, slots: Sequence[Slot], is_greedy: bool) -> None:
        """One more token for each answer; one that is over reads on in the scratch row."""
        size = self._size(len(slots))

        def make() -> Replay | Rerun:
            def step(answer_rows: Tensor) -> None:
                rows = answer_rows.masked_fill(self.answers.done[answer_rows], self.scratch)
                self.steps.token(self.pool.state, rows, self.answers, answer_rows, is_greedy)

            return self.lanes.capture("main", step, self._scratch(size))

        self._replay(("token", size, is_greedy), make)(self._indices(slots, size))

    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]:
        """How the answers stand now; the result waits for the device when it is called."""
        found = self.answers.report(self._indices(slots, len(slots)).to(self.device, non_blocking=True))
        host = torch.empty(found.shape, dtype=found.dtype, pin_memory=True)
        host.copy_(found, non_blocking=True)
        ready = self.lanes.mark("main")

        def result() -> list[list[int]]:
            ready.synchronize()
            return host.tolist()

        return result

    # ------ lanes

    def watching(self) -> AbstractContextManager[Any]:
        """Around all that prepares the next frame: its own lane, after what was done to the state since."""
        self._let_readers_finish("vision")
        if self._fence is not None:
            self.lanes.wait("vision", self._fence)
            self._fence = None
        return self.lanes.on("vision")

    def working(self) -> AbstractContextManager[Any]:
        """Around everything else: the main lane, after the frame that is being prepared."""
        return _Working(self)

    def settle(self) -> None:
        """Return when everything that was asked for is done.

        What the caller asks of the state on his stream, now or later, comes before steps asked for after it.
        """
        for stream in self.lanes.streams.values():
            stream.synchronize()
        reader = torch.cuda.current_stream(self.device)
        self._readers[reader.cuda_stream] = reader

    def _let_readers_finish(self, name: str) -> None:
        for stream in list(self._readers.values()):
            self.lanes.follow(name, stream)

    # ------ inputs

    def _replay(self, key: tuple[Any, ...], make: Callable[[], Replay | Rerun]) -> Replay | Rerun:
        if key not in self._replays:
            self._replays[key] = make()
        return self._replays[key]

    def _size(self, count: int) -> int:
        """Streams in the captured step that takes `count`: the next power of two, or all there are."""
        return min(1 << (count - 1).bit_length(), self.pool.num_slots)

    def _indices(self, slots: Sequence[Slot], size: int) -> Tensor:
        indices = [slot.index for slot in slots]
        return torch.tensor(indices + [self.scratch] * (size - len(indices)))

    def _scratch(self, size: int) -> Tensor:
        return torch.full((size,), self.scratch, device=self.device)

    def _numbers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)


class _Working(AbstractContextManager):
    """The main lane, in order with the vision lane on both sides."""

    def __init__(self, runner: Captured):
        self._runner = runner
        self._lane = runner.lanes.on("main")

    def __enter__(self) -> None:
        lanes = self._runner.lanes
        self._runner._let_readers_finish("main")
        lanes.wait("main", lanes.mark("vision"))
        self._lane.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._lane.__exit__(*error)
        self._runner._fence = self._runner.lanes.mark("main")
