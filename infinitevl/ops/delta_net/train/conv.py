"""What feeds the delta rule in training: convolution, SiLU, and norms of queries and keys, in one pass.

Sequences start empty. Gradients need no activation kept but the input: it is convolved again.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from infinitevl.ops.delta_net.triton.parts import load_taps, tap_of

TOKENS = 32  # of one program
CHANNELS = 128
_EPS = tl.constexpr(1e-6)


@torch.library.custom_op("infinitevl::conv_heads", mutates_args=())
def conv_heads(
    mixed: Tensor,
    conv_weight: Tensor,
    heads: int,
    key_width: int,
    value_width: int,
    place: Tensor | None = None,
    source: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Convolve and activate; norm queries and keys.

    Args:
        mixed: [B, T, H (2 K + V)], queries, keys and values side by side. conv_weight: [H (2 K + V), W].
        place, source: of sequences that share the one row, as in `ops.rows`: M places come out.

    Returns:
        Queries (norm K^-0.5) and keys (norm 1) [B, M, H, K], values [B, M, H, V], in mixed's dtype; M is T
        without places.
    """
    q, k, v = _empty_heads(mixed, heads, key_width, value_width, source)
    grid, sizes = _work(mixed, conv_weight, heads, key_width, value_width, q.shape[1])
    _forward[grid](
        mixed,
        conv_weight.contiguous(),
        source,
        q,
        k,
        v,
        q.shape[1],
        *mixed.stride()[:2],
        **sizes,
        num_warps=4,
    )
    return q, k, v


@conv_heads.register_fake
def _(mixed, conv_weight, heads, key_width, value_width, place=None, source=None):
    return _empty_heads(mixed, heads, key_width, value_width, source)


@torch.library.custom_op("infinitevl::conv_heads_backward", mutates_args=())
def conv_heads_backward(
    mixed: Tensor,
    conv_weight: Tensor,
    place: Tensor | None,
    source: Tensor | None,
    d_q: Tensor,
    d_k: Tensor,
    d_v: Tensor,
) -> tuple[Tensor, Tensor]:
    """Gradients of `conv_heads` with respect to mixed and conv_weight; sums over tokens in a fixed order."""
    (batch, length, channels), (_, num_places, heads, key_width) = mixed.shape, d_q.shape
    width, conv_weight = conv_weight.shape[1], conv_weight.contiguous()
    grid, sizes = _work(mixed, conv_weight, heads, key_width, d_v.shape[3], num_places)
    d_total = mixed.new_empty(batch, num_places, channels)
    d_taps = mixed.new_empty(batch, grid[0], width, channels, dtype=torch.float32)
    _backward[grid](
        mixed, conv_weight, source, d_q.contiguous(), d_k.contiguous(), d_v.contiguous(), d_total, d_taps,
        num_places, *mixed.stride()[:2], **sizes, num_warps=8,
    )  # fmt: skip
    d_mixed = mixed.new_empty(mixed.shape)
    _shift_back[(triton.cdiv(length, TOKENS), triton.cdiv(channels, CHANNELS), batch)](
        d_total,
        conv_weight,
        place,
        d_mixed,
        length,
        num_places,
        C=channels,
        W=width,
        SIZE=TOKENS,
        BC=CHANNELS,
        num_warps=4,
    )
    return d_mixed, d_taps.sum((0, 1)).T.contiguous().to(conv_weight.dtype)


@conv_heads_backward.register_fake
def _(mixed, conv_weight, place, source, d_q, d_k, d_v):
    return mixed.new_empty(mixed.shape), conv_weight.new_empty(conv_weight.shape)


def _keep(ctx, inputs, output) -> None:
    mixed, conv_weight, _, _, _, place, source = inputs
    ctx.save_for_backward(mixed, conv_weight, place, source)


def _gradients(ctx, d_q: Tensor, d_k: Tensor, d_v: Tensor):
    return *conv_heads_backward(*ctx.saved_tensors, d_q, d_k, d_v), *([None] * 5)


conv_heads.register_autograd(_gradients, setup_context=_keep)


def _empty_heads(mixed: Tensor, heads: int, key_width: int, value_width: int, source: Tensor | None):
    batch, num_places = mixed.shape[0], mixed.shape[1] if source is None else len(source)
    q, k = (mixed.new_empty(batch, num_places, heads, key_width) for _ in range(2))
    return q, k, mixed.new_empty(batch, num_places, heads, value_width)


