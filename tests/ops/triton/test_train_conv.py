"""Convolution and norms that train on a GPU: values and gradients against plain torch in float64."""

import pytest
import torch

from infinitevl.ops.delta_net.torch import causal_conv_chunk
from infinitevl.ops.delta_net.train.conv import conv_heads
from infinitevl.ops.linear.torch import l2_norm
from infinitevl.ops.rows import pack, spread
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("poisoned")


def plainly(mixed, conv_weight, heads, key, value):
    empty = mixed.new_zeros(len(mixed), conv_weight.shape[1] - 1, mixed.shape[2])
    activated, _ = causal_conv_chunk(mixed, conv_weight, empty)
    parts = activated.split([heads * key, heads * key, heads * value], dim=-1)
    q, k, v = (x.unflatten(-1, (heads, -1)) for x in parts)
    return l2_norm(q) * key**-0.5, l2_norm(k), v


def taught(run, mixed, conv_weight, *sizes):
    leaves = [mixed.detach().requires_grad_(), conv_weight.detach().requires_grad_()]
    results = run(*leaves, *sizes)
    generator = torch.Generator().manual_seed(1)
    total = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in results)
    return [x.detach() for x in results], torch.autograd.grad(total, leaves)


@pytest.mark.parametrize(
    ("length", "width", "sizes"), [(1, 4, (2, 16, 32)), (130, 4, (2, 12, 40)), (64, 3, (1, 8, 160))]
)
def test_values_and_gradients_equal_plain_torch(device, length, width, sizes):
    heads, key, value = sizes
    generator = torch.Generator().manual_seed(length)
    channels = heads * (2 * key + value)
    wide = torch.randn(2, length, channels + 3, generator=generator, dtype=torch.float64)
    conv_weight = torch.randn(channels, width, generator=generator, dtype=torch.float64)
    mixed = wide[..., :channels]
    wanted = taught(plainly, mixed, conv_weight, *sizes)
    given = taught(
        conv_heads, wide.float().to(device)[..., :channels], conv_weight.float().to(device), *sizes
    )
    for ours, theirs in zip((*given[0], *given[1]), (*wanted[0], *wanted[1]), strict=True):
        assert ours.shape == theirs.shape and relative_error(ours.cpu(), theirs) < 1e-5


def test_sequences_of_one_row_are_convolved_where_they_are_spread_to(device):
    lengths, sizes = [1, 70, 3], (2, 16, 16)
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(1, sum(lengths), 96, generator=generator, dtype=torch.float64)
    conv_weight = torch.randn(96, 4, generator=generator, dtype=torch.float64)
    packed, there = (pack(lengths, 3, torch.device(where)) for where in ("cpu", device))

    def spread_first(mixed, conv_weight, *sizes):
        return plainly(spread(mixed, packed), conv_weight, *sizes)

    wanted = taught(spread_first, mixed, conv_weight, *sizes)
    options = (*sizes, there.place, there.source)
    given = taught(conv_heads, mixed.float().to(device), conv_weight.float().to(device), *options)
    for ours, theirs in zip((*given[0], *given[1]), (*wanted[0], *wanted[1]), strict=True):
        assert ours.shape == theirs.shape and relative_error(ours.cpu(), theirs) < 1e-5


def test_an_empty_token_leaves_zero_and_no_gradient(device):
    mixed = torch.zeros(1, 5, 2 * 16 + 16, device=device)
    (q, k, v), gradients = taught(conv_heads, mixed, torch.ones(48, 4, device=device), 1, 16, 16)
    assert not q.any() and not k.any() and not v.any()
    assert all(torch.isfinite(x).all() for x in gradients)
