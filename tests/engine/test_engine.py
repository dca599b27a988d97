"""Many streams on one engine: each as if it were alone."""

import threading

import pytest
import torch

from infinitevl.engine.chat import ChatSession
from infinitevl.engine.engine import Engine
from infinitevl.engine.sampling import Sampling
from infinitevl.engine.session import StreamSession
from infinitevl.errors import InputError, StateError
from infinitevl.processing.pictures.scaling import resize_frame
from tests.engine.streams import MODES, TIMES, snapshot, unchanged, watched
from tests.support import random_frame, relative_error


def on(engine, times=(), seed=0, **kwargs):
    """A session on `engine` that has seen a random frame at each time."""
    session = StreamSession.on(engine, **kwargs)
    for index, at in enumerate(times):
        session.observe(random_frame(seed + index), at=at)
    return session


def close_to(session, other):
    wanted = other.state.tensors()
    for name, tensor in session.state.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(tensor, wanted[name]) < 1e-5, name
        else:
            assert torch.equal(tensor, wanted[name]), name
    return True


@pytest.mark.parametrize("mode", MODES)
def test_streams_in_common_steps_equal_streams_alone(model, processor, mode):
    engine = Engine(model, processor, num_slots=6, mode=mode)
    on(engine).close()
    together = [on(engine) for _ in range(3)]
    for index, at in enumerate(TIMES):
        frames = [(session, random_frame(10 * n + index), at * (n + 1)) for n, session in enumerate(together)]
        engine.observe(frames if index % 2 else frames[::-1])
    for n, session in enumerate(together):
        alone = StreamSession(model, processor, mode=mode)
        for index, at in enumerate(TIMES):
            alone.observe(random_frame(10 * n + index), at=at * (n + 1))
        assert close_to(session, alone)
        assert session.ask("what?", max_new_tokens=6) == alone.ask("what?", max_new_tokens=6)


def test_streams_that_are_out_of_step_share_video_frames(model, processor):
    """One waits for a partner while the other's pair is complete."""
    engine = Engine(model, processor, num_slots=3, mode="video")
    early, late = on(engine, [0.0]), on(engine)
    for index in range(4):
        engine.observe(
            [(early, random_frame(1 + index), 1.0 + index), (late, random_frame(50 + index), index)]
        )
    assert close_to(early, watched(model, processor, [0.0, 1.0, 2.0, 3.0, 4.0], mode="video"))
    assert early.state.span.has_waiting and not late.state.span.has_waiting


def test_answers_generated_together_equal_answers_alone(model, processor):
    engine = Engine(model, processor, num_slots=9)
    sessions = [on(engine, TIMES[: 2 + n], seed=20 * n) for n in range(4)]
    questions = [(f"question {n}?", Sampling(3 + 4 * n, temperature=n % 2, seed=n)) for n in range(4)]
    begun = [session.begin(*asked) for session, asked in zip(sessions, questions, strict=True)]
    texts = [session.finish(answer) for session, answer in zip(sessions, begun, strict=True)]
    for session, (question, sampling), text in zip(sessions, questions, texts, strict=True):
        alone = session.ask(
            question,
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            seed=sampling.seed,
        )
        assert alone == text
    assert [len(answer.tokens) for answer in begun] == [3, 7, 11, 15]


def test_an_answer_that_joins_later_changes_nothing_of_one_under_way(model, processor):
    engine = Engine(model, processor, num_slots=4)
    first, second = on(engine, TIMES[:3]), on(engine, TIMES[:4], seed=9)
    wanted = [first.ask("a?", max_new_tokens=12), second.ask("b?", max_new_tokens=5)]
    before = snapshot(first), snapshot(second)
    begun = first.begin("a?", Sampling(12))
    for _ in range(3):
        engine.step()
    joined = second.begin("b?", Sampling(5))
    second_text = second.finish(joined)
    assert [first.finish(begun), second_text] == wanted
    assert unchanged(first, before[0]) and unchanged(second, before[1])


def test_a_stream_goes_on_while_it_is_asked(model, processor):
    engine = Engine(model, processor, num_slots=2)
    session = on(engine, TIMES[:3])
    wanted = session.ask("what?", max_new_tokens=8)
    begun = session.begin("what?", Sampling(8))
    for index, at in enumerate(TIMES[3:]):
        engine.step()
        session.observe(random_frame(3 + index), at=at)
    assert session.finish(begun) == wanted
    assert unchanged(session, snapshot(watched(model, processor, TIMES)))


