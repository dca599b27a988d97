"""Samples of the small world as rows: token ids, positions, answers to learn; without pixels."""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from builtin.world.tasks import CHAT, STREAM, TEXT, Sample
from infinitevl.processing.prompt.template import (
    DEFAULT_SYSTEM,
    END,
    IMAGE_PAD,
    START,
    VISION_END,
    VISION_START,
)

GRID = 4  # merged tokens a side of a frame of 112 pixels
FRAME_TOKENS = GRID * GRID
TOKENS_PER_SECOND = 2


@dataclass
class Row:
    """One sample as tokens: where an answer's next token is asked for, and where each frame starts."""

    ids: list[int]
    asked: list[int]
    positions: np.ndarray
    starts: list[int]


class Writer:
    """Writes samples as the chat template and the stream form do."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.start, self.end, self.vision_start, self.vision_end, self.pad = (
            tokenizer.token_to_id(name) or 0 for name in (START, END, VISION_START, VISION_END, IMAGE_PAD)
        )
        self.encode: Callable[[str], list[int]] = functools.lru_cache(maxsize=100_000)(self._encode)
        self.new_line = self.encode("\n")
        self.system = [self.start, *self.encode(f"system\n{DEFAULT_SYSTEM}"), self.end, *self.new_line]
        self.user = [self.start, *self.encode("user\n")]
        self.assistant = [self.start, *self.encode("assistant\n")]
        self.frame = [self.pad] * FRAME_TOKENS

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def row(self, sample: Sample, limit: int, num_turns: int | None = None) -> Row | None:
        """The sample in at most `limit` tokens (the last answer's end not counted), or None if no turn
        fits."""
        ids, starts = self._opening(sample)
        asked: list[int] = []
        for number, turn in enumerate(sample.turns[:num_turns]):
            question = [*self.user] if number or sample.form != CHAT else []
            question += [*self.encode(turn.question), self.end, *self.new_line, *self.assistant]
            answer = [*self.encode(turn.answer), self.end]
            if len(ids) + len(question) + len(answer) - 1 > limit:
                break
            taught = len(answer) if turn.taught is None else min(turn.taught, len(answer))
            asked += range(len(ids) + len(question) - 1, len(ids) + len(question) + taught - 1)
            ids += question + answer
            ids += self.new_line
        if not asked:
            return None
        return Row(ids, asked, self._positions(sample, len(ids), starts), starts)

    def prompt(self, sample: Sample) -> Row:
        """Everything up to the first answer."""
        ids, starts = self._opening(sample)
        ids += [] if sample.form == CHAT else self.user
        ids += [*self.encode(sample.turns[0].question), self.end, *self.new_line, *self.assistant]
        return Row(ids, [len(ids) - 1], self._positions(sample, len(ids), starts), starts)

    def _opening(self, sample: Sample) -> tuple[list[int], list[int]]:
        """Tokens before the first question, and where each frame starts."""
        starts, ids = [], []
        if sample.form == STREAM:
            starts = [1 + FRAME_TOKENS * number for number in range(len(sample.frames))]
            ids = [self.vision_start, *self.frame * len(sample.frames), self.vision_end, *self.system]
        elif sample.form == TEXT:
            ids = [*self.system]
        else:
            ids = [*self.system, *self.user]
            for _ in sample.frames:
                starts.append(len(ids) + 1)
                ids += [self.vision_start, *self.frame, self.vision_end]
        return ids, starts

    def _positions(self, sample: Sample, length: int, starts: list[int]) -> np.ndarray:
        """int64 [3, T]; frames of a stream are placed by their times."""
        times = sample.times if sample.form == STREAM else None
        return positions(length, starts, times)


ROWS, COLUMNS = np.divmod(np.arange(FRAME_TOKENS), GRID)


def positions(length: int, starts: list[int], times: list[float] | None) -> np.ndarray:
    """Positions [3, length] where frames of 16 tokens begin at `starts`.

    With `times` (seconds) the frames are one span and stand side by side; without, each is a picture of its
    own.
    """
    out = np.empty((3, length), np.int64)
    at, place = 0, 0  # next token, next position
    if times is not None and starts:
        out[:, 0] = 0
        steps = np.floor(np.asarray(times) * TOKENS_PER_SECOND + 1e-6).astype(np.int64)
        count = len(starts) * FRAME_TOKENS
        out[0, 1 : 1 + count] = 1 + np.repeat(steps, FRAME_TOKENS)
        out[1, 1 : 1 + count] = 1 + np.tile(ROWS, len(starts))
        out[2, 1 : 1 + count] = 1 + np.tile(COLUMNS, len(starts))
        at, place = 1 + count, 2 + max(int(steps[-1]), GRID - 1)
        starts = []
    for start in starts:
        out[:, at:start] = place + np.arange(start - at)
        place += start - at
        out[0, start : start + FRAME_TOKENS] = place
        out[1, start : start + FRAME_TOKENS] = place + ROWS
        out[2, start : start + FRAME_TOKENS] = place + COLUMNS
        at, place = start + FRAME_TOKENS, place + GRID
    out[:, at:] = place + np.arange(length - at)
    return out
