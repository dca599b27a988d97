"""Two GPUs with sharded weights learn what one GPU learns, and go on from its checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infinitevl.training.training_log import LOG, losses
from tests.training.stages import write_recipe, write_world

pytestmark = pytest.mark.gpu
ROOT = Path(__file__).parents[2]


def launch(num_processes, *words):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NCCL_NVLS_ENABLE": "0"}
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    program = [sys.executable, *start, "-m", "tests.training.two_processes", *map(str, words)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 CUDA GPUs")
def test_two_gpus_are_one(tmp_path):
    world = write_world(tmp_path)
    data = {"sources": [{"path": str(world / "data.jsonl")}], "row_tokens": 256, "rows_per_step": 4}
    stages = ("distill-layers", "sft")
    one, two = (
        [
            write_recipe(world, stage, world / f"{name}-{stage}", data=data, sharding="fsdp")
            for stage in stages
        ]
        for name in ("one", "two")
    )
    joined = write_recipe(world, "sft", world / "joined", data=data, sharding="fsdp")
    launch(1, *one, f"{joined}:stop=2")
    launch(2, *two, f"{joined}:resume")
    curves = {
        path.stem: [loss for _, loss in losses(path.with_suffix("") / LOG)] for path in (*one, *two, joined)
    }
    for stage in stages:
        assert curves[f"two-{stage}"] == pytest.approx(curves[f"one-{stage}"], rel=1e-3)
    assert curves["joined"] == pytest.approx(curves["one-sft"], rel=1e-3)
