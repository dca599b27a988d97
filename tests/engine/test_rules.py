"""Watch rules: what counts as yes, when a rule turns on and off, and what a session with rules does."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infinitevl import Engine, InputError, StreamSession
from infinitevl.engine.rules import RuleState, WatchRule, words_of
from infinitevl.processing.sources.frames import Frame
from tests.engine.streams import MODES, TIMES, snapshot, unchanged, watched
from tests.support import random_frame

QUESTION = "word"


@pytest.mark.parametrize(
    ("expect", "answer", "counts"),
    [
        ("yes", "Yes.", True),
        ("yes", " YES, it is", True),
        ("yes", "yesterday", False),
        ("yes", "no, yes", False),
        ("yes", "", False),
        ("No!", "no", True),
        ("red star", "A red star at the left", True),
        ("the red star", "red  Star", True),
        ("red star", "red", False),
        ("STOP", "stop", True),
        ("t-shirt", "T-shirt", True),
        ("A", "a", True),
        ("A", "B", False),
        ("ＡＢ1", "AB1", True),
        ("straße", "STRASSE 5", True),
        ("да", "Да, вижу", True),
    ],
)
def test_an_answer_is_yes_if_it_begins_with_the_expected_words(expect, answer, counts):
    assert WatchRule("?", 1, expect).matches(answer) is counts


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": " "},
        {"question": None},
        {"expect": ""},
        {"expect": "?!"},
        {"expect": 5},
        {"every": 0},
        {"every": -1},
        {"every": math.nan},
        {"every": math.inf},
        {"every": 1e-9},
        {"every": "10s"},
        {"every": True},
        {"confirm": 0},
        {"confirm": 1.5},
        {"release": True},
        {"cooldown": -0.1},
        {"cooldown": math.nan},
        {"cooldown": None},
    ],
)
def test_a_rule_that_cannot_be_is_refused_by_the_name_of_its_field(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        WatchRule(**{"question": "is it?", "every": 1.0, **wrong})


def events_by_definition(answers, confirm, release, cooldown):
    """Times of events, told from the whole past at every answer."""
    told, is_on, since = [], False, 0  # since: answers from here on count
    for index, (_, time) in enumerate(answers):
        recent = [is_yes for is_yes, _ in answers[since : index + 1]]
        if is_on and len(recent) >= release and not any(recent[-release:]):
            is_on, since = False, index + 1
        elif not is_on and len(recent) >= confirm and all(recent[-confirm:]):
            if told and time - told[-1] < cooldown:
                continue
            is_on, since = True, index + 1
            told.append(time)
    return told


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=40),
    st.integers(1, 4),
    st.integers(1, 4),
    st.sampled_from([0, 1, 7, 30]),
)
def test_a_rule_turns_on_and_off_as_its_definition_says(steps, confirm, release, cooldown):
    state = RuleState(WatchRule("?", 1, "yes", confirm, release, cooldown))
    time, answers, told = 0, [], []
    for is_yes, pause in steps:
        time += pause
        answers.append((is_yes, time))
        if state.push("Yes." if is_yes else "no", time):
            told.append(time)
    assert told == events_by_definition(answers, confirm, release, cooldown)


@pytest.mark.parametrize(
    ("every", "times", "asked"),
    [
        (1, [0, 0.5, 1, 1.5, 2.9, 3.0, 3.1], [0, 1, 2.9, 3.0]),
        (0.1, [0.1, 0.2, 0.3, 0.35, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (10, [3, 9.99, 10, 40, 41], [3, 10, 40]),
        (1, [-1.5, -1, -0.5, 0, 0], [-1.5, -1, 0]),
    ],
)
def test_a_rule_is_due_at_the_first_frame_and_then_once_a_period(every, times, asked):
    state, found = RuleState(WatchRule("?", every)), []
    for time in times:
        if state.is_due(time):
            state.note_asked(time)
            found.append(time)
    assert found == asked


# ------ a session with rules


def answers_of(model, processor, mode, times=TIMES):
    """What a quiet stream says after each frame."""
    session, answers = StreamSession(model, processor, mode=mode), []
    for seed, at in enumerate(times):
        session.observe(random_frame(seed), at=at)
        answers.append(session.ask(QUESTION, max_new_tokens=16))
    return answers


def first_word(answers):
    """Of the first answer that has any: a model with random weights says much else."""
    return next(words[0] for answer in answers if (words := words_of(answer)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("keep_turns", [False, True])
def test_rules_find_their_answers_and_leave_the_stream_bit_for_bit(model, processor, mode, keep_turns):
    answers, events, stopped = answers_of(model, processor, mode), [], []
    quiet = watched(model, processor, TIMES, mode=mode, keep_turns=keep_turns)
    before = snapshot(quiet)
    session = StreamSession(model, processor, mode=mode, keep_turns=keep_turns)
    expect = first_word(answers)
    session.watch(QUESTION, every=1, expect=expect, on_event=events.append)
    session.watch(QUESTION, every=1, expect="zebra", on_event=stopped.append)
    session.watch(QUESTION, every=1, expect=expect, on_event=stopped.append).stop()
    frames = [Frame(random_frame(seed).permute(1, 2, 0).numpy(), at) for seed, at in enumerate(TIMES)]
    for frame in frames:
        session.observe(frame)
    rule, state = WatchRule(QUESTION, 1, expect), RuleState(WatchRule(QUESTION, 1, expect))
    wanted = []
    for index, (at, answer) in enumerate(zip(TIMES, answers, strict=True)):
        if state.is_due(at):
            state.note_asked(at)
            if state.push(answer, at):
                wanted.append((rule, QUESTION, answer, at, index))
    assert [(e.rule, e.question, e.answer, e.time, e.frame_index) for e in events] == wanted and wanted
    assert all(event.picture is frames[event.frame_index].image for event in events)
    assert not stopped and unchanged(session, before)
    assert session.ask(QUESTION) == quiet.ask(QUESTION)


def test_rules_of_several_streams_are_asked_in_common_steps(model, processor, monkeypatch):
    engine, events = Engine(model, processor, num_slots=6), []
    streams = [StreamSession.on(engine) for _ in range(2)]
    for stream in streams:
        for expect in ("yes", "no"):
            stream.watch(QUESTION, every=1, expect=expect, on_event=events.append)
    sizes, token = [], engine.runner.token

    def counted(slots, is_greedy):
        sizes.append(len(slots))
        token(slots, is_greedy)

    monkeypatch.setattr(engine.runner, "token", counted)
    engine.observe([(stream, random_frame(0), 0.0) for stream in streams])
    assert sizes and set(sizes) == {4} and engine.pool.num_free == 4


def test_without_a_free_slot_a_rule_waits_for_a_later_frame(model, processor):
    engine, asked = Engine(model, processor, num_slots=2), []
    stream, other = StreamSession.on(engine), StreamSession.on(engine)
    watch = stream.watch(QUESTION, every=10, on_event=asked.append)
    stream.observe(random_frame(0), at=0)
    assert watch.state.asked_in is None
    other.close()
    stream.observe(random_frame(1), at=1)
    assert watch.state.asked_in == 0


def test_a_fork_and_a_saved_stream_have_no_rules_and_a_parked_one_keeps_them(model, processor, tmp_path):
    engine = Engine(model, processor, num_slots=4)
    stream = StreamSession.on(engine)
    watch = stream.watch(QUESTION, every=1, on_event=print)
    stream.observe(random_frame(0))
    assert stream.fork().watches == []
    stream.save(tmp_path / "kept")
    assert StreamSession.load_on(tmp_path / "kept", engine).watches == []
    stream.park()
    stream.observe(random_frame(1))
    assert stream.watches == [watch] and watch.state.asked_in == 1


def test_an_error_of_a_listener_comes_out_and_the_frame_is_part_of_the_stream(model, processor):
    session = StreamSession(model, processor)
    expect = first_word(answers_of(model, processor, "image", [0.0]))

    def fail(event):
        raise ValueError("listener")

    session.watch(QUESTION, every=1, expect=expect, on_event=fail)
    with pytest.raises(ValueError, match="listener"):
        session.observe(random_frame(0), at=0)
    session.observe(random_frame(1), at=0.5)
    assert session.stats().frames == 2 and session.engine.pool.num_free == 1
    with pytest.raises(InputError, match="on_event"):
        session.watch(QUESTION, every=1, on_event="print")
