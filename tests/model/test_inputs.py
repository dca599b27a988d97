"""A state continues tokens of its own batch size, and no others."""

import pytest
import torch

from infinitevl.errors import StateError
from infinitevl.model.hf_cache import StateCache
from tests.support import tiny_model


@pytest.mark.parametrize("as_cache", [False, True])
@pytest.mark.parametrize(("held", "given", "num_tokens"), [(2, 1, 1), (1, 2, 1), (1, 3, 5), (3, 2, 5)])
def test_a_state_of_another_batch_size_is_refused_and_stays_as_it_was(as_cache, held, given, num_tokens):
    model = tiny_model()
    with torch.no_grad():
        state = model(input_ids=torch.arange(7).expand(held, -1)).past_key_values.state
        before = state.fork().tensors()
        past = StateCache(state) if as_cache else state
        with pytest.raises(StateError, match=f"batch of {held}, the new tokens are a batch of {given}"):
            model(input_ids=torch.arange(num_tokens).expand(given, -1), past_key_values=past)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
