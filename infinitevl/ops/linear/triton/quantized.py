"""Products with weights in few bits: few rows read the bits themselves, many rows the whole weight."""

from dataclasses import replace
from typing import TypeGuard

import torch
from torch import Tensor

from infinitevl.ops.linear.quantized import Quantized, Weight
from infinitevl.ops.linear.triton.few_bits import dequantize
from infinitevl.ops.linear.triton.fp8_dot import add_dot_
from infinitevl.ops.linear.triton.fp8_rows import Fp8Rows, quantize_rows, rms_norm_fp8, swiglu_fp8
from infinitevl.ops.linear.triton.matvec import Product
from infinitevl.ops.linear.triton.pointwise import as_rows, rms_norm
from infinitevl.ops.linear.triton.split_dot import split_dot
from infinitevl.ops.table import FP8_ROWS, NORM_ROWS, SPLIT_ROWS

# Both sides of a product of fp8 must be multiples of this.
_FP8_MULTIPLE = 16


def reads_bits(product: Product) -> bool:
    """Whether the tensor cores can read the weight as it is stored, and there are few enough rows for it.

    Float32 has no tensor cores that are exact enough; they take 16 inputs at a time, two of them in a word.
    """
    weight = product.weight
    assert isinstance(weight, Quantized)
    is_wide = weight.kind != "int4" or weight.group >= 64
    is_few = 0 < product.num_rows <= SPLIT_ROWS and not takes_fp8(weight, product.num_rows)
    return is_few and weight.dtype == torch.bfloat16 and is_wide and loads_bits(weight)


def few_bits(product: Product) -> Tensor:
    """The product for few rows, with its norm before it where there are too many for inside."""
    if product.norm_weight is not None and product.num_rows > NORM_ROWS:
        normed = rms_norm(product.x, product.norm_weight, product.eps)
        product = replace(product, x=normed, norm_weight=None)
    return split_dot(product)


def whole(product: Product) -> Product:
    """The same product with the weight in full, for its time."""
    weight = product.weight
    assert isinstance(weight, Quantized)
    return replace(product, weight=dequantize(weight) if loads_bits(weight) else weight.dequantize())


def multiplies_fp8(weight: Quantized) -> bool:
    """Whether this device multiplies fp8 by fp8, scaled row by row, in this shape."""
    is_even = all(side % _FP8_MULTIPLE == 0 for side in weight.shape)
    return (
        weight.kind == "fp8" and weight.dtype == torch.bfloat16 and is_even and _has_fp8(weight.data.device)
    )


def loads_bits(weight: Quantized) -> bool:
    """Whether kernels can load the bits of this weight: not every device knows fp8."""
    device = weight.data.device
    return weight.kind != "fp8" or device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 9)


def _has_fp8(device: torch.device) -> bool:
    is_nvidia = device.type == "cuda" and not torch.version.hip
    return is_nvidia and torch.cuda.get_device_capability(device) >= (9, 0)


def takes_fp8(weight: Weight, num_rows: int) -> TypeGuard[Quantized]:
    """Whether a product of so many rows with this weight reads them in fp8."""
    return num_rows > FP8_ROWS and isinstance(weight, Quantized) and multiplies_fp8(weight)


def fp8_product(product: Product) -> Tensor | Fp8Rows:
    """The product with x in fp8 too, a scale a row: errors of x add to those of the weight."""
    weight = product.weight
    assert isinstance(weight, Quantized)
    if product.norm_weight is None:
        x = quantize_rows(product.x)
    else:
        x = rms_norm_fp8(product.x, product.norm_weight, product.eps)[0]
    if product.residual is not None:
        return fp8_linear_add(x, weight, product.residual, product.bias)
    y = fp8_linear(x, weight, product.bias)
    return swiglu_fp8(y) if product.swiglu else y


def fp8_linear(x: Fp8Rows, weight: Quantized, bias: Tensor | None) -> Tensor:
    """The product of rows in fp8: [..., inputs] -> [..., outputs]."""
    y = torch._scaled_mm(
        x.data, weight.data.t(), scale_a=x.scale, scale_b=weight.scale.t(), bias=bias,
        out_dtype=weight.dtype, use_fast_accum=True,
    )  # fmt: skip
    return y.view(*x.shape[:-1], -1)


def fp8_linear_add(x: Fp8Rows, weight: Quantized, residual: Tensor, bias: Tensor | None) -> Tensor:
    """residual + the product of rows in fp8, where the residual lies if it can be."""
    y = as_rows(residual, weight.shape[0])
    add_dot_(y, x.data, x.scale, weight.data, weight.scale, bias)
    return y.view(residual.shape)
