"""What is made under torch.inference_mode() goes on in every other mode."""

import contextlib
import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from infinitevl import ChatSession, Engine, StateCache, StreamSession, StreamState
from infinitevl.model.fused import fuse_, unfuse_
from tests.support import prompt_inputs, tiny_model, tiny_processor

FRAME = torch.randint(0, 256, (3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def through_torch(state: StreamState) -> StreamState:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: dict[str, Callable[[StreamState], StreamState]] = {
    "fork": StreamState.fork,
    "select": lambda state: state.select(torch.tensor([0])),
    "row": lambda state: state.row(0),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda state: pickle.loads(pickle.dumps(state)),
    "torch.save": through_torch,
}


@pytest.mark.parametrize("name", COPIES)
def test_a_copy_of_a_state_made_in_inference_mode_goes_on_outside(name: str) -> None:
    model = tiny_model()
    ids = torch.arange(300, 320)[None]
    with torch.inference_mode():
        made = model(input_ids=ids).past_key_values.state
        made = COPIES[name](made)
    with torch.no_grad():
        got = model(input_ids=ids, past_key_values=made).logits
        wanted = model(input_ids=torch.cat([ids, ids], 1)).logits[:, 20:]
        assert (got - wanted).abs().max() < 1e-4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_generate_goes_on_with_a_cache_made_in_inference_mode(mode: Callable[[], Any]) -> None:
    model = tiny_model()
    ids = torch.arange(300, 320)[None]
    with torch.inference_mode():
        cache = model(input_ids=ids, past_key_values=StateCache()).past_key_values
        cache.batch_repeat_interleave(2)
        cache.reorder_cache(torch.tensor([1, 0]))
    longer = torch.cat([ids, ids], 1).expand(2, -1)
    with mode():
        got = model.generate(longer, past_key_values=cache, max_new_tokens=3, do_sample=False)
    assert torch.equal(got, model.generate(longer, max_new_tokens=3, do_sample=False))


def answers(inside: contextlib.AbstractContextManager[None]) -> list[str]:
    """A chat, a stream alone, one in an engine and a fork of one: made in `inside`, used out of it."""
    model, processor = tiny_model(), tiny_processor()
    sampling: dict[str, Any] = {"max_new_tokens": 4}
    with inside:
        chat = ChatSession(model, processor)
        chat.say("Hi", **sampling)
        alone = StreamSession(model, processor, mode="video", frame_size=56)
        alone.observe(FRAME, at=0.0)
        engine = Engine(model, processor, frame_size=56, num_slots=4)
        shared = StreamSession.on(engine)
        shared.observe(FRAME, at=0.0)
        shared.park()
        twin = shared.fork()
    for session in (alone, shared, twin):
        session.observe(FRAME, at=1.0)
    asked = [session.ask("What?", **sampling) for session in (alone, shared, twin)]
    return [chat.say("Hello", **sampling), *asked]


def test_sessions_and_engines_made_in_inference_mode_go_on_outside() -> None:
    assert answers(torch.inference_mode()) == answers(contextlib.nullcontext())


def test_sessions_made_outside_go_on_in_inference_mode_and_back() -> None:
    session = StreamSession(tiny_model(), tiny_processor(), frame_size=56)
    session.observe(FRAME, at=0.0)
    with torch.inference_mode():
        session.observe(FRAME, at=1.0)
        session.ask("What?", max_new_tokens=2)
    session.observe(FRAME, at=2.0)
    assert int(session.state.span.num_frames) == 3


def test_weights_loaded_or_laid_out_in_inference_mode_can_be_trained(tmp_path) -> None:
    tiny_model().save_pretrained(tmp_path)
    with torch.inference_mode():
        model = type(tiny_model()).from_pretrained(tmp_path)
        fuse_(model)
        unfuse_(model)
    assert not any(parameter.is_inference() for parameter in model.parameters())
    inputs = prompt_inputs(model.config)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.sub_(parameter.grad)
