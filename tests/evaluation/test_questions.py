import pytest

from infinitevl.errors import InputError
from infinitevl.evaluation.questions import (
    TimedQuestion,
    in_order,
    parse_condition,
    parse_period,
    parse_question,
)
from infinitevl.evaluation.units import show_time


@pytest.mark.parametrize(
    ("line", "at"),
    [
        ("30s: what is it?", 30.0),
        ("1m30s: what is it?", 90.0),
        ("1h2m3.5s: what is it?", 3723.5),
        ("00:30: what is it?", 30.0),
        ("1:02:03: what is it?", 3723.0),
        ("90:00:what is it?", 5400.0),
        ("0s: what is it?", 0.0),
        ("what is it?", None),
    ],
)
def test_a_time_before_the_colon_is_read_in_every_form(line, at):
    assert parse_question(line) == TimedQuestion("what is it?", at)


@pytest.mark.parametrize(("line", "every"), [("every 10s: who?", 10.0), ("Every 1m30s: who?", 90.0)])
def test_a_question_can_be_asked_again_and_again(line, every):
    assert parse_question(line) == TimedQuestion("who?", every, every)


@pytest.mark.parametrize("line", ["every 0s: who?", "every 10: who?", "every 2s:"])
def test_a_period_that_cannot_be_meant_is_refused(line):
    with pytest.raises(InputError):
        parse_question(line)


def test_a_word_before_a_colon_that_is_no_period_is_part_of_the_question():
    assert parse_question("every dog: where is it?") == TimedQuestion("every dog: where is it?")


@pytest.mark.parametrize(
    "line",
    ["Look: what is it?", "10:30 is the time, is it not?", "2 dogs: where are they?", "Is 3s: a time?"],
)
def test_a_question_that_merely_holds_a_colon_is_asked_at_the_end(line):
    assert parse_question(line) == TimedQuestion(line, None)


@pytest.mark.parametrize("line", ["30: what?", "30x: what?", "-5s: what?", "00:75: what?", "1:99:00: what?"])
def test_a_time_that_cannot_be_read_is_an_error_that_shows_the_valid_forms(line):
    with pytest.raises(InputError, match=r"1m30s.*00:30"):
        parse_question(line)


@pytest.mark.parametrize("line", ["", "  ", "30s:", "30s:   "])
def test_an_empty_question_is_an_error(line):
    with pytest.raises(InputError, match="no question"):
        parse_question(line)


def test_questions_stand_in_the_order_of_their_times_and_those_for_the_end_come_last():
    lines = ["last?", "9s: b?", "2s: a?", "9s: c?"]
    assert [question.text for question in in_order(map(parse_question, lines))] == ["a?", "b?", "c?", "last?"]


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("Is it red?", ("Is it red?", "yes")),
        ("What is on the sign? = STOP", ("What is on the sign?", "STOP")),
        ("What is on the sign? =STOP ", ("What is on the sign?", "STOP")),
        ("Is a = b on it? = no", ("Is a = b on it?", "no")),
        ("Is a=b on it?", ("Is a=b on it?", "yes")),
    ],
)
def test_a_condition_is_a_question_and_the_answer_that_is_waited_for(line, parts):
    assert parse_condition(line) == parts


@pytest.mark.parametrize("line", ["", " ", "=", "x=", " = yes", "Is it red? =", "Is it red? =  "])
def test_a_condition_without_a_question_or_an_answer_is_refused(line):
    with pytest.raises(InputError, match="no condition"):
        parse_condition(line)


@pytest.mark.parametrize(
    ("text", "seconds"), [("10s", 10), ("1m30s", 90), ("2.5", 2.5), (".5", 0.5), ("7", 7)]
)
def test_a_period_is_a_time_or_a_number_of_seconds(text, seconds):
    assert parse_period(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1", "soon", "inf", "nan", "1e3", "9" * 400])
def test_a_period_that_never_ends_or_is_none_is_refused(text):
    with pytest.raises(InputError):
        parse_period(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.5, "0:07.5"), (59.96, "1:00"), (90, "1:30"), (3723, "1:02:03")]
)
def test_times_are_shown_as_a_clock_shows_them(seconds, text):
    assert show_time(seconds) == text
