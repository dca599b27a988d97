"""How much memory a stream takes, by the shape of the model."""

import torch

from infinitevl.config import InfiniteVLTextConfig
from infinitevl.state import StreamState


def state_bytes(config: InfiniteVLTextConfig, dtype: torch.dtype) -> int:
    """Bytes of one stream's state, the same for ever; nothing is allocated to find out."""
    return StreamState.allocate(config, dtype=dtype, device="meta").num_bytes


def growth_per_token(config: InfiniteVLTextConfig, dtype: torch.dtype) -> int:
    """Bytes that every token would add if all layers were full attention of this shape."""
    return (
        2 * config.num_hidden_layers * config.num_key_value_heads * int(config.head_dim or 0) * dtype.itemsize
    )
