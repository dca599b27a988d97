"""Questions that are begun, finished or cancelled one by one, through the public names."""

import pytest

from infinitevl import Engine, InputError, Sampling, StateError, StreamSession, observe_together
from tests.engine.streams import snapshot, unchanged
from tests.support import random_frame


@pytest.fixture
def engine(model, processor):
    return Engine(model, processor, num_slots=4)


@pytest.fixture
def streams(engine):
    """Two streams that have seen three frames each, taken in together."""
    streams = [StreamSession.on(engine) for _ in range(2)]
    for index in range(3):
        observe_together([(stream, random_frame(10 * n + index), index) for n, stream in enumerate(streams)])
    return streams


def test_an_answer_is_finished_once(streams):
    answer = streams[0].begin("what?", Sampling(4))
    text = streams[0].finish(answer)
    other = streams[1].begin("what?", Sampling(4))
    assert other.slot.index == answer.slot.index  # the same room by now
    with pytest.raises(InputError, match="finished or cancelled before"):
        streams[0].finish(answer)
    streams[0].cancel(answer)
    assert answer.text == text and streams[1].finish(other)


def test_a_cancelled_answer_gives_its_slot_back_and_leaves_the_others(engine, streams):
    wanted = streams[1].ask("what?", max_new_tokens=9)
    before = [snapshot(stream) for stream in streams]
    first, second = (stream.begin("what?", Sampling(9)) for stream in streams)
    engine.step()
    streams[0].cancel(first)
    streams[0].cancel(first)
    assert engine.pool.num_free == 1
    assert streams[1].finish(second) == wanted
    assert engine.pool.num_free == 2
    assert all(unchanged(stream, then) for stream, then in zip(streams, before, strict=True))
    with pytest.raises(InputError, match="cancelled before"):
        streams[0].finish(first)


def test_text_of_answers_comes_while_the_others_grow(streams):
    shown = [[], []]
    answers = [stream.begin("what?", Sampling(8), shown[n].append) for n, stream in enumerate(streams)]
    texts = [stream.finish(answer) for stream, answer in zip(streams, answers, strict=True)]
    assert ["".join(pieces) for pieces in shown] == texts


def test_a_parked_stream_is_asked_as_if_it_had_stayed(engine, streams):
    wanted = streams[0].ask("what?", max_new_tokens=6)
    streams[0].park()
    streams[0].park()
    assert engine.pool.num_free == 3
    assert streams[0].ask("what?", max_new_tokens=6) == wanted
    assert engine.pool.num_free == 2


def test_a_parked_stream_that_finds_no_slot_stays_parked(engine, streams):
    before = snapshot(streams[0])
    streams[0].park()
    taken = [StreamSession.on(engine) for _ in range(3)]
    with pytest.raises(StateError, match="all 4 slots"):
        streams[0].observe(random_frame(0), at=9.0)
    taken[0].close()
    assert unchanged(streams[0], before)


def test_a_parked_stream_that_is_closed_is_gone(engine, streams):
    streams[0].park()
    streams[0].close()
    with pytest.raises(StateError, match="was closed"):
        streams[0].stats()
    assert engine.pool.num_free == 3


def test_a_stream_on_an_engine_is_saved_and_goes_on_alone(streams, model, processor, tmp_path):
    before = snapshot(streams[1])
    streams[1].park()
    streams[1].save(tmp_path / "stream")
    assert unchanged(StreamSession.load(tmp_path / "stream", model, processor), before)
