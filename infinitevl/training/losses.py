"""Computes the three losses of the stages, as sums over tokens, so that unequal batches add up exactly.

Logits are made for a few tokens at a time and turned into gradients at once: a vocabulary times a sequence
of them never exists, neither forward nor backward.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

LAYER_LOSS_SCALE = 1000.0  # the paper's, for stage 1a
IGNORED = -100  # a label without loss
CHUNK_TOKENS = 1024


def layer_loss(student: Tensor, teacher: Tensor, counts: Tensor | None = None) -> Tensor:
    """Computes the squared error of one layer's output: mean over channels, summed over tokens, times 1000.

    Args:
        student, teacher: [B, T, C]. counts: bool [B, T], which tokens are real; None for all.
    """
    wide = torch.promote_types(student.dtype, torch.float32)
    errors = (student.to(wide) - teacher.to(wide)).square().mean(-1)
    errors = errors if counts is None else errors.masked_fill(~counts, 0)
    return LAYER_LOSS_SCALE * errors.sum()


def answer_loss(hidden: Tensor, head: Tensor, labels: Tensor, chunk_tokens: int = CHUNK_TOKENS) -> Tensor:
    """Computes the cross-entropy, summed over tokens.

    Args:
        hidden: [N, C], each before the token it should name. head: [vocabulary, C]. labels: int64 [N].
    """

    def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits, labels, reduction="sum")

    return _ByChunks.apply(loss_of, chunk_tokens, hidden, head, labels)


def logits_loss(
    hidden: Tensor,
    head: Tensor,
    teacher_hidden: Tensor,
    teacher_head: Tensor,
    temperature: float,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Tensor:
    """Computes KL(teacher || student) of next tokens at a temperature, times its square, summed over tokens.

    Args:
        hidden, teacher_hidden: [N, C], after the last norm. head, teacher_head: [vocabulary, C].
    """

    def loss_of(logits: Tensor, teacher_hidden: Tensor) -> Tensor:
        with torch.no_grad():
            wanted = F.log_softmax(_wide_logits(teacher_hidden, teacher_head) / temperature, dim=-1)
        given = F.log_softmax(logits / temperature, dim=-1)
        return temperature**2 * F.kl_div(given, wanted, reduction="sum", log_target=True)

    return _ByChunks.apply(loss_of, chunk_tokens, hidden, head, teacher_hidden.detach())


def supervised(labels: Tensor) -> Tensor:
    """Marks the tokens before one that has a label: int64 [B, T] -> bool [B, T]."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


def _wide_logits(hidden: Tensor, head: Tensor) -> Tensor:
    logits = F.linear(hidden, head.to(hidden.dtype))
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _ByChunks(torch.autograd.Function):
    """Sums `loss_of(logits, targets)` over chunks of tokens; computes gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        loss_of: Callable[[Tensor, Tensor], Tensor],
        chunk_tokens: int,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
    ) -> Tensor:
        needs = ctx.needs_input_grad[2:4]
        d_hidden = torch.zeros_like(hidden) if needs[0] else None
        d_head = torch.zeros_like(head, dtype=_wide(head)) if needs[1] else None
        total = hidden.new_zeros((), dtype=_wide(hidden))
        for start in range(0, len(hidden), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            loss, gradients = _chunk(loss_of, hidden[rows], head, targets[rows], needs)
            total += loss
            if d_hidden is not None:
                d_hidden[rows] = gradients.pop(0)
            if d_head is not None:
                d_head += gradients.pop(0)
        ctx.save_for_backward(d_hidden, None if d_head is None else d_head.to(head.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = [None if d is None else d * gradient.to(d.dtype) for d in ctx.saved_tensors]
        return None, None, scaled[0], scaled[1], None


def _chunk(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    hidden: Tensor,
    head: Tensor,
    targets: Tensor,
    needs: tuple[bool, bool],
) -> tuple[Tensor, list[Tensor]]:
    """Returns the loss of one chunk, and the gradients of hidden and head, if needed."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_(want) for x, want in zip((hidden, head), needs, strict=True)]
        loss = loss_of(_wide_logits(*leaves), targets)
    asked = [leaf for leaf in leaves if leaf.requires_grad]
    return loss.detach(), list(torch.autograd.grad(loss, asked)) if asked else []


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
