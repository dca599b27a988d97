"""Questions that are begun, finished or cancelled one by one, through the public names."""

import threading

import pytest

from infinitevl import Engine, InputError, Sampling, StateError, StreamSession
from infinitevl.engine.sampling import TextBuilder
from tests.engine.streams import TIMES, snapshot, unchanged, watched
from tests.support import random_frame, tiny_model


@pytest.fixture
def engine(model, processor):
    return Engine(model, processor, num_slots=4)


@pytest.fixture
def streams(engine):
    """Two streams that have seen three frames each, taken in together."""
    streams = [StreamSession.on(engine) for _ in range(2)]
    for index in range(3):
        engine.observe([(stream, random_frame(10 * n + index), index) for n, stream in enumerate(streams)])
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


def fail(piece):
    raise RuntimeError("shown badly")


def test_an_answer_that_is_cancelled_while_it_shows_its_text_ends_there(engine, streams):
    answer = streams[0].begin("what?", Sampling(9), lambda piece: streams[0].cancel(answer))
    with pytest.raises(InputError, match="ended before it was over"):
        streams[0].finish(answer)
    assert engine.pool.num_free == 2


def test_an_answer_that_cannot_be_shown_fails_for_who_waits_for_it_alone(engine, streams):
    wanted = streams[1].ask("what?", max_new_tokens=9)
    first = streams[0].begin("what?", Sampling(9), fail)
    second = streams[1].begin("what?", Sampling(9))
    assert streams[1].finish(second) == wanted
    with pytest.raises(RuntimeError, match="shown badly"):
        streams[0].finish(first)
    assert engine.pool.num_free == 2


