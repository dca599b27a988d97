"""Rotary angles stay exact wherever a stream has got to."""

import math
from fractions import Fraction

import pytest
import torch

from infinitevl.ops.attention.rotary import phase_steps, rotary_angles, rotate, section_axes
from infinitevl.ops.reference import window_attention
from tests.support import relative_error

PI = Fraction("3.14159265358979323846264338327950288419716939937510")
STEPS, AXES = phase_steps(128, 1e6), section_axes([16, 24, 24])


def attention_at(offset):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 50, 2, 128, generator=generator) for _ in range(3))
    positions = torch.randint(0, 4000, (3, 1, 50), generator=generator) + offset
    cos, sin = rotary_angles(positions, STEPS, AXES)
    return window_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, 32)


@pytest.mark.parametrize("offset", [10**4, 10**6, 10**9, 10**12, 2**61])
def test_the_same_content_far_away_gives_the_same_attention(offset):
    assert relative_error(attention_at(offset), attention_at(0)) < 1e-5


@pytest.mark.parametrize("position", [0, 1, 17, 12345, 10**9, 10**12])
def test_angles_equal_those_of_exact_arithmetic(position):
    cos, sin = rotary_angles(torch.full((3, 1, 1), position), STEPS, AXES)
    frequencies = 1.0 / (1e6 ** (torch.arange(0, 128, 2).float() / 128))
    for i, frequency in enumerate(frequencies.tolist()):
        exact = float((position * Fraction(frequency)) % (2 * PI))
        assert abs(cos[0, 0, i].item() - math.cos(exact)) < 1e-6
        assert abs(sin[0, 0, i].item() - math.sin(exact)) < 1e-6


def test_axes_follow_the_sections():
    assert AXES.tolist() == [0] * 16 + [1] * 24 + [2] * 24
    cos, _ = rotary_angles(torch.tensor([[[5]], [[0]], [[0]]]), STEPS, AXES)
    assert (cos[0, 0, 16:64] == 1).all() and (cos[0, 0, :16] != 1).all()
