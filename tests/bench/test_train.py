"""`infinitevl bench train` from the options to the lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from infinitevl.bench.record import read_records
from infinitevl.cli import app

ROOT = Path(__file__).parents[2]
WHAT = ["training step", "tokens in sum", "operations", "large product", "share of product", "peak memory"]


def words(file, stage="sft", steps=4):
    given = ["train", "--stage", stage, "--size", "tiny", "--device", "cpu", "--tokens", "128"]
    return ["bench", *given, "--steps", str(steps), "--out", str(file), "--commit", "abc"]


@pytest.mark.parametrize("stage", ["sft", "long-sft", "distill-layers", "distill-logits"])
def test_every_stage_runs_on_a_cpu_and_keeps_its_lines(tmp_path, stage):
    file = tmp_path / "lines.jsonl"
    finished = CliRunner().invoke(app, words(file, stage), catch_exceptions=False)
    assert finished.exit_code == 0, finished.output
    records = read_records(file)
    assert [record.what for record in records] == [*WHAT, "last loss"]
    assert all(record.value > 0 and record.settings["stage"] == stage for record in records)
    assert len(records[-1].settings["losses"]) == 4
    assert records[0].settings["checkpointed"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp", "fsdp-grad-op"])
def test_two_processes_are_measured_beside_one(tmp_path, sharding):
    file = tmp_path / "lines.jsonl"
    CliRunner().invoke(app, [*words(file), "--checkpointed", "4"], catch_exceptions=False)
    program = "from infinitevl.cli import main; main()"
    (tmp_path / "cli.py").write_text(program)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*start, str(tmp_path / "cli.py"), *words(file), "--sharding", sharding]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {record.what: record for record in read_records(file) if record.settings["processes"] == 2}
    assert list(lines) == [*WHAT, "last loss", "scaling", "losses apart"]
    assert lines["losses apart"].value < 1e-6


def test_fewer_rows_than_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    finished = CliRunner().invoke(app, words(tmp_path / "lines.jsonl"))
    assert finished.exit_code == 2 and "--rows is 2" in finished.output
