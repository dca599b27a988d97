"""Two processes on the CPU learn what one learns."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.journal import losses
from infinitevl.training.run import LOG
from tests.support import relative_error
from tests.training.courses import write_recipe, write_world

ROOT = Path(__file__).parents[2]


def taught(recipe, num_processes):
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    program = [sys.executable, *launch, "-m", "tests.training.two_processes", str(recipe)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = recipe.with_suffix("")
    weights = InfiniteVLForConditionalGeneration.from_pretrained(folder / "model").state_dict()
    return weights, losses(folder / LOG)


@pytest.mark.parametrize("stage", ["distill-layers", "sft"])
def test_two_processes_are_one(tmp_path, stage):
    world = write_world(tmp_path)
    data = {"sources": [{"path": str(world / "data.jsonl")}], "row_tokens": 256, "rows_per_step": 4}
    recipes = [write_recipe(world, stage, tmp_path / f"run{n}", data=data, num_steps=3) for n in (1, 2)]
    (one, curve), (two, other) = (taught(recipe, n) for n, recipe in enumerate(recipes, 1))
    assert [step for step, _ in curve] == [step for step, _ in other]
    for (_, loss), (_, wanted) in zip(other, curve, strict=True):
        assert loss == pytest.approx(wanted, rel=1e-4)
    start = InfiniteVLForConditionalGeneration.from_pretrained(world / "student").state_dict()
    moved = [name for name in one if not torch.equal(one[name], start[name])]
    changes = [torch.cat([(x[n] - start[n]).flatten() for n in moved]) for x in (two, one)]
    assert relative_error(*changes) < 1e-2
