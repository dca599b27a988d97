"""Attention over a ring of recent keys and values and the tokens that are being read.

Token number i of a sequence lives in slot i mod S of its ring, so that a full ring forgets by itself. What a
slot holds follows from the number of stored tokens alone, which is a tensor: a replayed graph stays right.
A ring keeps its dtype: tokens are rounded to it when they are stored, and it to the queries' dtype when read.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Queries that attend together: bounds the mask of a long prompt to BLOCK x (ring + window) entries.
BLOCK = 1024


def ring_tokens(length: Tensor, num_slots: int) -> Tensor:
    """Return the token that each place of the ring holds: int64 [B, S], negative where it is empty.

    Args:
        length: int64 [B], tokens stored so far. num_slots: S.
    """
    last = length[:, None] - 1
    slot = torch.arange(num_slots, device=length.device)
    return last - torch.remainder(last - slot, num_slots)


def attend_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring: tuple[Tensor, Tensor] | None,
    length: Tensor | None,
    window: int | None,
) -> Tensor:
    """Let many tokens attend to the ring and causally to each other.

    Args:
        q: [B, T, H, D]. k, v: [B, T, H_kv, D], the new tokens.
        ring: stored keys and values [B, H_kv, S, D], or None at the start of a sequence.
        length: int64 [B], tokens stored before these; None without a ring.
        window: keys that a query sees, its own among them; None for all.

    Returns:
        [B, T, H, D].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    span = q.shape[2] if window is None else window
    outputs = []
    for start in range(0, q.shape[2], BLOCK):
        stop = min(start + BLOCK, q.shape[2])
        first = max(0, start - span + 1)
        mask = _new_mask(start, stop, first, window, q.device)
        keys, values = k[:, :, first:stop], v[:, :, first:stop]
        if ring is not None and start < span:
            keys, values = (
                torch.cat([x.to(new.dtype), new], dim=2) for x, new in zip(ring, (keys, values), strict=True)
            )
            stored = _ring_mask(start, stop, length, ring[0].shape[2], window)
            mask = torch.cat([stored, mask.expand(stored.shape[0], 1, -1, -1)], dim=-1)
        outputs.append(
            F.scaled_dot_product_attention(q[:, :, start:stop], keys, values, mask, enable_gqa=True)
        )
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _new_mask(start: int, stop: int, first: int, window: int | None, device: torch.device) -> Tensor:
    """Which of the new keys first..stop the queries start..stop see: bool [1, 1, queries, keys]."""
    query = torch.arange(start, stop, device=device)[:, None]
    key = torch.arange(first, stop, device=device)[None]
    seen = key <= query
    if window is not None:
        seen = seen & (key > query - window)
    return seen[None, None]


def _ring_mask(start: int, stop: int, length: Tensor | None, num_slots: int, window: int | None) -> Tensor:
    """Which slots the queries start..stop see: bool [B, 1, queries, S]."""
    assert length is not None
    token = ring_tokens(length, num_slots)[:, None, None]
    seen = token >= 0
    if window is None:
        return seen.expand(-1, -1, stop - start, -1)
    query = length[:, None] + torch.arange(start, stop, device=length.device)
    return seen & (token > query[:, None, :, None] - window)


def attend_step(q: Tensor, ring: tuple[Tensor, Tensor], length: Tensor) -> Tensor:
    """Let one token attend to a ring that holds it already.

    Args:
        q: [B, 1, H, D]. ring: [B, H_kv, S, D] with S the window (or all tokens).
        length: int64 [B], tokens stored, this one among them.
    """
    filled = torch.arange(ring[0].shape[2], device=length.device) < length[:, None]
    mask = filled[:, None, None]
    keys, values = (x.to(q.dtype) for x in ring)
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, mask, enable_gqa=True).transpose(
        1, 2
    )


def store_chunk_(
    ring: tuple[Tensor, Tensor], k: Tensor, v: Tensor, length: Tensor, num_valid: Tensor | None
) -> None:
    """Write the last tokens of a chunk into the ring, in place.

    Args:
        ring: keys and values [B, H_kv, S, D]. k, v: [B, T, H_kv, D].
        length: int64 [B], tokens stored before. num_valid: int64 [B], how many of each row's first tokens
            count; None for all.
    """
    num_new = k.shape[1] if num_valid is None else num_valid
    index = ring_tokens(length + num_new, ring[0].shape[2]) - length[:, None]  # [B, S], of a new token or < 0
    is_new = (index >= 0)[:, None, :, None]
    index = index.clamp(min=0)[:, None, :, None].expand(-1, k.shape[2], -1, k.shape[3])
    for stored, new in zip(ring, (k, v), strict=True):
        new = new.to(stored.dtype).transpose(1, 2)
        stored.copy_(torch.where(is_new, new.gather(2, index), stored))


def store_step_(ring: tuple[Tensor, Tensor], k: Tensor, v: Tensor, length: Tensor) -> None:
    """Write one token [B, 1, H_kv, D] into its slot, in place; `length` as in `store_chunk_`."""
    slot = torch.remainder(length, ring[0].shape[2])[:, None, None, None]
    for stored, new in zip(ring, (k, v), strict=True):
        new = new.to(stored.dtype).transpose(1, 2)
        stored.scatter_(2, slot.expand(-1, stored.shape[1], 1, stored.shape[3]), new)
