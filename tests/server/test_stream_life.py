"""Streams opened, watched, asked, forked, saved, filled and deleted in any order, beside a plain model of it.

The plain model is the list of frames that each stream has seen; what it says is what a quiet engine says.
"""

from collections.abc import Iterator
from functools import cache
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from infinitevl.engine.session import StreamSession
from infinitevl.server.settings import Limits
from tests.server.serving import Running, asked, opened, picture, push, running, tiny_engine

History = tuple[tuple[int, float], ...]  # seed and time of each frame
NUM_SLOTS = 3


@cache
def quiet_engine():
    return tiny_engine(num_slots=2)


@cache
def quiet_answer(history: History) -> str:
    with StreamSession.on(quiet_engine()) as session:
        for seed, at in history:
            session.observe(picture(seed), at=at)
        return session.ask("word", max_new_tokens=4)


@pytest.fixture(scope="module", autouse=True)
def shared_server() -> Iterator[None]:
    """One server for all lives, with so few slots that streams are parked all the time."""
    limits = Limits(streams_per_key=10**6, streams=10**6)
    with running(tiny_engine(num_slots=NUM_SLOTS), limits=limits) as StreamLife.server:
        yield


class StreamLife(RuleBasedStateMachine):
    server: ClassVar[Running]
    streams = Bundle("streams")
    files = Bundle("files")

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, History] = {}

    @rule(target=streams)
    def open(self) -> str:
        stream = opened(self.server.client)
        self.seen[stream] = ()
        return stream

    @rule(stream=streams, seed=st.integers(0, 3), step=st.sampled_from([0.0, 0.5, 3.0]))
    def watch(self, stream: str, seed: int, step: float) -> None:
        history = self.seen[stream]
        at = (history[-1][1] if history else 0.0) + step
        assert push(self.server.client, stream, seed, at).json()["time"] == at
        self.seen[stream] = (*history, (seed, at))

    @rule(stream=streams)
    def go_back_in_time(self, stream: str) -> None:
        if history := self.seen[stream]:
            assert push(self.server.client, stream, 0, history[-1][1] - 0.5).status_code == 400

    @rule(stream=streams)
    def ask(self, stream: str) -> None:
        if self.seen[stream]:
            assert asked(self.server.client, stream, max_tokens=4) == quiet_answer(self.seen[stream])
        else:
            response = self.server.client.post(f"/v1/streams/{stream}/ask", json={"question": "word"})
            assert response.status_code == 400

    @rule(target=streams, stream=streams)
    def fork(self, stream: str) -> str:
        twin = self.server.client.post(f"/v1/streams/{stream}/fork").json()["id"]
        self.seen[twin] = self.seen[stream]
        return twin

    @rule(target=files, stream=streams)
    def save(self, stream: str) -> tuple[bytes, History]:
        return self.server.client.get(f"/v1/streams/{stream}/state").content, self.seen[stream]

    @rule(stream=streams, file=files)
    def fill(self, stream: str, file: tuple[bytes, History]) -> None:
        response = self.server.client.put(f"/v1/streams/{stream}/state", content=file[0])
        assert response.status_code == 200, response.text
        self.seen[stream] = file[1]

    @rule(target=streams, stream=consumes(streams))
    def delete(self, stream: str):
        if stream in self.seen:
            assert self.server.client.delete(f"/v1/streams/{stream}").status_code == 200
            del self.seen[stream]
        assert self.server.client.get(f"/v1/streams/{stream}").status_code == 404
        return multiple()

    @invariant()
    def the_list_says_what_was_seen(self) -> None:
        listed = {each["id"]: each for each in self.server.client.get("/v1/streams").json()["data"]}
        assert set(listed) == set(self.seen)
        for stream, history in self.seen.items():
            assert listed[stream]["frames"] == len(history)
            assert listed[stream]["time"] == (history[-1][1] if history else None)
            assert listed[stream]["dropped"] == 0

    def teardown(self) -> None:
        for stream in self.seen:
            self.server.client.delete(f"/v1/streams/{stream}")


class ManyLives(StreamLife):
    pass


TestStreamLife = StreamLife.TestCase
TestStreamLife.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)
TestManyLives = pytest.mark.slow(ManyLives.TestCase)
TestManyLives.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_the_plain_model_tells_histories_apart() -> None:
    histories = [((0, 0.0),), ((1, 0.0),), ((0, 0.0), (1, 0.5)), ((0, 0.0), (1, 3.0))]
    assert len({quiet_answer(history) for history in histories}) > 1
