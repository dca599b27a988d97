"""A session without a model, and a source without a video."""

from dataclasses import dataclass

import numpy as np
import pytest

from infinitevl.errors import InputError
from infinitevl.processing.sources.frames import Frame


@dataclass
class FakeStats:
    frames: int
    dropped: int
    tokens: int
    seconds: float
    state_bytes: int = 1000


class FakeSession:
    """Answers every question with the number of frames seen."""

    def __init__(self):
        self.dropped = 0
        self.times = []

    def observe(self, frame):
        if self.times and frame.time < self.times[-1]:
            raise InputError(f"time went back to {frame.time}")
        self.times.append(frame.time)
        self.dropped += frame.dropped

    def observe_all(self, frames):
        before = list(self.times), self.dropped
        try:
            for frame in frames:
                self.observe(frame)
        except InputError:
            self.times, self.dropped = before
            raise

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


class FakeSource:
    """Grey frames at the given times; raises what it finds among them."""

    live = False

    def __init__(self, *times, dropped=0):
        self.times, self.dropped = times, dropped

    def __iter__(self):
        for moment in self.times:
            if isinstance(moment, BaseException):
                raise moment
            image = np.full((48, 64, 3), 10 * (int(moment) % 25), dtype=np.uint8)
            yield Frame(image, moment, self.dropped)


@pytest.fixture
def session():
    return FakeSession()


@pytest.fixture
def source():
    return FakeSource
