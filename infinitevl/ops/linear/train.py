"""Norms and gates in training: one pass forward, one backward, float32 inside, nothing kept but the inputs.

Gradients of weights are summed by a fixed number of programs, each over its own rows, and then over these.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512
_FLAT = 2048  # elements of a program that has no rows
_ROWS = 2048  # elements of the rows that a program of the gated norm takes at a time


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `ops.linear.torch.rms_norm`; the result in x's dtype whatever the weight's."""
    return _rms_norm(x, weight, eps)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `ops.linear.torch.gated_rms_norm`: x, gate [..., V]."""
    return _gated_norm(x, gate, weight, eps)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """As `ops.linear.torch.swiglu`: SiLU(gate) * up."""
    return _swiglu(gate, up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `ops.attention.rotary.rotate`: x [..., H, D]; of the angles [..., D] the first half is read."""
    return _rotate(x, cos, sin)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op("infinitevl::train_rms_norm", mutates_args=())
def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, y = x.contiguous(), _like(x)
    width = x.shape[-1]
    block = triton.next_power_of_2(width)
    _norm[(x.numel() // width,)](x, weight, y, eps, width, block, num_warps=_warps(block))
    return y


@_rms_norm.register_fake
def _(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _like(x)


@torch.library.custom_op("infinitevl::train_rms_norm_backward", mutates_args=())
def _rms_norm_backward(x: Tensor, weight: Tensor, d_y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x, d_y, d_x = x.contiguous(), d_y.contiguous(), _like(x)
    width = x.shape[-1]
    block, d_weight = triton.next_power_of_2(width), x.new_empty(PROGRAMS, width, dtype=torch.float32)
    _norm_backward[(PROGRAMS,)](
        x, weight, d_y, d_x, d_weight, x.numel() // width, eps, width, block, num_warps=_warps(block)
    )
    return d_x, d_weight.sum(0).to(weight.dtype)


@_rms_norm_backward.register_fake
def _(x: Tensor, weight: Tensor, d_y: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _like(x), _like(weight)


@torch.library.custom_op("infinitevl::train_gated_norm", mutates_args=())
def _gated_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    x, gate, y = x.contiguous(), gate.contiguous(), _like(gate)
    rows, width, block = _shape(x)
    _gated[(triton.cdiv(rows, _height(block)),)](
        x, gate, weight, y, rows, eps, width, block, _height(block), num_warps=4
    )
    return y


@_gated_norm.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return _like(gate)


@torch.library.custom_op("infinitevl::train_gated_norm_backward", mutates_args=())
def _gated_norm_backward(
    x: Tensor, gate: Tensor, weight: Tensor, d_y: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    x, gate, d_y = x.contiguous(), gate.contiguous(), d_y.contiguous()
    d_x, d_gate = _like(x), _like(gate)
    rows, width, block = _shape(x)
    d_weight = x.new_empty(PROGRAMS, width, dtype=torch.float32)
    _gated_backward[(PROGRAMS,)](
        x, gate, weight, d_y, d_x, d_gate, d_weight, rows, eps, width, block, _height(block), num_warps=4
    )
    return d_x, d_gate, d_weight.sum(0).to(weight.dtype)


@_gated_norm_backward.register_fake
def _(x: Tensor, gate: Tensor, weight: Tensor, d_y: Tensor, eps: float):
    return _like(x), _like(gate), _like(weight)


@torch.library.custom_op("infinitevl::train_swiglu", mutates_args=())
def _swiglu(gate: Tensor, up: Tensor) -> Tensor:
    gate, up, y = gate.contiguous(), up.contiguous(), _like(gate)
    _gate_up[(triton.cdiv(y.numel(), _FLAT),)](gate, up, y, y.numel(), _FLAT, num_warps=8)
    return y


@_swiglu.register_fake
def _(gate: Tensor, up: Tensor) -> Tensor:
    return _like(gate)


@torch.library.custom_op("infinitevl::train_swiglu_backward", mutates_args=())
def _swiglu_backward(gate: Tensor, up: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
    gate, up, d_y = gate.contiguous(), up.contiguous(), d_y.contiguous()
    d_gate, d_up = _like(gate), _like(up)
    grid = (triton.cdiv(gate.numel(), _FLAT),)
    _gate_up_backward[grid](gate, up, d_y, d_gate, d_up, gate.numel(), _FLAT, num_warps=8)
    return d_gate, d_up


@_swiglu_backward.register_fake
def _(gate: Tensor, up: Tensor, d_y: Tensor) -> tuple[Tensor, Tensor]:
    return _like(gate), _like(up)


@torch.library.custom_op("infinitevl::train_rotate", mutates_args=())
def _rotate(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    """back: by the same angles the other way."""
    x, y, (heads, width) = x.contiguous(), _like(x), x.shape[-2:]
    block = triton.next_power_of_2(width // 2), triton.next_power_of_2(heads)
    _turn[(x.numel() // (heads * width),)](
        x, cos.contiguous(), sin.contiguous(), y, heads, width // 2, back, *block, num_warps=4
    )
    return y


@_rotate.register_fake
def _(x: Tensor, cos: Tensor, sin: Tensor, back: bool = False) -> Tensor:
    return _like(x)


def _keep_angles(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs[1:3])


_rotate.register_autograd(
    lambda ctx, d_y: (_rotate(d_y, *ctx.saved_tensors, True), None, None, None), setup_context=_keep_angles
)


def _keep_with_eps(ctx, inputs, output) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


_rms_norm.register_autograd(
    lambda ctx, d_y: (*_rms_norm_backward(*ctx.saved_tensors, d_y, ctx.eps), None),
    setup_context=_keep_with_eps,
)
_gated_norm.register_autograd(
    lambda ctx, d_y: (*_gated_norm_backward(*ctx.saved_tensors, d_y, ctx.eps), None),
    setup_context=_keep_with_eps,
)
_swiglu.register_autograd(
    lambda ctx, d_y: _swiglu_backward(*ctx.saved_tensors, d_y),
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)


def _warps(block: int) -> int:
    """A thread for every 8 elements."""
    return max(1, min(8, block // 256))


def _shape(x: Tensor) -> tuple[int, int, int]:
    """Rows, their width, and the power of two that holds it."""
    width = x.shape[-1]
    return x.numel() // width, width, triton.next_power_of_2(width)


def _height(block: int) -> int:
    """Rows at a time."""
    return max(1, _ROWS // block)


@triton.jit
def _load(x, mask):
    return tl.load(x, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _put(place, x, mask):
    tl.store(place, x.to(place.dtype.element_ty), mask=mask)


@triton.jit
def _norm(x, weight, y, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """One row a program; rounded as `ops.linear.torch.rms_norm` rounds."""
    column = tl.arange(0, BLOCK)
    inside, place = column < WIDTH, tl.program_id(0).to(tl.int64) * WIDTH + column
    wide = _load(x + place, inside)
    wide *= tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    _put(y + place, wide.to(x.dtype.element_ty).to(tl.float32) * _load(weight + column, inside), inside)


@triton.jit(do_not_specialize=["rows"])
def _norm_backward(x, weight, d_y, d_x, d_weight, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Every PROGRAMS-th row."""
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    weights, total = _load(weight + column, inside), tl.zeros((BLOCK,), tl.float32)
    width = tl.full((), WIDTH, tl.int64)
    for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
        place = row * width + column
        wide, gradient = _load(x + place, inside), _load(d_y + place, inside)
        scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
        normed = wide * scale
        total += gradient * normed
        gradient *= weights
        _put(d_x + place, scale * (gradient - normed * (tl.sum(gradient * normed, 0) / WIDTH)), inside)
    tl.store(d_weight + tl.program_id(0) * WIDTH + column, total, mask=inside)


@triton.jit(do_not_specialize=["rows"])
def _gated(x, gate, weight, y, rows, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEIGHT: tl.constexpr):
    """A few rows a program."""
    row, column = tl.program_id(0) * HEIGHT + tl.arange(0, HEIGHT), tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
    wide, gates = _load(x + place, inside), _load(gate + place, inside)
    wide *= tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + eps)[:, None]
    wide *= _load(weight + column, column < WIDTH)[None, :]
    _put(y + place, wide * gates * tl.sigmoid(gates), inside)


@triton.jit(do_not_specialize=["rows"])
def _gated_backward(
    x, gate, weight, d_y, d_x, d_gate, d_weight, rows, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, HEIGHT: tl.constexpr,
):  # fmt: skip
    """Every PROGRAMS-th group of rows."""
    column = tl.arange(0, BLOCK)
    weights, total = _load(weight + column, column < WIDTH), tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(tl.program_id(0) * HEIGHT, rows, tl.num_programs(0) * HEIGHT):
        row = start + tl.arange(0, HEIGHT)
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        place = row.to(tl.int64)[:, None] * WIDTH + column[None, :]
        wide, gates = _load(x + place, inside), _load(gate + place, inside)
        gradient = _load(d_y + place, inside)
        scale = tl.rsqrt(tl.sum(wide * wide, 1) / WIDTH + eps)[:, None]
        normed, share = wide * scale, tl.sigmoid(gates)
        opened = gradient * gates * share
        total += tl.sum(opened * normed, 0)
        d_opened = gradient * normed * weights[None, :]
        _put(d_gate + place, d_opened * share * (1.0 + gates * (1.0 - share)), inside)
        opened *= weights[None, :]
        mean = (tl.sum(opened * normed, 1) / WIDTH)[:, None]
        _put(d_x + place, scale * (opened - normed * mean), inside)
    tl.store(d_weight + tl.program_id(0) * WIDTH + column, total, mask=column < WIDTH)


@triton.jit
def _gate_up(gate, up, y, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gates, ups = _load(gate + place, place < size), _load(up + place, place < size)
    _put(y + place, gates * tl.sigmoid(gates) * ups, place < size)


@triton.jit
def _gate_up_backward(gate, up, d_y, d_gate, d_up, size, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gates, ups = _load(gate + place, place < size), _load(up + place, place < size)
    gradient, share = _load(d_y + place, place < size), tl.sigmoid(gates)
    _put(d_gate + place, gradient * ups * share * (1.0 + gates * (1.0 - share)), place < size)
    _put(d_up + place, gradient * gates * share, place < size)


@triton.jit
def _turn(
    x, cos, sin, y, HEADS: tl.constexpr, HALF: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_H: tl.constexpr,
):  # fmt: skip
    """One token a program."""
    token, i, head = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK), tl.arange(0, BLOCK_H)
    angle = token * 2 * HALF + i
    c, s = _load(cos + angle, i < HALF)[None, :], _load(sin + angle, i < HALF)[None, :]
    if BACK:
        s = -s
    inside = (head < HEADS)[:, None] & (i < HALF)[None, :]
    place = (token * HEADS + head)[:, None] * 2 * HALF + i[None, :]
    first, second = _load(x + place, inside), _load(x + place + HALF, inside)
    _put(y + place, first * c - second * s, inside)
    _put(y + place + HALF, second * c + first * s, inside)
