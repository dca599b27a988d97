"""`infinitevl bench` from the options to the lines."""

import pytest
from typer.testing import CliRunner

from infinitevl.bench.record import read_records
from infinitevl.cli import app

RUNS = {
    "stream": ["--frames", "2,3"],
    "decode": ["--contexts", "8,20", "--answers", "3"],
    "prefill": ["--lengths", "20"],
    "streams": ["--counts", "1,2"],
    "fork": [],
    "memory": ["--tokens", "20,60"],
}
WANTED = {
    "stream": {
        ("infinitevl", "frame"),
        ("infinitevl", "frame latency"),
        ("infinitevl", "memory"),
        ("infinitevl", "state"),
        ("infinitevl", "first token"),
        ("transformer eager", "frame"),
        ("transformer eager", "memory"),
    },
    "decode": {("infinitevl", "token"), ("transformer eager", "token"), ("transformer graphed", "token")},
    "prefill": {("infinitevl", "prefill"), ("transformer eager", "prefill")},
    "streams": {("infinitevl", what) for what in ("step", "step latency", "frames in sum", "memory")},
    "fork": {("infinitevl", "fork"), ("infinitevl", "read and written")},
    "memory": {
        ("infinitevl", "allocated"),
        ("infinitevl", "reserved"),
        ("infinitevl", "peak reserved"),
    },
}


def bench(*words):
    return CliRunner().invoke(app, ["bench", *words], catch_exceptions=False)


@pytest.mark.parametrize("name", RUNS)
def test_every_benchmark_runs_on_a_cpu_and_keeps_its_lines(name, tmp_path):
    file = tmp_path / "lines.jsonl"
    repeats = [] if name == "memory" else ["--repeats", "2"]
    words = [*RUNS[name], *repeats, "--size", "tiny", "--device", "cpu", "--out", str(file)]
    finished = bench(name, *words, "--commit", "abc")
    assert finished.exit_code == 0, finished.output
    records = read_records(file)
    assert {(record.who, record.what) for record in records} == WANTED[name]
    assert {(record.benchmark, record.commit, record.size) for record in records} == {(name, "abc", "tiny")}
    assert all(record.value > 0 for record in records)
    assert len(finished.stdout.splitlines()) == len(records)


def test_a_variant_of_attention_is_measured_and_named_in_our_lines_alone(tmp_path):
    words = ["--size", "tiny", "--device", "cpu", "--repeats", "1", "--out", str(tmp_path / "lines")]
    bench("stream", "--frames", "2", *words, "--attention", "full")
    records = read_records(tmp_path / "lines")
    assert {r.settings.get("attention_variant") for r in records if r.who == "infinitevl"} == {"full"}
    assert not any("attention_variant" in r.settings for r in records if r.who != "infinitevl")
    (state,) = [record.value for record in records if record.what == "state"]
    assert state > 128_000 * 2 * 2 * 8 * 4  # one layer's keys and values, two heads of eight numbers


def test_contexts_are_those_asked_for_and_the_peer_can_be_left_out(tmp_path):
    file = tmp_path / "lines.jsonl"
    words = ["--contexts", "20,8", "--answers", "", "--repeats", "1", "--no-peer"]
    bench("decode", *words, "--size", "tiny", "--device", "cpu", "--out", str(file))
    records = read_records(file)
    assert [record.settings["context"] for record in records] == [8, 20]
    assert {record.who for record in records} == {"infinitevl"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["decode", "--size", "4b", "--device", "cpu"], "about 9 GB and a CUDA device"),
        (["decode", "--contexts", "1K"], "--contexts is '1K'"),
        (["decode", "--contexts", "0"], "above 0"),
        (["decode", "--size", "builtin", "--peer"], "--no-peer"),
        (["fork", "--device", "nowhere"], "--device 'nowhere'"),
        (["fork", "--out", "missing/folder/lines.jsonl"], "there is no folder"),
        (["draw", "nothing.jsonl"], "could not read nothing.jsonl"),
    ],
)
def test_what_cannot_be_measured_is_told_in_a_sentence(words, told):
    finished = bench(*words)
    assert finished.exit_code == 2
    assert told in " ".join(finished.stderr.split())


@pytest.mark.parametrize(("quantization", "largest"), [("int8", 0.2), ("fp8", 0.5), ("int4", 1.0)])
def test_lower_precision_stands_beside_its_speed_with_its_error(quantization, largest, tmp_path):
    file = tmp_path / "lines.jsonl"
    words = [
        "--contexts",
        "8",
        "--answers",
        "2",
        "--repeats",
        "1",
        "--no-peer",
        "--quantization",
        quantization,
    ]
    bench("decode", *words, "--size", "tiny", "--device", "cpu", "--out", str(file))
    settings = [record.settings for record in read_records(file)]
    assert len(settings) == 2 and {line["quantization"] for line in settings} == {quantization}
    assert all(0 < line["logits_error"] < largest and 0 < line["same_token"] <= 1 for line in settings)
