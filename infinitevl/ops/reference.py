"""Definitions of the operations, in plain torch and at least float32; every fast path must equal them.

Shape letters: B batch, T tokens, S stored keys, H heads, D head width, K and V key and value width of the
recurrent state, C channels, W width of the convolution. Source: the paper (arXiv 2512.08829), section 3, and
the published weights.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def delta_rule_by_token(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, recurrent_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the gated delta rule, one token after the other.

    S <- decay S; S <- S + beta k (v - k^T S); o = q^T S.

    Args:
        q, k: [B, T, H, K], already normalised; q already scaled.
        v: [B, T, H, V].
        log_decay: [B, T, H], natural logarithm of the decay, at most 0.
        beta: [B, T, H], how much of a value is written, in [0, 1].
        recurrent_state: [B, H, K, V], the matrix before the first token.

    Returns:
        Output [B, T, H, V] and the state after the last token [B, H, K, V], in the state's dtype.
    """
    q, k, v, log_decay, beta = (x.to(recurrent_state.dtype) for x in (q, k, v, log_decay, beta))
    outputs = []
    for t in range(q.shape[1]):
        recurrent_state = recurrent_state * log_decay[:, t, :, None, None].exp()
        recalled = torch.einsum("bhk,bhkv->bhv", k[:, t], recurrent_state)
        written = beta[:, t, :, None] * (v[:, t] - recalled)
        recurrent_state = recurrent_state + k[:, t, :, :, None] * written[:, :, None, :]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], recurrent_state))
    return torch.stack(outputs, dim=1), recurrent_state


def delta_rule_by_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Apply the same rule chunk by chunk: matrix products and one triangular solve a chunk (WY form).

    Within a chunk the written values U solve (I + A) U = beta (v - decayed k^T S), where A holds the decayed
    products of each key with earlier keys, times beta. Arguments and results as in `delta_rule_by_token`.
    """
    dtype = recurrent_state.dtype
    q, k, v = (x.to(dtype).transpose(1, 2) for x in (q, k, v))  # [B, H, T, D]
    log_decay, beta = (x.to(dtype).transpose(1, 2) for x in (log_decay, beta))  # [B, H, T]
    outputs = []
    for start in range(0, q.shape[2], chunk_size):
        part = slice(start, start + chunk_size)
        output, recurrent_state = _delta_chunk(
            q[:, :, part],
            k[:, :, part],
            v[:, :, part],
            log_decay[:, :, part],
            beta[:, :, part],
            recurrent_state,
        )
        outputs.append(output)
    return torch.cat(outputs, dim=2).transpose(1, 2), recurrent_state


def _delta_chunk(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, recurrent_state: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply the rule to a chunk: q, k [B, H, T, K], v [B, H, T, V], log_decay, beta [B, H, T]."""
    decay = segment_decay(log_decay)  # [B, H, T, T], decay from after token j to token i
    since_start = log_decay.cumsum(-1).exp()[..., None]  # [B, H, T, 1]
    overlap = (k @ k.mT) * decay * beta[..., None]
    eye = torch.eye(k.shape[2], dtype=k.dtype, device=k.device)
    target = beta[..., None] * (v - since_start * (k @ recurrent_state))
    written = torch.linalg.solve_triangular(
        overlap.tril(-1) + eye, target, upper=False, unitriangular=True
    )  # [B, H, T, V]
    output = since_start * (q @ recurrent_state) + ((q @ k.mT) * decay) @ written
    to_end = decay[..., -1, :, None]  # [B, H, T, 1]
    recurrent_state = since_start[..., -1:, :] * recurrent_state + (k * to_end).mT @ written
    return output, recurrent_state


def segment_decay(log_decay: Tensor) -> Tensor:
    """Return exp(sum of log_decay over j < l <= i) at [..., i, j], the decay from j to i; zero where j > i.

    Each sum is taken over its own segment. A difference of running sums would lose all digits after a strong
    decay.
    """
    length = log_decay.shape[-1]
    rows = log_decay[..., :, None].expand(*log_decay.shape, length)
    strictly_lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril(-1)
    sums = rows.masked_fill(~strictly_lower, 0.0).cumsum(-2)
    lower = torch.ones(length, length, dtype=torch.bool, device=log_decay.device).tril()
    return sums.exp().masked_fill(~lower, 0.0)


def causal_conv(x: Tensor, weight: Tensor, conv_state: Tensor) -> Tensor:
    """Apply a depth-wise causal convolution, then SiLU.

    Args:
        x: [B, T, C]. weight: [C, W]; its last column belongs to the current token.
        conv_state: [B, W - 1, C], the inputs before the first token (zeros at the start of a sequence).

    Returns:
        [B, T, C].
    """
    seen = torch.cat([conv_state, x], dim=1)
    shifted = [seen[:, w : w + x.shape[1]] * weight[:, w] for w in range(weight.shape[1])]
    return F.silu(torch.stack(shifted).sum(0))


def window_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int | None, num_past: int = 0, num_sinks: int = 0
) -> Tensor:
    """Apply causal attention in which a query sees the last `window` keys, its own among them, and the sinks.

    Query i sees key j if j <= i and (j < num_sinks or i - j < window); equation 8 of the paper's second
    version.

    Args:
        q: [B, T, H, D], the tokens num_past .. num_past + T - 1 of the sequence.
        k, v: [B, num_past + T, H_kv, D], all keys and values of the sequence; H is a multiple of H_kv.
        window: the last keys that a query sees; None for all.
        num_sinks: the first keys of the sequence, which every later query sees too.

    Returns:
        [B, T, H, D].
    """
    groups = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(groups, dim=2) for x in (k, v))
    scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
    query = torch.arange(num_past, num_past + q.shape[1], device=q.device)[:, None]
    key = torch.arange(k.shape[1], device=q.device)[None]
    seen = key <= query
    if window is not None:
        seen &= (key > query - window) | (key < num_sinks)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    return torch.einsum("bhts,bshd->bthd", weights, v)
