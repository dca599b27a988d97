"""The angles in one kernel equal the definition, also billions of positions into a stream."""

import pytest
import torch

from infinitevl.ops.attention import rotary
from infinitevl.ops.attention.triton.rotary import rotary_angles


@pytest.mark.parametrize("offset", [0, 10**9, 2**45, 2**61])
@pytest.mark.parametrize(("head_dim", "sections"), [(8, (1, 1, 2)), (128, (16, 24, 24)), (20, (2, 4, 4))])
def test_angles_equal_the_definition(offset, head_dim, sections, device):
    steps, axes = rotary.phase_steps(head_dim, 1e6), rotary.section_axes(sections)
    positions = torch.randint(0, 1000, (3, 2, 7)) + offset
    inputs = [x.to(device) for x in (positions, steps, axes)]
    for found, wanted in zip(rotary_angles(*inputs), rotary.rotary_angles(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_positions_may_have_any_strides(device):
    steps, axes = rotary.phase_steps(8, 1e4).to(device), rotary.section_axes((1, 1, 2)).to(device)
    row = torch.arange(5, device=device)[None].expand(3, 4, -1)
    for found, wanted in zip(
        rotary_angles(row, steps, axes), rotary.rotary_angles(row, steps, axes), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)
