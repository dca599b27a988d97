"""Frames that are read several at a time leave the state that the same frames leave one by one."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from infinitevl import Engine, Frame, InputError, StateError, StreamSession, open_source
from infinitevl.engine.arrivals import RUN_LENGTH, pieces
from tests.engine.streams import MODES, TIMES, snapshot, unchanged, watched
from tests.support import random_frame, relative_error, tiny_model, tiny_processor


@pytest.fixture(scope="module")
def model():
    return tiny_model().double()


@pytest.fixture
def processor():
    return tiny_processor()


def pictures(first, count):
    return [random_frame(seed) for seed in range(first, first + count)]


def assert_same(session, other, bound=1e-11):
    wanted = other.state.tensors()
    assert session.slot.facts == other.slot.facts
    for name, tensor in session.state.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(tensor, wanted[name]) < bound, name
        elif name != "span.waiting" or session.slot.facts.has_waiting:  # else what it holds means nothing
            assert torch.equal(tensor, wanted[name]), name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cuts", [[10], [1, 9], [3, 4, 3], [2, 0, 8], [5, 5]])
def test_any_way_of_cutting_a_stream_leaves_the_same_state(model, processor, mode, cuts):
    one_by_one = watched(model, processor, TIMES, mode=mode)
    session, start = StreamSession(model, processor, mode=mode), 0
    for count in cuts:
        times = TIMES[start : start + count]
        session.observe_all(pictures(start, count), times)
        start += count
    assert_same(session, one_by_one)
    assert session.ask("what?", max_new_tokens=6) == one_by_one.ask("what?", max_new_tokens=6)


@pytest.mark.parametrize("kind", [iter, open_source])
def test_a_source_is_read_to_its_end(model, processor, kind):
    frames = [Frame(picture, time) for picture, time in zip(pictures(0, 40), range(40), strict=True)]
    source, listed = (StreamSession(model, processor) for _ in range(2))
    source.observe_all(kind(frames))
    listed.observe_all(frames)
    assert_same(source, listed)


@pytest.mark.parametrize("mode", MODES)
def test_runs_and_single_frames_alternate_over_many_windows(model, processor, mode):
    session, one_by_one = (StreamSession(model, processor, mode=mode) for _ in range(2))
    seen = 0
    for count in (3, 1, 17, 2, 1, 8, 5):
        frames = pictures(seen, count)
        if count == 1:
            session.observe(frames[0])
        else:
            session.observe_all(frames)
        for frame in frames:
            one_by_one.observe(frame)
        seen += count
        assert session.ask("what?", max_new_tokens=3) == one_by_one.ask("what?", max_new_tokens=3)
    assert int(session.state.length) > 2 * model.config.text_config.sliding_window
    assert_same(session, one_by_one)


def test_frames_of_a_source_bring_their_times_and_what_was_dropped(model, processor):
    frames = [Frame(picture, at, 2) for picture, at in zip(pictures(0, 4), TIMES, strict=False)]
    session, one_by_one = StreamSession(model, processor), StreamSession(model, processor)
    session.observe_all(frames)
    for frame in frames:
        one_by_one.observe(frame)
    assert session.dropped == 8 and session.stats() == one_by_one.stats()
    assert_same(session, one_by_one)


def test_turns_that_are_kept_close_the_span_of_a_run(model, processor):
    sessions = [StreamSession(model, processor, keep_turns=True, mode="video") for _ in range(2)]
    for session in sessions:
        session.observe(random_frame(0))
        session.ask("what?", max_new_tokens=3)
    sessions[0].observe_all(pictures(1, 5))
    for picture in pictures(1, 5):
        sessions[1].observe(picture)
    assert_same(*sessions)


def test_others_in_the_engine_feel_nothing(model, processor):
    engine = Engine(model, processor, num_slots=3)
    other, session = StreamSession.on(engine), StreamSession.on(engine)
    other.observe(random_frame(7))
    before = snapshot(other)
    session.observe_all(pictures(0, 11))
    assert unchanged(other, before) and other.stats().frames == 1 and session.stats().frames == 11


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("frames", "at", "told"),
    [
        ([random_frame(0), "no/such.png"], None, "no/such.png"),
        ([random_frame(0), 7], None, "int"),
        ([random_frame(0), random_frame(1)], [3.0, 2.0], "backwards"),
        ([random_frame(0), random_frame(1)], [3.0], "2 frames came with 1 times"),
        ([random_frame(0), Frame(random_frame(1), 5.0)], [3.0, 5.0], "own time"),
        ([random_frame(0)], ["now"], "seconds"),
        (Image.new("RGB", (8, 8)), None, "a list of frames"),
        ("sign.png", None, "a list of frames"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, "a list of frames"),
    ],
)
def test_what_cannot_be_read_leaves_the_stream_as_it_was(model, processor, mode, frames, at, told):
    session = watched(model, processor, TIMES[:3], mode=mode)
    before, facts = snapshot(session), session.slot.facts
    with pytest.raises(InputError, match=told):
        session.observe_all(
            frames, at if at is None else [9.0 + t if isinstance(t, float) else t for t in at]
        )
    assert unchanged(session, before) and session.slot.facts == facts


@pytest.mark.parametrize("mode", MODES)
def test_an_error_half_way_leaves_the_stream_as_it_was(model, processor, mode, monkeypatch):
    session = watched(model, processor, TIMES[:3], mode=mode)
    before, facts, steps = snapshot(session), session.slot.facts, session.engine.steps
    calls, add_frames = [], steps.add_frames

    def fail_late(*inputs):
        calls.append(inputs)
        add_frames(*inputs)
        if len(calls) == 2:
            raise MemoryError("no memory")

    monkeypatch.setattr(steps, "add_frames", fail_late)
    with pytest.raises(MemoryError):
        session.observe_all(pictures(3, 4 * RUN_LENGTH))
    assert unchanged(session, before) and session.slot.facts == facts
    monkeypatch.undo()
    session.observe_all(pictures(3, 7), TIMES[3:])
    assert_same(session, watched(model, processor, TIMES, mode=mode))


def test_a_stream_with_full_attention_takes_all_of_them_or_none(processor):
    model = tiny_model(layer_types=["full_attention", "linear_attention"] * 2)
    session = StreamSession(model, processor, max_length=18)
    session.observe_all(pictures(0, 2))
    before = snapshot(session)
    with pytest.raises(StateError):
        session.observe_all(pictures(2, 3))
    assert unchanged(session, before)
    session.observe_all(pictures(2, 2))
    assert session.stats().frames == 4


def test_nothing_to_read_changes_nothing(model, processor):
    session = StreamSession(model, processor)
    session.observe_all([])
    assert session.slot.facts == replace(session.slot.facts, num_frames=0, is_open=False)


def test_pieces_are_few_sizes_and_lose_nothing():
    for count in range(70):
        sizes = [piece.stop - piece.start for piece in pieces(count)]
        assert sum(sizes) == count and set(sizes) <= {1, 2, 4, RUN_LENGTH}
        assert sizes == sorted(sizes, reverse=True)
