"""What runs each operation, and why; the only door to kernel packages."""

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


# What the user knows an operation as: its name in the table, what it is in plain torch, what it is in Triton.
_OPERATIONS = {
    "window attention, many tokens": (
        "window_chunk_",
        "torch scaled_dot_product_attention over the ring with a mask",
        "Triton, reads the ring where it lies",
    ),
    "window attention, one token": (
        "window_step_",
        "torch scaled_dot_product_attention over the ring",
        "Triton, the ring in splits",
    ),
    "vision attention": (
        "vision_attention",
        "torch scaled_dot_product_attention over equal windows",
        "Triton, one tile a window",
    ),
    "delta net, many tokens": (
        "delta_net_chunk_",
        "torch, one convolution, chunks of 64 and a triangular solve",
        "Triton, convolution to gates in one pass, then a scan of chunks of 64",
    ),
    "delta net, one token": (
        "delta_net_step_",
        "torch, one fused read and update",
        "Triton, the recurrent state read once and written once",
    ),
    "products, one or a few tokens": (
        "linear",
        "torch linear",
        "Triton, rows of the weight with norm, gate and residual around them",
    ),
    "products, many tokens": ("linear_add", "torch linear", "cuBLAS, with Triton for norms and gates"),
    "normalisations": ("rms_norm", "torch, in float32", "Triton, one pass, float32 inside"),
}


@functools.cache
def has_triton() -> bool:
    """Whether triton can be imported; without importing it."""
    return importlib.util.find_spec("triton") is not None


def choose(device: torch.device) -> Kernels:
    """The fastest kernels for `device`: Triton on CUDA where it is installed, else plain torch."""
    if why_torch(device):
        return TORCH
    from infinitevl.ops.triton.table import TRITON

    return TRITON


def why_torch(device: torch.device) -> str:
    """Why plain torch runs on `device`, or nothing where Triton does."""
    if device.type != "cuda":
        return f"Triton needs CUDA, this is {device.type}"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return "" if has_triton() else "triton is not installed: pip install triton"


def describe(device: str | torch.device | None = None) -> list[Choice]:
    """What an engine runs each operation on, on `device` (default: the first GPU, else the CPU)."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kernels, why = choose(where), why_torch(where) or "triton is installed and this is CUDA"
    found = []
    for op, (name, in_torch, in_triton) in _OPERATIONS.items():
        is_torch = getattr(kernels, name) is getattr(TORCH, name)
        found.append(Choice(op, in_torch if is_torch else in_triton, why))
    return [*found, Choice("rotary angles", "torch, 64-bit integer phases", "exact at every position")]
