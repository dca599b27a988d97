"""Window attention of whole sequences through the flash kernel that torch ships: nothing is masked, repeated
or filled up, and memory grows with the number of tokens. Sinks are met in calls of their own, whose results
are merged by the logarithms of their sums.

Its gradient adds up queries in any order, unless torch.use_deterministic_algorithms(True) is set.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

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
    num_sinks: int = 0,
    rotate: Callable[..., Tensor] = rotate,
) -> Tensor:
    """As `ops.attention.torch.window_chunk`, which runs where the flash kernel cannot; `rotate` as there."""
    if not supports(q):
        return plain.window_chunk(q, k, v, cos, sin, window, packed, num_sinks)
    (batch, length), q, k = q.shape[:2], rotate(q, cos, sin), rotate(k, cos, sin)
    if packed is None:
        cu_seqlens = torch.arange(batch + 1, dtype=torch.int32, device=q.device) * length
        lengths: Sequence[int] = [length] * batch
    else:
        cu_seqlens, lengths = packed.cu_seqlens, packed.lengths
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    out = attend_packed(q, k, v, cu_seqlens, lengths, window, num_sinks)
    return out.unflatten(0, (batch, length))


def attend_packed(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    window: int | None,
    num_sinks: int = 0,
) -> Tensor:
    """Causal attention within each of N sequences that lie one behind the other.

    Args:
        q: [T, H, D]. k, v: [T, H_kv, D].
        cu_seqlens: int32 [N + 1], the first token of each, and T. lengths: tokens of each.
        window: the last keys that a query sees, its own among them; None for all.
        num_sinks: the first tokens of a sequence, which every later query sees too.

    Returns:
        [T, H, D].
    """
    longest = max(lengths)
    back = -1 if window is None or window >= longest else window - 1
    if back < 0:
        num_sinks = 0  # every query sees all keys before it
    # For a max_seqlen of 1 the kernel does something else.
    sizes = list(lengths) if num_sinks else [], max(longest, 2), back, num_sinks
    return _attend(q, k, v, cu_seqlens, *sizes)[0]


class _Ends(NamedTuple):
    """Where sequences of queries and of keys end, as the kernel takes it: int32 [N + 1], and the longest."""

    queries: Tensor
    keys: Tensor
    most_queries: int
    most_keys: int


def _forward(
    q: Tensor, k: Tensor, v: Tensor, ends: _Ends, is_causal: bool, back: int
) -> tuple[Tensor, Tensor]:
    """The result [T, H, D], and the logarithm of its sums [H, T]; back: keys before its own, -1 for all."""
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        q, k, v, *ends, 0.0, is_causal, False,
        window_size_left=back, window_size_right=0 if is_causal else -1,
    )  # fmt: skip
    return out, sums


def _backward(
    d_out: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    out: Tensor,
    sums: Tensor,
    ends: _Ends,
    is_causal: bool,
    back: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, the inputs."""
    seed = torch.zeros(2, dtype=torch.uint64, device=out.device)  # of the dropout that there is not
    return torch.ops.aten._flash_attention_backward(
        d_out, *inputs, out, sums, *ends, 0.0, is_causal, seed, torch.empty(0, device=out.device),
        window_size_left=back, window_size_right=0 if is_causal else -1,
    )  # fmt: skip


@torch.library.custom_op("infinitevl::flash_attend", mutates_args=())
def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    max_seqlen: int,
    back: int,
    num_sinks: int,
) -> tuple[Tensor, Tensor]:
    """The result, and the logarithm of its sums [H, T]; lengths: empty without sinks."""
    out, sums = _forward(q, k, v, _Ends(cu_seqlens, cu_seqlens, max_seqlen, max_seqlen), True, back)
    for part in _sink_parts(cu_seqlens, lengths, back + 1, num_sinks):
        _merge_(out, sums, part.queries, *_forward(*part.of(q, k, v), part.ends, part.is_causal, -1))
    return out, sums


class _SinkPart(NamedTuple):
    """Queries of one sequence that lie side by side, and the sinks that they see beyond their windows."""

    queries: slice
    keys: slice
    ends: _Ends
    is_causal: bool

    def of(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """This part of each."""
        return q[self.queries], k[self.keys], v[self.keys]


def _sink_parts(
    cu_seqlens: Tensor, lengths: Sequence[int], window: int, num_sinks: int
) -> Iterator[_SinkPart]:
    """In each sequence: queries whose windows leave the sinks, one sink a query, then those that left all."""
    start = 0
    for number, length in enumerate(lengths):
        own = cu_seqlens[number : number + 2] - cu_seqlens[number]  # 0 and the length
        leaving = min(length - window, num_sinks)
        if leaving > 0:
            ends = own.clamp(max=leaving)
            queries = slice(start + window, start + window + leaving)
            sizes = _Ends(ends, ends, max(leaving, 2), max(leaving, 2))
            yield _SinkPart(queries, slice(start, start + leaving), sizes, True)
        left = length - window - num_sinks
        if left > 0:
            queries = slice(start + length - left, start + length)
            sizes = _Ends(own.clamp(max=left), own.clamp(max=num_sinks), max(left, 2), num_sinks)
            yield _SinkPart(queries, slice(start, start + num_sinks), sizes, False)
        start += length


def _merge_(out: Tensor, sums: Tensor, queries: slice, more: Tensor, more_sums: Tensor) -> None:
    """Let queries of out [T, H, D] see the keys, too, of which `more` [n, H, D] is the result, in place."""
    both = torch.logaddexp(sums[:, queries], more_sums)
    shares = [(x - both).exp().mT[..., None] for x in (sums[:, queries], more_sums)]  # each [n, H, 1]
    out[queries] = (shares[0] * out[queries] + shares[1] * more).to(out.dtype)
    sums[:, queries] = both


@_attend.register_fake
def _(q, k, v, cu_seqlens, lengths, max_seqlen, back, num_sinks):
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
    lengths: Sequence[int],
    max_seqlen: int,
    back: int,
    num_sinks: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Each part's gradients follow from the whole result and its sums, so they add up."""
    ends = _Ends(cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    dq, dk, dv = _backward(d_out, (q, k, v), out, sums, ends, True, back)
    for part in _sink_parts(cu_seqlens, lengths, back + 1, num_sinks):
        whole = out[part.queries], sums[:, part.queries].contiguous()
        more = _backward(d_out[part.queries], part.of(q, k, v), *whole, part.ends, part.is_causal, -1)
        dq[part.queries] += more[0]
        dk[part.keys] += more[1]
        dv[part.keys] += more[2]
    return dq, dk, dv


@_attend_backward.register_fake
def _(d_out, q, k, v, out, sums, cu_seqlens, lengths, max_seqlen, back, num_sinks):
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx, inputs, output) -> None:
    q, k, v, cu_seqlens, *ctx.sizes = inputs
    ctx.save_for_backward(q, k, v, *output, cu_seqlens)


def _gradients(ctx, d_out: Tensor, _):
    gradients = _attend_backward(d_out, *ctx.saved_tensors, *ctx.sizes)
    return *gradients, *[None] * 5


_attend.register_autograd(_gradients, setup_context=_keep)
