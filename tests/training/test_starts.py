"""What a recipe may name as its start."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

import infinitevl
from infinitevl.errors import CheckpointError
from infinitevl.training import starts
from infinitevl.training.checkpoint import CHECKPOINT
from infinitevl.training.preview import preview
from infinitevl.training.recipes import parse_recipe, read_recipe
from infinitevl.training.stage import MODEL, teach
from infinitevl.training.teacher import load_teacher
from tests.training.stages import write_recipe, write_world

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def no_hub(monkeypatch):
    """Whoever asks for a file that is not there fails the test."""

    def asked(*_, **__):
        raise AssertionError("a hub was asked")

    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", asked)
    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", asked)


@pytest.mark.parametrize("name", ["builtin", "builtin-stage2"])
def test_a_stage_starts_from_what_load_gives(name):
    wanted = infinitevl.load(name, device="cpu")[0].state_dict()
    found = starts.open_start(name).state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in found.items())


def test_a_stage_teaches_the_built_in_model(world, tmp_path, no_hub):
    recipe = read_recipe(write_recipe(world, "sft", tmp_path / "run", student="builtin", num_steps=1))
    assert "parameters train" in preview(recipe)
    model, processor = infinitevl.load(teach(recipe))
    assert isinstance(infinitevl.ChatSession(model, processor).say("word"), str)


def test_the_built_in_model_is_no_teacher():
    with pytest.raises(CheckpointError, match=r"'builtin' cannot be a teacher.*no attention to inherit"):
        load_teacher("builtin")


@pytest.mark.parametrize("name", ["./nothing", "../nothing", "~/nothing", "runs/nowhere/here", "/nowhere/at"])
def test_a_path_of_nothing_is_told_without_a_hub(name, no_hub):
    for opened in (starts.open_start, load_teacher):
        with pytest.raises(CheckpointError, match="there is no folder"):
            opened(name)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("runs/nowhere/student", "infinitevl train init --teacher TEACHER --out runs/nowhere/student"),
        ("runs/nowhere/distill_layers/model", "infinitevl train distill-layers"),
        ("runs/nowhere/sft/model", "infinitevl train sft"),
    ],
)
def test_a_folder_of_an_earlier_stage_is_told_with_its_command(name, command):
    with pytest.raises(CheckpointError, match=f"an earlier stage writes it: run `{command}"):
        starts.find_start(name)


def test_a_dry_run_names_the_teacher_that_is_not_there(world, tmp_path, no_hub):
    recipe = write_recipe(world, "distill-layers", tmp_path / "run", teacher="runs/nowhere/teacher/model")
    with pytest.raises(CheckpointError, match="there is no folder runs/nowhere/teacher/model"):
        preview(read_recipe(recipe))


CHAINED = [path for path in sorted((ROOT / "recipes").glob("*/*.yaml")) if "stage:" in path.read_text()]


@pytest.mark.parametrize("path", CHAINED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_dry_run_of_a_later_stage_names_the_earlier_one(path, tmp_path, monkeypatch, no_hub):
    recipe = read_recipe(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=f"no folder {recipe.student}; an earlier stage writes it: run"):
        preview(recipe)


def test_the_example_of_the_document_runs_as_written(tmp_path, monkeypatch, no_hub):
    text = (ROOT / "docs" / "training.md").read_text().split("## Your own data")[1]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "pictures").mkdir(parents=True)
    for name, color in (("boat", "red"), ("house", "blue")):
        Image.new("RGB", (150, 120), color).save(tmp_path / "mine" / "pictures" / f"{name}.png")
    (tmp_path / "mine" / "data.jsonl").write_text(text.split("```json\n")[1].split("```")[0])
    settings = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    recipe = parse_recipe({**settings, "num_steps": 2, "dtype": "float32"})
    assert "[[A red boat.<|im_end|>]]" in preview(recipe)
    folder = teach(recipe)
    names: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], names)
    wanted = infinitevl.load(folder)[0].state_dict()
    assert all(torch.equal(weight, wanted[key]) for key, weight in names["model"].state_dict().items())


def test_a_run_is_no_model_but_says_where_its_model_is(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no config\.json\. Give a folder"):
        starts.find_start(tmp_path)
    (tmp_path / CHECKPOINT).touch()
    with pytest.raises(CheckpointError, match=r"is not finished.*--resume"):
        starts.find_start(tmp_path / MODEL)
    (tmp_path / MODEL).mkdir()
    with pytest.raises(CheckpointError, match=f"finished model of that run is {tmp_path / MODEL}"):
        starts.find_start(tmp_path)
