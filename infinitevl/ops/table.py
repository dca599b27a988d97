"""What runs each operation, and every rule by which a kernel is chosen; the only door to kernel packages.

A kernel is chosen at three moments:

- when an engine starts or a model is laid out (`choose`): Triton on CUDA, else plain torch;
- when training starts (`trainable`): Triton on CUDA in bfloat16, else autograd through plain torch;
- within a call, by size: the limits below, which the kernels read.

`OPERATIONS` holds every operation with its kernels and their descriptions; `describe`, which `infinitevl
doctor` prints, says from it what runs. Triton is imported only when one of its kernels is chosen.
"""

import functools
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from infinitevl.ops.attention import flash, rotary, vision
from infinitevl.ops.attention import torch as attention
from infinitevl.ops.delta_net import torch as delta_net
from infinitevl.ops.linear import torch as linear

# Most rows of a product that one kernel takes, which reads the weight once; beyond, cuBLAS. Milliseconds for
# all products of a token of the 4B decoder on an H200, own and cuBLAS: 1 row 1.91 and 2.79, 2 rows 2.47 and
# 2.82, 4 rows 3.64 and 2.83.
MATVEC_ROWS = 2
# Most rows whose heads are normalised and gated inside of that kernel: every program does that work again.
GATED_ROWS = 1
# Quantized weights: most rows that read the bits themselves, and of these, most that are normalised inside.
SPLIT_ROWS = 64
# Weights in fp8 where a GPU multiplies them: rows beyond which the rows become fp8 too.
FP8_ROWS = 16
NORM_ROWS = 8
# Delta rule, many tokens: chunks of heads beyond which the work is cut for throughput; an H200 has 132
# multiprocessors.
FEW_CHUNKS_LIMIT = 132


@dataclass(frozen=True)
class Kernel:
    """A function that runs an operation, and a short description.

    function: itself, or "module:name" below `infinitevl.ops` where importing it imports triton.
    """

    function: Callable | str
    text: str

    def load(self) -> Callable:
        """Import and return the function."""
        if not isinstance(self.function, str):
            return self.function
        module, name = self.function.split(":")
        return getattr(importlib.import_module(f"infinitevl.ops.{module}"), name)


@dataclass(frozen=True)
class Operation:
    """An operation by the title that users see, with its kernels; plain torch runs where another is None."""

    title: str
    torch: Kernel
    triton: Kernel | None = None
    training: Kernel | None = None