def test_a_slot_that_is_used_again_carries_nothing_over(model, processor):
    engine = Engine(model, processor, num_slots=2, mode="video")
    session = on(engine, TIMES[:5])
    session.dropped = 3
    session.close()
    fresh = on(engine)
    assert not any(tensor.any() for tensor in fresh.state.tensors().values())
    for index, at in enumerate(TIMES[:4]):
        fresh.observe(random_frame(index), at=at)
    assert unchanged(fresh, snapshot(watched(model, processor, TIMES[:4], mode="video")))


def test_a_parked_stream_comes_back_bit_for_bit_in_another_slot(model, processor):
    engine = Engine(model, processor, num_slots=2)
    session = on(engine, TIMES[:5])
    before, index = snapshot(session), session.slot.index
    session.park()
    other = on(engine, TIMES[:3], seed=40)
    assert other.slot.index == index
    assert unchanged(session, before) and session.slot.index != index
    other.close()
    session.observe(random_frame(5), at=TIMES[5])
    assert unchanged(session, snapshot(watched(model, processor, TIMES[:6])))


def test_forks_of_streams_on_an_engine_are_independent(model, processor):
    engine = Engine(model, processor, num_slots=4)
    session = on(engine, TIMES[:4])
    before = snapshot(session)
    with session.fork() as twin:
        assert unchanged(twin, before)
        twin.observe(random_frame(9), at=30.0)
        assert twin.stats().frames == 5
    assert unchanged(session, before) and session.stats().frames == 4
    assert engine.pool.num_free == 3


def test_more_streams_than_slots_are_refused_with_advice(model, processor):
    engine = Engine(model, processor, num_slots=2)
    session, other = on(engine, TIMES[:2]), on(engine)
    for attempt in (lambda: on(engine), session.fork, lambda: session.ask("what?")):
        with pytest.raises(StateError, match=r"all 2 slots .* are taken.*Close or park"):
            attempt()
    other.close()
    assert session.ask("what?", max_new_tokens=2)
    assert engine.pool.num_free == 1


def test_more_slots_than_memory_are_refused_with_their_size(model, processor):
    with pytest.raises(StateError, match=r"1,000,000,00\d streams takes .* GB .*Make room for fewer"):
        Engine(model, processor, num_slots=10**9)


def test_a_closed_stream_says_so(model, processor):
    session = on(Engine(model, processor))
    session.close()
    session.close()
    with pytest.raises(StateError, match="was closed"):
        session.observe(random_frame(0))


def test_an_error_while_text_is_shown_frees_the_slot(model, processor):
    engine = Engine(model, processor, num_slots=2)
    session = on(engine, TIMES[:3])
    before = snapshot(session)

    def fail(piece):
        raise RuntimeError("shown badly")

    with pytest.raises(RuntimeError, match="shown badly"):
        session.ask("what?", max_new_tokens=20, on_text=fail)
    assert engine.pool.num_free == 1 and unchanged(session, before)
    assert session.ask("what?", max_new_tokens=3)


def test_one_bad_frame_among_several_leaves_all_streams_as_they_were(model, processor):
    engine = Engine(model, processor, num_slots=3)
    a, b = on(engine, TIMES[:2]), on(engine, TIMES[:3])
    before = snapshot(a), snapshot(b)
    with pytest.raises(InputError):
        engine.observe([(a, random_frame(1), 50.0), (b, "no picture", 50.0)])
    with pytest.raises(InputError, match="time goes backwards"):
        engine.observe([(a, random_frame(1), 50.0), (b, random_frame(1), 0.0)])
    for no_frame in ((ChatSession.on(engine), random_frame(1)), (a,)):
        with pytest.raises(InputError, match=r"engine\.observe takes"):
            engine.observe([no_frame])
    with pytest.raises(InputError, match="one engine"):
        engine.observe([(a, random_frame(1), 50.0), (a, random_frame(1), 51.0)])
    assert unchanged(a, before[0]) and unchanged(b, before[1])
    assert a.stats().seconds == TIMES[1]


