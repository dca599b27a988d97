"""What all layers of one forward pass share."""

from typing import NamedTuple

from torch import Tensor

from infinitevl.ops.rows import Packed


class ForwardContext(NamedTuple):
    """What a layer needs beside hidden states and its own state; the same for every layer of a pass.

    A tuple, so that sharding and gradient checkpointing find the tensors in it.

    cos, sin: float32 [B, T, D], the rotary angles.
    length: int64 [B], tokens in the state before these; None without a state.
    num_valid: int64 [B], how many of each row's first tokens count; None for all.
    one_token: T is 1 and every row counts: the fast way for decoding.
    rows: int64 [B], the rows of a larger state that go on; None for all, in order.
    packed: without a state, the sequences that share the one row; None for one a row.
    """

    cos: Tensor
    sin: Tensor
    length: Tensor | None = None
    num_valid: Tensor | None = None
    one_token: bool = False
    rows: Tensor | None = None
    packed: Packed | None = None
