"""Every stage from its recipe to a folder that answers."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import infinitevl
from infinitevl.errors import InfiniteVLError
from infinitevl.model import adapters
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.training.parts import STAGES, TRAINED, Part, part_of
from infinitevl.training.preview import preview
from infinitevl.training.recipes import read_recipe
from infinitevl.training.stage import ADAPTER, MODEL, export, teach
from infinitevl.training.training_log import LOG, losses
from tests.training.stages import write_recipe, write_world

load = InfiniteVLForConditionalGeneration.from_pretrained


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_ends_in_a_folder_that_answers_with_frozen_weights_as_they_were(world, tmp_path, stage):
    folder = teach(read_recipe(write_recipe(world, stage, tmp_path / "run")))
    assert folder == tmp_path / "run" / MODEL
    model, processor = infinitevl.load(folder)
    assert isinstance(infinitevl.ChatSession(model, processor).say("word"), str)
    before, after = load(world / "student").state_dict(), load(folder).state_dict()
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    kinds = model.config.text_config.layer_types
    parts = TRAINED[stage] or {Part.DELTA_NET, Part.ATTENTION, Part.FEED_FORWARD}
    assert {part_of(name, kinds) for name in moved} == parts
    assert len(losses(tmp_path / "run" / LOG)) == 5
    assert (tmp_path / "run" / ADAPTER / "adapter_model.safetensors").exists() == (stage == "long-sft")


def test_a_stage_may_give_its_student_sinks_and_the_finished_folder_remembers_them(world, tmp_path):
    recipe = read_recipe(write_recipe(world, "long-sft", tmp_path / "run", attention="streaming"))
    assert teach(recipe, stop_after=3) is None
    with pytest.raises(InfiniteVLError, match="attention"):
        teach(recipe.model_copy(update={"attention": None}), resume=True)
    text = load(teach(recipe, resume=True)).config.text_config
    assert (text.num_sink_tokens, text.sliding_window) == (3, 9)


def test_sft_can_train_the_mixers_alone(world, tmp_path):
    folder = teach(read_recipe(write_recipe(world, "sft", tmp_path / "run", trains="mixers", num_steps=2)))
    before, after = load(world / "student"), load(folder).state_dict()
    kinds = before.config.text_config.layer_types
    moved = {name for name, weight in before.state_dict().items() if not torch.equal(weight, after[name])}
    assert {part_of(name, kinds) for name in moved} == {Part.DELTA_NET, Part.ATTENTION}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_stopped_and_goes_on_is_uninterrupted_bit_for_bit(world, tmp_path, stage):
    whole = teach(read_recipe(write_recipe(world, stage, tmp_path / "whole")))
    recipe = read_recipe(write_recipe(world, stage, tmp_path / "part"))
    assert teach(recipe, stop_after=3) is None
    with pytest.raises(InfiniteVLError, match="--resume"):
        teach(recipe)
    part = teach(recipe, resume=True)
    wanted, found = load(whole).state_dict(), load(part).state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in found.items())
    assert losses(tmp_path / "whole" / LOG) == losses(tmp_path / "part" / LOG)


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_trains_too(world, tmp_path, stage):
    more = {"dtype": "bfloat16", "gradient_checkpointing": True, "num_steps": 12, "learning_rate": 5e-3}
    teach(read_recipe(write_recipe(world, stage, tmp_path / "run", **more)))
    curve = [loss for _, loss in losses(tmp_path / "run" / LOG)]
    assert sum(curve[-3:]) < sum(curve[:3])


@pytest.mark.parametrize("stage", ["distill-layers", "long-sft"])
def test_a_checkpoint_in_the_middle_of_a_stage_answers_too(world, tmp_path, stage):
    recipe = read_recipe(write_recipe(world, stage, tmp_path / "run"))
    with pytest.raises(InfiniteVLError, match=r"no .*checkpoint"):
        export(recipe)
    teach(recipe, stop_after=3)
    folder = export(recipe)
    assert folder == tmp_path / "run" / "model-3"
    model, processor = infinitevl.load(folder)
    assert isinstance(infinitevl.ChatSession(model, processor).say("word"), str)
    teach(recipe, resume=True)  # which goes on as if nothing had been


def test_stages_follow_each_other(world, tmp_path):
    student = world / "student"
    for stage in STAGES:
        recipe = write_recipe(world, stage, tmp_path / stage, student=str(student), num_steps=2)
        student = teach(read_recipe(recipe))
    assert load(student) is not None


def test_a_dry_run_says_what_would_train_and_what_is_read(world, tmp_path):
    recipe = read_recipe(write_recipe(world, "distill-layers", tmp_path / "run"))
    text = preview(recipe, tmp_path / "pictures")
    with Image.open(tmp_path / "pictures" / "image-1.png") as picture:
        assert picture.size == (56, 56) and picture.getcolors() == [(56 * 56, (255, 0, 0))]
    assert "trains" in text and "Gated DeltaNet" in text and "MB" in text
    assert "at most 512 in 2 rows" in text
    assert "[[the sign says" in text and "<|image_pad|> x 4" in text
    assert not (tmp_path / "run").exists()


def test_a_dry_run_says_how_many_workers_there_will_be(world, tmp_path):
    recipe = read_recipe(write_recipe(world, "sft", tmp_path / "run"))
    assert "workers: 0 of the 0 that" in preview(recipe)
    many = recipe.data.model_copy(update={"workers": 8})
    text = preview(recipe.model_copy(update={"data": many}))
    assert "workers: 2 of the 8 that the recipe asks for read ahead, because" in text and "2 shards" in text


def test_a_dry_run_of_adapters_counts_them(world, tmp_path):
    text = preview(read_recipe(write_recipe(world, "long-sft", tmp_path / "run")))
    assert "LoRA adapters" in text and "logits of a chunk" in text


def test_bad_samples_are_named_at_the_end(world, tmp_path, capsys):
    teach(read_recipe(write_recipe(world, "sft", tmp_path / "run", num_steps=6)))
    assert "line 13" in capsys.readouterr().out


def test_an_adapter_says_what_it_belongs_to_and_how_it_is_loaded(world, tmp_path):
    folder = teach(read_recipe(write_recipe(world, "long-sft", tmp_path / "run")))
    adapter = folder.parent / ADAPTER
    card = (adapter / "README.md").read_text()
    assert "More Information Needed" not in card and "Rank 4, alpha 8" in card
    assert json.loads((adapter / adapters.CONFIG).read_text())["base_model_name_or_path"] in card
    names = {"infinitevl": infinitevl, "Path": Path}
    exec(card.split("```python\n")[1].split("```")[0], names)  # as a reader of the card does
    wanted = load(folder).state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in names["model"].state_dict().items())
    plain = infinitevl.load(world / "student")[0]
    exec(card.split("```python\n")[2].split("```")[0], names := {"model": plain})
    found = names["model"].merge_and_unload().state_dict()
    assert all(torch.allclose(weight, wanted[name], atol=1e-6) for name, weight in found.items())


def test_a_run_without_matplotlib_says_so_and_ends_well(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    folder = teach(read_recipe(write_recipe(world, "sft", tmp_path / "run", num_steps=1)))
    told = [line for line in capsys.readouterr().out.splitlines() if "loss.png" in line]
    assert len(told) == 1 and "matplotlib" in told[0] and "infinitevl[train]" in told[0]
    assert folder.is_dir() and not (folder.parent / "loss.png").exists()
