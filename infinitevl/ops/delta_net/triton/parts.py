"""What the kernels of Gated DeltaNet for many tokens and for one token share."""

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_KEY_WIDTH = 128


def supports(dtype: torch.dtype, recurrent_state: Tensor, conv_weight: Tensor) -> bool:
    """Whether these kernels take activations of this dtype, a state [N, H, K, V], conv_weight [C, W]."""
    return (
        dtype in (torch.float32, torch.bfloat16)
        and recurrent_state.dtype == torch.float32
        and recurrent_state.shape[2] <= MAX_KEY_WIDTH
        and conv_weight.shape[1] >= 2
    )


def check_layout(mixed: Tensor, conv_weight: Tensor, recurrent_state: Tensor, conv_state: Tensor) -> None:
    """Refuse what would be read wrongly: of the state, kernels take the stride of rows alone."""
    _, heads, key_width, value_width = recurrent_state.shape
    assert supports(mixed.dtype, recurrent_state, conv_weight), (
        mixed.dtype,
        recurrent_state.dtype,
        recurrent_state.shape,
        conv_weight.shape,
    )
    assert (
        mixed.shape[2] == heads * (2 * key_width + value_width) == conv_weight.shape[0] == conv_state.shape[2]
    )
    assert conv_state.dtype == mixed.dtype and conv_state.shape[1] == conv_weight.shape[1] - 1
    assert mixed.stride(2) == 1 and conv_weight.is_contiguous()
    assert recurrent_state[0].is_contiguous() and conv_state[0].is_contiguous()


@triton.jit
def row_of(rows, batch):
    """The row of the state that row `batch` of the batch continues, int64."""
    return batch.to(tl.int64) if rows is None else tl.load(rows + batch)


@triton.jit
def log_decay_of(a, A_log, dt_bias):
    """-exp(A_log) softplus(a + dt_bias) in float32, but at least -128: exp of that is zero in any case.

    log(1 + x) is 2 artanh(x / (2 + x)), a series that keeps its digits where x is tiny.
    """
    dt = a + dt_bias
    small = tl.exp(-tl.abs(dt))
    ratio = small / (2.0 + small)
    square = ratio * ratio
    series = 1.0 / 17
    for power in tl.static_range(15, 0, -2):
        series = series * square + 1.0 / power
    softplus = tl.maximum(dt, 0.0) + 2.0 * ratio * series
    return tl.maximum(-tl.exp(A_log) * softplus, -128.0)


@triton.jit
def load_taps(conv_weight, channel, keep, W: tl.constexpr, dtype: tl.constexpr):
    """Float32 [channels, W, to a power of 2] from conv_weight [C, W], rounded as the activations are."""
    w = tl.arange(0, triton.next_power_of_2(W))[None, :]
    mask = keep[:, None] & (w < W)
    return tl.load(conv_weight + channel[:, None] * W + w, mask=mask, other=0.0).to(dtype).to(tl.float32)


@triton.jit
def tap_of(weights, w: tl.constexpr):
    """Tap w of each channel."""
    return tl.sum(tl.where(tl.arange(0, weights.shape[1])[None, :] == w, weights, 0.0), 1)


@triton.jit
def count(num_valid, batch, T):
    """How many tokens of a row count."""
    return T if num_valid is None else tl.load(num_valid + batch).to(tl.int32)


@triton.jit
def halves(x):
    """Two bfloat16 whose sum is x to 16 bits; the first is cut off, not rounded, which is cheaper."""
    bits = x.to(tl.int32, bitcast=True)
    high = (bits >> 16).to(tl.int16).to(tl.bfloat16, bitcast=True)
    return high, (x - (bits & -65536).to(tl.float32, bitcast=True)).to(tl.bfloat16)


@triton.jit
def product(x, y, start, PRECISION: tl.constexpr):
    """start + x @ y for operands of one dtype."""
    return tl.dot(x, y, start, input_precision="ieee" if PRECISION == "split" else PRECISION)