def test_an_interrupt_while_text_is_shown_lets_the_others_read_no_token_twice(engine, streams, monkeypatch):
    """The report that it cut short is looked at again before anything grows."""
    streams[1].close()
    kept = StreamSession.on(engine, keep_turns=True)
    kept.observe(random_frame(5))
    with kept.fork() as twin:
        twin.ask("what?", max_new_tokens=2)
        wanted = twin.stats().tokens

    def interrupt(token):
        raise KeyboardInterrupt

    first = streams[0].begin("what?", Sampling(9))
    second = kept.begin("what?", Sampling(2))
    while not engine.answers.done[second.slot.index]:
        engine.step()
    monkeypatch.setattr(first.builder, "push", interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.undo()
    kept.finish(second)
    streams[0].cancel(first)
    assert kept.stats().tokens == wanted


def test_an_answer_without_room_fails_alone(processor):
    model = tiny_model(layer_types=["full_attention", "linear_attention"] * 2)
    model.config.eos_token_id = model.generation_config.eos_token_id = 499
    engine = Engine(model, processor, num_slots=4, max_length=120)
    long, short = StreamSession.on(engine), StreamSession.on(engine)
    for index in range(6):
        long.observe(random_frame(index))
    short.observe(random_frame(0))
    wanted = short.ask("what?", max_new_tokens=40)
    full, fine = long.begin("what?", Sampling(80)), short.begin("what?", Sampling(40))
    assert short.finish(fine) == wanted
    with pytest.raises(StateError, match="room for 120 tokens"):
        long.finish(full)
    assert engine.pool.num_free == 2


def test_a_step_that_is_cut_short_spoils_every_answer_in_it(engine, streams, monkeypatch):
    wanted = streams[0].ask("what?", max_new_tokens=9)
    answers = [stream.begin("what?", Sampling(9)) for stream in streams]
    with monkeypatch.context() as patched:
        patched.setattr(engine.steps, "token", fail)
        with pytest.raises((RuntimeError, TypeError)):
            engine.step()
    for stream, answer in zip(streams, answers, strict=True):
        with pytest.raises(StateError, match="cut short"):
            stream.finish(answer)
    assert streams[0].ask("what?", max_new_tokens=9) == wanted


def test_an_answer_may_have_any_limit(engine, streams):
    wanted = streams[0].ask("what?", max_new_tokens=3)
    answer = streams[0].begin("what?", Sampling(2**70))
    engine.step()
    assert not answer.is_over
    streams[0].cancel(answer)
    assert streams[0].ask("what?", max_new_tokens=3) == wanted


def test_a_stream_that_keeps_turns_takes_nothing_in_while_one_is_answered(model, processor):
    """The turn will replace the stream: what came in meanwhile would be lost."""
    session = watched(model, processor, TIMES[:3], keep_turns=True)
    answer = session.begin("what?", Sampling(4))
    before = snapshot(session)
    with pytest.raises(InputError, match="one is being answered"):
        session.observe(random_frame(5), at=20.0)
    with pytest.raises(InputError, match="one is being answered"):
        session.begin("and?", Sampling(4))
    assert unchanged(session, before)
    twin = session.fork()
    twin.observe(random_frame(5), at=20.0)
    session.finish(answer)
    session.observe(random_frame(5), at=20.0)
    assert session.stats().frames == 4
    session.cancel(session.begin("what?", Sampling(4)))
    session.observe(random_frame(6), at=21.0)
    assert session.stats().frames == 5


def test_a_slow_listener_stops_no_other_stream(engine, streams):
    """`on_text` runs outside the engine's lock: another thread observes while one listens."""
    heard, seen = threading.Event(), threading.Event()

    def listen(piece):
        heard.set()
        assert seen.wait(20), "the other stream waited for this listener"

    def watch():
        assert heard.wait(20)
        streams[1].observe(random_frame(8), at=50.0)
        seen.set()

    engine.answers.stop_ids.fill_(-1)
    other = threading.Thread(target=watch)
    other.start()
    answer = streams[0].begin("what?", Sampling(16), listen)
    text = streams[0].finish(answer)
    other.join()
    assert seen.is_set() and text


def test_pieces_arrive_whole_and_in_order_whoever_steps(engine, streams):
    engine.answers.stop_ids.fill_(-1)
    pieces = {index: [] for index in range(2)}
    answers = [streams[index].begin("what?", Sampling(24), pieces[index].append) for index in range(2)]
    threads = [threading.Thread(target=streams[i].finish, args=(answers[i],)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("".join(pieces[i]) == answers[i].text for i in range(2))


def test_an_answer_belongs_to_the_session_that_began_it(engine, streams, model, processor):
    keeps = StreamSession.on(engine, keep_turns=True)
    keeps.observe(random_frame(5), at=5)
    before = [snapshot(session) for session in (keeps, streams[0])]
    answer = streams[0].begin("what?", Sampling(4))
    for other in (keeps, streams[1], StreamSession(model, processor)):
        for use in (other.finish, other.cancel):
            with pytest.raises(InputError, match="did not begin"):
                use(answer)
    with pytest.raises(InputError, match="is no answer"):
        keeps.finish(None)
    assert streams[0].finish(answer) == answer.text
    assert all(unchanged(session, kept) for session, kept in zip((keeps, streams[0]), before, strict=True))


def test_a_fork_did_not_begin_what_is_being_answered(engine, streams):
    answer = streams[0].begin("what?", Sampling(4))
    fork = streams[0].fork()
    with pytest.raises(InputError, match="did not begin"):
        fork.finish(answer)
    assert streams[0].finish(answer)


def test_a_listener_that_asks_gets_its_next_piece_when_it_has_returned(engine, streams):
    depth, deepest, heard = 0, 0, []

    def listen(piece):
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        heard.append(piece)
        streams[1].ask("and?", max_new_tokens=6)
        depth -= 1

    answer = streams[0].ask("what?", max_new_tokens=6, on_text=listen)
    assert deepest == 1 and "".join(heard) == answer


def test_an_interrupt_between_a_token_and_its_text_fails_whoever_waits(engine, streams, monkeypatch):
    """Another thread's answer would lack the token's text."""
    answer = streams[0].begin("what?", Sampling(9))
    push = TextBuilder.push
    monkeypatch.setattr(TextBuilder, "push", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    monkeypatch.setattr(TextBuilder, "push", push)
    with pytest.raises(StateError, match=r"cut short.*Ask again"):
        streams[0].finish(answer)


def test_an_interrupt_of_a_listener_fails_its_answer(engine, streams):
    def interrupted(piece):
        raise KeyboardInterrupt

    answer = streams[0].begin("what?", Sampling(9), interrupted)
    with pytest.raises(KeyboardInterrupt):
        while not answer.is_over:
            engine.step()
    with pytest.raises(StateError, match="cut short"):
        streams[0].finish(answer)


@pytest.mark.parametrize(
    "use",
    [
        lambda stream: stream.observe(random_frame(0), at="7"),
        lambda stream: stream.begin("what?", None),
        lambda stream: stream.ask("what?", on_text="x"),
        lambda stream: setattr(stream, "dropped", -1),
        lambda stream: setattr(stream, "dropped", "a"),
        lambda stream: stream.engine.observe(None),
        lambda stream: stream.engine.observe((stream, random_frame(0))),
        lambda stream: stream.engine.observe([5]),
        lambda stream: StreamSession.on("engine"),
        lambda stream: StreamSession.on(stream.engine, system=5),
        lambda stream: StreamSession.on(stream.engine, keep_turns="no"),
        lambda stream: Engine(stream.processor, stream.model),
    ],
)
def test_values_of_other_kinds_are_refused_by_name(streams, use):
    before, free = snapshot(streams[0]), streams[0].engine.pool.num_free
    with pytest.raises(InputError):
        use(streams[0])
    assert unchanged(streams[0], before) and streams[0].engine.pool.num_free == free
