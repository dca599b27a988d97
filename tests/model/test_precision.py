"""What is computed in which dtype, and what a narrow dtype must not touch."""

import pytest
import torch

from infinitevl.model.context import ForwardContext
from infinitevl.model.vision import vision_plan
from infinitevl.state import DeltaState, StreamState
from tests.support import prompt_inputs, relative_error, tiny_model


def recurrent_states(state: StreamState) -> list[torch.Tensor]:
    return [layer.recurrent_state for layer in state.layers if isinstance(layer, DeltaState)]


@pytest.mark.parametrize("num_tokens", [1, 30])
def test_memories_of_a_bfloat16_model_keep_what_bfloat16_would_lose(num_tokens):
    model = tiny_model().to(torch.bfloat16)
    ids = torch.randint(0, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    state = model.allocate_state()
    with torch.no_grad():
        for part in ids.split(num_tokens, dim=1):
            model(input_ids=part, past_key_values=state)
    assert len(recurrent_states(state)) == 3
    for recurrent_state in recurrent_states(state):
        assert not torch.equal(recurrent_state, recurrent_state.bfloat16().float())


def test_a_float64_model_loses_nothing_to_float32():
    """Its gates too: a Gated DeltaNet of one and of many tokens against the same weights in float64."""
    model = tiny_model().double()
    layer, state = model.model.language_model.layers[1], model.allocate_state().layers[1]
    mixer, norm = layer.self_attn, layer.input_layernorm
    x = torch.randn(1, 70, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = mixer(x, ForwardContext(None, None), norm=norm)
        step = ForwardContext(None, None, one_token=True)
        steps = torch.cat([mixer(token, step, state, norm=norm) for token in x.split(1, dim=1)], dim=1)
    assert whole.dtype == torch.float64
    assert relative_error(steps, whole) < 1e-13


def test_a_float64_model_reads_any_cut_as_the_whole():
    model = tiny_model().double()
    ids = torch.randint(0, 400, (1, 60), generator=torch.Generator().manual_seed(0))
    whole, split = model.allocate_state(), model.allocate_state()
    assert {states.dtype for states in recurrent_states(whole)} == {torch.float64}
    with torch.no_grad():
        wanted = model(input_ids=ids, past_key_values=whole).logits
        parts = [model(input_ids=x, past_key_values=split).logits for x in ids.split([1, 30, 20, 9], 1)]
    assert relative_error(torch.cat(parts, 1), wanted) < 1e-11
    for one, other in zip(recurrent_states(split), recurrent_states(whole), strict=True):
        assert relative_error(one, other) < 1e-11


def test_pictures_seen_in_inference_mode_can_be_trained_on_afterwards():
    vision_plan.cache_clear()
    model = tiny_model()
    inputs = prompt_inputs(model.config)
    with torch.inference_mode():
        model(**inputs)
    model.train()(**inputs, labels=inputs["input_ids"]).loss.backward()
    assert model.model.visual.patch_embed.proj.weight.grad.abs().sum() > 0
