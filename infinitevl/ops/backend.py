"""What this machine has and which kernels will run: found out once, and the only door to kernel packages."""

import functools
import importlib.util
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Choice:
    """One operation: the kernel that runs it here, and why."""

    op: str
    kernel: str
    why: str


@functools.cache
def has_package(name: str) -> bool:
    """Whether a package can be imported, without importing it."""
    return importlib.util.find_spec(name) is not None


def describe(device: str | torch.device | None = None) -> list[Choice]:
    """The kernel of every operation on `device` (default: the best one here), in the order of a layer."""
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
