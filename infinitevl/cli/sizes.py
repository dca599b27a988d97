"""Computes the memory of a model and of a stream, from the model's shape."""

import torch

from infinitevl.config import InfiniteVLConfig, InfiniteVLTextConfig
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.state import StreamState


def state_bytes(config: InfiniteVLTextConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one stream's state, without allocating it."""
    return StreamState.allocate(config, dtype=dtype, device="meta").num_bytes


def growth_per_token(config: InfiniteVLTextConfig, dtype: torch.dtype) -> int:
    """Return the bytes that every token would add if all layers were full attention of this shape."""
    return (
        2 * config.num_hidden_layers * config.num_key_value_heads * int(config.head_dim or 0) * dtype.itemsize
    )


def weight_bytes(config: InfiniteVLConfig, dtype: torch.dtype) -> int:
    """Return the bytes of all weights in `dtype`, without allocating them."""
    with torch.device("meta"):
        model = InfiniteVLForConditionalGeneration(config)
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize
