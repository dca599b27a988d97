"""Tokens, labels and positions of one sample."""

import json

import pytest
import torch

from infinitevl.errors import InputError
from infinitevl.processing.prompt.encoding import turn_ids
from infinitevl.training.data.messages import Sample
from infinitevl.training.data.source import open_samples
from infinitevl.training.data.tokens import Limits, TokenWriter
from infinitevl.training.losses import IGNORED
from tests.processing.media import make_picture, write_video
from tests.support import tiny_config, tiny_model, tiny_processor, tiny_tokenizer
from tests.training.data.conftest import chat, picture, said, video


def learned(tokens):
    return tiny_tokenizer().decode(tokens.labels[tokens.labels != IGNORED])


def test_a_sample_has_the_ids_that_the_chat_template_gives(writer):
    sample = chat(picture(), "the sign says", video(), "?", answer="word <|im_end|> A")
    tokens = writer.write(sample)
    shown = [
        {**part, "max_pixels": 56 * 84} if part["type"] == "image" else part
        for part in sample.messages[0]["content"]
    ]
    messages = [{"role": "user", "content": shown}, sample.messages[1]]
    inputs = tiny_processor().apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert torch.equal(tokens.input_ids, inputs["input_ids"][0])
    for name, value in tokens.media().items():
        assert torch.equal(value, inputs[name]), name


def test_only_answers_and_their_ends_are_learned(writer):
    sample = Sample(
        [
            said("user", picture(), "one?"),
            said("assistant", "word A"),
            said("user", "two?"),
            said("assistant", "the sign"),
        ],
        "here",
    )
    tokens = writer.write(sample)
    assert learned(tokens) == "word A<|im_end|>the sign<|im_end|>"
    kept = tokens.labels != IGNORED
    assert torch.equal(tokens.labels[kept], tokens.input_ids[kept])


def test_what_comes_before_an_answer_is_what_a_chat_asks_with(writer):
    for answer in ("word A", "\n\nword", " word"):
        tokens = writer.write(chat("the sign says", answer=answer))
        asked = turn_ids(tiny_tokenizer(), "the sign says")
        assert tokens.input_ids[: len(asked)].tolist() == asked
        assert (tokens.labels[: len(asked)] == IGNORED).all()
        assert tokens.labels[len(asked)] != IGNORED
        assert learned(tokens) == f"{answer}<|im_end|>"


def test_an_own_system_turn_takes_the_place_of_the_usual_one(writer):
    text = tiny_tokenizer().decode(writer.write(chat("?", system="Be brief.")).input_ids)
    assert "Be brief." in text and "helpful" not in text


def test_positions_and_features_are_those_that_the_model_works_out(writer):
    tokens = writer.write(chat(picture(), "a", video(), "b", picture((56, 56))))
    model = tiny_model()
    with torch.no_grad():
        given = model(tokens.input_ids[None], position_ids=tokens.position_ids[:, None], **tokens.media())
        worked_out = model(tokens.input_ids[None], **tokens.media())
    assert torch.equal(given.logits, worked_out.logits)
    assert tokens.second_per_grid_ts.tolist() == [0.5]


def test_limits_hold_unless_a_part_says_otherwise(writer):
    large = picture((280, 280))
    assert writer.write(chat(large, "?")).image_grid_thw.prod() * 196 <= 56 * 84
    own = {**large, "max_pixels": 112 * 112}
    assert writer.write(chat(own, "?")).image_grid_thw.tolist() == [[1, 8, 8]]


def test_samples_that_cannot_be_used_are_refused_by_name(writer, tmp_path):
    with pytest.raises(InputError, match=r"test, row 1: has at least \d+ tokens, more than 400"):
        writer.write(chat("word " * 500))
    small = TokenWriter(tiny_processor(), tiny_config(), Limits(max_tokens=60, max_pixels=280 * 280))
    with pytest.raises(InputError, match="more than 60"):
        small.write(chat(picture((280, 280)), "?"))
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"test, row 1: .*a\.png"):
        writer.write(chat({"type": "image", "image": str(tmp_path / "a.png")}))


def test_a_video_and_a_document_by_path_have_as_many_tokens_as_the_limits_say(tmp_path):
    write_video(tmp_path / "clip.mp4", list(range(50)), rate=10)
    (tmp_path / "pages").mkdir()
    for page in range(3):
        make_picture(112, 84, page).save(tmp_path / "pages" / f"{page}.png")
    question = [
        {"type": "video", "video": "clip.mp4"},
        {"type": "document", "document": "pages"},
        {"type": "text", "text": "What?"},
    ]
    row = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "word"}]}
    (tmp_path / "data.jsonl").write_text(json.dumps(row))
    sample = open_samples(tmp_path / "data.jsonl")[0]
    limits = Limits(400, max_pixels=56 * 56, fps=5, max_frames=16, max_frame_pixels=28 * 28 * 2)
    tokens = TokenWriter(tiny_processor(), tiny_config(), limits).write(sample)
    assert tokens.video_grid_thw[0, 0] == 8, "16 frames, two a patch"
    assert tokens.video_grid_thw[0].prod() <= 8 * 2 * 4
    assert tokens.second_per_grid_ts.item() == pytest.approx(2 * 5.0 / 16, abs=0.02)
    assert tokens.image_grid_thw.shape == (3, 3)
    assert (tokens.image_grid_thw.prod(1) * 196 <= 56 * 56).all()
    with torch.no_grad():
        logits = tiny_model()(
            tokens.input_ids[None], position_ids=tokens.position_ids[:, None], **tokens.media()
        )
    assert torch.isfinite(logits.logits).all()