OPERATIONS: Mapping[str, Operation] = {
    "delta_net_chunk": Operation(
        "delta net, a sequence",
        Kernel(delta_net.delta_net_chunk, "torch, one convolution, chunks of 64 and a triangular solve"),
        training=Kernel("delta_net.train.rule:delta_net_chunk", "Triton, chunks of 64, with gradients"),
    ),
    "delta_net_chunk_": Operation(
        "delta net, many tokens",
        Kernel(delta_net.delta_net_chunk_, "torch, one convolution, chunks of 64 and a triangular solve"),
        Kernel(
            "delta_net.triton.chunk:delta_net_chunk_",
            "Triton, convolution to gates in one pass, then a scan of chunks of 64",
        ),
    ),
    "delta_net_step_": Operation(
        "delta net, one token",
        Kernel(delta_net.delta_net_step_, "torch, one fused read and update"),
        Kernel("delta_net.triton.step:delta_net_step_", "Triton, the state read once and written once"),
    ),
    "window_chunk": Operation(
        "window attention, a sequence",
        Kernel(attention.window_chunk, "torch scaled_dot_product_attention with a mask"),
        training=Kernel(flash.window_chunk, "torch's flash kernel, angles applied by Triton"),
    ),
    "window_chunk_": Operation(
        "window attention, many tokens",
        Kernel(attention.window_chunk_, "torch scaled_dot_product_attention over the ring with a mask"),
        Kernel("attention.triton.window:window_chunk_", "Triton, reads the ring where it lies"),
    ),
    "window_step_": Operation(
        "window attention, one token",
        Kernel(attention.window_step_, "torch scaled_dot_product_attention over the ring"),
        Kernel("attention.triton.window:window_step_", "Triton, the ring in splits"),
    ),
    "vision_attention": Operation(
        "vision attention",
        Kernel(vision.vision_attention, "torch scaled_dot_product_attention over equal windows"),
        Kernel("attention.triton.vision:vision_attention", "Triton, one tile a window"),
    ),
    "rotary_angles": Operation(
        "rotary angles",
        Kernel(rotary.rotary_angles, "torch, 64-bit integer phases"),
        Kernel("attention.triton.rotary:rotary_angles", "Triton, 64-bit integer phases"),
    ),
    "rms_norm": Operation(
        "norm",
        Kernel(linear.rms_norm, "torch, in float32"),
        Kernel("linear.triton.pointwise:rms_norm", "Triton, one pass, float32 inside"),
        Kernel("linear.train:rms_norm", "Triton, one pass each way, float32 inside"),
    ),
    "gated_rms_norm": Operation(
        "gated norm",
        Kernel(linear.gated_rms_norm, "torch, in float32"),
        training=Kernel("linear.train:gated_rms_norm", "Triton, one pass each way, float32 inside"),
    ),
    "swiglu": Operation(
        "gate of the feed-forward",
        Kernel(linear.swiglu, "torch"),
        training=Kernel("linear.train:swiglu", "Triton, one pass each way"),
    ),
    "linear": Operation(
        "product",
        Kernel(linear.linear, "torch linear"),
        Kernel("linear.triton.products:linear", "Triton or cuBLAS, by rows"),
    ),
    "norm_linear": Operation(
        "norm and product",
        Kernel(linear.norm_linear, "torch linear"),
        Kernel("linear.triton.products:norm_linear", "Triton or cuBLAS, by rows; norm in Triton"),
    ),
    "norm_swiglu": Operation(
        "norm, product and gate",
        Kernel(linear.norm_swiglu, "torch linear"),
        Kernel("linear.triton.products:norm_swiglu", "Triton or cuBLAS, by rows; norm and gate in Triton"),
    ),
    "norm_linear_shift": Operation(
        "norm and product, vision",
        Kernel(linear.norm_linear_shift, "torch linear"),
        Kernel("linear.triton.products:norm_linear_shift", "Triton or cuBLAS, by rows; norm in Triton"),
    ),
    "norm_swiglu_shift": Operation(
        "norm, product and gate, vision",
        Kernel(linear.norm_swiglu_shift, "torch linear"),
        Kernel(
            "linear.triton.products:norm_swiglu_shift", "Triton or cuBLAS, by rows; norm and gate in Triton"
        ),
    ),
    "linear_add": Operation(
        "product and residual",
        Kernel(linear.linear_add, "torch linear"),
        Kernel("linear.triton.products:linear_add", "Triton or cuBLAS, by rows"),
    ),
    "gated_norm_linear_add": Operation(
        "gated norm, product and residual",
        Kernel(linear.gated_norm_linear_add, "torch linear"),
        Kernel(
            "linear.triton.products:gated_norm_linear_add",
            "Triton or cuBLAS, by rows; norm and gate in Triton",
        ),
    ),
}


@dataclass(frozen=True)
class Kernels:
    """Functions with the signatures and results of those in `TORCH`, one for each of `OPERATIONS`.

    Names with an underscore change a state in place.
    """

    name: str
    delta_net_chunk: Callable
    delta_net_chunk_: Callable
    delta_net_step_: Callable
    window_chunk: Callable
    window_chunk_: Callable
    window_step_: Callable
    vision_attention: Callable
    rotary_angles: Callable
    rms_norm: Callable
    gated_rms_norm: Callable
    swiglu: Callable
    linear: Callable
    norm_linear: Callable
    norm_swiglu: Callable
    norm_linear_shift: Callable
    norm_swiglu_shift: Callable
    linear_add: Callable
    gated_norm_linear_add: Callable


# Plain torch: the definition, on every device, with gradients where nothing changes in place.
TORCH = Kernels("torch", **{name: operation.torch.load() for name, operation in OPERATIONS.items()})


@functools.cache
def triton_kernels() -> Kernels:
    """Return the Triton kernels, and plain torch where there is none; imports triton."""
    loaded = {name: found.triton.load() for name, found in OPERATIONS.items() if found.triton}
    return replace(TORCH, name="triton", **loaded)


