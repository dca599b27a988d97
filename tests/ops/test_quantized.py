"""Weights in few bits stand for nearly what they were made of."""

import pytest
import torch

from infinitevl.errors import InputError
from infinitevl.ops.linear import torch as products
from infinitevl.ops.linear.quantized import KINDS, quantize
from tests.support import relative_error

BOUNDS = {"int8": 0.01, "fp8": 0.04, "int4": 0.12}
BITS = {"int8": 8, "fp8": 8, "int4": 4}


def normal(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 36), (33, 64), (3, 1100), (1500, 384), (16, 2048)])
def test_a_round_trip_is_near(kind, shape, dtype):
    weight = normal(*shape, dtype=dtype)
    held = quantize(weight, kind)
    found = held.dequantize()
    assert found.shape == held.shape == weight.shape and found.dtype == held.dtype == dtype
    assert relative_error(found, weight) < BOUNDS[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_takes_its_bits_and_little_more(kind):
    weight = normal(64, 2048)
    assert quantize(weight, kind).num_bytes < 1.04 * weight.numel() * BITS[kind] / 8


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_size_are_equally_near(kind):
    weight = normal(5, 256) * torch.tensor([1e-12, 1e-3, 1.0, 1e3, 1e12])[:, None]
    found = quantize(weight, kind).dequantize()
    assert all(relative_error(*pair) < BOUNDS[kind] for pair in zip(found, weight, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_stay_zeros(kind):
    weight = normal(4, 256)
    weight[1] = 0
    weight[2, 128:] = 0
    found = quantize(weight, kind).dequantize()
    assert not found[weight == 0].any()


def test_int4_shares_a_scale_among_as_many_columns_as_fit():
    groups = {inputs: quantize(normal(2, inputs), "int4").group for inputs in (2048, 11008, 448, 96, 36, 7)}
    assert groups == {2048: 128, 11008: 128, 448: 64, 96: 32, 36: 8, 7: 8}


def test_both_ends_of_a_group_are_kept():
    weight = torch.tensor([[8.0, -7.0, *[1.0] * 126], [-8.0, 7.0, *[0.0] * 126]])
    assert torch.equal(quantize(weight, "int4").dequantize(), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_products_are_those_with_the_weight_it_stands_for(kind):
    x, held, residual = normal(2, 3, 64), quantize(normal(10, 64), kind), normal(2, 3, 10)
    weight = held.dequantize()
    assert torch.equal(products.linear(x, held), products.linear(x, weight))
    assert torch.equal(products.linear_add(x, held, residual), products.linear_add(x, weight, residual))
    norm = (normal(64), 1e-6)
    assert torch.equal(products.norm_linear(x, *norm, held), products.norm_linear(x, *norm, weight))
    assert torch.equal(products.norm_swiglu(x, *norm, held), products.norm_swiglu(x, *norm, weight))


def test_what_cannot_be_held_is_refused():
    with pytest.raises(InputError, match="int8, int4, fp8"):
        quantize(normal(2, 2), "int3")
    with pytest.raises(InputError, match="NaN"):
        quantize(torch.full((2, 2), float("nan")), "int8")
