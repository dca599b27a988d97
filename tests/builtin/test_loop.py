"""The supervised loop: batches that say what they should, a run that can be stopped, a loss that falls."""

import dataclasses
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from builtin.feed.batches import BUCKETS, Planner, Writer, bucket_weights
from builtin.log import draw_curves
from builtin.loop import Options, Trainer, special_ids
from builtin.recipe import Recipe
from builtin.schedule import learning_rate
from builtin.world.frames import Style
from builtin.world.packs import load_world
from builtin.world.streams import StreamSize, stream_sample
from builtin.world.tasks import CHAT, TEXT, picture_sample, text_sample
from infinitevl.errors import InputError
from infinitevl.model.positions import prompt_positions, token_kinds
from infinitevl.processing.prompt import SPECIAL_TOKENS, turn_ids

RECIPE = Path(__file__).parents[2] / "builtin" / "recipes" / "hybrid.yaml"


@pytest.fixture(scope="module")
def world_and_textures():
    """The small pack in the package."""
    return load_world()


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A byte vocabulary with the special tokens."""
    tokenizer = Tokenizer(models.BPE())
    pieces = pre_tokenizers.Split(Regex(r"[A-Z0-9]| ?[a-z]+|\s+|[^\sA-Za-z0-9]+"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pieces, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    words = ["What is this? the sign say on first was red picture came before system assistant user"] * 9
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*words, "You are a helpful assistant."] * 9, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    """A model that fits a laptop's patience."""
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 48}
    decoder = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "mrope_section": [2, 3, 3],
        "sliding_window": 64,
        "num_linear_heads": 2,
        "num_linear_key_value_heads": 2,
        "linear_head_dim": 8,
        "expand_v": 2,
    }
    return Recipe(
        seed=1,
        vocabulary=400,
        vision=vision,
        decoder=decoder,
        minutes=1,
        dense_share=0.4,
        num_pictures=8,
        dense_weight=0.2,
        learning_rate=3e-3,
        dense_learning_rate=3e-3,
        warm_up_steps=2,
        weight_decay=0.01,
        betas=(0.9, 0.98),
        clip=1.0,
    )


def _trainer(recipe, world_and_textures, tokenizer, folder, **options) -> Trainer:
    return Trainer(recipe, *world_and_textures, tokenizer, Options(folder, torch.device("cpu"), **options))


def test_a_prompt_is_what_the_chat_template_writes(world_and_textures, tokenizer):
    world, _ = world_and_textures
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        pad_token=SPECIAL_TOKENS[0],
    )
    writer = Writer(tokenizer)
    sample = picture_sample(world, Style.of(world, "train"), Random(1))
    ids = writer.prompt(sample).ids
    content = [{"type": "image"}, {"type": "text", "text": sample.turns[0].question}]
    wanted = turn_ids(wrapped, content)
    at = wanted.index(writer.pad)
    assert ids == wanted[:at] + [writer.pad] * 16 + wanted[at + 1 :]
    stream = stream_sample(world, Style.of(world, "train"), Random(2), StreamSize(3))
    opening = [writer.vision_start, *[writer.pad] * 48, writer.vision_end]
    assert writer.prompt(stream).ids == opening + turn_ids(wrapped, stream.turns[0].question)


def test_positions_of_a_chat_are_the_models(world_and_textures, tokenizer, recipe):
    world, _ = world_and_textures
    row = Writer(tokenizer).prompt(picture_sample(world, Style.of(world, "train"), Random(1)))
    config = recipe.config(special_ids(tokenizer))
    ids = torch.tensor([row.ids])
    grid = torch.tensor([[1, 8, 8]])
    wanted, _ = prompt_positions(
        token_kinds(ids, config), torch.zeros(1, dtype=torch.int64), config, grid, None, None
    )
    assert np.array_equal(row.positions, wanted[:, 0].numpy())


def test_positions_of_a_stream_follow_the_clock(world_and_textures, tokenizer):
    world, _ = world_and_textures
    row = Writer(tokenizer).prompt(stream_sample(world, Style.of(world, "train"), Random(2), StreamSize(20)))
    assert row.positions[:, 0].tolist() == [0, 0, 0]
    for frame, start in enumerate(row.starts):
        part = row.positions[:, start : start + 16]
        assert set(part[0]) == {1 + frame}  # two frames a second, two steps of time a second
        assert part[1].reshape(4, 4)[:, 0].tolist() == [1, 2, 3, 4]
        assert part[2].reshape(4, 4)[0].tolist() == [1, 2, 3, 4]
    after = row.starts[-1] + 16
    assert row.positions[:, after].tolist() == [21, 21, 21]


