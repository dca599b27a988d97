"""Chunk rule, token rule and fast paths against a float64 oracle, with gradients."""

import pytest
import torch
from torch.nn import functional as F

from infinitevl.ops.delta_net.rule import delta_rule_chunk, delta_rule_step
from infinitevl.ops.linear.torch import l2_norm
from infinitevl.ops.reference import delta_rule_by_chunk, delta_rule_by_token, segment_decay
from tests.support import relative_error

LENGTHS = (1, 63, 64, 65, 1000)
# Logarithm of the decay a token: hardly any, ordinary, nearly everything at once, and all mixed.
DECAYS = {
    "near one": (-1e-4, 0.0),
    "ordinary": (-1.0, 0.0),
    "near zero": (-30.0, -10.0),
    "mixed": (-1e4, 0.0),
}


def random_inputs(length, decay="ordinary", dtype=torch.float64, seed=0, batch=2, heads=2, key=16, value=32):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    low, high = DECAYS[decay]
    fraction = torch.rand(batch, length, heads, generator=generator, dtype=torch.float64)
    # The mixed case has a few strong decays among weak ones: running sums would lose the weak ones.
    fraction = torch.where(fraction > 0.95, fraction, fraction * 1e-5) if decay == "mixed" else fraction
    inputs = (
        l2_norm(draw(batch, length, heads, key)) * key**-0.5,
        l2_norm(draw(batch, length, heads, key)),
        draw(batch, length, heads, value),
        high + (low - high) * fraction,
        draw(batch, length, heads).sigmoid(),
        draw(batch, heads, key, value),
    )
    return tuple(x.to(dtype) for x in inputs)


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", [delta_rule_by_chunk, delta_rule_chunk])
def test_chunks_equal_tokens_in_float64(rule, length, decay):
    inputs = random_inputs(length, decay)
    for given, wanted in zip(rule(*inputs), delta_rule_by_token(*inputs), strict=True):
        assert relative_error(given, wanted) < 1e-11


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("rule", [delta_rule_by_token, delta_rule_by_chunk, delta_rule_chunk])
def test_float32_stays_close_to_the_float64_oracle(rule, length, decay):
    oracle = delta_rule_by_token(*random_inputs(length, decay))
    for given, wanted in zip(rule(*random_inputs(length, decay, torch.float32)), oracle, strict=True):
        assert given.isfinite().all()
        assert relative_error(given, wanted) < 1e-5


@pytest.mark.parametrize("length", [1, 65])
def test_autocast_leaves_the_rule_in_the_state_s_dtype(length):
    inputs = random_inputs(length, dtype=torch.float32)
    rule = delta_rule_step if length == 1 else delta_rule_chunk
    wanted = rule(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        given = rule(*inputs)
    assert all(torch.equal(x, y) for x, y in zip(given, wanted, strict=True))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 63, 65, 200])
def test_gradients_of_the_fast_chunk_rule_are_those_of_the_token_rule(length, decay):
    grads = []
    for rule in (delta_rule_chunk, delta_rule_by_token):
        inputs = [x.requires_grad_() for x in random_inputs(length, decay)]
        output, recurrent_state = rule(*inputs)
        weights = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        ((output * weights).sum() + recurrent_state.square().sum()).backward()
        grads.append([x.grad for x in inputs])
    for given, wanted in zip(*grads, strict=True):
        assert given.isfinite().all()
        assert (given - wanted).norm() <= 1e-9 * wanted.norm() + 1e-12


@pytest.mark.parametrize("decay", DECAYS)
def test_one_token_at_a_time_equals_the_token_rule(decay):
    inputs = random_inputs(20, decay)
    recurrent_state, outputs = inputs[-1], []
    for t in range(20):
        output, recurrent_state = delta_rule_step(*(x[:, t : t + 1] for x in inputs[:-1]), recurrent_state)
        outputs.append(output)
    wanted = delta_rule_by_token(*inputs)
    assert relative_error(torch.cat(outputs, 1), wanted[0]) < 1e-11
    assert relative_error(recurrent_state, wanted[1]) < 1e-11


def test_a_wide_value_head_equals_two_narrow_ones():
    q, k, v, decay, beta, recurrent_state = random_inputs(100)
    whole = delta_rule_chunk(q, k, v, decay, beta, recurrent_state)
    halves = [
        delta_rule_chunk(q, k, half, decay, beta, part)
        for half, part in zip(v.chunk(2, -1), recurrent_state.chunk(2, -1), strict=True)
    ]
    for index in range(2):
        assert relative_error(torch.cat([half[index] for half in halves], -1), whole[index]) < 1e-12


def test_segment_decay_keeps_weak_decays_after_a_strong_one():
    log_decay = torch.tensor([-1e6, -1e-3, -1e-3])
    assert torch.allclose(segment_decay(log_decay)[2, 0], torch.tensor(-2e-3).exp(), rtol=1e-6, atol=0)


def test_softplus_of_a_huge_gate_does_not_overflow():
    q, k, v, _, beta, recurrent_state = random_inputs(65, dtype=torch.float32)
    log_decay = -torch.exp(torch.tensor(5.0)) * F.softplus(torch.full((2, 65, 2), 200.0))
    output, after = delta_rule_chunk(q, k, v, log_decay, beta, recurrent_state)
    assert output.isfinite().all() and after.isfinite().all()
