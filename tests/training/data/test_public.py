"""The file that names the paper's public sources."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from infinitevl.errors import InputError
from infinitevl.training.data.adapters import ADAPTERS
from infinitevl.training.data.public import open_mixture, read_public_data

RECIPE = Path(__file__).parents[3] / "recipes/4b/data.yaml"
SHARES = {
    "text": 35.4,
    "caption_and_knowledge": 16.4,
    "general_vqa": 11.9,
    "chart_and_table": 11.9,
    "ocr_and_document": 11.6,
    "mathematics": 10.5,
    "science": 1.6,
    "code": 0.8,
}
PAPER = ["FineVision", "LLaVA-OneVision-1.5", "pixmo", "the_cauldron", "Docmatix", "LLaVA-Video-178K"]


@pytest.fixture
def data():
    return read_public_data(RECIPE)


def rows_of(source, subset):
    return [{}] * (len(subset) * 10)


def test_every_source_and_share_of_the_paper_is_named(data):
    named = {source.dataset for sources in data.categories.values() for source in sources}
    assert all(any(name in dataset for dataset in named) for name in PAPER)
    assert data.mixtures["instruct"].shares == SHARES
    assert data.mixtures["instruct"].samples == 8_000_000
    used = {source.adapter for sources in data.categories.values() for source in sources}
    assert used == set(ADAPTERS)


def test_no_subset_is_named_twice(data):
    names = [
        (source.dataset, subset, source.split)
        for sources in data.categories.values()
        for source in sources
        for subset in source.subsets
    ]
    assert len(names) == len(set(names))


def test_a_mixture_has_the_shares_of_its_categories(data):
    data.mixtures["instruct"].__dict__["samples"] = 10_000
    mixture = open_mixture(data, "instruct", 0, rows_of)
    counts = dict(zip([source.name for source in mixture.sources], mixture.counts, strict=True))
    texts = [f"HuggingFaceM4/FineVision/{name}/train" for name in data.categories["text"][0].subsets]
    assert sum(counts[name] for name in texts) == pytest.approx(10_000 * 35.4 / 100.1, abs=3)
    assert counts[texts[0]] / counts[texts[3]] == pytest.approx(
        len("text_openhermes_2_5") / len("text_ruozhiba"), 0.01
    )
    assert mixture.num_samples == 10_000
    assert len(np.unique(mixture.order(0)[:, 0])) == len(mixture.sources)


def test_long_samples_are_the_share_that_the_paper_gives(data):
    shares = data.mixtures["long"].shares
    assert shares["long_video"] / sum(shares.values()) == pytest.approx(0.225, abs=1e-4)
    streaming = data.mixtures["long_streaming"].shares
    assert streaming["long_video"] / sum(streaming.values()) == pytest.approx(0.2, abs=1e-4)
    mixture = open_mixture(data, "long", 0, rows_of)
    videos = [source for source in mixture.sources if "LLaVA-Video" in source.name]
    assert str(videos[0].root) == "data/LLaVA-Video-178K/0_30_s_youtube_v0_1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mixture": {}}, "mixture: Extra inputs"),
        ({"mixtures": {"a": {"samples": 0, "shares": {"text": 1}}}}, "mixtures.a.samples"),
        ({"mixtures": {"a": {"samples": 1, "shares": {"music": 1}}}}, "'a' has shares of ['music']"),
        ({"categories": {"text": [{"dataset": "x", "adapter": "texst"}]}}, "unknown adapter 'texst'"),
    ],
)
def test_a_typo_is_refused_by_name(tmp_path, change, said):
    plain = {
        "categories": {"text": [{"dataset": "x", "adapter": "texts"}]},
        "mixtures": {"a": {"samples": 1, "shares": {"text": 1}}},
    }
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(plain | change))
    with pytest.raises(InputError) as error:
        read_public_data(tmp_path / "data.yaml")
    assert said in str(error.value)


def test_a_mixture_that_does_not_exist_is_refused(data):
    with pytest.raises(InputError, match="valid are distil, instruct, long"):
        open_mixture(data, "instruct_", 0, rows_of)
