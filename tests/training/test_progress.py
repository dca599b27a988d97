"""A terminal shows one line with the loss and the time left; anything else gets the lines of the log."""

import json
import sys

from infinitevl.training.progress import Progress
from infinitevl.training.training_log import TrainingLog

LINE = {"step": 12, "num_steps": 3000, "loss": 1.23456, "seconds_left": 200.4}


def test_a_terminal_shows_one_line_and_keeps_the_last(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    progress = Progress()
    with progress:
        progress.show(LINE)
        progress.show({**LINE, "step": 13})
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1 and shown.endswith("\r\n")
    assert shown.split("\r")[1].startswith("step 13 of 3,000, loss 1.235, 0:03:20 left")


def test_elsewhere_the_lines_are_those_of_the_log(tmp_path, capsys):
    log = TrainingLog(tmp_path / "log.jsonl")
    log.start(0, 3)
    with log.progress:
        log.write(1, {"loss": 2.0})
    told = capsys.readouterr().out
    assert told == (tmp_path / "log.jsonl").read_text() and json.loads(told)["loss"] == 2.0


def test_a_terminal_gets_no_json_and_the_log_does(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    log = TrainingLog(tmp_path / "log.jsonl")
    log.start(0, 3)
    log.write(1, {"loss": 2.0})
    assert "{" not in capsys.readouterr().out
    assert json.loads((tmp_path / "log.jsonl").read_text())["step"] == 1