@pytest.mark.parametrize("name", ["picture", "pair", "stream4", "text"])
def test_a_batch_asks_for_exactly_its_answers(world_and_textures, tokenizer, recipe, name):
    planner = Planner(world_and_textures[0], tokenizer, "train", 1, 8)
    bucket = BUCKETS[name]
    batch = planner.batch(bucket, Random(3))
    assert batch.ids.shape == (bucket.batch_size(8), bucket.length)
    following = np.append(batch.ids.reshape(-1), 0)[batch.asked + 1]
    inside = (batch.asked + 1) % bucket.length != 0
    assert np.array_equal(following[inside], batch.answers[inside])
    assert (batch.answers == planner.writer.end).sum() >= bucket.batch_size(8)
    assert (batch.ids.reshape(-1)[batch.places] == planner.writer.pad).all()
    assert len(batch.places) == (batch.ids == planner.writer.pad).sum()


def test_what_does_not_fit_is_left_out(world_and_textures, tokenizer):
    world, _ = world_and_textures
    writer = Writer(tokenizer)
    sample = picture_sample(world, Style.of(world, "train"), Random(1))
    assert writer.row(sample, 30) is None
    row = writer.row(sample, 400)
    assert row is not None and len(row.ids) <= 401
    assert sample.form == CHAT and text_sample(world, Random(1)).form == TEXT


def test_the_second_batch_grows_from_short_to_long_streams():
    assert "stream64" not in bucket_weights(0.0)
    assert set(bucket_weights(1.0)) <= set(BUCKETS)
    assert bucket_weights(1.0)["stream64"] > 0


def test_a_stopped_and_resumed_run_equals_one_without_a_break(
    recipe, world_and_textures, tokenizer, tmp_path
):
    whole = _trainer(recipe, world_and_textures, tokenizer, tmp_path / "whole", num_steps=6)
    assert whole.run()
    first = _trainer(recipe, world_and_textures, tokenizer, tmp_path / "parts", num_steps=6, stop_at_step=4)
    assert not first.run()
    second = _trainer(recipe, world_and_textures, tokenizer, tmp_path / "parts", num_steps=6)
    second.resume()
    assert second.run()
    for (name, a), b in zip(whole.learner.named_parameters(), second.learner.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def test_repeating_one_batch_lowers_both_losses(recipe, world_and_textures, tokenizer, tmp_path):
    trainer = _trainer(recipe, world_and_textures, tokenizer, tmp_path, num_steps=1000)
    planner = trainer.planner
    planned = (
        planner.batch(BUCKETS["picture"], Random(1)),
        planner.batch(BUCKETS["stream4"], Random(1)),
        "stream4",
    )
    losses = []
    for _ in range(60):
        trainer._joint_step(planned)
        trainer.clock.step += 1
        losses.append([trainer.log._measured[name][-1].item() for name in ("picture", "stream4")])
    assert losses[-1][0] < 0.5 * losses[0][0]
    assert losses[-1][1] < 0.6 * losses[0][1]


def test_a_log_becomes_curves(recipe, world_and_textures, tokenizer, tmp_path):
    trainer = _trainer(recipe, world_and_textures, tokenizer, tmp_path, num_steps=4, log_every=1)
    trainer.run()
    draw_curves(tmp_path / "log.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_the_recipe_of_the_built_in_model_is_complete_and_small(tokenizer):
    recipe = Recipe.read(RECIPE)
    from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration

    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(recipe.config(special_ids(tokenizer)))
    assert sum(p.numel() for p in model.parameters()) * 2 < 24e6


def test_the_learning_rate_warms_up_and_falls(recipe):
    assert learning_rate(recipe, 0.5, 0) < learning_rate(recipe, 0.5, 10)
    assert learning_rate(recipe, 0.99, 500) < 0.1 * learning_rate(recipe, 0.5, 500)


def test_a_recipe_with_a_wrong_word_is_refused_by_name(tmp_path):
    path = tmp_path / "wrong.yaml"
    path.write_text(RECIPE.read_text().replace("clip:", "klip:"))
    with pytest.raises(InputError, match="klip"):
        Recipe.read(path)


def test_a_run_may_start_from_another_model_but_for_mixers_of_another_kind(
    recipe, world_and_textures, tokenizer, tmp_path
):
    hybrid = dataclasses.replace(
        recipe, decoder={**recipe.decoder, "layer_types": ["sliding_attention", "linear_attention"]}
    )
    first = _trainer(hybrid, world_and_textures, tokenizer, tmp_path / "first")
    first.learner.model.save_pretrained(tmp_path / "model")
    full = dataclasses.replace(
        recipe,
        seed=2,
        decoder={**recipe.decoder, "layer_types": ["full_attention", "full_attention"]},
        start_from=str(tmp_path / "model"),
    )
    second = _trainer(full, world_and_textures, tokenizer, tmp_path / "second")
    before = dict(first.learner.model.named_parameters())
    for name, weight in second.learner.model.named_parameters():
        is_new = ".layers.1.self_attn." in name
        assert is_new or torch.equal(weight, before[name])
    assert not torch.equal(
        second.learner.model.model.language_model.layers[1].self_attn.q_proj.weight,
        before["model.language_model.layers.1.self_attn.q_proj.weight"],
    )
