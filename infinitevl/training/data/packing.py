"""Joins samples to a batch: packed into one row, where none sees another, or padded to a row each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.training.data.tokens import Tokens
from infinitevl.training.losses import IGNORED


def pack_samples(samples: Sequence[Tokens], length: int | None = None, pad_id: int = 0) -> dict[str, Any]:
    """Packs samples into one row, as arguments of the model's `forward`.

    Args:
        length: fill the row up to so many tokens with a sequence of `pad_id` without labels; None: do not.

    Returns:
        input_ids, labels int64 [1, T], position_ids int64 [3, 1, T], sequence_lengths (one number for each
        sample), and the media of all samples in order.

    Raises:
        InputError: there is no sample, or they are longer than `length`.
    """
    if not samples:
        raise InputError("There is no sample to pack. Give at least one.")
    media = _joined_media(samples)
    samples = [*samples, *_filling(sum(len(sample) for sample in samples), length, pad_id)]
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "labels": torch.cat([_learnable(sample) for sample in samples])[None],
        "position_ids": torch.cat([sample.position_ids for sample in samples], dim=1)[:, None],
        "sequence_lengths": [len(sample) for sample in samples],
        **media,
    }


def pad_samples(samples: Sequence[Tokens], pad_id: int = 0) -> dict[str, Any]:
    """Pads samples at their ends to rows of equal length, as arguments of the model's `forward`.

    Returns:
        input_ids, labels, attention_mask int64 [B, T], position_ids int64 [3, B, T], and the media.
    """
    if not samples:
        raise InputError("There is no sample to pad. Give at least one.")
    mask = [torch.ones_like(sample.input_ids) for sample in samples]
    return {
        "input_ids": _padded([sample.input_ids for sample in samples], pad_id),
        "labels": _padded([_learnable(sample) for sample in samples], IGNORED),
        "attention_mask": _padded(mask, 0),
        "position_ids": _padded([sample.position_ids.T for sample in samples], 0).permute(2, 0, 1),
        **_joined_media(samples),
    }


def _learnable(sample: Tokens) -> Tensor:
    """Removes the label of the first token, before which there is none to predict it."""
    return sample.labels.index_fill(0, torch.tensor([0]), IGNORED)


def _filling(num_tokens: int, length: int | None, pad_id: int) -> list[Tokens]:
    if length is None or length == num_tokens:
        return []
    if length < num_tokens:
        raise InputError(f"The samples have {num_tokens} tokens, more than the row of {length}.")
    ids = torch.full((length - num_tokens,), pad_id)
    return [Tokens(ids, torch.full_like(ids, IGNORED), torch.arange(len(ids)).expand(3, -1))]


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)


def _joined_media(samples: Sequence[Tokens]) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        for name, value in sample.media().items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}
