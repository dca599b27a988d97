"""Products on a GPU, as in `ops.linear.torch`: one kernel for few rows, cuBLAS for many.

Weights in few bits go ways of their own (`quantized.py`).

`ops.table` holds the numbers of rows at which the ways cross.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infinitevl.ops.linear.quantized import Quantized, Weight
from infinitevl.ops.linear.triton.fp8_rows import (
    Fp8Rows,
    gated_rms_norm_fp8,
    rms_norm_fp8,
    swiglu_fp8,
)
from infinitevl.ops.linear.triton.matvec import Product, gates_fit, matvec
from infinitevl.ops.linear.triton.matvec_int4 import matvec_int4
from infinitevl.ops.linear.triton.pointwise import (
    add_bias_,
    as_rows,
    gated_rms_norm,
    rms_norm,
    rms_norm_shift,
    swiglu,
)
from infinitevl.ops.linear.triton.quantized import (
    few_bits,
    fp8_linear,
    fp8_linear_add,
    fp8_product,
    loads_bits,
    reads_bits,
    takes_fp8,
    whole,
)
from infinitevl.ops.table import GATED_ROWS, MATVEC_ROWS

DTYPES = (torch.float32, torch.bfloat16)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """The product alone: [..., inputs] -> [..., outputs]."""
    return _run(Product(x, weight, bias))


def norm_linear(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> Tensor:
    """The product of rms_norm(x)."""
    return _run(Product(x, weight, bias, norm_weight=norm_weight, eps=eps))


def norm_swiglu(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None = None
) -> Tensor | Fp8Rows:
    """SiLU(gate) * up of rms_norm(x); weight holds the rows of the gate, then as many of up.

    Where many rows meet weights in fp8 the result stays in fp8, for `linear_add`.
    """
    return _run(Product(x, weight, bias, norm_weight=norm_weight, eps=eps, swiglu=True))


def norm_linear_shift(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """`norm_linear`, and x + shift where x was: a later product adds itself to a residual with its bias."""
    if takes_fp8(weight, x.shape[:-1].numel()):
        rows, x = rms_norm_fp8(x, norm_weight, eps, shift)
        return fp8_linear(rows, weight, bias), x
    normed, x = rms_norm_shift(x, norm_weight, eps, shift)
    return linear(normed, weight, bias), x


def norm_swiglu_shift(
    x: Tensor, norm_weight: Tensor, eps: float, weight: Weight, bias: Tensor | None, shift: Tensor
) -> tuple[Tensor | Fp8Rows, Tensor]:
    """`norm_swiglu`, and x + shift where x was."""
    if takes_fp8(weight, x.shape[:-1].numel()):
        rows, x = rms_norm_fp8(x, norm_weight, eps, shift)
        return swiglu_fp8(fp8_linear(rows, weight, bias)), x
    normed, x = rms_norm_shift(x, norm_weight, eps, shift)
    return _run(Product(normed, weight, bias, swiglu=True)), x


def linear_add(x: Tensor | Fp8Rows, weight: Weight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual + the product, which may lie where the residual lay; x may be what `norm_swiglu` returned."""
    if not isinstance(x, Fp8Rows):
        return _run(Product(x, weight, bias, residual))
    if takes_fp8(weight, x.data.shape[0]):
        return fp8_linear_add(x, weight, residual, bias)
    return _run(Product(x.dense(), weight, bias, residual))


def gated_norm_linear_add(
    out: Tensor, gate: Tensor, norm_weight: Tensor, eps: float, weight: Weight, residual: Tensor
) -> Tensor:
    """residual + the product of rms_norm(out) * SiLU(gate), normalised head by head.

    Args:
        out: [B, T, H, V]. gate: [B, T, H V]. norm_weight: [V]. residual: [B, T, outputs].
    """
    is_one = gate.shape[:-1].numel() <= GATED_ROWS and not isinstance(weight, Quantized)
    if is_one and gates_fit(out.shape[-1]):
        return _run(Product(out, weight, None, residual, norm_weight, eps, gate))
    if takes_fp8(weight, gate.shape[:-1].numel()) and gates_fit(out.shape[-1]):
        return linear_add(gated_rms_norm_fp8(out, gate, norm_weight, eps), weight, residual)
    return linear_add(gated_rms_norm(out, gate, norm_weight, eps), weight, residual)


def _run(product: Product) -> Any:
    """The product, by the number of rows: a Tensor, or `Fp8Rows` where `norm_swiglu` may return them."""
    _check(product)
    if isinstance(product.weight, Quantized):
        return _run_few_bits(product, product.weight)
    rows = product.num_rows
    if 0 < rows <= MATVEC_ROWS:
        return matvec(product)
    return _many_rows(product)


def _run_few_bits(product: Product, weight: Quantized) -> Tensor | Fp8Rows:
    """By the number of rows, and by what the device can multiply."""
    if product.num_rows == 1 and loads_bits(weight):
        return matvec_int4(product) if weight.kind == "int4" else matvec(product)
    if reads_bits(product):
        return few_bits(product)
    if takes_fp8(product.weight, product.num_rows):
        return fp8_product(product)
    return _many_rows(whole(product))


def _check(product: Product) -> None:
    dtype, weight = product.weight.dtype, product.weight
    given = product.x.dtype if product.gate is None else product.gate.dtype
    if dtype not in DTYPES or given != dtype:
        raise TypeError(f"products run in float32 or bfloat16 throughout, not x {given} and weight {dtype}")
    if isinstance(weight, Tensor) and weight.stride(1) != 1 and weight.shape[1] > 1:
        raise ValueError(f"a weight's rows must lie contiguous in memory, not with strides {weight.stride()}")


def _many_rows(product: Product) -> Tensor:
    """Point-wise kernels around cuBLAS."""
    x = product.x
    if product.norm_weight is not None:
        x = rms_norm(x, product.norm_weight, product.eps)
    if product.residual is not None:
        return _add(replace(product, x=x))
    y = F.linear(x, product.stored, product.bias)
    return swiglu(y) if product.swiglu else y


def _add(product: Product) -> Tensor:
    """residual + product in one call of cuBLAS, where the residual lies if it can be."""
    assert product.residual is not None
    y = as_rows(product.residual, product.outputs)
    if product.bias is not None:
        add_bias_(y, product.bias)
    y.addmm_(as_rows(product.x, product.inputs), product.stored.t())
    return y.view(product.residual.shape)
