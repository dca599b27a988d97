"""The operations of the decoder that decide how fast it trains; same signatures and results as in `ops`.

On a GPU in bfloat16 they are kernels (`triton.train_*`, `flash`). What stands here is the same in plain
torch, for every device and dtype: each step is a large batched product with a gradient of its own, and
nothing loops in Python but a short scan over chunks. Sequences start empty.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops import flash
from infinitevl.ops.backend import why_torch
from infinitevl.ops.delta_net import delta_net_chunk
from infinitevl.ops.kernels import Kernels
from infinitevl.ops.packed import Packed
from infinitevl.ops.rotary import rotate
from infinitevl.ops.window import window_chunk

CHUNK = 64
_SMALLEST = 8


def trainable(dtype: torch.dtype) -> Kernels:
    """Kernels to train with; products of the delta rule in `dtype`."""
    plain = Kernels(
        "trainable", delta_net_chunk=functools.partial(_delta_net, dtype=dtype), window_chunk=_window
    )
    if dtype != torch.bfloat16 or not torch.cuda.is_available() or why_torch(torch.device("cuda")):
        return plain
    from infinitevl.ops.triton import train_net, train_pointwise

    return replace(
        plain,
        name="trainable, Triton",
        delta_net_chunk=_on_gpu(train_net.delta_net_chunk, plain.delta_net_chunk),
        window_chunk=functools.partial(_window, turn=train_pointwise.rotate),
        rms_norm=_on_gpu(train_pointwise.rms_norm, plain.rms_norm, torch.float32),
        gated_rms_norm=_on_gpu(train_pointwise.gated_rms_norm, plain.gated_rms_norm),
        swiglu=_on_gpu(train_pointwise.swiglu, plain.swiglu),
    )


def _on_gpu(fast: Callable, plain: Callable, *others_too: torch.dtype) -> Callable:
    """`fast` where the first argument is bfloat16 (or of another dtype named) on a GPU, else `plain`."""

    def either(x: Tensor, *others: Any) -> Any:
        return (fast if x.is_cuda and x.dtype in (torch.bfloat16, *others_too) else plain)(x, *others)

    return either


def _delta_net(mixed: Tensor, *others: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.delta_net.delta_net_chunk` at the start of sequences."""
    rule = functools.partial(delta_rule_chunk, dtype=dtype)
    return delta_net_chunk(mixed, *others, conv=causal_conv_chunk, rule=rule)


def _window(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    window: int | None,
    packed: Packed | None = None,
    turn: Callable[..., Tensor] = rotate,
) -> Tensor:
    """As `ops.window.window_chunk`; `turn` rotates what the flash kernel takes."""
    if not flash.supports(q):
        return window_chunk(q, k, v, cos, sin, window, packed)
    (batch, length), q, k = q.shape[:2], turn(q, cos, sin), turn(k, cos, sin)
    if packed is None:
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * length
        max_seqlen = length
    else:
        cu_seqlens, max_seqlen = packed.cu_seqlens, max(packed.lengths)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return flash.attend_packed(q, k, v, cu_seqlens, max_seqlen, window).unflatten(0, (batch, length))