def test_threads_may_share_an_engine(model, processor):
    engine, texts = Engine(model, processor, num_slots=8), {}
    sessions = [on(engine, TIMES[:3], seed=30 * n) for n in range(4)]
    wanted = {n: session.ask("what?", max_new_tokens=9) for n, session in enumerate(sessions)}

    def work(n):
        for index in range(3):
            texts[n] = sessions[n].ask("what?", max_new_tokens=9)
            if index < 2:
                sessions[n].fork().close()

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert texts == wanted and engine.pool.num_free == 4


@pytest.mark.parametrize(
    "settings", [{"num_slots": 0}, {"num_slots": 2.5}, {"mode": "film"}, {"frame_size": 57}]
)
def test_bad_settings_of_an_engine_are_refused(model, processor, settings):
    with pytest.raises(InputError):
        Engine(model, processor, **settings)


def lasting(read):
    """A `read` that answers, as a captured one, with a tensor that the next reading writes over."""
    held = []

    def reading(*args):
        hidden = read(*args)
        held[:] = held or [hidden.clone()]
        return held[0].copy_(hidden)

    return reading


def test_threads_that_ask_at_the_same_moment_get_their_own_answers(model, processor, monkeypatch):
    """What reading a question returned stands until the next reading, so nobody reads before it is used."""
    engine = Engine(model, processor, num_slots=4)
    one, two = on(engine, TIMES[:3]), on(engine, TIMES[:4], seed=9)
    wanted = one.ask("a?", max_new_tokens=6), two.ask("b, b and b?", max_new_tokens=6)
    monkeypatch.setattr(engine.runner, "read", lasting(engine.runner.read))
    read_turn, begun, threads = engine.read_turn, {}, []

    def ask_other():
        begun["two"] = two.begin("b, b and b?", Sampling(6))

    def read_then_other(slot, turn_ids):
        hidden = read_turn(slot, turn_ids)
        if not threads:
            threads.append(threading.Thread(target=ask_other))
            threads[0].start()
            threads[0].join(0.3)
        return hidden

    monkeypatch.setattr(engine, "read_turn", read_then_other)
    begun["one"] = one.begin("a?", Sampling(6))
    threads[0].join(30)
    assert (one.finish(begun["one"]), two.finish(begun["two"])) == wanted


def test_a_stream_that_is_closed_while_it_watches_writes_to_no_other(model, processor, monkeypatch):
    engine = Engine(model, processor, num_slots=1)
    session, opened, threads = on(engine), [], []

    def replace_stream():
        session.close()
        opened.append(on(engine))

    def check_then_other(at, newest):
        threads.append(threading.Thread(target=replace_stream))
        threads[0].start()
        threads[0].join(0.3)
        return 0

    monkeypatch.setattr(session, "_checked_time", check_then_other)
    session.observe(random_frame(0))
    threads[0].join(30)
    assert not any(tensor.any() for tensor in opened[0].state.tensors().values())


def test_threads_may_watch_ask_fork_park_and_close_at_once(model, processor):
    engine, errors = Engine(model, processor, num_slots=12), []
    session = on(engine, TIMES[:2])

    def often(work):
        def run():
            try:
                for _ in range(8):
                    work()
            except Exception as error:
                errors.append(error)

        return threading.Thread(target=run)

    works = [
        lambda: session.observe(random_frame(1)),
        lambda: session.observe(random_frame(2)),
        lambda: session.ask("what?", max_new_tokens=3),
        lambda: session.fork().close(),
        session.park,
    ]
    threads = [often(work) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors and session.stats().frames == 18
    assert engine.pool.num_free == 11
    assert int(session.state.length) == 1 + 18 * engine.steps.num_tokens


def test_pictures_are_seen_alike_with_a_plan_that_is_kept(model, processor):
    """A captured step reads its plan where it lay, so it may not depend on the cache of plans."""
    engine = Engine(model, processor)
    frames = [resize_frame(random_frame(seed), engine.frame_size) for seed in range(2)]
    clips = torch.stack(frames)[:, None].to(model.device)
    with torch.no_grad():
        kept = engine.steps.encode(clips, engine.steps.plan(2, clips.device))
        assert torch.equal(kept, engine.steps.encode(clips))
