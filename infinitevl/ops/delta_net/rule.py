"""The gated delta rule, fast: whole chunks for many tokens, one update for one token.

Signatures and shapes are those of `ops.reference`; both compute in the recurrent state's dtype, also under
autocast: what is rounded once stays wrong in the state for ever.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.reference import segment_decay

CHUNK_SIZE = 64
Rule = Callable[..., tuple[Tensor, Tensor]]


def _in_state_dtype(rule: Rule) -> Rule:
    """The rule with autocast switched off within it."""

    @functools.wraps(rule)
    def exact(q: Tensor, *others: Tensor, **options: Tensor | None) -> tuple[Tensor, Tensor]:
        with torch.autocast(q.device.type, enabled=False):
            return rule(q, *others, **options)

    return exact


@_in_state_dtype
def delta_rule_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    ends: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Apply the rule to many tokens: work within chunks for all chunks at once, then a short scan.

    The solve of a chunk is linear in the state before it, so it is applied to values and keys beforehand and
    the scan over chunks needs only products.

    Args:
        ends: bool [T / CHUNK_SIZE], after which chunks the recurrent state is emptied; None: after none.
    """
    length = q.shape[1]
    size = min(CHUNK_SIZE, length)
    q, k, v = (_split(x.to(recurrent_state.dtype), size) for x in (q, k, v))  # [B, H, N, C, D]
    log_decay, beta = (_split(x.to(recurrent_state.dtype)[..., None], size) for x in (log_decay, beta))
    decay = segment_decay(log_decay[..., 0])  # [B, H, N, C, C]
    since_start = log_decay.cumsum(-2).exp()  # [B, H, N, C, 1]
    eye = torch.eye(size, dtype=k.dtype, device=k.device)
    met = ((k @ k.mT) * decay * beta).tril(-1) + eye
    solved = torch.linalg.solve_triangular(
        met, torch.cat([beta * v, beta * since_start * k], dim=-1), upper=False, unitriangular=True
    )
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    inner = (q @ k.mT) * decay
    outputs = []
    to_end = decay[..., -1, :, None]
    for n in range(q.shape[2]):
        written = values[:, :, n] - keys[:, :, n] @ recurrent_state
        outputs.append((since_start[:, :, n] * q[:, :, n]) @ recurrent_state + inner[:, :, n] @ written)
        recurrent_state = (
            since_start[:, :, n, -1:] * recurrent_state + (k[:, :, n] * to_end[:, :, n]).mT @ written
        )
        if ends is not None:
            recurrent_state = recurrent_state.masked_fill(ends[n], 0.0)
    output = torch.cat(outputs, dim=2)[:, :, :length]
    return output.transpose(1, 2), recurrent_state


def _split(x: Tensor, size: int) -> Tensor:
    """[B, T, H, D] -> [B, H, N, size, D]; the filling zeros write nothing and decay nothing."""
    x = F.pad(x.transpose(1, 2), (0, 0, 0, -x.shape[1] % size))
    return x.unflatten(2, (-1, size))


@_in_state_dtype
def delta_rule_step(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, recurrent_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the rule to one token; arguments as above with T = 1.

    The output needs no second pass over the new state: q^T (d S + b k u^T) = d q^T S + b (q . k) u^T.
    """
    q, k, v = (x[:, 0].to(recurrent_state.dtype) for x in (q, k, v))  # [B, H, D]
    decay = log_decay[:, 0, :, None].to(recurrent_state.dtype).exp()
    read = torch.stack([k, q], dim=2) @ recurrent_state  # [B, H, 2, V]
    written = beta[:, 0, :, None].to(recurrent_state.dtype) * (v - decay * read[:, :, 0])
    output = decay * read[:, :, 1] + (q * k).sum(-1, keepdim=True) * written
    recurrent_state = decay[..., None] * recurrent_state + k[..., None] * written[:, :, None]
    return output[:, None], recurrent_state