def _work(mixed: Tensor, conv_weight: Tensor, heads: int, key_width: int, value_width: int, num_places: int):
    """Grid (places; heads of queries, of keys, blocks of heads of values; rows) and sizes."""
    assert (
        mixed.stride(2) == 1
        and mixed.shape[2] == heads * (2 * key_width + value_width) == conv_weight.shape[0]
    )
    block_v = min(CHANNELS, triton.next_power_of_2(value_width))
    parts = heads * (2 + triton.cdiv(value_width, block_v))
    grid = (triton.cdiv(num_places, TOKENS), parts, mixed.shape[0])
    sizes = {"H": heads, "K": key_width, "V": value_width, "W": conv_weight.shape[1], "SIZE": TOKENS}
    return grid, sizes | {"BK": triton.next_power_of_2(key_width), "BV": block_v}


@triton.jit(do_not_specialize=["T"])
def _forward(
    mixed, conv_weight, source, q, k, v, T, row, stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Some tokens of the channels of one head of queries or keys, or of a block of values."""
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    at = batch * T + token
    mixed += batch * row
    if part < 2 * H:
        _keys(mixed, conv_weight, source, q, k, at, token, part, T, stride, H, K, W, BK)
    else:
        _values(mixed, conv_weight, source, v, at, token, part - 2 * H, T, stride, H, K, V, W, BV)


@triton.jit
def _keys(
    mixed, conv_weight, source, q, k, at, token, part, T, stride,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A head of queries, or of keys."""
    channel = tl.arange(0, BK)
    keep = channel < K
    y = _conv(mixed, conv_weight, source, token, part * K + channel, keep, T, stride, W)
    y *= tl.sigmoid(y)
    y *= tl.rsqrt(tl.sum(y * y, 1) + _EPS)[:, None]
    place = (at * H + part % H)[:, None] * K + channel[None, :]
    inside = (token < T)[:, None] & keep[None, :]
    if part < H:
        tl.store(q + place, (y * K**-0.5).to(q.dtype.element_ty), mask=inside)
    else:
        tl.store(k + place, y.to(k.dtype.element_ty), mask=inside)


@triton.jit
def _values(
    mixed, conv_weight, source, v, at, token, part, T, stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """A block of a head of values."""
    blocks: tl.constexpr = (V + BV - 1) // BV
    head, channel = part // blocks, part % blocks * BV + tl.arange(0, BV)
    keep = channel < V
    y = _conv(mixed, conv_weight, source, token, 2 * H * K + head * V + channel, keep, T, stride, W)
    y *= tl.sigmoid(y)
    place = (at * H + head)[:, None] * V + channel[None, :]
    tl.store(v + place, y.to(v.dtype.element_ty), mask=(token < T)[:, None] & keep[None, :])


@triton.jit
def _conv(mixed, conv_weight, source, token, channel, keep, T, stride, W: tl.constexpr):
    """Before the activation, float32 [tokens, channels]."""
    weights = load_taps(conv_weight, channel, keep, W, mixed.dtype.element_ty)
    total = tl.zeros((token.shape[0], channel.shape[0]), tl.float32)
    for w in tl.static_range(W):
        x = _input(mixed, source, token + (w - W + 1), channel, keep, T, stride)
        total += x * tap_of(weights, w)[None, :]
    return total


@triton.jit
def _input(mixed, source, token, channel, keep, T, stride):
    """Float32 [tokens, channels]: zero before the first place, behind the last, and where no token lies."""
    exists = (token >= 0) & (token < T)
    if source is not None:
        token = tl.load(source + token, mask=exists, other=-1)
        exists = token >= 0
    inside = exists[:, None] & keep[None, :]
    place = mixed + token.to(tl.int64)[:, None] * stride + channel[None, :]
    return tl.load(place, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["T"])
def _backward(
    mixed, conv_weight, source, d_q, d_k, d_v, d_total, d_taps, T, row, stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr,
    BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients before the activation, and those of conv_weight summed over the program's tokens."""
    part, batch = tl.program_id(1), tl.program_id(2).to(tl.int64)
    token = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    at = batch * T + token
    C: tl.constexpr = H * (2 * K + V)
    mixed += batch * row
    d_taps += (batch * tl.num_programs(0) + tl.program_id(0)) * W * C
    if part < 2 * H:
        _keys_backward(
            mixed, conv_weight, source, d_q, d_k, d_total, d_taps, at, token, part, T, stride, H, K, W, C, BK
        )
    else:
        _values_backward(
            mixed,
            conv_weight,
            source,
            d_v,
            d_total,
            d_taps,
            at,
            token,
            part - 2 * H,
            T,
            stride,
            H,
            K,
            V,
            W,
            C,
            BV,
        )


@triton.jit
def _keys_backward(
    mixed, conv_weight, source, d_q, d_k, d_total, d_taps, at, token, part, T, stride,
    H: tl.constexpr, K: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Of a head of queries, or of keys: back through its norm."""
    column = tl.arange(0, BK)
    keep, channel = column < K, part * K + column
    total = _conv(mixed, conv_weight, source, token, channel, keep, T, stride, W)
    y = total * tl.sigmoid(total)
    place = (at * H + part % H)[:, None] * K + column[None, :]
    inside = (token < T)[:, None] & keep[None, :]
    if part < H:
        d_y = tl.load(d_q + place, mask=inside, other=0.0).to(tl.float32) * K**-0.5
    else:
        d_y = tl.load(d_k + place, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(y * y, 1) + _EPS)
    d_y = scale[:, None] * (d_y - y * (scale * scale * tl.sum(y * d_y, 1))[:, None])
    _store(mixed, source, d_total, d_taps, total, d_y, at, token, channel, keep, T, stride, C, W)


@triton.jit
def _values_backward(
    mixed, conv_weight, source, d_v, d_total, d_taps, at, token, part, T, stride,
    H: tl.constexpr, K: tl.constexpr, V: tl.constexpr, W: tl.constexpr, C: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Of a block of a head of values."""
    blocks: tl.constexpr = (V + BV - 1) // BV
    head, column = part // blocks, part % blocks * BV + tl.arange(0, BV)
    keep, channel = column < V, 2 * H * K + head * V + column
    total = _conv(mixed, conv_weight, source, token, channel, keep, T, stride, W)
    place = (at * H + head)[:, None] * V + column[None, :]
    inside = (token < T)[:, None] & keep[None, :]
    d_y = tl.load(d_v + place, mask=inside, other=0.0).to(tl.float32)
    _store(mixed, source, d_total, d_taps, total, d_y, at, token, channel, keep, T, stride, C, W)


@triton.jit
def _store(
    mixed, source, d_total, d_taps, total, d_y, at, token, channel, keep, T, stride,
    C: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Through SiLU; `mixed` is there for the gradient of the convolution's weight."""
    gate = tl.sigmoid(total)
    gradient = d_y * gate * (1.0 + total * (1.0 - gate))
    inside = (token < T)[:, None] & keep[None, :]
    tl.store(d_total + at[:, None] * C + channel[None, :], gradient.to(d_total.dtype.element_ty), mask=inside)
    for w in tl.static_range(W):
        x = _input(mixed, source, token + (w - W + 1), channel, keep, T, stride)
        tl.store(d_taps + w * C + channel, tl.sum(gradient * x, 0), mask=keep)


@triton.jit(do_not_specialize=["T", "num_places"])
def _shift_back(
    d_total, conv_weight, place, d_mixed, T, num_places,
    C: tl.constexpr, W: tl.constexpr, SIZE: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Each token gathers from the W that saw it."""
    token = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    keep, batch, lies = channel < C, tl.program_id(2).to(tl.int64), token
    if place is not None:
        lies = tl.load(place + token, mask=token < T, other=0)
    d_total += batch * num_places * C
    weights = load_taps(conv_weight, channel, keep, W, d_total.dtype.element_ty)
    total = tl.zeros((SIZE, BC), tl.float32)
    for w in tl.static_range(W):
        seen = _input(d_total, None, lies + (W - 1 - w), channel, keep, num_places, C)
        total += seen * tap_of(weights, w)[None, :]
    at = d_mixed + (batch * T + token)[:, None] * C + channel[None, :]
    tl.store(at, total.to(d_mixed.dtype.element_ty), mask=(token < T)[:, None] & keep[None, :])
