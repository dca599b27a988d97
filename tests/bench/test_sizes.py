"""Models to measure have the shapes they are said to have, and numbers that stay sane."""

import json

import pytest
import torch

from infinitevl.bench.sizes import FRAME_SIZES, byte_tokenizer, model_of_size, random_ids
from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import InputError
from infinitevl.processing.prompt.template import SPECIAL_TOKENS
from tests.support import DATA


def test_the_size_4b_is_the_published_configuration():
    published = InfiniteVLConfig(**json.loads((DATA / "published_4b/config.json").read_text()))
    ours = InfiniteVLConfig()
    for part in ("text_config", "vision_config"):
        given, wanted = getattr(ours, part).to_dict(), getattr(published, part).to_dict()
        for name in ("dtype", "transformers_version", "torch_dtype", "architectures"):
            given.pop(name, None), wanted.pop(name, None)
        assert given == {name: wanted[name] for name in given}
    assert FRAME_SIZES["4b"] == 448


def test_numbers_keep_their_size_through_a_random_model():
    model, processor = model_of_size("tiny", "cpu", torch.float32)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    ids = random_ids(model.config, 50, "cpu")
    out = model(input_ids=ids, output_hidden_states=True)
    sizes = [hidden.std().item() for hidden in out.hidden_states[1:]]
    assert all(0.01 < size < 100 for size in sizes), sizes
    again, _ = model_of_size("tiny", "cpu", torch.float32)
    assert torch.equal(again(input_ids=ids).logits, out.logits)
    assert processor.frame_size == 56


def test_the_stand_in_tokenizer_has_the_published_special_tokens():
    config = InfiniteVLConfig()
    tokenizer = byte_tokenizer(config)
    ids = dict(zip(SPECIAL_TOKENS, tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)), strict=True))
    assert ids["<|endoftext|>"] == 151643 and ids["<|im_start|>"] == 151644 and ids["<|im_end|>"] == 151645
    assert ids["<|vision_start|>"] == config.vision_start_token_id
    assert ids["<|image_pad|>"] == config.image_token_id and ids["<|video_pad|>"] == config.video_token_id
    text = "what is on the sign? ✓"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert isinstance(tokenizer.decode([5, 151000]), str)


def test_what_cannot_be_built_is_told_before_it_is_tried():
    with pytest.raises(InputError, match=r"about 9 GB and a CUDA device.*--size builtin"):
        model_of_size("4b", "cpu", torch.bfloat16)
    with pytest.raises(InputError, match="4b, builtin, tiny"):
        model_of_size("7b", "cpu", torch.bfloat16)
