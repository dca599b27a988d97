"""The delta rule on what trained layers ask of it: keys that are alike, memories that hardly fade, many rows.

Where keys hardly meet or memories fade within a few tokens, most of a chunk's inverse could be anything.
"""

import pytest
import torch

from infinitevl.ops.delta_net import torch as definition
from tests.support import relative_error

pytestmark = pytest.mark.gpu

SIZES = [(4, 64, 128), (16, 128, 256)]  # heads, key and value width: of the built-in model, of the 4B


def lasting(batch, length, heads, key, value, seed=0):
    """Inputs whose keys share most of their direction, written nearly in full, with slow decays; bfloat16."""
    torch.manual_seed(seed)
    channels = heads * (2 * key + value)
    mixed = torch.rand(1, 1, channels) * 2 + 0.5 * torch.randn(batch, length, channels)
    a, b = torch.randn(batch, length, heads), 2 + torch.randn(batch, length, heads)
    conv_weight = torch.zeros(channels, 4)
    conv_weight[:, -1] = 1
    A_log, dt_bias = torch.zeros(heads), torch.full((heads,), -9.0)
    return [x.cuda().bfloat16() for x in (mixed, a, b, conv_weight, A_log, dt_bias)]


@pytest.mark.parametrize("way", ["FEW_CHUNKS", "MANY_CHUNKS", "as chosen"])
@pytest.mark.parametrize("batch", [1, 40])
@pytest.mark.parametrize("sizes", SIZES)
def test_memories_of_alike_keys_do_not_grow(sizes, batch, way):
    pytest.importorskip("triton", reason="needs triton")
    from infinitevl.ops.delta_net.triton import prepare as delta_prepare
    from infinitevl.ops.delta_net.triton.chunk import delta_net_chunk_

    heads, key, value = sizes
    tuning = getattr(delta_prepare, way, None)
    recurrent_state = torch.zeros(batch, heads, key, value, device="cuda")
    conv_state = torch.zeros(batch, 3, heads * (2 * key + value), dtype=torch.bfloat16, device="cuda")
    wanted, wanted_conv_state = recurrent_state.double(), conv_state.double()
    for seed in range(3):
        inputs = lasting(batch, 512, *sizes, seed)
        out = delta_net_chunk_(*inputs, recurrent_state, conv_state, tuning=tuning)
        exact = definition.delta_net_chunk_(*(x.double() for x in inputs), wanted, wanted_conv_state)
    rows = (recurrent_state - wanted).flatten(1).norm(dim=1) / wanted.flatten(1).norm(dim=1)
    assert float(rows.max()) < 0.02 and relative_error(out, exact) < 0.02
    assert torch.equal(conv_state.double(), wanted_conv_state)
