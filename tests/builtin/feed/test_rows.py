"""Samples as rows: what the chat template writes, where the model expects it."""

from random import Random

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from builtin.feed.rows import Writer
from builtin.world.frames import Style
from builtin.world.packs import load_world
from builtin.world.streams import StreamSize, stream_sample
from builtin.world.tasks import CHAT, TEXT, picture_sample, text_sample
from infinitevl.config import InfiniteVLConfig
from infinitevl.model.positions import prompt_positions, token_kinds
from infinitevl.processing.prompt.encoding import turn_ids
from infinitevl.processing.prompt.template import SPECIAL_TOKENS
from tests.builtin.small import BUILTIN


@pytest.fixture(scope="module")
def world():
    return load_world()[0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(BUILTIN / "tokenizer.json"))


def test_a_prompt_is_what_the_chat_template_writes(world, tokenizer):
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


def test_positions_of_a_chat_are_the_models(world, tokenizer):
    row = Writer(tokenizer).prompt(picture_sample(world, Style.of(world, "train"), Random(1)))
    config = InfiniteVLConfig.from_pretrained(BUILTIN)
    ids = torch.tensor([row.ids])
    grid = torch.tensor([[1, 8, 8]])
    wanted, _ = prompt_positions(
        token_kinds(ids, config), torch.zeros(1, dtype=torch.int64), config, grid, None, None
    )
    assert np.array_equal(row.positions, wanted[:, 0].numpy())


def test_positions_of_a_stream_follow_the_clock(world, tokenizer):
    row = Writer(tokenizer).prompt(stream_sample(world, Style.of(world, "train"), Random(2), StreamSize(20)))
    assert row.positions[:, 0].tolist() == [0, 0, 0]
    for frame, start in enumerate(row.starts):
        part = row.positions[:, start : start + 16]
        assert set(part[0]) == {1 + frame}  # two frames a second, two steps of time a second
        assert part[1].reshape(4, 4)[:, 0].tolist() == [1, 2, 3, 4]
        assert part[2].reshape(4, 4)[0].tolist() == [1, 2, 3, 4]
    after = row.starts[-1] + 16
    assert row.positions[:, after].tolist() == [21, 21, 21]


def test_what_does_not_fit_is_left_out(world, tokenizer):
    writer = Writer(tokenizer)
    sample = picture_sample(world, Style.of(world, "train"), Random(1))
    assert writer.row(sample, 30) is None
    row = writer.row(sample, 400)
    assert row is not None and len(row.ids) <= 401
    assert sample.form == CHAT and text_sample(world, Random(1)).form == TEXT
