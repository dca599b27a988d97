"""Products with weights in few bits equal products with the weights that the bits stand for."""

import pytest
import torch
import triton

from infinitevl.ops.linear import torch as definition
from infinitevl.ops.linear.quantized import KINDS, Quantized, quantize
from infinitevl.ops.linear.triton import few_bits, products, split_dot
from infinitevl.ops.linear.triton import quantized as ways

EPS = 1e-6
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
SIZES = [(64, 7), (448, 52), (200, 33), (36, 5)]


class Case:
    """Arguments of each product, drawn once; on the device, the weight in few bits."""

    def __init__(self, kind, rows, inputs, outputs, dtype, device):
        draw = torch.Generator().manual_seed(rows * 1000 + inputs + outputs)

        def normal(*shape):
            return torch.randn(*shape, generator=draw).to(dtype).to(device)

        self.x = normal(1, rows, inputs + 24)[..., 8 : 8 + inputs]  # a slice of a fused product
        self.norm = (1 + normal(inputs) / 4, EPS)
        self.bias, self.residual = normal(2 * outputs), normal(1, rows, 2 * outputs)
        self.weight = quantize(normal(2 * outputs, inputs) / inputs**0.5, kind)

    def calls(self):
        x, weight, bias = self.x, self.weight, self.bias
        return {
            "linear": (x, weight),
            "norm_linear": (x, *self.norm, weight, bias),
            "norm_swiglu": (x, *self.norm, weight, bias),
            "linear_add": (x, weight, self.residual, bias),
        }


def relative(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def exact_of(name, arguments):
    """The definition in float64, with the very weight that the bits stand for."""
    wide = [a.dequantize() if isinstance(a, Quantized) else a for a in arguments]
    return getattr(definition, name)(*(a.double() if isinstance(a, torch.Tensor) else a for a in wide))


def assert_every_product_is_exact(case, bound):
    for name, arguments in case.calls().items():
        kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        found = getattr(products, name)(*kept)  # a residual may be changed in place
        exact = exact_of(name, arguments)
        assert found.shape == exact.shape and found.dtype == case.x.dtype
        assert relative(found, exact) < bound, name


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


@pytest.fixture
def bits_are_read(monkeypatch, device, dtype):
    """Every product reads the bits, whatever its shape: only the interpreter can in each of them."""
    if device == "cuda":
        return
    monkeypatch.setattr(ways, "SPLIT_ROWS", 1000)
    monkeypatch.setattr(products, "reads_bits", lambda product: True)


@pytest.fixture
def float32_is_rounded_to_fp8(monkeypatch):
    """As on a GPU; the interpreter of Triton 3.6 cuts bits off."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    def convert(data, source, target, rounding, original=interpreter._convert_float):
        if (source, target) != (triton.language.float32, triton.language.float8e4nv):
            return original(data, source, target, rounding)
        return torch.from_numpy(data.view("float32")).to(torch.float8_e4m3fn).view(torch.uint8).numpy()

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.mark.parametrize("inputs, outputs", SIZES)
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_few_rows_read_the_bits(kind, rows, inputs, outputs, dtype, device, bits_are_read, poisoned):
    assert_every_product_is_exact(Case(kind, rows, inputs, outputs, dtype, device), BOUNDS[dtype])


@pytest.mark.parametrize("rows", [8, 17, 64])
@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_are_normalised_before(kind, rows, dtype, device, bits_are_read, poisoned):
    assert_every_product_is_exact(Case(kind, rows, 128, 20, dtype, device), BOUNDS[dtype])


@pytest.mark.parametrize("rows", [1, 65])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_chosen_by_rows_is_exact(kind, rows, dtype, device, poisoned):
    bound = 0.05 if kind == "fp8" and device == "cuda" else BOUNDS[dtype]  # x is in fp8 there too
    assert_every_product_is_exact(Case(kind, rows, 64, 16, dtype, device), bound)


@pytest.mark.parametrize("tile", [split_dot.SplitTile(16, 16, 2, 2, 1), split_dot.SplitTile(32, 16, 8, 4, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_any_tile_gives_the_same(kind, tile, dtype, device, bits_are_read, poisoned, monkeypatch):
    monkeypatch.setattr(split_dot, "split_tile", lambda product: tile)
    assert_every_product_is_exact(Case(kind, 3, 384, 40, dtype, device), BOUNDS[dtype])


@pytest.mark.parametrize("inputs, outputs", [*SIZES, (2048, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_weight_is_what_the_bits_stand_for_bit_for_bit(
    kind, inputs, outputs, dtype, device, poisoned
):
    weight = Case(kind, 1, inputs, outputs, dtype, device).weight
    assert torch.equal(few_bits.dequantize(weight), weight.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_gated_before(kind, dtype, device, poisoned):
    case = Case(kind, 2, 64, 10, dtype, device)
    out = torch.randn(1, 2, 4, 16, generator=torch.Generator().manual_seed(1)).to(device)
    arguments = (out, case.x, case.norm[0][:16], EPS, case.weight, case.residual)
    exact = exact_of("gated_norm_linear_add", arguments)
    assert relative(products.gated_norm_linear_add(*arguments), exact) < BOUNDS[dtype]


def test_rows_in_fp8_are_near(dtype, device, poisoned, float32_is_rounded_to_fp8):
    x = torch.randn(5, 1100, generator=torch.Generator().manual_seed(1)).to(dtype).to(device)
    x[3] = 0
    data, scale = few_bits.quantize_rows(x)
    assert relative(data.float() * scale, x.double()) < 0.04 and not data[3].float().any()


def test_fp8_times_fp8_is_near(device, poisoned, float32_is_rounded_to_fp8):
    case = Case("fp8", 70, 64, 16, torch.bfloat16, device)
    for name, arguments in case.calls().items():
        product = _product_of(name, arguments)
        assert relative(ways.fp8_product(product), exact_of(name, arguments)) < 0.05, name


def _product_of(name, arguments):
    """What `products` makes of a call."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_run", seen.append)
        getattr(products, name)(*arguments)
    return seen[0]
