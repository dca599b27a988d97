"""Sequences that share a row are computed as if each were alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infinitevl.ops.attention.torch import window_chunk
from infinitevl.ops.delta_net.torch import delta_net_chunk
from infinitevl.ops.rows import gather, pack, spread
from tests.support import relative_error

HEADS, WIDTH, TAPS = 2, 8, 4
CPU = torch.device("cpu")


def delta_inputs(num_tokens, fastest_decay=5.0):
    generator = torch.Generator().manual_seed(num_tokens)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    a = random(1, num_tokens, HEADS) * 3
    conv_weight = random(HEADS * WIDTH * 3, TAPS)
    A_log = torch.linspace(-3.0, fastest_decay, HEADS, dtype=torch.float64)
    return [
        random(1, num_tokens, HEADS * WIDTH * 3),
        a,
        random(1, num_tokens, HEADS),
        conv_weight,
        A_log,
        random(HEADS),
    ]


def empty():
    recurrent_state = torch.zeros(1, HEADS, WIDTH, WIDTH, dtype=torch.float64)
    return recurrent_state, torch.zeros(1, TAPS - 1, HEADS * WIDTH * 3, dtype=torch.float64)


def apart(inputs, lengths, run):
    """Each sequence run for itself; the first three inputs have tokens."""
    parts = zip(*(x.split(lengths, dim=1) for x in inputs[:3]), strict=True)
    return torch.cat([run(*part, *inputs[3:], *empty())[0] for part in parts], dim=1)


@given(st.lists(st.integers(1, 70), min_size=1, max_size=6))
@settings(max_examples=15)
def test_a_layout_keeps_every_token_and_a_gap_behind_each_sequence(lengths):
    packed = pack(lengths, TAPS - 1, CPU)
    x = torch.randn(1, sum(lengths), 3)
    wide = spread(x, packed)
    assert torch.equal(gather(wide, packed), x)
    assert wide.shape[1] == packed.num_places == 64 * len(packed.ends)
    assert int(packed.ends.sum()) == len(lengths) - 1 and not packed.ends[-1]
    used = torch.zeros(packed.num_places, dtype=torch.bool)
    used[packed.place] = True
    for start, length in zip(packed.place[torch.tensor(lengths).cumsum(0) - 1] + 1, lengths, strict=True):
        assert not used[start : start + TAPS - 1].any()
        assert (start - length) % 64 == 0


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [63, 64, 65], [61, 62, 1, 200, 3], [1000, 2]])
def test_a_packed_delta_net_equals_each_sequence_alone(lengths):
    inputs = delta_inputs(sum(lengths))
    packed = pack(lengths, TAPS - 1, CPU)
    out, recurrent_state, _ = delta_net_chunk(*inputs, *empty(), None, packed)
    assert relative_error(out, apart(inputs, lengths, delta_net_chunk)) < 1e-13
    last = [x[:, -lengths[-1] :] for x in inputs[:3]] + inputs[3:]
    assert relative_error(recurrent_state, delta_net_chunk(*last, *empty())[1]) < 1e-13


@pytest.mark.parametrize("lengths", [[1, 1, 1], [63, 64, 65], [61, 62, 1, 200, 3]])
def test_gradients_of_a_packed_delta_net_equal_those_of_each_sequence_alone(lengths):
    inputs = [x.requires_grad_() for x in delta_inputs(sum(lengths), fastest_decay=1.0)]
    packed = pack(lengths, TAPS - 1, CPU)
    out = delta_net_chunk(*inputs, *empty(), None, packed)[0]
    wanted = apart(inputs, lengths, delta_net_chunk)
    assert relative_error(out, wanted) < 1e-12
    weights = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given_gradients = torch.autograd.grad((out * weights).sum(), inputs)
    for found, right in zip(
        given_gradients, torch.autograd.grad((wanted * weights).sum(), inputs), strict=True
    ):
        assert relative_error(found, right) < 1e-11


def test_what_a_sequence_held_is_forgotten_even_if_it_was_not_a_number():
    inputs = delta_inputs(20)
    packed = pack([8, 12], TAPS - 1, CPU)
    right = delta_net_chunk(*inputs, *empty(), None, packed)[0][:, 8:]
    inputs[0][:, :8] = float("nan")
    assert torch.equal(delta_net_chunk(*inputs, *empty(), None, packed)[0][:, 8:], right)


@pytest.mark.parametrize("window, num_sinks", [(None, 0), (5, 0), (5, 3)])
def test_packed_attention_sees_its_own_sequence_alone(window, num_sinks):
    lengths = [1, 7, 2, 30]
    q, k, v = (torch.randn(1, 40, heads, 8) for heads in (4, 2, 2))
    cos, sin = torch.ones(1, 40, 8), torch.zeros(1, 40, 8)
    out = window_chunk(q, k, v, cos, sin, window, pack(lengths, TAPS - 1, CPU), num_sinks)
    parts = zip(*(x.split(lengths, dim=1) for x in (q, k, v, cos, sin)), strict=True)
    alone = [window_chunk(*part, window, None, num_sinks) for part in parts]
    assert torch.equal(out, torch.cat(alone, dim=1))
