"""Two processes on the CPU learn what one learns, with whole weights and with sharded ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.checkpoint import read_checkpoint
from infinitevl.training.parts import STAGES
from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import MODEL, teach
from infinitevl.training.training_log import LOG, losses
from tests.support import relative_error
from tests.training.stages import write_recipe, write_world

ROOT = Path(__file__).parents[2]
CASES = [
    ("none", "distill-layers"),
    ("none", "sft"),
    *(("fsdp", stage) for stage in STAGES),
    ("fsdp-grad-op", "sft"),
]


def launch(*words):
    """Teach one recipe after the other in two processes."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = [sys.executable, *start, "-m", "tests.training.two_processes", *map(str, words)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def recipe_of(world, stage, name, **changes):
    data = {"sources": [{"path": str(world / "data.jsonl")}], "row_tokens": 256, "rows_per_step": 4}
    if stage == "long-sft":
        changes["lora"] = {"rank": 3, "alpha": 8, "dropout": 0.0}  # 3 is shared unequally
    return write_recipe(world, stage, world / name, data=data, num_steps=3, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of runs by case, those of one process by stage, and those that changed their processes."""
    world = write_world(tmp_path_factory.mktemp("world"))
    for stage in STAGES:
        teach(read_recipe(recipe_of(world, stage, f"one-{stage}")))
    recipes = [
        recipe_of(world, stage, f"{sharding}-{stage}", sharding=sharding, gradient_checkpointing=True)
        for sharding, stage in CASES
    ]
    names = ("spread", "joined", "pressed")
    spread, joined, pressed = (recipe_of(world, "sft", name, sharding="fsdp") for name in names)
    teach(read_recipe(spread), stop_after=2)
    launch(*recipes, f"{spread}:resume", f"{joined}:stop=2", f"{pressed}:press=2")
    assert read_checkpoint(world / "pressed")["step"] == 2
    for recipe in (joined, pressed):
        teach(read_recipe(recipe), resume=True)
    return world


def curve(folder):
    return [loss for _, loss in losses(folder / LOG)]


def weights(folder):
    return InfiniteVLForConditionalGeneration.from_pretrained(folder).state_dict()


@pytest.mark.parametrize(("sharding", "stage"), CASES)
def test_two_processes_are_one(runs, sharding, stage):
    one, two = runs / f"one-{stage}", runs / f"{sharding}-{stage}"
    assert curve(two) == pytest.approx(curve(one), rel=1e-6)
    first, second, start = weights(one / MODEL), weights(two / MODEL), weights(runs / "student")
    moved = [name for name in first if not torch.equal(first[name], start[name])]
    assert moved == [name for name in second if not torch.equal(second[name], start[name])]
    changes = [torch.cat([(x[n] - start[n]).flatten() for n in moved]) for x in (second, first)]
    assert relative_error(*changes) < 1e-2


@pytest.mark.parametrize("name", ["spread", "joined", "pressed"])
def test_a_run_goes_on_with_another_number_of_processes(runs, name):
    assert curve(runs / name) == pytest.approx(curve(runs / "one-sft"), rel=1e-6)
