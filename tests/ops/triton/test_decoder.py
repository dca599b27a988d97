"""A whole decoder on these kernels: a batch that is all rows of a state, whose numbers lie a row apart."""

import pytest
import torch

from infinitevl.config import FULL, LINEAR, SLIDING
from infinitevl.model.fused import fuse_
from infinitevl.ops.table import triton_kernels
from tests.support import relative_error, tiny_model

COUNTS = ((8, 3, 5), (2, 6, 1))  # tokens of each row in one chunk and in the next
WINDOW = 6


@pytest.fixture
def models(device):
    """Plain torch, and the same weights on the kernels."""
    kinds = [SLIDING, LINEAR, FULL]
    given = [
        tiny_model(num_hidden_layers=3, layer_types=kinds, sliding_window=WINDOW).to(device) for _ in range(2)
    ]
    fuse_(given[1], triton_kernels())
    return given


@torch.no_grad()
def read(model, device):
    """Two chunks and two tokens: what each row returns for what counts, and the state after that."""
    decoder, state = model.model.language_model, model.allocate_state(3, max_length=16)
    assert not state.length.is_contiguous()
    generator, outs = torch.Generator().manual_seed(3), []
    for counts in (*COUNTS, None, None):
        length = 1 if counts is None else max(counts)
        ids = torch.randint(0, 400, (3, length), generator=generator).to(device)
        positions = (state.next_position[:, None] + torch.arange(length, device=device)).expand(3, -1, -1)
        num_valid = None if counts is None else torch.tensor(counts, device=device)
        out = decoder(decoder.embed_tokens(ids), positions, state, num_valid, counts is None)
        outs += [row[:count] for row, count in zip(out, counts or (1, 1, 1), strict=True)]
    return outs, state


def test_a_batch_of_all_rows_equals_plain_torch(models, device):
    (wanted, expected), (found, state) = (read(model, device) for model in models)
    for index, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        assert relative_error(ours, theirs) < 1e-5, f"row {index % 3} of read {index // 3}"
    for name, tensor in expected.tensors().items():
        if tensor.is_floating_point():
            assert relative_error(state.tensors()[name], tensor) < 1e-5, name
    assert state.length.tolist() == state.next_position.tolist() == [12, 11, 8]
