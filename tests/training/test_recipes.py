"""Recipes: the published settings, and a clear word about every mistake."""

from pathlib import Path

import pytest
import yaml

from infinitevl.errors import InputError
from infinitevl.training.data.public import read_public_data
from infinitevl.training.recipes import (
    DataSettings,
    DistillLayers,
    DistillLogits,
    LongSft,
    LoraSettings,
    Sft,
    SourceSettings,
    identity,
    read_recipe,
)

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(RECIPES.glob("4b/*_*.yaml")) + sorted(RECIPES.glob("4b/sft.yaml"))
PUBLISHED = {  # learning rate, rows a step, tokens of a row, most pixels of a picture
    "distill_layers": (2e-4, 64, 8192, 512 * 512),
    "distill_logits": (2e-4, 64, 8192, 512 * 512),
    "sft": (5e-5, 256, 8192, 1344 * 1344),
    "long_sft": (2e-5, 64, 32768, 1344 * 1344),
    "long_sft_streaming": (2e-5, 64, 32768, 1344 * 1344),
}
LONG = ("long_sft", "long_sft_streaming")


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_is_read_and_is_of_the_stage_of_its_name(path):
    assert read_recipe(path).stage == path.stem.removesuffix("_streaming").replace("_", "-")


def test_there_are_all_recipes():
    assert len(FILES) == 5


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_4b_recipes_are_the_published_ones(name):
    recipe = read_recipe(RECIPES / "4b" / f"{name}.yaml")
    data = recipe.data
    found = (recipe.learning_rate, data.rows_per_step, data.row_tokens, data.max_pixels)
    assert found == PUBLISHED[name]
    assert (recipe.betas, recipe.weight_decay, recipe.warm_up) == ((0.9, 0.999), 0.01, 0.05)
    assert recipe.dtype == "bfloat16"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_4b_recipes_read_public_data_once_over(name):
    recipe = read_recipe(RECIPES / "4b" / f"{name}.yaml")
    mixture = read_public_data(RECIPES.parent / recipe.data.public).mixtures[recipe.data.mixture]
    assert recipe.num_steps * recipe.data.rows_per_step == mixture.samples


def test_the_streaming_recipe_differs_from_the_long_one_in_attention_and_mixture():
    plain, streaming = (identity(read_recipe(RECIPES / "4b" / f"{name}.yaml")) for name in LONG)
    assert streaming.pop("attention") == "streaming"
    mixtures = [recipe["data"].pop("mixture") for recipe in (plain, streaming)]
    assert mixtures == ["long", "long_streaming"] and plain == streaming


@pytest.mark.parametrize("name", LONG)
def test_long_videos_and_shares_are_the_published_ones(name):
    data = read_recipe(RECIPES / f"4b/{name}.yaml").data
    assert (data.fps, data.max_frames, data.max_frame_pixels) == (10, 224, 256 * 28 * 28)
    data = read_recipe(RECIPES / "4b/sft.yaml").data
    shares = read_public_data(RECIPES.parent / data.public).mixtures[data.mixture].shares
    assert sorted(shares.values(), reverse=True) == [35.4, 16.4, 11.9, 11.9, 11.6, 10.5, 1.6, 0.8]
    assert read_recipe(RECIPES / "4b/distill_logits.yaml").temperature == 2
    assert read_recipe(RECIPES / "4b/sft.yaml").trains == "mixers-and-feed-forward"


@pytest.mark.parametrize(
    "model", [DistillLayers, DistillLogits, Sft, LongSft, DataSettings, SourceSettings, LoraSettings]
)
def test_every_setting_says_what_it_is(model):
    assert all(field.description for field in model.model_fields.values())


def changed(tmp_path, change, name="sft"):
    settings = yaml.safe_load((RECIPES / "4b" / f"{name}.yaml").read_text())
    settings["data"] = {"sources": [{"path": "data.jsonl"}]}
    change(settings)
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update(learning_rat=1),
            r"unknown setting 'learning_rat' \(did you mean 'learning_rate'",
        ),
        (lambda s: s["data"].update(rowtokens=1), r"unknown setting 'data\.rowtokens'.*'row_tokens'"),
        (lambda s: s.pop("num_steps"), "missing setting 'num_steps'"),
        (lambda s: s.update(num_steps=0), "num_steps: .*greater than 0, not 0"),
        (lambda s: s.update(stage="sftt"), "stage must be one of distill-layers"),
        (lambda s: s.pop("stage"), "stage must be one of distill-layers"),
        (lambda s: s.update(trains="norms"), "trains: .*'mixers-and-feed-forward' or 'mixers', not 'norms'"),
        (lambda s: s.update(teacher="x"), "unknown setting 'teacher'"),
        (lambda s: s["data"]["sources"][0].update(form="x"), r"data\.sources\.0\.form"),
        (lambda s: s["data"].pop("sources"), "data: give one of sources"),
        (lambda s: s.pop("data"), "missing setting 'data'"),
        (lambda s: s["data"].update(public="x", mixture="y"), "data: give one of sources"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        read_recipe(changed(tmp_path, change))


def test_a_file_that_is_no_recipe_says_so(tmp_path):
    with pytest.raises(InputError, match="no readable recipe"):
        read_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match="holds list"):
        read_recipe(tmp_path / "list.yaml")


def test_where_things_lie_decides_nothing_and_what_is_learned_does(tmp_path):
    recipe = read_recipe(changed(tmp_path, lambda s: s.update(out="elsewhere")))
    again = read_recipe(changed(tmp_path, lambda s: s.update(out="here", save_every=7)))
    assert identity(recipe) == identity(again)
    other = read_recipe(changed(tmp_path, lambda s: s.update(seed=7)))
    assert identity(recipe) != identity(other)


PLAIN = "stage: sft\nstudent: builtin\nout: out\nnum_steps: 3\nlearning_rate: 0.001\n"
PLAIN += "data: {sources: [{path: data.jsonl}]}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{PLAIN}num_steps: 900\n", "'num_steps' is given twice"),
        (PLAIN.replace("path:", "path: a, path:"), "'path' is given twice"),
        (PLAIN.replace("3", "2024-13-45"), "no readable recipe"),
        (PLAIN.replace("3", "9" * 5000), "no readable recipe"),
        (PLAIN.replace("3", "9" * 50), "num_steps"),
        (PLAIN.replace("3", "yes"), "num_steps: True is neither a number nor text"),
        (PLAIN.replace("0.001", ".inf"), "learning_rate: Input should be a finite number"),
        (f"{PLAIN}seed: {2**64}\n", "seed"),
        (PLAIN.replace("out: out", "out: ''"), "out"),
        ("[" * 5000, "nested too deeply"),
        ("# a\n" * 300_000, "more than 1,000,000 bytes"),
    ],
)
def test_yaml_that_says_something_else_than_it_seems_to_is_refused(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_a_recipe_without_end_is_not_read_to_it():
    with pytest.raises(InputError, match="more than"):
        read_recipe("/dev/zero")
