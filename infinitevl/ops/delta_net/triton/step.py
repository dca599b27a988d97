"""Gated DeltaNet for one token: the recurrent state is read once and written once."""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from infinitevl.ops.delta_net.triton.parts import check_layout, log_decay_of, row_of
from infinitevl.ops.early import launches_early
from infinitevl.ops.rows import contiguous

_SHIFTED = 512  # channels of one program of `_shift_keys`


@dataclass(frozen=True)
class StepTuning:
    """How the work is cut: value columns of one program, and its warps."""

    block_v: int = 32
    warps: int = 1


def _tuning(batch: int) -> StepTuning:
    """Measured on an H200 with heads of 128 x 256: small blocks fill the card, large ones convolve less."""
    if batch < 4:
        return StepTuning(16, 1)
    return StepTuning() if batch < 32 else StepTuning(64, 2)


def delta_net_step_(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    rows: Tensor | None = None,
    tuning: StepTuning | None = None,
) -> Tensor:
    """As `ops.delta_net.torch.delta_net_step_`: out float32 [B, 1, H, V]; both states change in place."""
    check_layout(mixed, conv_weight, recurrent_state, conv_state)
    assert mixed.shape[1] == 1, "one token at a time"
    batch, rows = mixed.shape[0], contiguous(rows)
    _, heads, key_width, value_width = recurrent_state.shape
    tuning = tuning or _tuning(batch)
    block_v = min(tuning.block_v, triton.next_power_of_2(value_width))
    num_blocks = triton.cdiv(value_width, block_v)
    out = recurrent_state.new_empty(batch, 1, heads, value_width)
    early = launches_early(mixed)
    sizes = {
        "H": heads,
        "K": key_width,
        "V": value_width,
        "W": conv_weight.shape[1],
        "EARLY": early,
        "launch_pdl": early,
    }
    _step[(num_blocks, heads, batch)](
        mixed, a, b, conv_weight, A_log, dt_bias, recurrent_state, conv_state, rows, out,
        mixed.stride(0), a.stride(0), a.stride(2), b.stride(0), b.stride(2), recurrent_state.stride(0),
        conv_state.stride(0), **sizes, BK=triton.next_power_of_2(key_width), BV=block_v,
        num_warps=tuning.warps,
    )  # fmt: skip
    if num_blocks > 1:
        _shift_keys[(triton.cdiv(2 * heads * key_width, _SHIFTED), batch)](
            mixed, conv_state, rows, mixed.stride(0), conv_state.stride(0), **sizes, BC=_SHIFTED, num_warps=4
        )
    return out


