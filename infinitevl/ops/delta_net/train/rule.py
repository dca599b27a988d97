"""Gated DeltaNet in training, between its projections, and its rule as one operation with a gradient."""

import torch
from torch import Tensor

from infinitevl.ops.delta_net.train import backward, forward
from infinitevl.ops.delta_net.train.conv import conv_heads
from infinitevl.ops.delta_net.train.forward import Kept, empty_kept, empty_out
from infinitevl.ops.delta_net.train.gates import gates
from infinitevl.ops.rows import Packed

MAX_KEY_WIDTH = 128


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
    """As `ops.delta_net.torch.delta_net_chunk` at the start of sequences; the result in mixed's dtype."""
    assert num_valid is None, "training batches are padded at the end and need no counts"
    _, heads, key_width, value_width = recurrent_state.shape
    place, source, firsts = (None,) * 3 if packed is None else (packed.place, packed.source, packed.firsts)
    log_decay, beta = gates(a, b, A_log, dt_bias, place, source)
    q, k, v = conv_heads(mixed, conv_weight, heads, key_width, value_width, place, source)
    out, recurrent_state = delta_rule(q, k, v, log_decay, beta, recurrent_state, firsts, place, source)
    return out, recurrent_state, conv_state


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    firsts: Tensor | None = None,
    place: Tensor | None = None,
    source: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `ops.delta_net.rule`, in one dtype for q, k, v and the result; repeatable bit for bit.

    Args:
        q, k: [B, T, H, K], K at most 128. v: [B, T, H, V]. log_decay, beta: [B, T, H].
        recurrent_state: [B, H, K, V].
        firsts: int32 [S + 1], the first chunk of each of S sequences that share the row, and the number of
            chunks: the first begins with `recurrent_state`, the others with none. None: one sequence.
        place, source: where arguments are spread, as in `ops.rows`: the output is gathered.
    """
    wide = (x.float() for x in (log_decay, beta, recurrent_state))
    out, last, *_ = _delta_rule(q, k, v, *wide, firsts, place, source)
    return out, last


@torch.library.custom_op("infinitevl::train_delta_rule", mutates_args=())
def _delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor,
    recurrent_state: Tensor,
    firsts: Tensor | None,
    place: Tensor | None,
    source: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Output, last recurrent state, and `Kept`."""
    assert q.shape[3] <= MAX_KEY_WIDTH and q.dtype == k.dtype == v.dtype
    q, k, v, log_decay, beta, recurrent_state = (
        x.contiguous() for x in (q, k, v, log_decay, beta, recurrent_state)
    )
    out, last, kept = forward.forward(q, k, v, log_decay, beta, recurrent_state, firsts, place, source)
    return out, last, *kept


@_delta_rule.register_fake
def _(q, k, v, log_decay, beta, recurrent_state, firsts, place, source):
    return empty_out(v, place), _like(recurrent_state), *empty_kept(q, v)


@torch.library.custom_op("infinitevl::train_delta_rule_backward", mutates_args=())
def _delta_rule_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    firsts: Tensor | None,
    source: Tensor | None,
    kept: list[Tensor],
    d_out: Tensor,
    d_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    q, k, v, beta, d_out, d_last = (x.contiguous() for x in (q, k, v, beta, d_out, d_last))
    return backward.backward(q, k, v, beta, firsts, source, Kept(*kept), d_out, d_last)


@_delta_rule_backward.register_fake
def _(q, k, v, beta, firsts, source, kept, d_out, d_last):
    return _like(q), _like(k), _like(v), _like(beta), _like(beta), _like(d_last)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _keep(ctx, inputs, output) -> None:
    q, k, v, _, beta, _, firsts, _, source = inputs
    ctx.save_for_backward(q, k, v, beta, firsts, source, *output[2:])
    ctx.shape = output[0].shape
    ctx.set_materialize_grads(False)


def _gradients(ctx, d_out: Tensor | None, d_last: Tensor | None, *_):
    q, k, v, beta, firsts, source, *kept = ctx.saved_tensors
    if d_out is None:
        d_out = v.new_zeros(ctx.shape)
    if d_last is None:
        d_last = beta.new_zeros(q.shape[0], q.shape[2], q.shape[3], v.shape[3])
    gradients = _delta_rule_backward(q, k, v, beta, firsts, source, kept, d_out.to(v.dtype), d_last)
    return *gradients, None, None, None


_delta_rule.register_autograd(_gradients, setup_context=_keep)
