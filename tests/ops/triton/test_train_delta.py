"""The delta rule that trains on a GPU: outputs and all gradients against the definition in float64."""

import pytest
import torch
from torch import Tensor

from infinitevl.ops.delta_net.rule import delta_rule_chunk
from infinitevl.ops.delta_net.train.rule import delta_rule
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("poisoned")


def inputs(length: int, sizes=(2, 2, 16, 32), ends: tuple[int, ...] = (), slowest: float = -0.2):
    """q, k, v, log_decay, beta, recurrent_state in float64, and which chunks end a sequence."""
    batch, heads, key, value = sizes
    generator = torch.Generator().manual_seed(length)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k = (torch.nn.functional.normalize(draw(batch, length, heads, key), dim=-1) for _ in range(2))
    log_decay = slowest * torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    beta = draw(batch, length, heads).sigmoid()
    recurrent_state = draw(batch, heads, key, value)
    marks = torch.zeros(length // 64, dtype=torch.bool)
    marks[list(ends)] = True
    tensors = [q, k, draw(batch, length, heads, value), log_decay, beta, recurrent_state]
    return tensors, marks if ends else None


def in_triton(*tensors: Tensor, ends: Tensor | None) -> tuple[Tensor, Tensor]:
    """The kernels, which are told where sequences begin."""
    if ends is None:
        return delta_rule(*tensors)
    firsts = [0, *(ends.nonzero()[:, 0] + 1).tolist(), len(ends)]
    return delta_rule(*tensors, torch.tensor(firsts, dtype=torch.int32, device=tensors[0].device))


def taught(rule, tensors: list[Tensor], ends: Tensor | None, *options) -> tuple[Tensor, ...]:
    """Output, last recurrent state, and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, last = rule(*leaves, *options, ends=ends)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator).to(x) for x in (out, last)]
    gradients = torch.autograd.grad((out * weights[0]).sum() + (last * weights[1]).sum(), leaves)
    return out.detach(), last.detach(), *gradients


def worst(given: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    return [relative_error(x.cpu(), y) for x, y in zip(given, wanted, strict=True)]


@pytest.mark.parametrize(("length", "ends"), [(64, ()), (192, ()), (256, (0, 2))])
@pytest.mark.parametrize("slowest", [-0.2, -5.0])
def test_in_float32_it_equals_the_rule_token_by_token(device, length, ends, slowest):
    tensors, marks = inputs(length, ends=ends, slowest=slowest)
    wanted = taught(delta_rule_chunk, tensors, marks)
    given = taught(in_triton, [x.float().to(device) for x in tensors], marks)
    assert max(worst(given, wanted)) < 2e-5


def test_widths_need_not_be_powers_of_two_nor_lengths_multiples_of_a_chunk(device):
    tensors, _ = inputs(150, (1, 2, 12, 40))
    wanted = taught(delta_rule_chunk, tensors, None)
    given = taught(in_triton, [x.float().to(device) for x in tensors], None)
    assert max(worst(given, wanted)) < 2e-5


def test_in_bfloat16_it_is_as_exact_as_operands_of_8_bits_are(device):
    tensors, marks = inputs(256, (1, 2, 32, 64), (1,))
    rounded = [x.bfloat16() if i < 3 else x.float() for i, x in enumerate(tensors)]
    wanted = taught(delta_rule_chunk, [x.double() for x in rounded], marks)
    given = taught(in_triton, [x.to(device) for x in rounded], marks)
    assert max(worst(given, wanted)) < 0.01


def test_keys_that_are_all_alike_do_not_blow_up(device):
    tensors, _ = inputs(128)
    tensors[1] = tensors[1][:, :1].expand_as(tensors[1])
    wanted = taught(delta_rule_chunk, tensors, None)
    given = taught(in_triton, [x.float().to(device) for x in tensors], None)
    assert max(worst(given, wanted)) < 1e-4
