"""Decay and writing strength of Gated DeltaNet in training, spread to where the sequences of a row lie."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.delta_net.triton.parts import log_decay_of

TOKENS = 64  # of one program


@torch.library.custom_op("infinitevl::train_gates", mutates_args=())
def gates(
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    place: Tensor | None = None,
    source: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `_gates` of `ops.delta_net`.

    Args:
        a, b: [B, T, H]. A_log, dt_bias: [H].
        place, source: of sequences that share the one row, as in `ops.rows`: M places come out.

    Returns:
        Logarithm of the decay, at least -128, and strength: float32 [B, M, H], zero where no token lies; M is
        T without places.
    """
    log_decay, beta = _empty(a, source), _empty(a, source)
    batch, num_places, heads = log_decay.shape
    _forward[(triton.cdiv(num_places, TOKENS), batch)](
        a.contiguous(), b.contiguous(), A_log, dt_bias, source, log_decay, beta, a.shape[1], num_places,
        H=heads, BH=triton.next_power_of_2(heads), SIZE=TOKENS, num_warps=4,
    )  # fmt: skip
    return log_decay, beta


@gates.register_fake
def _(a, b, A_log, dt_bias, place=None, source=None):
    return _empty(a, source), _empty(a, source)


@torch.library.custom_op("infinitevl::train_gates_backward", mutates_args=())
def _gates_backward(
    a: Tensor,
    b: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    place: Tensor | None,
    d_log_decay: Tensor,
    d_beta: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, (batch, length, heads) = a.contiguous(), b.contiguous(), a.shape
    d_a, d_b, blocks = torch.empty_like(a), torch.empty_like(b), triton.cdiv(length, TOKENS)
    sums = a.new_empty(2, batch, blocks, heads, dtype=torch.float32)
    _backward[(blocks, batch)](
        a, b, A_log, dt_bias, place, d_log_decay.contiguous(), d_beta.contiguous(), d_a, d_b, *sums, length,
        d_beta.shape[1], H=heads, BH=triton.next_power_of_2(heads), SIZE=TOKENS, num_warps=4,
    )  # fmt: skip
    d_A_log, d_dt_bias = (x.sum((0, 1)) for x in sums)
    return d_a, d_b, d_A_log.to(A_log.dtype), d_dt_bias.to(dt_bias.dtype)


@_gates_backward.register_fake
def _(a, b, A_log, dt_bias, place, d_log_decay, d_beta):
    return a.new_empty(a.shape), b.new_empty(b.shape), torch.empty_like(A_log), torch.empty_like(dt_bias)


def _keep(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[:5])


def _gradients(ctx, d_log_decay: Tensor, d_beta: Tensor):
    return *_gates_backward(*ctx.saved_tensors, d_log_decay, d_beta), None, None


gates.register_autograd(_gradients, setup_context=_keep)


def _empty(a: Tensor, source: Tensor | None) -> Tensor:
    num_places = a.shape[1] if source is None else len(source)
    return a.new_empty(a.shape[0], num_places, a.shape[2], dtype=torch.float32)


@triton.jit(do_not_specialize=["T", "num_places"])
def _forward(
    a, b, A_log, dt_bias, source, log_decay, beta, T, num_places,
    H: tl.constexpr, BH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """All heads of some places."""
    at, head, batch = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.arange(0, BH), tl.program_id(1)
    token, exists = at, at < num_places
    if source is not None:
        token = tl.load(source + at, mask=exists, other=-1)
    inside = ((token >= 0) & exists)[:, None] & (head < H)[None, :]
    place = (batch.to(tl.int64) * T + token)[:, None] * H + head[None, :]
    log_A = tl.load(A_log + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(dt_bias + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    speed = tl.load(a + place, mask=inside, other=0.0).to(tl.float32)
    strength = tl.sigmoid(tl.load(b + place, mask=inside, other=0.0).to(tl.float32))
    out = (batch.to(tl.int64) * num_places + at)[:, None] * H + head[None, :]
    all_of_it = exists[:, None] & (head < H)[None, :]
    tl.store(log_decay + out, tl.where(inside, log_decay_of(speed, log_A, bias), 0.0), mask=all_of_it)
    tl.store(beta + out, tl.where(inside, strength, 0.0), mask=all_of_it)


@triton.jit(do_not_specialize=["T", "num_places"])
def _backward(
    a, b, A_log, dt_bias, place, d_log_decay, d_beta, d_a, d_b, A_sums, bias_sums, T, num_places,
    H: tl.constexpr, BH: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """All heads of some tokens."""
    token, head, batch = tl.program_id(0) * SIZE + tl.arange(0, SIZE), tl.arange(0, BH), tl.program_id(1)
    lies = token
    if place is not None:
        lies = tl.load(place + token, mask=token < T, other=0)
    inside = (token < T)[:, None] & (head < H)[None, :]
    here = (batch.to(tl.int64) * T + token)[:, None] * H + head[None, :]
    there = (batch.to(tl.int64) * num_places + lies)[:, None] * H + head[None, :]
    log_A = tl.load(A_log + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    bias = tl.load(dt_bias + head, mask=head < H, other=0.0).to(tl.float32)[None, :]
    speed = tl.load(a + here, mask=inside, other=0.0).to(tl.float32)
    strength = tl.sigmoid(tl.load(b + here, mask=inside, other=0.0).to(tl.float32))
    gradient = tl.load(d_log_decay + there, mask=inside, other=0.0)
    slope = -tl.exp(log_A) * tl.sigmoid(speed + bias) * gradient
    d_strength = tl.load(d_beta + there, mask=inside, other=0.0)
    tl.store(d_a + here, slope.to(d_a.dtype.element_ty), mask=inside)
    tl.store(d_b + here, (d_strength * strength * (1.0 - strength)).to(d_b.dtype.element_ty), mask=inside)
    sums = (batch * tl.num_programs(0) + tl.program_id(0)) * H + head
    tl.store(A_sums + sums, tl.sum(gradient * log_decay_of(speed, log_A, bias), 0), mask=head < H)
    tl.store(bias_sums + sums, tl.sum(slope, 0), mask=head < H)
