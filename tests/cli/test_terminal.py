import json
import os
import pty
import sys
import time
from types import SimpleNamespace

import pytest

from infinitevl.cli.output import harmless
from infinitevl.cli.terminal import JsonDisplay, TextDisplay, TypedLines
from infinitevl.errors import InputError
from infinitevl.evaluation.streaming import Answered, Asked, Piece, Refused, Seen, Summary

SUMMARY = Summary(frames=3, tokens=1048, seconds=90.0, dropped=1, state_bytes=133_000_000)
ANSWERED = Answered(1.5, "what?", "a “cat”", None, None)


def test_json_is_one_object_a_line_and_the_summary_comes_last(capsys):
    display = JsonDisplay()
    display(Asked(1.5, "what?"))
    display(Piece("a “cat”"))
    display(ANSWERED)
    display.finish(SUMMARY)
    first, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert first == {"at": 1.5, "question": "what?", "answer": "a “cat”"}
    assert last == {"frames": 3, "tokens": 1048, "seconds": 90.0, "dropped": 1, "state_bytes": 133_000_000}


def test_text_shows_the_time_the_question_and_the_answer_as_it_grows(capsys):
    display = TextDisplay()
    for event in (Asked(90.0, "what?"), Piece("a "), Piece("cat"), ANSWERED):
        display(event)
    display.finish(SUMMARY)
    shown = capsys.readouterr()
    assert shown.out.startswith("[1:30] what?\n  a cat\n3 frames, 1,048 tokens")
    assert "133 MB" in shown.out and shown.err == ""


def seen(at, frames):
    return Seen(at, None, SimpleNamespace(frames=frames, tokens=16 * frames, state_bytes=1, dropped=3))


def test_off_a_terminal_a_line_every_ten_seconds_says_how_far_the_stream_is(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    display = TextDisplay()
    for second in range(25):
        now[0] = 100.0 + second
        display(seen(second / 2, 4 * second + 1))
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.splitlines() == [
        "[0:05] 41 frames, 4.0 frames/s, 3 dropped",
        "[0:10] 81 frames, 4.0 frames/s, 3 dropped",
    ]


def test_json_keeps_standard_error_free_of_progress(capsys, monkeypatch):
    display = JsonDisplay()
    for moment in (0.0, 100.0):
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)
        display(seen(moment, 1))
    shown = capsys.readouterr()
    assert shown.out == shown.err == ""


def test_a_refused_question_is_an_error_without_markup(capsys):
    TextDisplay()(Refused("x", InputError("give [bold] text")))
    assert "error: give [bold] text" in capsys.readouterr().err


def test_an_answer_cannot_steer_the_terminal():
    assert harmless("a\x1b[2Jb\rc\nß“\t") == "a�[2Jb�c\nß“\t"


@pytest.fixture
def keyboard(monkeypatch):
    writer, reader = pty.openpty()
    with os.fdopen(reader, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield lambda text: os.write(writer, text.encode())
    os.close(writer)


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_lines_are_typed_edited_and_taken_while_something_else_goes_on(keyboard):
    with TypedLines() as typed:
        assert typed() == []
        keyboard("wha\x1b[Dx\x7ft iß it")
        wait_for(lambda: typed.unfinished() == "what iß it")
        assert typed() == []
        keyboard("?\n\nnext\n")
        lines = []
        wait_for(lambda: lines.extend(typed()) or lines == ["what iß it?", "next"])


def test_an_empty_line_ends_the_questions_after_the_stream(keyboard):
    with TypedLines() as typed:
        keyboard("one?\ntwo?\n\nthree?\n")
        assert list(typed.until_empty()) == ["one?", "two?"]
