"""Padded batches, which training never makes; packed rows are compared with them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.training.data.packing import joined_media, learnable
from infinitevl.training.data.tokens import Tokens
from infinitevl.training.losses import IGNORED


def pad_samples(samples: Sequence[Tokens], pad_id: int = 0) -> dict[str, Any]:
    """Pads samples at their ends to rows of equal length, as arguments of the model's `forward`.

    Returns:
        input_ids, labels, attention_mask int64 [B, T], position_ids int64 [3, B, T], and the media.
    """
    mask = [torch.ones_like(sample.input_ids) for sample in samples]
    return {
        "input_ids": _padded([sample.input_ids for sample in samples], pad_id),
        "labels": _padded([learnable(sample) for sample in samples], IGNORED),
        "attention_mask": _padded(mask, 0),
        "position_ids": _padded([sample.position_ids.T for sample in samples], 0).permute(2, 0, 1),
        **joined_media(samples),
    }


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