def causal_conv_chunk(
    x: Tensor, weight: Tensor, conv_state: Tensor, num_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `ops.causal_conv`: shifted products that a compiler fuses, where a grouped convolution trains
    slowly."""
    assert num_valid is None, "training batches are padded at the end and need no counts"
    width, length = weight.shape[1], x.shape[1]
    seen = F.pad(x, (0, 0, width - 1, 0))
    weight = weight.to(x.dtype)
    mixed = seen[:, :length] * weight[:, 0]
    for tap in range(1, width):
        mixed = mixed + seen[:, tap : tap + length] * weight[:, tap]
    return F.silu(mixed), conv_state


def delta_rule_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    dtype: torch.dtype,
    ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `ops.delta_rule` (paper, section 3, WY form): products in `dtype`, decays, solve and recurrent state
    in the recurrent state's dtype.

    Args:
        q, k: [B, T, H, K]. v: [B, T, H, V]. log_decay, beta: [B, T, H]. recurrent_state: [B, H, K, V].
        ends: bool [T / CHUNK], after which chunks the recurrent state is emptied; None: after none.
    """
    length = q.shape[1]
    q, k, v = (_split(x).to(recurrent_state.dtype) for x in (q, k, v))  # [B, H, N, C, D]
    log_decay, beta = (_split(x[..., None])[..., 0].to(recurrent_state.dtype) for x in (log_decay, beta))
    since = log_decay.cumsum(-1)  # [B, H, N, C]
    lower = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).tril()
    decay = (since[..., :, None] - since[..., None, :]).masked_fill(~lower, float("-inf")).exp()
    keys = k.to(dtype)
    met = ((keys @ keys.mT).to(recurrent_state.dtype) * decay * beta[..., None]).tril(-1)
    solve = unit_lower_inverse(met).to(dtype)
    grown = since.exp()[..., None]
    values = solve @ (beta[..., None] * v).to(dtype)
    erased = solve @ (beta[..., None] * grown * k).to(dtype)
    to_end = (k * (since[..., -1:] - since).exp()[..., None]).to(dtype)
    kept = since[..., -1].exp()  # [B, H, N]
    if ends is not None:
        kept, to_end = kept.masked_fill(ends, 0.0), to_end.masked_fill(ends[:, None, None], 0.0)
    before, written, last = scan_chunks(values, erased, to_end, kept, recurrent_state)
    inner = ((q.to(dtype) @ keys.mT).to(recurrent_state.dtype) * decay).to(dtype)
    out = (q * grown).to(dtype) @ before.to(dtype) + inner @ written
    return out.flatten(2, 3)[:, :, :length].transpose(1, 2), last


def _split(x: Tensor) -> Tensor:
    """[B, T, H, D] -> [B, H, N, C, D]; the filling zeros write nothing and decay nothing."""
    x = F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % CHUNK))
    return x.unflatten(2, (-1, CHUNK))


def _fresh(x: Tensor) -> Tensor:
    """A contiguous copy: the layout that the operations below promise to the compiler."""
    return x.clone(memory_format=torch.contiguous_format)


@torch.library.custom_op("infinitevl::unit_lower_inverse", mutates_args=())
def unit_lower_inverse(strict: Tensor) -> Tensor:
    """Inverse of I + A for strictly lower triangular A [..., C, C]: blocks of 8 by powers, then merged in
    pairs.

    Powers alone would lose all digits where many keys are alike; blocks of 8 cannot grow that far.
    """
    with torch.autocast(strict.device.type, enabled=False):
        return _fresh(_inverse(strict.reshape(-1, *strict.shape[-2:])).view(strict.shape))


def _inverse(a: Tensor) -> Tensor:
    """The same for [M, C, C]."""
    size = a.shape[-1]
    blocks = _diagonal_blocks(a, _SMALLEST)
    eye = torch.eye(_SMALLEST, dtype=a.dtype, device=a.device)
    power = -blocks
    inverse = eye + power
    for _ in range(2):
        power = power @ power
        inverse = inverse + inverse @ power
    width = _SMALLEST
    while width < size:
        inverse = _merge(inverse, a, width)
        width *= 2
    return inverse


def _diagonal_blocks(a: Tensor, width: int) -> Tensor:
    """Blocks on the diagonal of [M, C, C]: [M, C / width, width, width]."""
    tiles = a.unflatten(2, (-1, width)).unflatten(1, (-1, width))  # [M, rows, width, columns, width]
    return torch.diagonal(tiles, dim1=1, dim2=3).permute(0, 3, 1, 2).contiguous()


def _merge(inverse: Tensor, a: Tensor, width: int) -> Tensor:
    """Inverses of blocks [M, n, width, width] -> of blocks twice as wide."""
    upper, lower = inverse[:, 0::2], inverse[:, 1::2]
    corner = _diagonal_blocks(a, 2 * width)[:, :, width:, :width]
    joined = inverse.new_zeros(*upper.shape[:2], 2 * width, 2 * width)
    joined[..., :width, :width] = upper
    joined[..., width:, width:] = lower
    joined[..., width:, :width] = -(lower @ corner @ upper)
    return joined


