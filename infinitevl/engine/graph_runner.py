"""Runs an engine's steps as CUDA graphs on one GPU: captured when first needed, replayed from then on."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from infinitevl.engine.answers import AnswerRows, Pick
from infinitevl.engine.graphs import Lanes, Replay, Rerun
from infinitevl.engine.preprocess import Preprocessor
from infinitevl.engine.slots import Facts, Slot, SlotPool, write_facts
from infinitevl.engine.steps import Steps
from infinitevl.model.vision import VisionPlan

# Captured sizes of a chunk of a prompt. Longer prompts run as plain calls in pieces of LONG_CHUNK: so much
# work hides the launches of its kernels, and a graph of it would keep gigabytes.
LONG_CHUNK = 8192
CHUNK_SIZES = (16, 32, 64, 128, 256, 512)


class GraphRunner:
    """Runs steps as CUDA graphs, one for each batch size.

    The pool's last row is the scratch row: it pads batches, and warm-ups write to it.
    """

    tokens_per_poll = 4
    polls_late = True

    def __init__(
        self,
        steps: Steps,
        pool: SlotPool,
        answers: AnswerRows,
        preprocess: Preprocessor,
        clip_length: int,
        enforce_eager: bool,
    ):
        self.steps, self.pool, self.answers, self.preprocess = steps, pool, answers, preprocess
        self.clip_length, self.device = clip_length, pool.state.length.device
        self.scratch = pool.num_slots
        self.lanes = Lanes(self.device, replays=not enforce_eager)
        self.is_atomic = not enforce_eager
        self._replays: dict[tuple[Any, ...], Replay | Rerun] = {}
        self._plans: dict[int, VisionPlan] = {}  # by number of pictures; captured steps read these tensors
        self._buffer = 0  # which of two sets of buffers the next frame uses
        self._reusable: list[torch.cuda.Event | None] = [None, None]  # when each set may be used again
        self._fence: torch.cuda.Event | None = None  # work on the main lane that the next frame waits for
        self._readers: dict[int, torch.cuda.Stream] = {}  # of callers who may be reading the state

    # ------ frames

    def prepare(self, frames: Sequence[Any]) -> list[Tensor]:
        """Convert frames to uint8 [3, H, W]; those on a GPU are copied, so the caller may change them."""
        lanes = self.lanes
        owned = [lanes.bring("vision", x) if isinstance(x, Tensor) and x.is_cuda else x for x in frames]
        with self.vision_lane():
            return [self.preprocess(frame) for frame in owned]

    def encode(self, clips: Sequence[Tensor]) -> Replay | Rerun:
        """Encode clips, each uint8 [1 or 2, 3, H, W], on the vision lane; the features are `outputs`."""
        buffer = self._buffer
        replay = self._vision(max(self._size(len(clips)), len(clips)), buffer)
        if (reusable := self._reusable[buffer]) is not None:
            reusable.synchronize()  # never more than two frames ahead of the device
        with self.lanes.on("vision"):
            for static, clip in zip(replay.inputs[0], clips, strict=False):
                static.copy_(clip, non_blocking=True)
            replay()
        return replay

    def open_span(self, slot: Slot, time: int) -> None:
        """Open a span after the vision-start token, on the main lane."""
        self.steps.open_spans(slot.state, None, torch.tensor([time]).to(self.device))

    def add_frames(
        self,
        slots: Sequence[Slot],
        encoded: Replay | Rerun,
        times: Sequence[Sequence[int]],
        facts: Sequence[Facts],
    ) -> None:
        """Read encoded frames on the main lane, as soon as they are ready."""
        buffer, size, num_frames = self._buffer, self._size(len(slots)), len(times[0])
        replay = self._decoder((size, num_frames), buffer, encoded.outputs)
        filled = [*times, *[[0] * num_frames] * (size - len(times))]
        self.lanes.wait("main", self.lanes.mark("vision"))
        with self.lanes.on("main"):
            replay(self._indices(slots, size), torch.tensor(filled), _padded_rows(facts, size))
        self._reusable[buffer] = self.lanes.mark("main")
        self._buffer = 1 - buffer

    def hold(self, slots: Sequence[Slot], pictures: Sequence[Tensor], facts: Sequence[Facts]) -> None:
        """Store pictures until their partners come, on the vision lane; write facts on the main lane."""
        size = self._size(len(slots))

        def make() -> Replay | Rerun:
            def step(rows: Tensor, facts: Tensor) -> None:
                write_facts(self.pool.state.span, rows, facts)

            return self.lanes.capture("main", step, self._scratch(size), self._numbers(size, 4))

        replay = self._replay(("hold", size), make)
        with self.vision_lane():
            for slot, picture in zip(slots, pictures, strict=True):
                slot.state.span.waiting.copy_(picture[None])
        self.lanes.wait("main", self.lanes.mark("vision"))
        with self.lanes.on("main"):
            replay(self._indices(slots, size), _padded_rows(facts, size))

    def _vision(self, size: int, buffer: int) -> Replay | Rerun:
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

            def step(clips: Tensor) -> Tensor:
                return features.copy_(self.steps.encode(clips, plan))

            return self.lanes.capture("vision", step, clips)

        return self._replay(("encode", size, buffer), make)

    def _decoder(self, sizes: tuple[int, int], buffer: int, features: Tensor) -> Replay | Rerun:
        """sizes: streams, and frames of each."""

        def make() -> Replay | Rerun:
            def step(rows: Tensor, times: Tensor, facts: Tensor) -> None:
                self.steps.add_frames(self.pool.state, rows, features, times, facts)

            inputs = self._scratch(sizes[0]), self._numbers(*sizes), self._numbers(sizes[0], 4)
            return self.lanes.capture("main", step, *inputs)

        return self._replay(("add frames", sizes, buffer), make)

    @property
    def _side(self) -> int:
        return self.steps.model.config.vision_config.merge_factor

    # ------ prompts

    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text; return the last hidden state [1, C], which the next reading overwrites."""
        assert token_ids, "there is text to read"
        for start in range(0, len(token_ids), LONG_CHUNK):
            hidden = self._read_piece(slot, token_ids[start : start + LONG_CHUNK])
        return hidden

    def _read_piece(self, slot: Slot, token_ids: list[int]) -> Tensor:
        rows, count = self._indices([slot], 1), len(token_ids)
        size = _chunk_size(count)
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

    def read_embeds(self, slot: Slot, embeds: Tensor, offsets: Tensor) -> Tensor:
        """Read what `Steps.embed` returned; the result, the last hidden state, is overwritten by the next."""
        positions = offsets.to(self.device) + slot.state.next_position
        for start in range(0, embeds.shape[1], LONG_CHUNK):
            piece = slice(start, start + LONG_CHUNK)
            hidden = self._read_embeds_piece(slot, embeds[:, piece], positions[..., piece])
        return hidden

    def _read_embeds_piece(self, slot: Slot, embeds: Tensor, positions: Tensor) -> Tensor:
        rows, count = self._indices([slot], 1), embeds.shape[1]
        size = _chunk_size(count)
        if size is None:
            return self.steps.read_embeds(self.pool.state, rows.to(self.device), embeds, positions, None)
        missing = size - count
        padded = pad(embeds, (0, 0, 0, missing)), pad(positions, (0, missing))
        return self._embeds(size, embeds)(rows, *padded, torch.tensor([count]))

    def _embeds(self, size: int, like: Tensor) -> Replay | Rerun:
        def make() -> Replay | Rerun:
            def step(rows: Tensor, embeds: Tensor, positions: Tensor, num_valid: Tensor) -> Tensor:
                return self.steps.read_embeds(self.pool.state, rows, embeds, positions, num_valid)

            embeds = like.new_zeros(1, size, like.shape[2])
            inputs = embeds, self._numbers(3, 1, size), self._numbers(1) + 1
            return self.lanes.capture("main", step, self._scratch(1), *inputs)

        return self._replay(("read embeds", size), make)

    # ------ answers

    def first(self, slot: Slot, hidden: Tensor, pick: Pick) -> None:
        """Pick the first token of an answer."""

        def make() -> Replay | Rerun:
            def step(rows: Tensor, hidden: Tensor) -> None:
                self.steps.first(self.answers, rows, hidden, pick)

            return self.lanes.capture("main", step, self._scratch(1), hidden.clone())

        self._replay(("first", pick), make)(self._indices([slot], 1), hidden)

    def token(self, slots: Sequence[Slot], pick: Pick) -> None:
        """Generate one more token of each answer; complete ones read into the scratch row."""
        size = self._size(len(slots))

        def make() -> Replay | Rerun:
            def step(answer_rows: Tensor) -> None:
                rows = answer_rows.masked_fill(self.answers.done[answer_rows], self.scratch)
                self.steps.token(self.pool.state, rows, self.answers, answer_rows, pick)

            return self.lanes.capture("main", step, self._scratch(size))

        self._replay(("token", size, pick), make)(self._indices(slots, size))

    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]:
        """Report on answers; calling the result waits for the device and returns `AnswerRows.report`."""
        found = self.answers.report(self._indices(slots, len(slots)).to(self.device, non_blocking=True))
        return self._brought(lambda host: host[0].tolist(), found)

    def report_logprobs(self, slots: Sequence[Slot]) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        """Report on the log-probabilities of answers, as `report`: a row of `LogprobRows.report` each."""
        rows = self._indices(slots, len(slots)).to(self.device, non_blocking=True)
        return self._brought(lambda host: list(zip(*host, strict=True)), *self.answers.logprobs.report(rows))

    def _brought(self, read: Callable[[list[Tensor]], Any], *found: Tensor) -> Callable[[], Any]:
        """Copy tensors to host memory; calling the result waits for them, and returns what `read` makes."""
        host = [torch.empty(each.shape, dtype=each.dtype, pin_memory=True) for each in found]
        for there, each in zip(host, found, strict=True):
            there.copy_(each, non_blocking=True)
        ready = self.lanes.mark("main")

        def result() -> Any:
            ready.synchronize()
            return read(host)

        return result

    # ------ lanes

    def vision_lane(self) -> AbstractContextManager[Any]:
        """Context to prepare the next frame: the vision lane, after earlier changes of the state."""
        self._let_readers_finish("vision")
        if self._fence is not None:
            self.lanes.wait("vision", self._fence)
            self._fence = None
        return self.lanes.on("vision")

    def main_lane(self) -> AbstractContextManager[Any]:
        """Context for all other work: the main lane, after the frame that is being prepared."""
        return _MainLane(self)

    @property
    def stream(self) -> torch.cuda.Stream:
        """Where the decoder runs."""
        return self.lanes.streams["main"]

    def settle(self) -> None:
        """Wait until the device is idle.

        Later steps wait for what the caller's stream reads of the state.
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
        """Return the batch size of a graph for `count` streams: the next power of two, at most all slots."""
        return min(1 << (count - 1).bit_length(), self.pool.num_slots)

    def _indices(self, slots: Sequence[Slot], size: int) -> Tensor:
        indices = [slot.index for slot in slots]
        return torch.tensor(indices + [self.scratch] * (size - len(indices)))

    def _scratch(self, size: int) -> Tensor:
        return torch.full((size,), self.scratch, device=self.device)

    def _numbers(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=self.device)


def _chunk_size(count: int) -> int | None:
    """Return the captured size for a chunk of `count` tokens; None if it is too long for a graph."""
    return next((size for size in CHUNK_SIZES if size >= count), None)


def _padded_rows(facts: Sequence[Facts], size: int) -> Tensor:
    """Return `Facts.row` of each stream, padded for the scratch row: int64 [size, 4]."""
    return torch.tensor([each.row() for each in [*facts, *[Facts()] * (size - len(facts))]])


class _MainLane(AbstractContextManager):
    """The main lane, ordered after earlier and before later work of the vision lane."""

    def __init__(self, runner: GraphRunner):
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
