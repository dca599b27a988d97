"""Window attention of whole sequences through the flash kernel that torch ships: nothing is masked, repeated
or filled up, and memory grows with the number of tokens.

Its gradient adds up queries in any order, unless torch.use_deterministic_algorithms(True) is set.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from infinitevl.ops.attention import torch as plain
from infinitevl.ops.attention.rotary import rotate
from infinitevl.ops.rows import Packed

_WIDEST = 256


def supports(q: Tensor) -> bool:
    """Whether the kernel takes these queries [..., D]."""
    return (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and q.shape[-1] % 8 == 0
        and q.shape[-1] <= _WIDEST
    )


def window_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cos: Tensor,
    sin: Tensor,
    window: int | None,
    packed: Packed | None = None,
    rotate: Callable[..., Tensor] = rotate,
) -> Tensor:
    """As `ops.attention.torch.window_chunk`, which runs where the flash kernel cannot; `rotate` as there."""
    if not supports(q):
        return plain.window_chunk(q, k, v, cos, sin, window, packed)
    (batch, length), q, k = q.shape[:2], rotate(q, cos, sin), rotate(k, cos, sin)
    if packed is None:
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * length
        max_seqlen = length
    else:
        cu_seqlens, max_seqlen = packed.cu_seqlens, max(packed.lengths)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return attend_packed(q, k, v, cu_seqlens, max_seqlen, window).unflatten(0, (batch, length))


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, window: int | None
) -> Tensor:
    """Causal attention within each of N sequences that lie one behind the other.

    Args:
        q: [T, H, D]. k, v: [T, H_kv, D].
        cu_seqlens: int32 [N + 1], the first token of each, and T. max_seqlen: tokens of the longest.
        window: keys that a query sees, its own among them; None for all.

    Returns:
        [T, H, D].
    """
    back = -1 if window is None or window >= max_seqlen else window - 1
    # For a max_seqlen of 1 the kernel does something else.
    return _attend(q, k, v, cu_seqlens, max(max_seqlen, 2), back)[0]


@torch.library.custom_op("infinitevl::flash_attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, back: int
) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of its sums [H, T]."""
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        q,
        k,
        v,
        cu_seqlens,
        cu_seqlens,
        max_seqlen,
        max_seqlen,
        0.0,
        True,
        False,
        window_size_left=back,
        window_size_right=0,
    )
    return out, sums


@_attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, max_seqlen: int, back: int):
    return torch.empty_like(q), q.new_empty(q.shape[1], q.shape[0], dtype=torch.float32)


@torch.library.custom_op("infinitevl::flash_attend_backward", mutates_args=())
def _attend_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    sums: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    back: int,
) -> tuple[Tensor, Tensor, Tensor]:
    seed = torch.zeros(2, dtype=torch.uint64, device=q.device)  # of the dropout that there is not
    return torch.ops.aten._flash_attention_backward(
        d_out, q, k, v, out, sums, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, True, seed,
        torch.empty(0, device=q.device), window_size_left=back, window_size_right=0,
    )  # fmt: skip


@_attend_backward.register_fake
def _(d_out, q, k, v, out, sums, cu_seqlens, max_seqlen, back):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, ctx.max_seqlen, ctx.back = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx, d_out: Tensor, _):
    gradients = _attend_backward(d_out, *ctx.saved_tensors, ctx.max_seqlen, ctx.back)
    return *gradients, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)