@triton.jit
def _step(
    mixed, a, b, conv_weight, A_log, dt_bias, recurrent_state, conv_state, rows, out, mixed_row, a_row,
    a_head, b_row, b_head, recurrent_row, conv_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
    BV: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """Grid (value blocks, heads, rows). Every block of a head convolves the same q and k.

    The inputs of v belong to this program alone; those of q and k only where one block is the whole head. An
    early launch fetches recurrent_state while the kernel before still runs: what wrote it lies further back,
    behind a kernel that was launched ordinarily or at `_shift_keys`, which waited.
    """
    block, head, batch = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = row_of(rows, batch)
    wide = batch.to(tl.int64)
    C: tl.constexpr = H * (2 * K + V)
    dtype = mixed.dtype.element_ty
    width, column = tl.arange(0, BK), block * BV + tl.arange(0, BV)
    inside = (width < K)[:, None] & (column < V)[None, :]
    recurrent_state += row * recurrent_row + head * K * V + width[:, None] * V + column[None, :]
    state = tl.load(recurrent_state, mask=inside, other=0.0)
    q_channel, k_channel, v_channel = (
        head * K + width,
        (H + head) * K + width,
        (2 * H * K + head * V) + column,
    )
    q_taps = _conv_weight(conv_weight, q_channel, width < K, W, dtype)
    k_taps = _conv_weight(conv_weight, k_channel, width < K, W, dtype)
    v_taps = _conv_weight(conv_weight, v_channel, column < V, W, dtype)
    log_A, bias = tl.load(A_log + head).to(tl.float32), tl.load(dt_bias + head).to(tl.float32)
    if EARLY:
        gdc_wait()
    mixed += wide * mixed_row
    conv_state += row * conv_row
    q_seen = _seen(mixed, conv_state, q_channel, width < K, C, W)
    k_seen = _seen(mixed, conv_state, k_channel, width < K, C, W)
    v_seen = _seen(mixed, conv_state, v_channel, column < V, C, W)
    log_decay = log_decay_of(tl.load(a + wide * a_row + head * a_head).to(tl.float32), log_A, bias)
    beta = tl.sigmoid(tl.load(b + wide * b_row + head * b_head).to(tl.float32))
    q, k, v = _conv_silu(q_seen, q_taps), _conv_silu(k_seen, k_taps), _conv_silu(v_seen, v_taps)
    tl.debug_barrier()  # every thread has read the conv_state
    if EARLY and BV < V:
        gdc_launch_dependents()
    q *= tl.rsqrt(tl.sum(q * q, 0) + 1e-6) * (K**-0.5)
    k *= tl.rsqrt(tl.sum(k * k, 0) + 1e-6)
    decay = tl.exp(log_decay)
    written = beta * (v - decay * tl.sum(state * k[:, None], 0))
    # No second pass over the new recurrent_state: q^T (d S + k u^T) = d q^T S + (q . k) u^T.
    result = decay * tl.sum(state * q[:, None], 0) + tl.sum(q * k, 0) * written
    tl.store(recurrent_state, decay * state + k[:, None] * written[None, :], mask=inside)
    tl.store(out + (wide * H + head) * V + column, result, mask=column < V)
    _shift(conv_state, v_seen, v_channel, column < V, C, W)
    if BV >= V:
        _shift(conv_state, q_seen, q_channel, width < K, C, W)
        _shift(conv_state, k_seen, k_channel, width < K, C, W)


@triton.jit
def _seen(mixed, conv_state, channel, keep, C: tl.constexpr, W: tl.constexpr):
    """The conv_state and then the one token of mixed, [W, to a power of 2, channels]."""
    slot = tl.arange(0, triton.next_power_of_2(W))[:, None]
    old, new = conv_state + slot * C + channel[None, :], mixed + channel[None, :] + slot * 0
    return tl.load(tl.where(slot < W - 1, old, new), mask=keep[None, :] & (slot < W), other=0.0)


@triton.jit
def _conv_weight(conv_weight, channel, keep, W: tl.constexpr, dtype: tl.constexpr):
    """Float32 [W, to a power of 2, channels] from conv_weight [C, W], rounded as the activations are."""
    w = tl.arange(0, triton.next_power_of_2(W))[:, None]
    mask = keep[None, :] & (w < W)
    return tl.load(conv_weight + channel[None, :] * W + w, mask=mask, other=0.0).to(dtype).to(tl.float32)


@triton.jit
def _conv_silu(seen, conv_weight):
    """SiLU of the convolution, rounded to the activations' dtype: float32 [channels]."""
    total = tl.sum(seen.to(tl.float32) * conv_weight, 0)
    return (total * tl.sigmoid(total)).to(seen.dtype).to(tl.float32)


@triton.jit
def _shift(conv_state, seen, channel, keep, C: tl.constexpr, W: tl.constexpr):
    """The conv_state that the next token meets: all but the oldest input."""
    slot = tl.arange(0, triton.next_power_of_2(W))[:, None]
    place = conv_state + (slot - 1) * C + channel[None, :]
    tl.store(place, seen, mask=keep[None, :] & (slot > 0) & (slot < W))


@triton.jit
def _shift_keys(
    mixed, conv_state, rows, mixed_row, conv_row,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BC: tl.constexpr, EARLY: tl.constexpr,
):  # fmt: skip
    """The conv_state of queries and keys, once no program reads it any more."""
    batch = tl.program_id(1)
    channel = tl.program_id(0) * BC + tl.arange(0, BC)
    conv_state += row_of(rows, batch) * conv_row
    C: tl.constexpr = H * (2 * K + V)
    seen = _seen(mixed + batch.to(tl.int64) * mixed_row, conv_state, channel, channel < 2 * H * K, C, W)
    tl.debug_barrier()  # every thread has read the conv_state
    _shift(conv_state, seen, channel, channel < 2 * H * K, C, W)
    if (
        EARLY
    ):  # `_step` let this kernel start when it had read conv_state, but its successor needs `_step` itself
        gdc_wait()
