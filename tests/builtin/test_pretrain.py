"""Pretraining on the package's loop: what trains, that it learns, that it can be stopped and shared."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import infinitevl
from builtin.feed.scenes import SceneFeed
from builtin.pretrain import HEADS, open_learner
from builtin.stages import open_feed, read_stage, teach
from builtin.start import read_shape
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.processing.prompt.template import SPECIAL_TOKENS
from infinitevl.training.checkpoint import read_checkpoint
from infinitevl.training.training_log import LOG, losses
from tests.builtin.small import RECIPES, ROOT, pretraining, write_tiny_start

READING = {"num_pictures": 8, "buckets": {"reading": 1}, "named": True}
PICTURES = {"num_pictures": 8, "buckets": {"picture": 1}, "named": True}
OTHERS = {"num_pictures": 8, "buckets": {"stream4": 1, "text": 1, "keyed3": 1}}
DENSE = {"trains": ["vision"], "answers": 0.0, "patches": 1.0}
JOINT = {"trains": ["vision", "decoder"], "answers": 1.0, "patches": 0.2}
KEYED = {"trains": ["decoder"], "answers": 1.0, "patches": 0.0}
PHASES = {"dense": (DENSE, [READING]), "joint": (JOINT, [PICTURES, OTHERS]), "keyed": (KEYED, [OTHERS])}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    return write_tiny_start(tmp_path_factory.mktemp("start") / "model")


def stage(phase, start, out, **more):
    settings, draws = PHASES[phase]
    return pretraining(start, out, draws, **(settings | more))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return InfiniteVLForConditionalGeneration.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("name", ["teacher_dense", "teacher", "hybrid/dense", "hybrid/joint", "hybrid/keyed"])
def test_every_recipe_is_read_and_learns_from_every_batch(name):
    found = read_stage(RECIPES / f"{name}.yaml")
    assert found.recipe.stage == "pretrain"
    assert found.recipe.answers or all(draw.named for draw in found.data.scenes.draws)


@pytest.mark.parametrize("phase", PHASES)
def test_a_phase_moves_its_weights_and_no_others(start, tmp_path, phase):
    folder = teach(stage(phase, start, tmp_path / "run", num_steps=2))
    before, after = weights(start), weights(folder)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    vision = {name for name in before if name.startswith("model.visual.")}
    assert bool(moved & vision) == (phase != "keyed")
    assert bool(moved - vision) == (phase != "dense")
    assert (tmp_path / "run" / HEADS).exists() == (phase != "keyed")
    infinitevl.load(folder, device="cpu")


def test_both_losses_of_repeated_batches_fall(start, tmp_path, monkeypatch):
    first = SceneFeed.next_batches(open_feed(stage("joint", start, tmp_path / "run")))
    monkeypatch.setattr(SceneFeed, "next_batches", lambda self: first)
    recipe = stage("joint", start, tmp_path / "run", num_steps=60, learning_rate=1e-2, warm_up=0.05)
    learner = open_learner(recipe.recipe, open_feed(recipe).namer.num_objects, torch.device("cpu"))
    assert teach(recipe) is not None
    lines = log_of(tmp_path / "run")
    assert lines[-1]["answer_loss"] < 0.5 * lines[0]["answer_loss"]
    assert lines[-1]["patch_loss"] < 0.6 * lines[0]["patch_loss"]
    assert lines[0]["loss"] == pytest.approx(lines[0]["answer_loss"] + lines[0]["patch_loss"])
    found = [learner.losses(batch) for batch in first]
    answers = sum(float(each["answer_loss"].detach()) for each in found) / len(found)
    assert lines[0]["answer_loss"] == pytest.approx(answers, rel=1e-4)


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


@pytest.mark.parametrize("phase", PHASES)
def test_a_stopped_and_resumed_run_equals_one_without_a_break(start, tmp_path, phase):
    whole = teach(stage(phase, start, tmp_path / "whole"))
    part = stage(phase, start, tmp_path / "part")
    assert teach(part, stop_after=4) is None
    with pytest.raises(InfiniteVLError, match="holds a run already"):
        teach(part)
    assert read_checkpoint(tmp_path / "part")["step"] == 4
    again = teach(part, resume=True)
    one, other = weights(whole), weights(again)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert losses(tmp_path / "whole" / LOG) == losses(tmp_path / "part" / LOG)


def test_heads_go_from_one_stage_to_the_next(start, tmp_path):
    teach(stage("dense", start, tmp_path / "dense", num_steps=3))
    heads = str(tmp_path / "dense" / HEADS)
    joint = stage("joint", tmp_path / "dense" / "model", tmp_path / "joint", heads=heads)
    num_objects = open_feed(joint).namer.num_objects
    fresh = joint.changed(heads=None)
    known, new = (
        open_learner(each.recipe, num_objects, torch.device("cpu")).heads.state_dict()
        for each in (joint, fresh)
    )
    assert not torch.equal(known["objects.weight"], new["objects.weight"])
    with pytest.raises(InputError, match="does not hold heads for this model and world"):
        open_learner(joint.recipe, num_objects + 1, torch.device("cpu"))


@pytest.mark.parametrize(
    ("changes", "draws", "message"),
    [
        ({"answers": 0.0, "patches": 1.0}, [PICTURES, OTHERS], "all draws must be `named`"),
        ({"answers": 1.0, "patches": 1.0}, [OTHERS], "at least one of the draws must be `named`"),
    ],
)
def test_a_batch_that_would_teach_nothing_is_refused(start, tmp_path, changes, draws, message):
    with pytest.raises(InputError, match=message):
        teach(pretraining(start, tmp_path / "run", draws, **changes))


def test_mistakes_in_a_recipe_are_named(start, tmp_path):
    with pytest.raises(InputError, match=r"unknown setting 'patchs' \(did you mean 'patches'"):
        stage("dense", start, tmp_path, patchs=1)
    with pytest.raises(InputError, match="sharding"):
        stage("dense", start, tmp_path, sharding="fsdp")
    path = tmp_path / "shape.yaml"
    path.write_text((RECIPES / "hybrid/shape.yaml").read_text().replace("vocabulary:", "vocabularie:"))
    with pytest.raises(InputError, match=r"'vocabularie'.*did you mean 'vocabulary'"):
        read_shape(path)


def test_a_model_takes_over_the_weights_of_another_one_but_for_mixers_of_another_kind(start, tmp_path):
    folder = write_tiny_start(tmp_path / "teacher", "teacher_shape.yaml", seed=2, weights=str(start))
    before, after = weights(start), weights(folder)
    for name in after:
        is_new = any(f"layers.{number}.self_attn." in name for number in (1, 2, 3))
        assert is_new or torch.equal(after[name], before[name]), name
    query = "model.language_model.layers.1.self_attn.q_proj.weight"
    assert not torch.equal(before[query], after[query])


def test_the_built_in_shape_is_small():
    with torch.device("meta"):
        ids = dict.fromkeys(SPECIAL_TOKENS, 0)
        model = InfiniteVLForConditionalGeneration(read_shape(RECIPES / "hybrid/shape.yaml").config(ids))
    assert sum(weight.numel() for weight in model.parameters()) * 2 < 24e6


def test_two_processes_learn_from_batches_that_use_different_weights(start, tmp_path):
    found = stage("joint", start, tmp_path / "run", num_steps=4)
    plain = found.recipe.model_dump(mode="json", exclude_none=True)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(plain | {"data": found.data.model_dump(mode="json")}, sort_keys=False))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    program = [sys.executable, *launch, "-m", "builtin.teach", str(recipe)]
    done = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = log_of(tmp_path / "run")
    assert len(lines) == 4
    settings, tokenizer = found.data.scenes, open_feed(found).planner.writer.tokenizer
    feeds = [SceneFeed(settings, tokenizer, found.recipe.seed, 4, rank=rank) for rank in (0, 1)]
    learner = open_learner(found.recipe, feeds[0].namer.num_objects, torch.device("cpu"))
    batches = [batch for feed in feeds for batch in feed.next_batches()]
    means = [sum(float(term.detach()) for term in learner.losses(batch).values()) for batch in batches]
    assert lines[0]["loss"] == pytest.approx(sum(means) / len(means), rel=1e-4)
