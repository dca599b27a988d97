"""The operations that training runs on, with signatures and results as in `ops`; sequences start empty.

On a GPU in bfloat16 they are kernels (`triton.train_*`, `flash`); everywhere else autograd goes through the
plain operations.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from infinitevl.ops import flash
from infinitevl.ops.backend import why_torch
from infinitevl.ops.kernels import Kernels
from infinitevl.ops.packed import Packed
from infinitevl.ops.rotary import rotate
from infinitevl.ops.window import window_chunk


def trainable(dtype: torch.dtype) -> Kernels:
    """Kernels to train with, where products run in `dtype`."""
    plain = Kernels("trainable", window_chunk=_window)
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
