"""Measurements are whole lines that say how to repeat them."""

import json

import pytest
import torch

from infinitevl.bench.clock import Timing, measure, measure_period
from infinitevl.bench.record import Place, append, counted, read_records, source_commit, timed
from infinitevl.errors import InfiniteVLError, InputError

FIELDS = "benchmark size what value unit spread repeats settings commit device versions time".split()


@pytest.fixture(scope="module")
def place():
    return Place.here("tiny", "cpu")


def test_a_line_holds_all_that_is_needed_to_repeat_it(place):
    record = timed(place, "decode", "token", Timing(2.0, 1.5, 3.0, 9), who="infinitevl", context=64)
    line = json.loads(record.line())
    assert list(line) == FIELDS
    assert (line["value"], line["unit"], line["spread"], line["repeats"]) == (2.0, "ms", [1.5, 3.0], 9)
    assert line["settings"] == {"who": "infinitevl", "context": 64}
    assert set(line["versions"]) == {"python", "torch", "triton", "transformers", "cuda"}
    assert line["versions"]["torch"] == torch.__version__
    assert line["commit"] == source_commit() and line["device"].startswith("cpu")
    assert "\n" not in record.line() and "64" in record.row() and "2 ms" in record.row()


def test_the_commit_can_be_given_where_git_does_not_know_it(monkeypatch):
    assert Place.here("tiny", "cpu", "abc123").commit == "abc123"
    monkeypatch.setenv("PATH", "")
    assert source_commit().startswith("version ")


def test_what_was_appended_is_read_back_beside_lines_of_other_kinds(place, tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"benchmark": "builtin.evaluate", "exact": 0.9}\n')
    records = [counted(place, "memory", "peak", bytes_, "B", who="infinitevl") for bytes_ in (10, 20)]
    for record in records:
        append(record, file)
    assert read_records(file) == records


def test_files_that_cannot_be_used_are_told(place, tmp_path):
    record = counted(place, "memory", "peak", 1, "B", who="infinitevl")
    with pytest.raises(InfiniteVLError, match="--out"):
        append(record, tmp_path / "missing" / "lines.jsonl")
    with pytest.raises(InputError, match="could not read"):
        read_records(tmp_path / "nothing.jsonl")
    (tmp_path / "half.jsonl").write_text('{"benchmark": \n')
    with pytest.raises(InputError, match="line 1"):
        read_records(tmp_path / "half.jsonl")


def test_the_spread_is_that_of_the_middle_nine_tenths():
    timing = Timing.of([float(sample) for sample in range(101)])
    assert (timing.median, timing.low, timing.high, timing.repeats) == (50, 5, 95, 101)
    assert timing.per(2).median == 25
    assert Timing.of([3.0]) == Timing(3.0, 3.0, 3.0, 1)


def test_warm_up_is_not_timed_and_preparation_comes_before_every_call(monkeypatch):
    clock = iter(range(10_000))
    calls = []

    def tick():
        return next(clock)

    monkeypatch.setattr("infinitevl.bench.clock.time.perf_counter", lambda: float(tick()))
    prepare = lambda: calls.append("prepare")  # noqa: E731
    timing = measure(lambda: calls.append("call"), "cpu", repeats=4, warm_up=2, prepare=prepare)
    assert calls == ["prepare", "call"] * 6
    assert timing == Timing(1000.0, 1000.0, 1000.0, 4)


def test_a_period_runs_from_the_end_of_a_call_to_the_end_of_the_next():
    calls = []
    timing = measure_period(lambda: calls.append(1), "cpu", repeats=3, warm_up=2, group=5)
    assert len(calls) == 2 + 15
    assert timing.repeats == 3 and timing.median > 0
