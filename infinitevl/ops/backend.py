"""What runs each operation, and why; where kernel packages will be chosen once there are any."""

import functools
import importlib.util
from dataclasses import dataclass

import torch

from infinitevl.ops.kernels import TORCH, Kernels


@dataclass(frozen=True)
class Choice:
    """One operation: the kernel that runs it here, and why."""

    op: str
    kernel: str
    why: str


@functools.cache
def has_triton() -> bool:
    """Whether triton can be imported; without importing it."""
    return importlib.util.find_spec("triton") is not None


def choose(device: torch.device) -> Kernels:
    """The fastest kernels for `device`: Triton on CUDA where it is installed, else plain torch."""
    if device.type != "cuda" or torch.version.cuda is None or not has_triton():
        return TORCH
    from infinitevl.ops.triton.table import TRITON

    return TRITON


def describe(device: str | torch.device | None = None) -> list[Choice]:
    """What runs each operation on `device` (default: the first GPU, else the CPU): torch, everywhere."""
    kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu")).type
    sdpa = "torch scaled_dot_product_attention"
    return [
        Choice("window attention", f"{sdpa} over the ring with a mask", f"chosen by torch for {kind}"),
        Choice("vision attention", f"{sdpa} over equal windows", f"chosen by torch for {kind}"),
        Choice(
            "delta rule, many tokens", "torch, chunks of 64 and a triangular solve", "runs everywhere, trains"
        ),
        Choice("delta rule, one token", "torch, one fused read and update", "runs everywhere"),
        Choice("causal convolution", "torch conv1d over queries, keys and values at once", "runs everywhere"),
        Choice("rotary angles", "64-bit integer phases", "exact at every position"),
    ]