@functools.cache
def has_triton() -> bool:
    """Whether triton is installed; does not import it."""
    return importlib.util.find_spec("triton") is not None


def choose(device: torch.device) -> Kernels:
    """Return the fastest kernels for `device`: Triton on CUDA where it is installed, else plain torch."""
    return TORCH if why_torch(device) else triton_kernels()


def why_torch(device: torch.device) -> str:
    """Say why plain torch runs on `device`; empty where Triton runs."""
    if device.type != "cuda":
        return f"Triton needs CUDA, this is {device.type}"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    return "" if has_triton() else "triton is not installed: pip install triton"


def trainable(dtype: torch.dtype) -> Kernels:
    """Return kernels for training with products in `dtype`; sequences start with an empty state."""
    plain = replace(TORCH, name="trainable", window_chunk=flash.window_chunk)
    if dtype != torch.bfloat16 or not torch.cuda.is_available() or why_torch(torch.device("cuda")):
        return plain
    found = {name: operation.training for name, operation in OPERATIONS.items() if operation.training}
    fast = {
        name: _on_gpu(kernel.load(), getattr(TORCH, name), *_ALSO_IN.get(name, ()))
        for name, kernel in found.items()
    }
    rotate = Kernel("linear.train:rotate", "").load()
    fast["window_chunk"] = functools.partial(flash.window_chunk, rotate=rotate)
    return replace(plain, name="trainable, Triton", **fast)


# Dtypes beside bfloat16 in which a kernel trains.
_ALSO_IN = {"rms_norm": (torch.float32,)}


def _on_gpu(fast: Callable, plain: Callable, *others_too: torch.dtype) -> Callable:
    """`fast` where the first argument is bfloat16 (or of another dtype named) on a GPU, else `plain`."""

    def either(x: Tensor, *others: Any) -> Any:
        return (fast if x.is_cuda and x.dtype in (torch.bfloat16, *others_too) else plain)(x, *others)

    return either


@dataclass(frozen=True)
class Choice:
    """One operation: the kernel that runs it here, and why. moment: when it is chosen, one of `MOMENTS`."""

    moment: str
    op: str
    kernel: str
    why: str


MOMENTS = ENGINE, TRAINING, CALL = "kernels", "kernels in training", "kernels by size"
_SIZES = (
    ("product", f"one kernel up to {MATVEC_ROWS} rows, cuBLAS beyond"),
    ("gated norm and product", f"together up to {GATED_ROWS} row, one after the other beyond"),
    ("quantized product of one row", "reads the bits on the ordinary cores"),
    ("quantized product", f"reads the bits up to {SPLIT_ROWS} rows, the whole weight beyond"),
    ("product in fp8 on Hopper", f"reads the bits up to {FP8_ROWS} rows, multiplies fp8 by fp8 beyond"),
    ("norm and quantized product", f"together up to {NORM_ROWS} rows"),
    ("delta net, many tokens", f"cut for throughput beyond {FEW_CHUNKS_LIMIT} chunks of heads"),
)


def describe(device: str | torch.device | None = None) -> list[Choice]:
    """Say what runs each operation on `device` (default: the first GPU, else the CPU), moment by moment."""
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kernels, missing = choose(where), why_torch(where)
    why = missing or "triton is installed and this is CUDA"
    found = [
        Choice(ENGINE, op.title, *_kernel_text(name, op, kernels, why)) for name, op in OPERATIONS.items()
    ]
    for op in OPERATIONS.values():
        if op.training is not None and not missing:
            found.append(Choice(TRAINING, op.title, op.training.text, "in bfloat16; else plain torch"))
        elif op.training is not None:
            found.append(Choice(TRAINING, op.title, op.torch.text, why))
    if not missing:
        found += [Choice(CALL, title, text, "measured on an H200") for title, text in _SIZES]
    return found


def _kernel_text(name: str, operation: Operation, kernels: Kernels, why: str) -> tuple[str, str]:
    """Say what runs an operation, and why."""
    if getattr(kernels, name) is not operation.torch.function and operation.triton is not None:
        return operation.triton.text, why
    is_all_torch = operation.triton is not None or kernels is TORCH
    return operation.torch.text, why if is_all_torch else "only before weights are fused"
