"""A whole Gated DeltaNet that trains on a GPU, packed and not, against the definition in float64."""

import pytest
import torch

from infinitevl.ops.delta_net.torch import delta_net_chunk as definition
from infinitevl.ops.delta_net.train.rule import delta_net_chunk
from infinitevl.ops.rows import pack
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("poisoned")
HEADS, KEY, VALUE = 2, 16, 32
CHANNELS = HEADS * (2 * KEY + VALUE)


def inputs(length):
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    tokens = [draw(1, length, CHANNELS), draw(1, length, HEADS), draw(1, length, HEADS)]
    return [*tokens, draw(CHANNELS, 4), draw(HEADS), draw(HEADS) - 2]


def taught(run, tensors, packed):
    leaves = [x.detach().requires_grad_() for x in tensors]
    recurrent_state = leaves[0].new_zeros(1, HEADS, KEY, VALUE)
    out = run(*leaves, recurrent_state, leaves[0].new_zeros(1, 3, CHANNELS), None, packed)[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)


@pytest.mark.parametrize("lengths", [[100], [1, 64, 5, 61]])
def test_values_and_gradients_equal_the_definition_packed_or_not(device, lengths):
    tensors = inputs(sum(lengths))
    packed = (
        [None, None] if len(lengths) == 1 else [pack(lengths, 3, torch.device(d)) for d in ("cpu", device)]
    )
    wanted = taught(definition, tensors, packed[0])
    given = taught(delta_net_chunk, [x.float().to(device) for x in tensors], packed[1])
    for ours, theirs in zip(given, wanted, strict=True):
        assert ours.shape == theirs.shape and relative_error(ours.cpu(), theirs) < 3e-5
