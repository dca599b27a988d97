"""Gated DeltaNet between its projections, in plain torch: convolution, gates, delta rule.

`delta_net_chunk` is a function of its arguments; the names with an underscore change both states in
place, for those rows of a larger state that a step works on.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.delta_net.rule import delta_rule_chunk, delta_rule_step
from infinitevl.ops.linear.torch import l2_norm
from infinitevl.ops.rows import Packed, gather, read_rows, spread, write_rows_


def causal_conv_chunk(
    x: Tensor, weight: Tensor, conv_state: Tensor, num_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Many tokens at once.

    Args:
        x: [B, T, C]. weight: [C, W]. conv_state: [B, W - 1, C].
        num_valid: int64 [B], tokens of each row that count (the first ones); None for all.

    Returns:
        SiLU of the convolution [B, T, C], and the conv_state after the last valid token.
    """
    seen = torch.cat([conv_state.to(x.dtype), x], dim=1)
    mixed = F.conv1d(seen.mT, weight[:, None], groups=weight.shape[0]).mT
    return F.silu(mixed), _last(seen, weight.shape[1] - 1, num_valid)


def _last(seen: Tensor, width: int, num_valid: Tensor | None) -> Tensor:
    if num_valid is None:
        return seen[:, seen.shape[1] - width :]
    index = num_valid[:, None] + torch.arange(width, device=seen.device)
    return seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))


def causal_conv_step(x: Tensor, weight: Tensor, conv_state: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve one token: arguments and results as above with T = 1."""
    seen = torch.cat([conv_state.to(x.dtype), x], dim=1)  # [B, W, C]
    return F.silu((seen * weight.mT).sum(1, keepdim=True)), seen[:, 1:]


def delta_net_chunk(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    num_valid: Tensor | None = None,
    packed: Packed | None = None,
    *,
    conv: Callable[..., tuple[Tensor, Tensor]] = causal_conv_chunk,
    rule: Callable[..., tuple[Tensor, Tensor]] = delta_rule_chunk,
) -> tuple[Tensor, Tensor, Tensor]:
    """Read many tokens (arXiv 2512.08829, section 3).

    Args:
        mixed: [B, T, C], queries, keys and values side by side, before the convolution; C = H (2 K + V).
        a, b: [B, T, H], before softplus and sigmoid. conv_weight: [C, W]. A_log, dt_bias: [H].
        recurrent_state: [B, H, K, V]. conv_state: [B, W - 1, C].
        num_valid: int64 [B], how many of each row's first tokens count; None for all. The others neither
            decay the recurrent state nor write to it.
        packed: the sequences that share the one row, each of which starts empty; None for one a row.

    Returns:
        [B, T, H, V] in the recurrent state's dtype, and recurrent_state and conv_state after the last token
        that is valid; of packed sequences recurrent_state is the last one's, and conv_state is undefined.
    """
    log_decay, beta = _gates(a, b, A_log, dt_bias)
    if packed is not None:
        mixed, log_decay, beta = (spread(x, packed) for x in (mixed, log_decay, beta))
        qkv, conv_state = conv(mixed, conv_weight, conv_state)
        out, recurrent_state = rule(
            *_heads(qkv, recurrent_state), log_decay, beta, recurrent_state, ends=packed.ends
        )
        return gather(out, packed), recurrent_state, conv_state
    qkv, conv_state = conv(mixed, conv_weight, conv_state, num_valid)
    if num_valid is not None:
        counts = (torch.arange(mixed.shape[1], device=mixed.device) < num_valid[:, None])[..., None]
        log_decay, beta = log_decay * counts, beta * counts
    out, recurrent_state = rule(*_heads(qkv, recurrent_state), log_decay, beta, recurrent_state)
    return out, recurrent_state, conv_state


def delta_net_chunk_(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    rows: Tensor | None = None,
    num_valid: Tensor | None = None,
) -> Tensor:
    """Do the same on the states of N rows, changed in place: [N, H, K, V] and [N, W - 1, C].

    Args:
        rows: int64 [B], the row of the state that each row of the batch continues; None: B = N, in order.
    """
    before = read_rows(recurrent_state, rows), read_rows(conv_state, rows)
    out, *after = delta_net_chunk(mixed, a, b, conv_weight, A_log, dt_bias, *before, num_valid)
    for stored, new in zip((recurrent_state, conv_state), after, strict=True):
        write_rows_(stored, new, rows)
    return out


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
) -> Tensor:
    """Read one token: the same with T = 1."""
    qkv, new_conv_state = causal_conv_step(mixed, conv_weight, read_rows(conv_state, rows))
    before = read_rows(recurrent_state, rows)
    out, after = delta_rule_step(*_heads(qkv, recurrent_state), *_gates(a, b, A_log, dt_bias), before)
    write_rows_(recurrent_state, after, rows)
    write_rows_(conv_state, new_conv_state, rows)
    return out


def _gates(a: Tensor, b: Tensor, A_log: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return log decay and writing strength, [B, T, H] in float32 or a's dtype if wider."""
    wide = torch.promote_types(a.dtype, torch.float32)
    dt = F.softplus(a.to(wide) + dt_bias.to(wide))
    return -A_log.to(wide).exp() * dt, b.to(wide).sigmoid()


def _heads(qkv: Tensor, recurrent_state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, T, C] -> normalised queries and keys [B, T, H, K] and values [B, T, H, V]."""
    _, heads, key_width, value_width = recurrent_state.shape
    q, k, v = qkv.split([heads * key_width, heads * key_width, heads * value_width], dim=-1)
    q, k = (x.unflatten(-1, (-1, key_width)) for x in (q, k))
    return l2_norm(q) * key_width**-0.5, l2_norm(k), v.unflatten(-1, (-1, value_width))
