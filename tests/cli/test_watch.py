"""What `infinitevl watch` says about questions whose moment never came."""

import json

from typer.testing import CliRunner

from infinitevl.cli import app

ASKED = ["--ask", "1s: now?", "--ask", "30s: late?", "--ask", "1m: later?", "--ask", "end?"]
SHORT = ["--max-new-tokens", "2"]


def run(*arguments):
    result = CliRunner().invoke(app, ["watch", *arguments, *SHORT])
    assert result.exit_code == 0, result.stderr or result.exception
    return result


def test_a_question_for_a_time_after_the_end_says_that_the_stream_ended_before_it(tiny_folder, clip):
    shown = run(clip, "--model", tiny_folder, *ASKED).stdout
    told = [line for line in shown.splitlines() if "ended before" in line]
    assert told == [
        f"[0:01.9] (the stream ended before {time}: it was asked here instead)" for time in ("0:30", "1:00")
    ]
    assert shown.index("late?") < shown.index("ended before") < shown.index("frames, ")


def test_json_keeps_its_lines_and_tells_it_on_standard_error(tiny_folder, clip):
    result = run(clip, "--model", tiny_folder, "--json", *ASKED)
    *answers, last = map(json.loads, result.stdout.splitlines())
    assert [list(answer) for answer in answers] == [["at", "question", "answer"]] * 4
    assert list(last) == ["frames", "tokens", "seconds", "dropped", "state_bytes"]
    assert result.stderr.count("ended before") == 2 and "ended before 0:30" in result.stderr


def test_nothing_is_told_where_every_moment_came(tiny_folder, clip):
    result = run(
        clip, "--model", tiny_folder, "--ask", "1s: now?", "--ask", "1.8s: between?", "--ask", "end?"
    )
    assert "ended before" not in result.output
