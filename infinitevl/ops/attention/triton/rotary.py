"""The angles of `ops.attention.rotary` in one kernel."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.attention.rotary import RADIANS_PER_STEP


def rotary_angles(position_ids: Tensor, steps: Tensor, axes: Tensor) -> tuple[Tensor, Tensor]:
    """As `ops.attention.rotary.rotary_angles`: cosine and sine, float32 [B, T, D]."""
    _, batch, tokens = position_ids.shape
    half = len(steps)
    angles = torch.empty(2, batch, tokens, 2 * half, dtype=torch.float32, device=position_ids.device)
    _angles_kernel[(tokens, batch)](
        position_ids, steps, axes, angles, *position_ids.stride(), tokens, RADIANS_PER_STEP,
        HALF=half, WIDTH=triton.next_power_of_2(half), num_warps=1,
    )  # fmt: skip
    cos, sin = angles
    return cos, sin


@triton.jit
def _angles_kernel(
    positions, steps, axes, angles, axis_stride, row_stride, token_stride, num_tokens, radians,
    HALF: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One token a program; products wrap around in 64 bits exactly where the angle does."""
    token, row = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = tl.arange(0, WIDTH)
    real = column < HALF
    axis = tl.load(axes + column, mask=real, other=0)
    position = tl.load(positions + axis * axis_stride + row * row_stride + token * token_stride, mask=real)
    phase = (position * tl.load(steps + column, mask=real, other=0)).to(tl.float32) * radians
    place = angles + (row * num_tokens + token) * 2 * HALF + column
    size = tl.num_programs(1).to(tl.int64) * num_tokens * 2 * HALF
    tl.store(place, tl.cos(phase), mask=real)
    tl.store(place + HALF, tl.cos(phase), mask=real)
    tl.store(place + size, tl.sin(phase), mask=real)
    tl.store(place + size + HALF, tl.sin(phase), mask=real)
