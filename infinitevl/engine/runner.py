"""Runs the steps of an engine as plain calls, on any device; `GraphRunner` runs them as CUDA graphs."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from infinitevl.engine.answers import AnswerRows, Pick
from infinitevl.engine.preprocess import Preprocessor
from infinitevl.engine.slots import Facts, Slot, SlotPool, write_facts
from infinitevl.engine.steps import Steps
from infinitevl.state import StreamState


class Runner(Protocol):
    """What an engine needs of a runner; see `EagerRunner`."""

    tokens_per_poll: int
    polls_late: bool
    is_atomic: bool

    @property
    def stream(self) -> "torch.cuda.Stream | None": ...
    def prepare(self, frames: Sequence[Any]) -> list[Tensor]: ...
    def encode(self, clips: Sequence[Tensor]) -> Any: ...
    def open_span(self, slot: Slot, time: int) -> None: ...
    def add_frames(
        self, slots: Sequence[Slot], encoded: Any, times: Sequence[Sequence[int]], facts: Sequence[Facts]
    ) -> None: ...
    def hold(self, slots: Sequence[Slot], pictures: Sequence[Tensor], facts: Sequence[Facts]) -> None: ...
    def read(self, slot: Slot, token_ids: list[int]) -> Tensor: ...
    def read_embeds(self, slot: Slot, embeds: Tensor, offsets: Tensor) -> Tensor: ...
    def first(self, slot: Slot, hidden: Tensor, pick: Pick) -> None: ...
    def token(self, slots: Sequence[Slot], pick: Pick) -> None: ...
    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]: ...
    def report_logprobs(self, slots: Sequence[Slot]) -> Callable[[], list[tuple[Tensor, Tensor]]]: ...
    def vision_lane(self) -> AbstractContextManager[Any]: ...
    def main_lane(self) -> AbstractContextManager[Any]: ...
    def settle(self) -> None: ...


class EagerRunner:
    """Runs steps as plain calls; the host reads a report on the answers before every token.

    tokens_per_poll: tokens between two reports. polls_late: the host reads a report while the next tokens are
    generated already. is_atomic: an interrupt cannot stop `add_frames` or `hold` half-way.
    """

    tokens_per_poll = 1
    polls_late = False
    is_atomic = False
    stream = None

    def __init__(self, steps: Steps, pool: SlotPool, answers: AnswerRows, preprocess: Preprocessor):
        self.steps, self.pool, self.answers, self.preprocess = steps, pool, answers, preprocess

    def prepare(self, frames: Sequence[Any]) -> list[Tensor]:
        """Convert frames of any kind to the stream's size, uint8 [3, H, W].

        Raises:
            InputError: not a picture.
        """
        return [self.preprocess(frame) for frame in frames]

    def encode(self, clips: Sequence[Tensor]) -> Tensor:
        """Encode clips, each uint8 [1 or 2, 3, H, W], to features for `add_frames`."""
        return self.steps.encode(torch.stack(list(clips)))

    def open_span(self, slot: Slot, time: int) -> None:
        """Open a span after the vision-start token; its first frame is at `time` (microseconds)."""
        self.steps.open_spans(slot.state, None, self._numbers([time]))

    def add_frames(
        self, slots: Sequence[Slot], encoded: Tensor, times: Sequence[Sequence[int]], facts: Sequence[Facts]
    ) -> None:
        """Read encoded frames, the same number of each slot, at its `times` (microseconds).

        facts: of the slots afterwards.
        """
        state, rows = self._where(slots)
        self.steps.add_frames(
            state, rows, encoded, self._numbers(times), self._numbers([each.row() for each in facts])
        )

    def hold(self, slots: Sequence[Slot], pictures: Sequence[Tensor], facts: Sequence[Facts]) -> None:
        """Store pictures until their partners come. facts: of the slots afterwards."""
        for slot, picture, after in zip(slots, pictures, facts, strict=True):
            slot.state.span.waiting.copy_(picture[None])
            write_facts(slot.state.span, None, self._numbers([after.row()]))

    def read(self, slot: Slot, token_ids: list[int]) -> Tensor:
        """Read text; return the last hidden state [1, C]."""
        return self.steps.read(slot.state, None, self._numbers([token_ids]), None)

    def read_embeds(self, slot: Slot, embeds: Tensor, offsets: Tensor) -> Tensor:
        """Read what `Steps.embed` returned; return the last hidden state [1, C]."""
        start = slot.state.next_position
        return self.steps.read_embeds(slot.state, None, embeds, offsets.to(start.device) + start, None)

    def first(self, slot: Slot, hidden: Tensor, pick: Pick) -> None:
        """Pick the first token of an answer."""
        self.steps.first(self.answers, self._indices([slot]), hidden, pick)

    def token(self, slots: Sequence[Slot], pick: Pick) -> None:
        """Generate one more token of each answer that is not over."""
        state, rows = self._where(slots)
        self.steps.token(state, rows, self.answers, self._indices(slots), pick)

    def report(self, slots: Sequence[Slot]) -> Callable[[], list[list[int]]]:
        """Report on answers; calling the result waits for the device and returns `AnswerRows.report`."""
        report = self.answers.report(self._indices(slots))
        return report.tolist

    def report_logprobs(self, slots: Sequence[Slot]) -> Callable[[], list[tuple[Tensor, Tensor]]]:
        """Report on the log-probabilities of answers, as `report`: a row of `LogprobRows.report` each."""
        values, tokens = self.answers.logprobs.report(self._indices(slots))
        return lambda: list(zip(values, tokens, strict=True))

    def vision_lane(self) -> AbstractContextManager[Any]:
        """Context for work that prepares the next frame."""
        return nullcontext()

    def main_lane(self) -> AbstractContextManager[Any]:
        """Context for all other work."""
        return nullcontext()

    def settle(self) -> None:
        """Wait until the device is idle."""

    def _numbers(self, values: Any) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.pool.state.length.device)

    def _indices(self, slots: Sequence[Slot]) -> Tensor:
        return self._numbers([slot.index for slot in slots])

    def _where(self, slots: Sequence[Slot]) -> tuple[StreamState, Tensor | None]:
        """Return the state and rows of a step: of one stream its own view, of several the pool's rows."""
        if len(slots) == 1:
            return slots[0].state, None
        return self.pool.state, self._indices(slots)
