"""Norms and gates that train on a GPU: values and gradients against plain torch in float64."""

import pytest
import torch

from infinitevl.ops.attention import rotary
from infinitevl.ops.linear import torch as norm
from infinitevl.ops.linear import torch as products
from infinitevl.ops.linear import train as kernels
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("poisoned")
EPS = 1e-6


def taught(run, tensors, *options):
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = run(*leaves, *options)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)


@pytest.fixture(params=[(1, 8), (3, 5, 40), (600, 20)], ids=str)
def tensors(request):
    generator = torch.Generator().manual_seed(len(request.param))
    return [torch.randn(request.param, generator=generator, dtype=torch.float64) for _ in range(3)]


@pytest.mark.parametrize("name", ["rms_norm", "gated_rms_norm", "swiglu"])
def test_values_and_gradients_equal_plain_torch(device, tensors, name):
    weight = tensors[2].flatten(0, -2)[0] + 1
    given, options = {
        "rms_norm": ([tensors[0], weight], (EPS,)),
        "gated_rms_norm": ([*tensors[:2], weight], (EPS,)),
        "swiglu": (tensors[:2], ()),
    }[name]
    wanted = taught(getattr(products if name == "swiglu" else norm, name), given, *options)
    found = taught(getattr(kernels, name), [x.float().to(device) for x in given], *options)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.shape == theirs.shape and relative_error(ours.cpu(), theirs) < 1e-5


def test_rotation_equals_plain_torch(device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 3, 12, generator=generator, dtype=torch.float64)
    angles = torch.randn(2, 5, 6, generator=generator).double().repeat(1, 1, 2)
    cos, sin = angles.cos(), angles.sin()
    wanted = taught(lambda x: rotary.rotate(x, cos, sin), [x])
    turn = cos.float().to(device), sin.float().to(device)
    given = taught(lambda x: kernels.rotate(x, *turn), [x.float().to(device)])
    for ours, theirs in zip(given, wanted, strict=True):
        assert relative_error(ours.cpu(), theirs) < 1e-6


def test_a_float32_weight_leaves_a_bfloat16_stream_as_it_is(device):
    x, weight = torch.randn(4, 16, device=device).bfloat16(), torch.rand(16, device=device)
    out, d_x, d_weight = taught(kernels.rms_norm, [x, weight], EPS)
    assert torch.equal(out, norm.rms_norm(x, weight, EPS).bfloat16())
    assert d_x.dtype == torch.bfloat16 and d_weight.dtype == torch.float32
