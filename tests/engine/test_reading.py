"""A prompt that is read in pieces is the prompt that is read at once."""

import pytest
import torch

from infinitevl.engine.engine import Engine
from infinitevl.engine.reading import PromptReader
from tests.support import prompt_inputs, relative_error, tiny_model, tiny_processor


@pytest.mark.parametrize("piece", [1, 7, 16, 1000])
def test_pieces_lead_to_the_state_of_the_whole(piece: int) -> None:
    engine = Engine(tiny_model(), tiny_processor(), num_slots=2)
    inputs = prompt_inputs(engine.model.config)
    whole, parts = engine.take(), engine.take()
    for slot in (whole, parts):  # a prompt may follow something
        engine.read(slot, [3, 4, 5])
    wanted = engine.read_prompt(whole, inputs)
    reader = PromptReader(engine, parts, inputs, piece)
    num_pictures, length = 3, inputs["input_ids"].shape[1]  # a picture, a video of two patches
    for _ in range(num_pictures + -(-length // piece) - 1):
        assert reader.step() is None
    hidden = reader.step()
    assert hidden is not None and relative_error(hidden, wanted) < 1e-4
    assert parts.facts == whole.facts
    for name, tensor in whole.state.tensors().items():
        given = parts.state.tensors()[name]
        same = torch.equal(given, tensor) if tensor.dtype in (torch.int64, torch.bool) else True
        assert same and relative_error(given, tensor) < 1e-4, name
