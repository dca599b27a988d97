"""Every product equals its definition in ops.linear.torch, whichever kernels run it."""

import pytest
import torch
import triton
import triton.language as tl

from infinitevl.ops.linear import torch as definition
from infinitevl.ops.linear.triton import matvec, pointwise, products

EPS = 1e-6
INPUTS = [36, 64, 1100, 2048]
OUTPUTS = [1, 7, 52]
# Most rows that each way is asked to take.
WAYS = {"matvec": 4, "many_rows": 100}
NAMES = ["linear", "linear with bias", "norm_linear", "norm_swiglu", "linear_add", "linear_add with bias"]


class Case:
    """The arguments of each product, drawn once: x, weights, bias and residual in one dtype."""

    def __init__(self, rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str):
        draw = torch.Generator().manual_seed(rows * 1000 + inputs + outputs)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=draw).to(dtype).to(device)

        self.x = (normal(1, rows, inputs + 24) * 3)[..., 8 : 8 + inputs]  # a slice of a fused product
        self.weight = (normal(2 * outputs, inputs + 4) / inputs**0.5)[:, :inputs]  # padded rows
        self.norm_weight = 1 + normal(inputs) / 4
        self.bias = normal(2 * outputs)
        self.residual = normal(1, rows, outputs + 3)[..., :outputs]

    def arguments(self, name: str) -> tuple:
        weight, bias = self.weight, self.bias
        half, half_bias = weight[: self.residual.shape[-1]], bias[: self.residual.shape[-1]]
        return {
            "linear": (self.x, half),
            "linear with bias": (self.x, half, half_bias),
            "norm_linear": (self.x, self.norm_weight, EPS, half, half_bias),
            "norm_swiglu": (self.x, self.norm_weight, EPS, weight, bias),
            "linear_add": (self.x, half, self.residual),
            "linear_add with bias": (self.x, half, self.residual, half_bias),
        }[name]


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b||."""
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def assert_as_exact_as_torch(name: str, arguments: tuple, module=products) -> None:
    """Float32 within 1e-5 of float64; bfloat16 at most 1.5 times as far as plain torch."""
    function = name.split()[0]
    defined = _swiglu if function == "swiglu" else getattr(definition, function)
    in_torch = defined(*arguments)
    exact = defined(*(a.double() if isinstance(a, torch.Tensor) else a for a in arguments))
    found = getattr(module, function)(*arguments)  # last: it may put its result where the residual was
    assert found.shape == in_torch.shape and found.dtype == in_torch.dtype
    # Of one or two numbers, rounding alone may miss by 2^-9, however lucky torch is.
    bound = 1e-5 if found.dtype == torch.float32 else 1.5 * max(relative(in_torch, exact), 2**-9)
    assert relative(found, exact) <= bound


def _swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


@pytest.fixture(autouse=True)
def bfloat16_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU; the interpreter of Triton 3.6 cuts bits off, and multiplies the bit patterns."""
    if not triton.knobs.runtime.interpret:
        return
    from triton.runtime import interpreter

    def convert(data, source, target, rounding, original=interpreter._convert_float):
        if (source, target) != (tl.float32, tl.bfloat16):
            return original(data, source, target, rounding)
        rounded = torch.tensor(data.view("float32")).bfloat16()
        return rounded.view(torch.int16).numpy().view("uint16")

    def widened(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle((handle.data.astype("uint32") << 16).view("float32"), tl.float32)

    def dot(self, a, b, *others, original=interpreter.InterpreterBuilder.create_dot):
        return original(self, widened(a), widened(b), *others)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", dot)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every product goes one way, whatever would be fastest."""
    run = {"matvec": matvec.matvec, "many_rows": products._many_rows}
    monkeypatch.setattr(products, "_run", run[request.param])
    return request.param


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rows, inputs, outputs", [(1, 1100, 52), (3, 64, 7), (8, 36, 52), (64, 64, 7)])
def test_every_product_is_as_exact_as_torch_in_every_way(
    way: str, name: str, rows: int, inputs: int, outputs: int, dtype: torch.dtype, device: str, poisoned: None
) -> None:
    rows = min(rows, WAYS[way])
    assert_as_exact_as_torch(name, Case(rows, inputs, outputs, dtype, device).arguments(name))


@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_odd_sizes_are_exact(
    way: str, inputs: int, outputs: int, dtype: torch.dtype, device: str, poisoned: None
) -> None:
    case = Case(min(16, WAYS[way]), inputs, outputs, dtype, device)
    for name in ("norm_swiglu", "linear_add"):
        assert_as_exact_as_torch(name, case.arguments(name))


@pytest.mark.parametrize("rows", [1, 3, 65])
@pytest.mark.parametrize("name", ["norm_linear", "norm_swiglu"])
def test_what_is_normalised_grows_by_a_shift(
    name: str, rows: int, dtype: torch.dtype, device: str, poisoned: None
) -> None:
    case = Case(rows, 36, 52, dtype, device)
    arguments = (*case.arguments(name), case.norm_weight)
    wanted = getattr(definition, f"{name}_shift")(*arguments)
    assert torch.equal(wanted[0], getattr(definition, name)(*arguments[:-1]))
    found = getattr(products, f"{name}_shift")(*arguments)
    assert relative(found[0], wanted[0]) < (1e-5 if dtype == torch.float32 else 2**-7)
    assert torch.equal(found[1], wanted[1])
    assert torch.equal(case.x, wanted[1]), "it lies where x was"


@pytest.mark.parametrize("rows", [1, 3, 8, 17, 65])
def test_the_way_chosen_by_rows_is_exact(rows: int, dtype: torch.dtype, device: str, poisoned: None) -> None:
    for name in NAMES:
        assert_as_exact_as_torch(name, Case(rows, 64, 52, dtype, device).arguments(name))


@pytest.mark.parametrize("tile", [matvec.Tile(1, 32, 1), matvec.Tile(8, 64, 2), matvec.Tile(16, 16, 4, 2)])
def test_any_tile_gives_the_same(
    tile: matvec.Tile, dtype: torch.dtype, device: str, poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matvec, "matvec_tile", lambda product: tile)
    for name in NAMES:
        assert_as_exact_as_torch(name, Case(3, 100, 7, dtype, device).arguments(name))


@pytest.mark.parametrize("heads, width", [(2, 16), (5, 32), (3, 24), (16, 256)])
@pytest.mark.parametrize("batch, tokens", [(1, 1), (3, 1), (2, 4), (1, 65)])
def test_the_gated_norm_and_its_product_are_exact(
    heads: int, width: int, batch: int, tokens: int, dtype: torch.dtype, device: str, poisoned: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(products, "GATED_ROWS", 3)
    monkeypatch.setattr(products, "MATVEC_ROWS", 3)
    inputs, outputs = heads * width, 20
    case = Case(batch * tokens, inputs, outputs, dtype, device)
    out = torch.randn(batch, tokens, heads, width, generator=torch.Generator().manual_seed(1)).to(device)
    gate = case.x.reshape(batch, tokens, inputs) if tokens > 1 else case.x.transpose(0, 1)
    residual = case.residual.reshape(batch, tokens, outputs)
    arguments = (out, gate, case.norm_weight[:width], 1e-5, case.weight[:outputs], residual)
    assert_as_exact_as_torch("gated_norm_linear_add", arguments)


@pytest.mark.parametrize("rows, width", [(1, 36), (17, 64), (65, 1280), (3, 3420)])
def test_the_point_wise_kernels_are_exact(
    rows: int, width: int, dtype: torch.dtype, device: str, poisoned: None
) -> None:
    case = Case(rows, 2 * width, 1, dtype, device)
    assert_as_exact_as_torch("rms_norm", (case.x, case.norm_weight, EPS), pointwise)
    assert_as_exact_as_torch("swiglu", (case.x,), pointwise)


def test_the_norm_rounds_as_its_definition_does(device: str, poisoned: None) -> None:
    case = Case(17, 256, 1, torch.bfloat16, device)
    found = pointwise.rms_norm(case.x, case.norm_weight, EPS)
    defined = definition.rms_norm(case.x, case.norm_weight, EPS)
    # The sum of squares may differ in its last bit, and with it a rounding here and there.
    assert (found != defined).float().mean() < 0.01
    torch.testing.assert_close(found, defined, rtol=2**-7, atol=0)


def test_the_gated_norm_is_exact_for_many_heads(dtype: torch.dtype, device: str, poisoned: None) -> None:
    out = torch.randn(2, 3, 16, 128, generator=torch.Generator().manual_seed(2)).to(device)
    gate = Case(6, 2048, 1, dtype, device).x.reshape(2, 3, 2048)
    weight = Case(1, 128, 1, dtype, device).norm_weight
    found = pointwise.gated_rms_norm(out, gate, weight, 1e-5)
    defined = definition.gated_rms_norm(out, gate.unflatten(-1, (16, 128)), weight, 1e-5).flatten(-2)
    assert relative(found, defined) <= (1e-5 if dtype == torch.float32 else 1e-3)


def test_other_types_and_scattered_weights_are_refused(device: str) -> None:
    x, weight = torch.ones(1, 1, 16, device=device), torch.ones(16, 16, device=device)
    with pytest.raises(TypeError, match="float64"):
        products.linear(x.double(), weight.double())
    with pytest.raises(TypeError, match="bfloat16"):
        products.linear(x.bfloat16(), weight)
    with pytest.raises(ValueError, match="strides"):
        products.linear(x, weight.t())


@pytest.mark.gpu
def test_a_captured_chain_of_products_gives_bit_for_bit_the_same() -> None:
    """Each product starts before the one that makes its input has ended."""
    case = Case(1, 2048, 2048, torch.bfloat16, "cuda")
    weights = [case.weight[:2048].roll(i, 0).contiguous() for i in range(24)]

    def chain(x: torch.Tensor) -> torch.Tensor:
        for weight in weights:
            y = products.norm_linear(x, case.norm_weight, EPS, weight)
            x = products.linear_add(y, weight, x)
        return x

    x = case.x.contiguous()
    expected = chain(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = chain(x)
    for _ in range(20):
        graph.replay()
        assert torch.equal(captured, expected)
