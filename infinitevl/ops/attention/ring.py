"""Attention over a ring of recent keys and values and the tokens that are being read.

Token number i of a sequence lives in slot i mod S of its ring, so that a full ring forgets by itself. With n
sinks, the first n slots hold the first n tokens for ever, and the ring is the other S - n slots. What a slot
holds follows from the number of stored tokens alone, which is a tensor: a replayed graph stays right.
A ring keeps its dtype: tokens are rounded to it when they are stored, and it to the queries' dtype when read.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# Queries that attend together: bounds the mask of a long prompt to BLOCK x (ring + window) entries.
BLOCK = 1024


def ring_tokens(length: Tensor, num_slots: int, num_sinks: int = 0) -> Tensor:
    """Return the token that each slot holds: int64 [B, S], negative where it is empty.

    Args:
        length: int64 [B], tokens stored so far. num_slots: S. num_sinks: slots that are no part of the ring.
    """
    last = length[:, None] - 1
    slot = torch.arange(num_slots, device=length.device)
    held = last - torch.remainder(last - slot, num_slots - num_sinks)
    if not num_sinks:
        return held
    held = torch.where(slot < num_sinks, slot, held)
    return torch.where(slot <= last, held, -1)  # slots are filled in order


def slot_of(token: Tensor, num_slots: int, num_sinks: int = 0) -> Tensor:
    """Return the slot of each token: int64, shaped as `token`."""
    in_ring = num_sinks + torch.remainder(token - num_sinks, num_slots - num_sinks)
    return torch.where(token < num_sinks, token, in_ring) if num_sinks else in_ring


def attend_chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    ring: tuple[Tensor, Tensor] | None,
    length: Tensor | None,
    window: int | None,
    num_sinks: int = 0,
) -> Tensor:
    """Let many tokens attend to the ring and causally to each other.

    Args:
        q: [B, T, H, D]. k, v: [B, T, H_kv, D], the new tokens.
        ring: stored keys and values [B, H_kv, S, D], or None at the start of a sequence.
        length: int64 [B], tokens stored before these; None without a ring.
        window: the last keys that a query sees, its own among them; None for all.
        num_sinks: the first tokens of the sequence, which every later query sees too.

    Returns:
        [B, T, H, D].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    span = q.shape[2] if window is None else window
    num_before = q.new_zeros(1, dtype=torch.int64) if length is None else length
    outputs = []
    for start in range(0, q.shape[2], BLOCK):
        stop = min(start + BLOCK, q.shape[2])
        first = max(0, start - span + 1)
        keys, values = k[:, :, first:stop], v[:, :, first:stop]
        mask = _new_mask(start, stop, first, num_before, window, num_sinks)
        pieces = [(keys, values, mask)]
        if num_left := min(first, num_sinks):  # new tokens before those of the window, sinks perhaps
            is_sink = num_before[:, None] + torch.arange(num_left, device=q.device) < num_sinks
            is_sink = is_sink[:, None, None].expand(-1, 1, stop - start, -1)
            pieces.insert(0, (k[:, :, :num_left], v[:, :, :num_left], is_sink))
        if ring is not None and (start < span or num_sinks):
            num_slots = ring[0].shape[2] if start < span else num_sinks
            stored = _ring_mask(start, stop, num_before, ring[0].shape[2], window, num_sinks)
            held = [x[:, :, :num_slots].to(q.dtype) for x in ring]
            pieces.insert(0, (held[0], held[1], stored[..., :num_slots]))
        outputs.append(_attend_pieces(q[:, :, start:stop], pieces))
    return torch.cat(outputs, dim=2).transpose(1, 2)


def _attend_pieces(q: Tensor, pieces: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Queries [B, H, T, D] meet the keys and values [B, H_kv, n, D] of all pieces, where the masks say so."""
    keys, values, masks = zip(*pieces, strict=True)
    if len(pieces) == 1:
        return F.scaled_dot_product_attention(q, keys[0], values[0], masks[0], enable_gqa=True)
    mask = torch.cat([x.expand(len(q), 1, -1, -1) for x in masks], dim=-1)
    return F.scaled_dot_product_attention(q, torch.cat(keys, 2), torch.cat(values, 2), mask, enable_gqa=True)


def _new_mask(
    start: int, stop: int, first: int, length: Tensor, window: int | None, num_sinks: int
) -> Tensor:
    """Which of the new keys first..stop the queries start..stop see: bool [1 or B, 1, queries, keys]."""
    query = torch.arange(start, stop, device=length.device)[:, None]
    key = torch.arange(first, stop, device=length.device)[None]
    seen = key <= query
    if window is None:
        return seen[None, None]
    recent = key > query - window
    if not num_sinks:
        return (seen & recent)[None, None]
    return seen & (recent | (length[:, None, None, None] + key < num_sinks))


def _ring_mask(
    start: int, stop: int, length: Tensor, num_slots: int, window: int | None, num_sinks: int
) -> Tensor:
    """Which slots the queries start..stop see: bool [B, 1, queries, S]."""
    token = ring_tokens(length, num_slots, num_sinks)[:, None, None]
    seen = token >= 0
    if window is None:
        return seen.expand(-1, -1, stop - start, -1)
    query = length[:, None] + torch.arange(start, stop, device=length.device)
    recent = token > query[:, None, :, None] - window
    return seen & (recent | (token < num_sinks) if num_sinks else recent)


def attend_step(q: Tensor, ring: tuple[Tensor, Tensor], length: Tensor) -> Tensor:
    """Let one token attend to a ring that holds it already.

    Args:
        q: [B, 1, H, D]. ring: [B, H_kv, S, D] with S the sinks and the window (or all tokens).
        length: int64 [B], tokens stored, this one among them.
    """
    filled = torch.arange(ring[0].shape[2], device=length.device) < length[:, None]
    mask = filled[:, None, None]
    keys, values = (x.to(q.dtype) for x in ring)
    return F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, mask, enable_gqa=True).transpose(
        1, 2
    )


def store_chunk_(
    ring: tuple[Tensor, Tensor],
    k: Tensor,
    v: Tensor,
    length: Tensor,
    num_valid: Tensor | None,
    num_sinks: int = 0,
) -> None:
    """Write the last tokens of a chunk into the ring, in place.

    Args:
        ring: keys and values [B, H_kv, S, D]. k, v: [B, T, H_kv, D].
        length: int64 [B], tokens stored before. num_valid: int64 [B], how many of each row's first tokens
            count; None for all.
    """
    num_new = k.shape[1] if num_valid is None else num_valid
    held = ring_tokens(length + num_new, ring[0].shape[2], num_sinks)
    index = held - length[:, None]  # [B, S], of a new token or < 0
    is_new = (index >= 0)[:, None, :, None]
    index = index.clamp(min=0)[:, None, :, None].expand(-1, k.shape[2], -1, k.shape[3])
    for stored, new in zip(ring, (k, v), strict=True):
        new = new.to(stored.dtype).transpose(1, 2)
        stored.copy_(torch.where(is_new, new.gather(2, index), stored))


def store_step_(
    ring: tuple[Tensor, Tensor], k: Tensor, v: Tensor, length: Tensor, num_sinks: int = 0
) -> None:
    """Write one token [B, 1, H_kv, D] into its slot, in place; `length` as in `store_chunk_`."""
    slot = slot_of(length, ring[0].shape[2], num_sinks)[:, None, None, None]
    for stored, new in zip(ring, (k, v), strict=True):
        new = new.to(stored.dtype).transpose(1, 2)
        stored.scatter_(2, slot.expand(-1, stored.shape[1], 1, stored.shape[3]), new)
