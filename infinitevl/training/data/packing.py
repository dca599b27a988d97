"""Packs samples into one row, where none sees another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from infinitevl.errors import InputError
from infinitevl.training.data.tokens import Tokens
from infinitevl.training.losses import IGNORED


def pack_samples(samples: Sequence[Tokens]) -> dict[str, Any]:
    """Packs samples into one row, as arguments of the model's `forward`.

    Returns:
        input_ids, labels int64 [1, T], position_ids int64 [3, 1, T], sequence_lengths (one number for each
        sample), and the media of all samples in order.

    Raises:
        InputError: there is no sample.
    """
    if not samples:
        raise InputError("There is no sample to pack. Give at least one.")
    return {
        "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
        "labels": torch.cat([learnable(sample) for sample in samples])[None],
        "position_ids": torch.cat([sample.position_ids for sample in samples], dim=1)[:, None],
        "sequence_lengths": [len(sample) for sample in samples],
        **joined_media(samples),
    }


def learnable(sample: Tokens) -> Tensor:
    """Removes the label of the first token, before which there is none to predict it."""
    return sample.labels.index_fill(0, torch.tensor([0]), IGNORED)


def joined_media(samples: Sequence[Tokens]) -> dict[str, Tensor]:
    """Joins the media of all samples, by name, in order."""
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        for name, value in sample.media().items():
            found.setdefault(name, []).append(value)
    return {name: torch.cat(values) for name, values in found.items()}
