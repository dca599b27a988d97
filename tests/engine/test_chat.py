"""A conversation over a state equals reading all of it again for every answer."""

import numpy as np
import pytest
import torch
from PIL import Image

from infinitevl import ChatSession, Engine, Sampling, StateError, StreamSession
from infinitevl.engine.slots import Facts
from infinitevl.errors import InfiniteVLError, InputError
from tests.engine.streams import snapshot, unchanged
from tests.support import random_frame, relative_error, tiny_processor

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


SHOWN = [image(picture(0)), {"type": "text", "text": "what is it"}]


def said(chat):
    """A chat that has seen a picture."""
    chat.say(SHOWN, max_new_tokens=3)
    return chat


def test_a_fork_of_a_chat_goes_its_own_way(model):
    chat = said(ChatSession(model, tiny_processor()))
    before, twin = snapshot(chat), chat.fork()
    assert unchanged(twin, before)
    answer = twin.say("and now", max_new_tokens=6)
    assert unchanged(chat, before)
    assert chat.say("and now", max_new_tokens=6) == answer and unchanged(chat, snapshot(twin))


@pytest.mark.parametrize("mode", ["image", "video"])
def test_a_saved_chat_continues_bit_for_bit(model, tmp_path, mode):
    processor = tiny_processor()
    chat = said(ChatSession.on(Engine(model, processor, mode=mode), system="Be brief."))
    chat.park()
    chat.save(tmp_path / "chat")
    loaded = ChatSession.load(tmp_path / "chat", model, processor)
    assert unchanged(loaded, snapshot(chat)) and loaded.system == "Be brief."
    assert loaded.say("and now", max_new_tokens=6) == chat.say("and now", max_new_tokens=6)
    assert unchanged(loaded, snapshot(chat))


def test_a_chat_is_no_stream_and_a_stream_no_chat(model, tmp_path):
    processor = tiny_processor()
    said(ChatSession(model, processor)).save(tmp_path / "chat")
    stream = StreamSession(model, processor)
    stream.observe(random_frame(0))
    stream.save(tmp_path / "stream")
    with pytest.raises(StateError, match="not the settings of a stream"):
        StreamSession.load(tmp_path / "chat", model, processor)
    with pytest.raises(StateError, match="not the settings of a chat"):
        ChatSession.load(tmp_path / "stream", model, processor)


def test_chats_and_streams_of_one_engine_answer_in_common_steps_as_if_alone(model, monkeypatch):
    processor = tiny_processor()
    alone = [said(ChatSession(model, processor)) for _ in range(2)], StreamSession(model, processor)
    engine = Engine(model, processor, num_slots=6)
    chats, stream = [said(ChatSession.on(engine)) for _ in range(2)], StreamSession.on(engine)
    for session in (stream, alone[1]):
        session.observe(random_frame(0))
    wanted = [chat.say(f"word {n}", max_new_tokens=6) for n, chat in enumerate(alone[0])]
    wanted.append(alone[1].ask("what?", max_new_tokens=6))
    token, batches = engine.runner.token, []
    monkeypatch.setattr(
        engine.runner, "token", lambda slots, *a: (batches.append(len(slots)), token(slots, *a))
    )
    begun = [chat.begin(f"word {n}", Sampling(6)) for n, chat in enumerate(chats)]
    begun.append(stream.begin("what?", Sampling(6)))
    assert [each.finish(answer) for each, answer in zip([*chats, stream], begun, strict=True)] == wanted
    assert 3 in batches and engine.pool.num_free == 3
    for chat, other in zip(chats, alone[0], strict=True):
        assert chat.slot.facts == Facts.of(chat.state) == other.slot.facts
        for name, tensor in other.state.tensors().items():
            assert relative_error(chat.state.tensors()[name].float(), tensor.float()) < 1e-5, name


def test_a_chat_takes_one_turn_at_a_time(model):
    chat = ChatSession(model, tiny_processor())
    answer = chat.begin("hello", Sampling(3))
    with pytest.raises(InputError, match="this chat keeps its turns and one is being answered"):
        chat.begin("again", Sampling(3))
    chat.cancel(answer)
    assert chat.say("again", max_new_tokens=2) is not None
