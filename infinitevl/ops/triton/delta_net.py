"""Gated DeltaNet between its projections; the definition of each is its namesake in `ops.delta_net`."""

from infinitevl.ops.triton.delta_chunk import delta_net_chunk_
from infinitevl.ops.triton.delta_parts import supports
from infinitevl.ops.triton.delta_step import delta_net_step_

__all__ = ["delta_net_chunk_", "delta_net_step_", "supports"]