@unit_lower_inverse.register_fake
def _(strict: Tensor) -> Tensor:
    return torch.empty_like(strict, memory_format=torch.contiguous_format)


def _keep_inverse(ctx, inputs, output) -> None:
    ctx.save_for_backward(output)


def _inverse_backward(ctx, gradient: Tensor) -> Tensor:
    (inverse,) = ctx.saved_tensors
    with torch.autocast(inverse.device.type, enabled=False):
        return -(inverse.mT @ gradient @ inverse.mT).tril(-1)


unit_lower_inverse.register_autograd(_inverse_backward, setup_context=_keep_inverse)


@torch.library.custom_op("infinitevl::scan_chunks", mutates_args=())
def scan_chunks(
    values: Tensor, erased: Tensor, to_end: Tensor, decay: Tensor, recurrent_state: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Carry the recurrent state from chunk to chunk: W = values - erased S; S <- decay S + to_end^T W.

    Args:
        values: [B, H, N, C, V]. erased, to_end: [B, H, N, C, K]. decay: [B, H, N].
        recurrent_state: [B, H, K, V].

    Returns:
        The state before each chunk [B, H, N, K, V], what each chunk writes [B, H, N, C, V], the last state.
    """
    before, written = [], []
    for n in range(values.shape[2]):
        before.append(recurrent_state)
        written.append(values[:, :, n] - erased[:, :, n] @ recurrent_state.to(values.dtype))
        recurrent_state = decay[:, :, n, None, None] * recurrent_state + to_end[:, :, n].mT @ written[-1]
    return torch.stack(before, 2), torch.stack(written, 2), _fresh(recurrent_state)


@scan_chunks.register_fake
def _(values: Tensor, erased: Tensor, to_end: Tensor, decay: Tensor, recurrent_state: Tensor):
    batch, heads, chunks = decay.shape
    before = recurrent_state.new_empty(
        batch, heads, chunks, recurrent_state.shape[2], recurrent_state.shape[3]
    )
    return (
        before,
        torch.empty_like(values, memory_format=torch.contiguous_format),
        torch.empty_like(recurrent_state),
    )


def _keep_scan(ctx, inputs, output) -> None:
    _, erased, to_end, decay, _ = inputs
    before, written, _ = output
    ctx.save_for_backward(erased, to_end, decay, before, written)


def _scan_backward(ctx, d_before: Tensor, d_written: Tensor, d_last: Tensor):
    return scan_backward(*ctx.saved_tensors, d_before, d_written, d_last)


@torch.library.custom_op("infinitevl::scan_backward", mutates_args=())
def scan_backward(
    erased: Tensor,
    to_end: Tensor,
    decay: Tensor,
    before: Tensor,
    written: Tensor,
    d_before: Tensor,
    d_written: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `scan_chunks`: the same scan from the end, then everything else for all chunks at once."""
    dtype = written.dtype
    after, d_values = (
        [],
        [],
    )  # gradient of the recurrent state after each chunk, of what it writes; last chunk first
    gradient = d_last
    for n in reversed(range(decay.shape[2])):
        after.append(gradient)
        d_values.append(d_written[:, :, n] + to_end[:, :, n] @ gradient.to(dtype))
        gradient = decay[:, :, n, None, None] * gradient + d_before[:, :, n]
        gradient = gradient - erased[:, :, n].mT @ d_values[-1]
    later, d_value = torch.stack(after[::-1], 2), torch.stack(d_values[::-1], 2)
    d_erased = _fresh(-(d_value @ before.to(dtype).mT))
    d_to_end = _fresh(written @ later.to(dtype).mT)
    return d_value, d_erased, d_to_end, (later * before).sum((-1, -2)), _fresh(gradient)


@scan_backward.register_fake
def _(erased, to_end, decay, before, written, d_before, d_written, d_last):
    def like(x: Tensor) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    return like(written), like(erased), like(to_end), like(decay), like(d_last)


scan_chunks.register_autograd(_scan_backward, setup_context=_keep_scan)
