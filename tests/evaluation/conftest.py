"""A session without a model, and a source without a video."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from infinitevl.errors import InputError


@dataclass
class FakeStats:
    frames: int
    dropped: int
    tokens: int
    seconds: float
    state_bytes: int = 1000
    recurrent_norms: list[float] = field(default_factory=list)


class FakeSession:
    """Answers every question with the number of frames seen."""

    def __init__(self):
        self.dropped = 0
        self.times = []

    def observe(self, frame, at=None):
        if self.times and at < self.times[-1]:
            raise InputError(f"time went back to {at}")
        self.times.append(at)

    def ask(self, question, *, max_new_tokens, temperature, top_p, seed=None, on_text):
        if question.startswith("refuse"):
            raise InputError("this question cannot be used")
        answer = f"{len(self.times)} frames"
        for piece in answer.split(" "):
            on_text(piece)
        return answer

    def stats(self):
        seconds = self.times[-1] - self.times[0] if self.times else 0.0
        return FakeStats(len(self.times), self.dropped, 16 * len(self.times), seconds)


@dataclass
class FakeFrame:
    time: float
    image: object


class FakeSource:
    """Grey frames at the given times; raises what it finds among them."""

    def __init__(self, *times):
        self.times = times
        self.dropped = 0

    def __iter__(self):
        for moment in self.times:
            if isinstance(moment, BaseException):
                raise moment
            yield FakeFrame(moment, np.full((48, 64, 3), 10 * (int(moment) % 25), dtype=np.uint8))


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def source():
    return FakeSource
