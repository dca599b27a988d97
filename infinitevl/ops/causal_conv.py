"""The causal convolution of Gated DeltaNet and the inputs that it carries over; defined in `reference`."""

import torch
from torch import Tensor
from torch.nn import functional as F


def causal_conv_chunk(
    x: Tensor, weight: Tensor, conv_state: Tensor, num_valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Many tokens at once.

    Args:
        x: [B, T, C]. weight: [C, W]. conv_state: [B, W - 1, C].
        num_valid: int64 [B], tokens of each row that count (the first ones); None for all.

    Returns:
        SiLU of the convolution [B, T, C], and the conv_state after the last valid token.
    """
    seen = torch.cat([conv_state.to(x.dtype), x], dim=1)
    mixed = F.conv1d(seen.mT, weight[:, None], groups=weight.shape[0]).mT
    return F.silu(mixed), _last(seen, weight.shape[1] - 1, num_valid)


def _last(seen: Tensor, width: int, num_valid: Tensor | None) -> Tensor:
    if num_valid is None:
        return seen[:, seen.shape[1] - width :]
    index = num_valid[:, None] + torch.arange(width, device=seen.device)
    return seen.gather(1, index[..., None].expand(-1, -1, seen.shape[2]))


def causal_conv_step(x: Tensor, weight: Tensor, conv_state: Tensor) -> tuple[Tensor, Tensor]:
    """One token: arguments and results as above with T = 1."""
    seen = torch.cat([conv_state.to(x.dtype), x], dim=1)  # [B, W, C]
    return F.silu((seen * weight.mT).sum(1, keepdim=True)), seen[:, 1:]
