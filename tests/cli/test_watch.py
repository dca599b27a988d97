"""What `infinitevl watch` says about questions whose moment never came."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitevl import StreamSession, load
from infinitevl.cli import app
from infinitevl.evaluation.streaming import TOGETHER
from infinitevl.interrupt import Interrupt
from tests.processing.server import body, served

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


def test_events_of_rules_are_lines_at_the_terminal_in_a_file_and_in_the_report(
    tiny_folder, clip, tmp_path, monkeypatch
):
    finish = StreamSession.finish

    def yes_at_odd_seconds(self, answer):
        finish(self, answer)
        return "Yes, red." if int(self.stats().seconds) % 2 else "no"

    monkeypatch.setattr(StreamSession, "finish", yes_at_odd_seconds)
    log, report = tmp_path / "events.jsonl", tmp_path / "report.html"
    log.write_text('{"at": "before"}\n')
    rules = ["--when", "Is it red?", "--when", "Is it red? = maybe", "--every", "0.5", "--device", "cpu"]
    files = ["--events", str(log), "--report", str(report)]
    found = run(clip, "--model", tiny_folder, "--json", *rules, *files)
    event, summary = map(json.loads, found.stdout.splitlines())
    assert event == {"at": 1.0, "rule": "Is it red?", "expect": "yes", "answer": "Yes, red.", "frame": 9}
    assert summary["frames"] == 16
    assert [json.loads(line) for line in log.read_text().splitlines()] == [{"at": "before"}, event]
    assert report.read_text().count(">noticed<") == 1
    shown = run(clip, "--model", tiny_folder, *rules, "--max-frames", "12").stdout
    assert shown.startswith("[0:01] noticed: Is it red? Yes, red.\n")
    assert "no event: 'Is it red?' was asked 4 times for 'maybe'; the last answer was" in found.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--when", " = yes"], "no condition"),
        (["--when", "sign="], "no condition"),
        (["--when", "what? = !!"], "expect"),
        (["--when", "what?", "--every", "0"], "period"),
        (["--events", "x.jsonl"], "--when"),
        (["--every", "1", "--fetch-every", "2"], "one of the two"),
        (["--when", "what?", "--events", "same", "--report", "same"], "a file of its own"),
        (["--when", "what?", "--events", "/nowhere/at/all"], "could not write"),
    ],
)
def test_rules_that_cannot_be_are_refused_before_anything_is_loaded(clip, words, told):
    result = CliRunner().invoke(app, ["watch", clip, "--model", "/nowhere", *words])
    assert result.exit_code == 2 and told in result.stderr, result.stderr


@pytest.mark.parametrize("other", ["--report", "the source", "--resume-state and --report"])
def test_files_that_would_write_over_each_other_are_refused_at_once(clip, tmp_path, other):
    path = str(tmp_path / "kept")
    given = {
        "--report": [clip, "--save-state", path, "--report", f"{tmp_path}/./kept"],
        "the source": [clip, "--save-state", clip],
        "--resume-state and --report": [clip, "--resume-state", path, "--report", path],
    }
    before = Path(clip).read_bytes()
    result = CliRunner().invoke(app, ["watch", *given[other]])
    assert result.exit_code == 2 and "a file of its own" in result.stderr
    assert Path(clip).read_bytes() == before and not Path(path).exists()


def test_a_stream_is_kept_when_nobody_reads_its_answers_any_more(tiny_folder, clip, tmp_path):
    """As in `watch ... | head -1`."""
    path = tmp_path / "kept"
    command = [
        sys.executable,
        "-c",
        "from infinitevl.cli import main; main()",
        "watch",
        clip,
        "--model",
        tiny_folder,
        "--device",
        "cpu",
        *SHORT,
    ]
    command += ["--save-state", str(path), "--ask", "every 0.2s: what?"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 2 and "standard output could not be written" in done.stderr
    session = StreamSession.load(path, *load(tiny_folder, device="cpu"))
    assert session.stats().frames > 0


def test_a_stream_is_kept_and_told_where_its_display_fails(tiny_folder, clip, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no display")

    monkeypatch.setattr("infinitevl.cli.terminal.TextDisplay.finish", fail)
    path = tmp_path / "kept"
    result = CliRunner().invoke(
        app, ["watch", clip, "--model", tiny_folder, "--save-state", str(path), *SHORT]
    )
    assert isinstance(result.exception, RuntimeError)
    assert path.exists() and f"kept in {path}" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stream_is_kept_whatever_ends_the_watching(tiny_folder, clip, tmp_path, monkeypatch, number):
    path = tmp_path / "kept"
    observe_all, save = StreamSession.observe_all, StreamSession.save

    def ended_at_the_first(self, frames):
        observe_all(self, frames)
        if self.stats().frames == len(frames):
            os.kill(os.getpid(), number)

    def ended_again(self, path):
        os.kill(os.getpid(), number)
        save(self, path)

    monkeypatch.setattr(StreamSession, "observe_all", ended_at_the_first)
    monkeypatch.setattr(StreamSession, "save", ended_again)
    run(clip, "--model", tiny_folder, "--save-state", str(path))
    assert StreamSession.load(path, *load(tiny_folder)).stats().frames == TOGETHER


def test_a_signal_that_was_to_be_ignored_stays_ignored():
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:
            os.kill(os.getpid(), signal.SIGHUP)
        assert not interrupt.pressed and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_place_where_no_file_can_lie_is_refused_before_anything_is_watched(clip, tmp_path):
    pipe, locked = tmp_path / "pipe", tmp_path / "locked"
    os.mkfifo(pipe)
    locked.mkdir(0o555)
    places = [pipe, "/dev/null", tmp_path / "none" / "kept", tmp_path, "x" * 9000, "a\0b"]
    places += [] if os.access(locked, os.W_OK) else [locked / "kept"]  # root may write anywhere
    for place in places:
        for option in ("--save-state", "--report"):
            result = CliRunner().invoke(app, ["watch", clip, option, str(place)])
            assert result.exit_code == 2 and "could not write" in result.stderr, (place, result.output)


def test_a_report_is_named_after_the_file_and_not_after_its_folder(tiny_folder, clip, tmp_path):
    path = tmp_path / "report.html"
    run(clip, "--model", tiny_folder, "--report", str(path))
    page = path.read_text()
    assert "<h1>clip.mp4</h1>" in page and str(Path(clip).parent) not in page


def test_a_password_stands_in_no_output_of_a_stream_that_is_lost(tiny_folder, picture, tmp_path, caplog):
    answers = [body(Path(picture).read_bytes())] * 2

    def next_answer(handler):
        (answers.pop() if answers else body(b"", 401))(handler)

    path = tmp_path / "report.html"
    with served({"/a.png": next_answer}) as (address, _):
        named = address.replace("://", "://user:password@") + "/a.png"
        command = ["watch", named, "--allow-private", "--every", "0.01", "--model", tiny_folder, "--json"]
        command += ["--device", "cpu", "--report", str(path), "--ask", "what?", *SHORT]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("infinitevl.processing.sources.live.FIRST_WAIT", 0.001)
            result = CliRunner().invoke(app, command)
    assert result.exit_code == 2 and "401" in result.stderr and "is lost after 10 attempts" in result.stderr
    assert len(result.stdout.splitlines()) == 2 and "opened again" in caplog.text
    for shown in (result.stdout, result.stderr, caplog.text, path.read_text()):
        assert "password" not in shown
    assert "<h1>http://***@127.0.0.1" in path.read_text()


def test_the_built_in_model_says_what_it_knows_under_its_first_answer(tiny_folder, clip):
    questions = ["--device", "cpu", "--ask", "1s: now?", "--ask", "end?"]
    assert run(clip, *questions).stderr.count("built-in model knows") == 1
    assert "built-in model" not in run(clip, "--model", tiny_folder, *questions).stderr
    assert "knows" not in run(clip, "--json", *questions).output
