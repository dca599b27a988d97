"""All of a Gated DeltaNet that lies between its projections: convolution, gates, memory.

`delta_net_chunk` is a function of its arguments; the names with an underscore change memory and tail in
place, for those rows of a larger state that a step works on.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.causal_conv import causal_conv_chunk, causal_conv_step
from infinitevl.ops.delta_rule import delta_rule_chunk, delta_rule_step
from infinitevl.ops.norm import l2_norm
from infinitevl.ops.packed import Packed, gather, spread
from infinitevl.ops.rows import read_rows, write_rows_


def delta_net_chunk(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    taps: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    memory: Tensor,
    tail: Tensor,
    num_valid: Tensor | None = None,
    packed: Packed | None = None,
    *,
    conv: Callable[..., tuple[Tensor, Tensor]] = causal_conv_chunk,
    rule: Callable[..., tuple[Tensor, Tensor]] = delta_rule_chunk,
) -> tuple[Tensor, Tensor, Tensor]:
    """Many tokens (spec: "Gated DeltaNet layer"; paper, section 3).

    Args:
        mixed: [B, T, C], queries, keys and values side by side, before the convolution; C = H (2 K + V).
        a, b: [B, T, H], before softplus and sigmoid. taps: [C, W]. A_log, dt_bias: [H].
        memory: [B, H, K, V]. tail: [B, W - 1, C].
        num_valid: int64 [B], how many of each row's first tokens count; None for all. The others neither
            decay the memory nor write to it.
        packed: the sequences that share the one row, each of which starts empty; None for one a row.

    Returns:
        [B, T, H, V] in memory's dtype, the memory and the tail after the last token that counts; of packed
        sequences the memory is the last one's, and the tail nobody's.
    """
    log_decay, beta = _gates(a, b, A_log, dt_bias)
    if packed is not None:
        mixed, log_decay, beta = (spread(x, packed) for x in (mixed, log_decay, beta))
        qkv, tail = conv(mixed, taps, tail)
        out, memory = rule(*_heads(qkv, memory), log_decay, beta, memory, ends=packed.ends)
        return gather(out, packed), memory, tail
    qkv, tail = conv(mixed, taps, tail, num_valid)
    if num_valid is not None:
        counts = (torch.arange(mixed.shape[1], device=mixed.device) < num_valid[:, None])[..., None]
        log_decay, beta = log_decay * counts, beta * counts
    out, memory = rule(*_heads(qkv, memory), log_decay, beta, memory)
    return out, memory, tail


def delta_net_chunk_(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    taps: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    memory: Tensor,
    tail: Tensor,
    rows: Tensor | None = None,
    num_valid: Tensor | None = None,
) -> Tensor:
    """The same on a state of N rows: memory [N, H, K, V] and tail [N, W - 1, C] change in place.

    Args:
        rows: int64 [B], the row of the state that each row of the batch continues; None: B = N, in order.
    """
    before = read_rows(memory, rows), read_rows(tail, rows)
    out, *after = delta_net_chunk(mixed, a, b, taps, A_log, dt_bias, *before, num_valid)
    for stored, new in zip((memory, tail), after, strict=True):
        write_rows_(stored, new, rows)
    return out


def delta_net_step_(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    taps: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    memory: Tensor,
    tail: Tensor,
    rows: Tensor | None = None,
) -> Tensor:
    """One token: the same with T = 1."""
    qkv, new_tail = causal_conv_step(mixed, taps, read_rows(tail, rows))
    before = read_rows(memory, rows)
    out, after = delta_rule_step(*_heads(qkv, memory), *_gates(a, b, A_log, dt_bias), before)
    write_rows_(memory, after, rows)
    write_rows_(tail, new_tail, rows)
    return out


def _gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithm of the decay and writing strength, [B, T, H] in float32 or a's dtype if wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    dt = F.softplus(a.to(wide) + dt_bias.to(wide))
    return -A_log.to(wide).exp() * dt, b.to(wide).sigmoid()


def _heads(qkv: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, C] -> normalised queries and keys [B, T, H, K] and values [B, T, H, V]."""
    _, heads, key_width, value_width = memory.shape
    q, k, v = qkv.split([heads * key_width, heads * key_width, heads * value_width], dim=-1)
    q, k = (x.unflatten(-1, (-1, key_width)) for x in (q, k))
    return l2_norm(q) * key_width**-0.5, l2_norm(k), v.unflatten(-1, (-1, value_width))
