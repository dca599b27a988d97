"""Products with weights in few bits equal products with the weights that the bits stand for."""

import pytest
import torch
import triton

from infinitevl.ops.linear import torch as definition
from infinitevl.ops.linear.quantized import KINDS, Quantized, quantize
from infinitevl.ops.linear.triton import few_bits, fp8_dot, fp8_rows, products, split_dot
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


def in_full(found):
    return found.dense() if isinstance(found, fp8_rows.Fp8Rows) else found


def assert_every_product_is_exact(case, bound):
    for name, arguments in case.calls().items():
        kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
        found = in_full(getattr(products, name)(*kept))  # a residual may be changed in place
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
    rows = fp8_rows.quantize_rows(x)
    assert relative(rows.dense(), x.double()) < 0.04 and not rows.data[3].float().any()
    assert rows.dense().dtype == dtype and rows.shape == x.shape


@pytest.mark.parametrize("width", [16, 448, 1100])
def test_what_stands_before_a_product_writes_its_rows_in_fp8(
    width, dtype, device, poisoned, float32_is_rounded_to_fp8
):
    draw = torch.Generator().manual_seed(width)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).to(dtype).to(device)

    x, weight, shift = normal(3, 5, width + 24)[..., 8 : 8 + width], normal(width), normal(width)
    exact = definition.rms_norm(x.double(), weight.double(), EPS)
    kept = x.clone()
    rows, shifted = fp8_rows.rms_norm_fp8(kept, weight, EPS, shift)
    assert relative(rows.dense(), exact) < 0.04 and rows.shape == x.shape
    assert (
        torch.equal(shifted, (x.float() + shift.float()).to(dtype)) and shifted.data_ptr() == kept.data_ptr()
    )
    assert torch.equal(
        fp8_rows.rms_norm_fp8(x, weight, EPS)[0].data.view(torch.uint8), rows.data.view(torch.uint8)
    )
    pair = normal(2, 3, 2 * width)
    exact = definition.swiglu(*pair.double().chunk(2, -1))
    assert relative(fp8_rows.swiglu_fp8(pair).dense(), exact) < 0.04


@pytest.mark.parametrize("heads, head", [(3, 16), (16, 8), (1, 64)])
def test_gated_heads_are_written_in_fp8(heads, head, dtype, device, poisoned, float32_is_rounded_to_fp8):
    draw = torch.Generator().manual_seed(heads)
    out = torch.randn(2, 3, heads, head, generator=draw).to(device)
    gate = torch.randn(2, 3, heads * head, generator=draw).to(dtype).to(device)
    weight = torch.randn(head, generator=draw).to(device)
    exact = definition.gated_rms_norm(
        out.double(), gate.double().unflatten(-1, (heads, head)), weight.double(), EPS
    )
    found = fp8_rows.gated_rms_norm_fp8(out, gate, weight, EPS).dense()
    assert found.shape == gate.shape and relative(found, exact.flatten(2)) < 0.04


def values(dtype, device, rows, outputs, inputs):
    """Of a product that rounds nothing: whole numbers, exact in fp8; scales, a bias, a residual with gaps."""
    draw = torch.Generator().manual_seed(rows + outputs + inputs)
    x = torch.randint(-4, 5, (rows, inputs), generator=draw).to(dtype).to(device)
    weight = torch.randint(-4, 5, (outputs, inputs), generator=draw).to(dtype).to(device)
    scales = torch.rand(rows, 1, generator=draw).to(device), torch.rand(outputs, 1, generator=draw).to(device)
    bias = torch.randn(outputs, generator=draw).to(device)
    residual = torch.randn(rows, outputs + 8, generator=draw).to(device)[:, :outputs]
    return residual, x, scales[0], weight, scales[1], bias


@pytest.mark.parametrize("splits", [1, 2, 3])
@pytest.mark.parametrize("rows, outputs, inputs", [(70, 16, 64), (33, 40, 208), (65, 130, 48)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_a_product_is_added_to_its_residual(
    rows, outputs, inputs, splits, with_bias, device, poisoned, monkeypatch
):
    tile = fp8_dot.DotTile(32, 32, splits, 4, block_n=32)
    monkeypatch.setattr(fp8_dot, "dot_tile", lambda *sizes: tile)
    operand = torch.float8_e4m3fn if device == "cuda" else torch.float32
    residual, x, x_scale, weight, weight_scale, bias = values(operand, device, rows, outputs, inputs)
    exact = (
        x.double() @ weight.double().t()
    ) * x_scale.double() * weight_scale.double().t() + residual.double()
    exact = exact + bias.double() if with_bias else exact
    outside = residual.clone()
    fp8_dot.add_dot_(residual, x, x_scale, weight, weight_scale, bias if with_bias else None)
    assert relative(residual, exact) < 1e-6 and not torch.equal(outside, residual)


def test_tiles_fill_the_multiprocessors_and_no_more():
    for rows in range(1, 9000, 61):
        for outputs in (448, 1280, 2048, 4096):
            tile = fp8_dot.dot_tile(rows, outputs, 4096)
            count = triton.cdiv(rows, tile.block_m) * triton.cdiv(outputs, tile.block_n) * tile.splits
            assert count <= 132 or tile == fp8_dot.DotTile(128, 128, 1, 8)


def test_fp8_times_fp8_is_near(device, poisoned, float32_is_rounded_to_fp8):
    case = Case("fp8", 70, 64, 16, torch.bfloat16, device)
    for name, arguments in case.calls().items():
        exact = exact_of(name, arguments)
        found = in_full(ways.fp8_product(_product_of(name, arguments)))
        assert relative(found, exact) < 0.05, name


@pytest.fixture
def fp8_is_multiplied(monkeypatch):
    """Many rows are read in fp8 here too; the interpreter multiplies what the values stand for."""
    monkeypatch.setattr(ways, "_has_fp8", lambda device: True)
    if triton.knobs.runtime.interpret:
        plain = fp8_dot.add_dot_
        monkeypatch.setattr(
            ways, "add_dot_", lambda y, x, a, w, b, bias: plain(y, x.float(), a, w.float(), b, bias)
        )


def test_a_feed_forward_stays_in_fp8_between_its_products(
    device, poisoned, float32_is_rounded_to_fp8, fp8_is_multiplied
):
    dtype, width, inner = torch.bfloat16, 64, 48
    draw = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=draw).to(dtype).to(device)

    x, norm, shift = normal(1, 70, width), (1 + normal(width) / 4, EPS), normal(width)
    gate_up, down = quantize(normal(2 * inner, width) / 8, "fp8"), quantize(normal(width, inner) / 7, "fp8")
    bias = normal(2 * inner)
    inner_rows, residual = products.norm_swiglu_shift(x.clone(), *norm, gate_up, bias, shift)
    assert isinstance(inner_rows, fp8_rows.Fp8Rows)
    found = products.linear_add(inner_rows, down, residual)
    wide = [a.double() for a in (x, norm[0], gate_up.dequantize(), bias, shift, down.dequantize())]
    middle, shifted = definition.norm_swiglu_shift(wide[0], wide[1], EPS, *wide[2:5])
    exact = definition.linear_add(middle, wide[5], shifted)
    assert relative(found, exact) < 0.05
    as_one = products.linear_add(products.norm_swiglu(x, *norm, gate_up, bias), down, x + shift)
    assert torch.equal(as_one, found)
    few = products.linear_add(inner_rows, down, x + shift) if device == "cpu" else found
    assert relative(few, exact) < 0.05


def _product_of(name, arguments):
    """What `products` makes of a call."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "_run", seen.append)
        getattr(products, name)(*arguments)
    return seen[0]
