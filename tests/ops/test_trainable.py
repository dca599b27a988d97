"""The operations that training runs on equal those of the model, gradients included."""

import pytest
import torch

from infinitevl.ops import trainable as kernels
from infinitevl.ops.causal_conv import causal_conv_chunk as model_conv
from infinitevl.ops.delta_rule import delta_rule_chunk as model_rule


def _inputs(length: int, alike: bool = False):
    torch.manual_seed(length)
    q, k = (
        torch.nn.functional.normalize(torch.randn(2, length, 2, 8, dtype=torch.float64), dim=-1)
        for _ in range(2)
    )
    if alike:
        k = k[:, :1].expand_as(k)
    v = torch.randn(2, length, 2, 16, dtype=torch.float64)
    log_decay = -torch.rand(2, length, 2, dtype=torch.float64) * 0.2
    beta = torch.rand(2, length, 2, dtype=torch.float64)
    return [
        x.clone().requires_grad_()
        for x in (q, k, v, log_decay, beta, torch.zeros(2, 2, 8, 16, dtype=torch.float64))
    ]


@pytest.mark.parametrize("length", [1, 64, 100, 192])
def test_the_delta_rule_for_training_equals_the_models_in_value_and_gradient(length):
    ours, theirs = _inputs(length), _inputs(length)
    out, last = kernels.delta_rule_chunk(*ours, torch.float64)
    wanted, wanted_last = model_rule(*theirs)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(last, wanted_last)
    weight = torch.randn_like(out)
    ((out * weight).sum() + last.sum()).backward()
    ((wanted * weight).sum() + wanted_last.sum()).backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_inverse_keeps_its_digits_when_all_keys_are_alike():
    inputs = [x.detach().float() for x in _inputs(64, alike=True)]
    exact = [x.detach() for x in _inputs(64, alike=True)]
    out, _ = kernels.delta_rule_chunk(*inputs, torch.float32)
    torch.testing.assert_close(out.double(), model_rule(*exact)[0], atol=1e-4, rtol=1e-4)


def test_the_convolution_for_training_equals_the_models():
    torch.manual_seed(0)
    x, weight = torch.randn(2, 64, 6), torch.randn(6, 4)
    conv_state = torch.zeros(2, 3, 6)
    torch.testing.assert_close(
        kernels.causal_conv_chunk(x, weight, conv_state)[0], model_conv(x, weight, conv_state)[0]
    )


def test_the_inverse_is_exact_under_autocast():
    strict = (torch.rand(3, 64, 64) * 0.5).tril(-1).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        inverse = kernels.unit_lower_inverse(strict)
        inverse.sum().backward()
    assert inverse.dtype == strict.grad.dtype == torch.float32
    exact = torch.linalg.inv(strict.detach().double() + torch.eye(64))
    torch.testing.assert_close(inverse.double(), exact, atol=1e-4, rtol=1e-4)
