"""What CUDA graphs replay, run step by step on a CPU: filled up chunks and batches, two sets of buffers."""

import contextlib

import pytest
import torch

from infinitevl import ChatSession, Engine, Sampling, StreamSession
from infinitevl.engine import engine as engines
from infinitevl.engine import graph_runner
from infinitevl.engine.graph_runner import GraphRunner
from infinitevl.engine.graphs import Rerun
from infinitevl.engine.slots import Facts
from tests.engine.test_chat import CONVERSATIONS
from tests.support import random_frame, relative_error


class Step(Rerun):
    """A step that refuses to run outside of the lane that it was captured on."""

    lane: str
    lanes: "OneLane"

    def __call__(self, *values):
        assert self.lanes.current == self.lane, f"a step of {self.lane} runs on {self.lanes.current}"
        return super().__call__(*values)


class OneLane:
    """The lanes of a device that does one thing after the other."""

    streams: dict = {}  # noqa: RUF012

    def __init__(self, device, replays):
        self.device, self.current = device, "the caller's stream"

    @contextlib.contextmanager
    def on(self, name):
        before, self.current = self.current, name
        try:
            yield
        finally:
            self.current = before

    def mark(self, name):
        return self

    def wait(self, name, event):
        pass

    def synchronize(self):
        pass

    def capture(self, name, step, *inputs):
        for _ in range(2):
            outputs = step(*inputs)
        replay = Step(step, inputs, outputs)
        replay.lane, replay.lanes = name, self
        return replay


@pytest.fixture
def with_graphs(monkeypatch):
    """Engines that are made within it run on a `GraphRunner`."""
    empty = torch.empty
    monkeypatch.setattr(engines, "_can_capture", lambda model: True)
    monkeypatch.setattr(graph_runner, "Lanes", OneLane)
    monkeypatch.setattr(GraphRunner, "settle", lambda self: None)
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **kwargs: empty(*shape, **kwargs))
    return monkeypatch


def close_to(session, other):
    for name, tensor in session.state.tensors().items():
        assert relative_error(tensor.float(), other.state.tensors()[name].float()) < 1e-5, name
    assert session.slot.facts == other.slot.facts == Facts.of(session.state)
    return True


@pytest.mark.parametrize("mode", ["image", "video"])
def test_streams_equal_those_of_plain_calls(model, processor, mode, with_graphs):
    engine = Engine(model, processor, num_slots=6, mode=mode)
    assert isinstance(engine.runner, GraphRunner)
    with_graphs.setattr(engines, "_can_capture", lambda model: False)
    plain = Engine(model, processor, num_slots=6, mode=mode)
    streams = [[StreamSession.on(each, keep_turns=True) for _ in range(3)] for each in (engine, plain)]
    for index in range(7):
        for each, there in zip((engine, plain), streams, strict=True):
            seen = there if index % 3 else there[:2]
            each.observe([(stream, random_frame(10 * n + index), index) for n, stream in enumerate(seen)])
        if index in (3, 6):
            told = []
            for there in streams:
                begun = [stream.begin("what?", Sampling(5)) for stream in there]
                told.append([stream.finish(answer) for stream, answer in zip(there, begun, strict=True)])
            assert told[0] == told[1]
    assert all(close_to(*pair) for pair in zip(*streams, strict=True))


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_chats_equal_those_of_plain_calls(model, processor, name, with_graphs):
    chat = ChatSession(model, processor)
    with_graphs.setattr(engines, "_can_capture", lambda model: False)
    plain = ChatSession(model, processor)
    for content in CONVERSATIONS[name]:
        assert chat.say(content, max_new_tokens=4) == plain.say(content, max_new_tokens=4)
    assert close_to(chat, plain)


def test_a_long_prompt_with_a_picture_is_read_in_pieces(model, processor, with_graphs):
    chat = ChatSession(model, processor)
    with_graphs.setattr(engines, "_can_capture", lambda model: False)
    with_graphs.setattr(graph_runner, "LONG_CHUNK", 5)
    plain, content = ChatSession(model, processor), CONVERSATIONS["a picture, then text"][0]
    assert chat.say(content, max_new_tokens=4) == plain.say(content, max_new_tokens=4)
    assert close_to(chat, plain)
