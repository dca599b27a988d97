"""A conversation over a state equals reading all of it again for every answer."""

import numpy as np
import pytest
import torch
from PIL import Image

from infinitevl.engine.chat import ChatSession
from infinitevl.errors import InfiniteVLError, InputError
from tests.support import relative_error, tiny_processor

VISION_KEYS = (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "second_per_grid_ts",
)


def picture(seed, size=(84, 56)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def image(source):
    return {"type": "image", "image": source}


def say_at_once(model, processor, content):
    """The first answer by template, processor and generate."""
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    )
    out = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    return processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


CONVERSATIONS = {
    "text": ["the sign", "the word", "again"],
    "a picture, then text": [[image(picture(0)), {"type": "text", "text": "what is it"}], "and now"],
    "text, then two pictures": [
        "hello",
        [image(picture(1)), image(picture(2, (56, 112))), {"type": "text", "text": "x"}],
    ],
    "a video, then a picture": [
        [{"type": "video", "video": [picture(i, (56, 56)) for i in range(5)], "fps": 4.0}],
        [{"type": "text", "text": "before"}, image(picture(3)), {"type": "text", "text": "after"}],
    ],
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_first_turn_equals_generate_on_the_templates_prompt(model, name):
    content = CONVERSATIONS[name][0]
    given = ChatSession(model, tiny_processor()).say(content, max_new_tokens=6)
    assert given == say_at_once(model, tiny_processor(), content)


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_turn_by_turn_equals_one_read_of_all_its_tokens(model, name, monkeypatch):
    processor, turns, ids = tiny_processor(), CONVERSATIONS[name], []
    embed = type(model.model).embed
    monkeypatch.setattr(type(model.model), "embed", lambda self, x: (ids.append(x), embed(self, x))[1])
    chat = ChatSession(model, processor)
    for content in turns:
        chat.say(content, max_new_tokens=6)
    parts = [processor.turn_inputs(content) for content in turns]
    media = {
        key: torch.cat([part[key] for part in parts if key in part])
        for key in VISION_KEYS
        if any(key in part for part in parts)
    }
    with torch.no_grad():
        whole = model(input_ids=torch.cat(ids, dim=1), **media, use_cache=True).past_key_values.state
    for name, tensor in chat.state.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(tensor, whole.tensors()[name]) < 1e-5, name
        else:
            assert torch.equal(tensor, whole.tensors()[name]), name


def test_the_first_turn_has_a_system_turn_and_later_ones_do_not(model):
    processor = tiny_processor()
    plain, silent = ChatSession(model, processor), ChatSession(model, processor, system=None)
    for chat in (plain, silent):
        chat.say("hello", max_new_tokens=1)
    difference = int(plain.state.length) - int(silent.state.length)
    before = [int(chat.state.length) for chat in (plain, silent)]
    assert difference > 5
    for chat in (plain, silent):
        chat.say("hello", max_new_tokens=1)
    grown = [int(chat.state.length) - length for chat, length in zip((plain, silent), before, strict=True)]
    assert grown[0] == grown[1]


def test_text_is_streamed_and_nothing_or_no_picture_is_refused_without_a_trace(model):
    chat, pieces = ChatSession(model, tiny_processor()), []
    answer = chat.say("hello", max_new_tokens=8, on_text=pieces.append)
    assert "".join(pieces) == answer
    before = {name: tensor.clone() for name, tensor in chat.state.tensors().items()}
    with pytest.raises(InputError, match="nothing was said"):
        chat.say("")
    with pytest.raises(InfiniteVLError):
        chat.say([image("absent.png")])
    assert all(torch.equal(tensor, before[name]) for name, tensor in chat.state.tensors().items())
