"""A Ctrl-C wherever it may come: a session is as before or as after, its facts are true, no slot is lost."""

import sys
from pathlib import Path

import pytest

import infinitevl
from infinitevl import ChatSession, Engine, StreamSession
from infinitevl.engine.slots import Facts
from tests.engine.streams import snapshot, unchanged
from tests.support import random_frame

PACKAGE = str(Path(infinitevl.__file__).parent)
MOST = 24  # moments that are tried of each act


class Moments:
    """Counts the calls and returns within the package, and interrupts at one of them."""

    def __init__(self, interrupts_at=None):
        self.count, self.interrupts_at = 0, interrupts_at

    def __enter__(self):
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error):
        sys.settrace(None)

    def _trace(self, frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event in ("call", "return"):
            self.count += 1
            if self.count == self.interrupts_at:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self._trace


def observe(session):
    session.observe(random_frame(90), at=60.0)


def observe_all(session):
    session.observe_all([random_frame(seed) for seed in range(90, 94)], [60.0, 60.5, 61.0, 70.0])


def ask(session):
    session.ask("what?", max_new_tokens=2)


def say(chat):
    chat.say("what?", max_new_tokens=2)


def stream(mode, num_frames, **kwargs):
    def make(model, processor):
        session = StreamSession.on(Engine(model, processor, num_slots=4, mode=mode), **kwargs)
        for index in range(num_frames):
            session.observe(random_frame(index), at=index)
        return session

    return make


def chat(model, processor):
    chat = ChatSession.on(Engine(model, processor, num_slots=4))
    chat.say("hello", max_new_tokens=2)
    return chat


ACTS = {
    "a frame that opens the span": (stream("image", 0), observe),
    "a frame in an open span": (stream("image", 2), observe),
    "a frame that will wait for its partner": (stream("video", 2), observe),
    "the partner of the first frame": (stream("video", 1), observe),
    "the partner of a frame that waits": (stream("video", 3), observe),
    "frames of a file": (stream("image", 0), observe_all),
    "frames of a file, one of which waits": (stream("video", 3), observe_all),
    "a question": (stream("video", 3), ask),
    "a kept turn": (stream("image", 2, keep_turns=True), ask),
    "a kept turn while a frame waits": (stream("video", 3, keep_turns=True), ask),
    "a turn of a chat": (chat, say),
}


def interrupt(act, session, moment):
    """Press Ctrl-C there; within a finalizer Python ignores it."""
    try:
        with Moments(moment):
            act(session)
    except KeyboardInterrupt:
        pass


def agrees(session):
    """Whether the host knows what the device has."""
    return session.slot.facts == Facts.of(session.state)


@pytest.mark.parametrize("name", ACTS)
def test_an_interrupted_act_is_done_or_was_never_begun(model, processor, name):
    make, act = ACTS[name]
    session = make(model, processor)
    engine, before = session.engine, snapshot(session)
    with session.fork() as done:
        with Moments() as all_moments:
            act(done)
        after = snapshot(done)
    free = engine.pool.num_free
    assert all_moments.count > 20
    outcomes = set()
    for moment in range(1, all_moments.count + 1, -(-all_moments.count // MOST)):
        with session.fork() as twin:
            interrupt(act, twin, moment)
            assert agrees(twin), moment
            is_done = not unchanged(twin, before)
            assert not is_done or unchanged(twin, after), moment
            outcomes.add(is_done)
            if not is_done:  # it goes on as if nothing had been
                act(twin)
                assert unchanged(twin, after) and agrees(twin), moment
        assert engine.pool.num_free == free, moment
    assert False in outcomes
    assert unchanged(session, before) and agrees(session)
