"""Gated DeltaNet in training, between its projections: see `ops.delta_net`."""

from torch import Tensor

from infinitevl.ops.packed import Packed
from infinitevl.ops.triton.train_conv import conv_heads
from infinitevl.ops.triton.train_gates import gates
from infinitevl.ops.triton.train_rule import delta_rule


def delta_net_chunk(
    mixed: Tensor,
    a: Tensor,
    b: Tensor,
    conv_weight: Tensor,
    A_log: Tensor,
    dt_bias: Tensor,
    recurrent_state: Tensor,
    conv_state: Tensor,
    num_valid: Tensor | None = None,
    packed: Packed | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `ops.delta_net.delta_net_chunk` at the start of sequences; the result in mixed's dtype."""
    assert num_valid is None, "training batches are padded at the end and need no counts"
    _, heads, key_width, value_width = recurrent_state.shape
    place, source, firsts = (None,) * 3 if packed is None else (packed.place, packed.source, packed.firsts)
    log_decay, beta = gates(a, b, A_log, dt_bias, place, source)
    q, k, v = conv_heads(mixed, conv_weight, heads, key_width, value_width, place, source)
    out, recurrent_state = delta_rule(q, k, v, log_decay, beta, recurrent_state, firsts, place, source)
    return out, recurrent_state, conv_state
