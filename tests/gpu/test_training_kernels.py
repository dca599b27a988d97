"""The kernels that train on a GPU at the published widths: exact, repeatable, the same packed and alone."""

import pytest
import torch
from torch import Tensor

from infinitevl.ops.attention import flash
from infinitevl.ops.reference import delta_rule_by_token
from infinitevl.ops.rows import pack
from infinitevl.ops.table import TORCH, trainable
from tests.support import relative_error

pytestmark = pytest.mark.gpu
HEADS, KEY, VALUE = 3, 128, 256
CHANNELS = HEADS * (2 * KEY + VALUE)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)


def taught(run, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """Output and the gradients of all inputs."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = run(*leaves)
    gradients = torch.autograd.grad((out * draw(*out.shape, seed=1).to(out.dtype)).sum(), leaves)
    return out.detach(), *gradients


def errors(given: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> list[float]:
    """Relative, but of what is zero (the gradients of one token's query) in units of a unit normal tensor."""
    return [
        ((x.double() - y.double()).norm() / y.double().norm().clamp(min=1e-3 * y.numel() ** 0.5)).item()
        for x, y in zip(given, wanted, strict=True)
    ]


def rule_inputs(length: int, alike: float) -> list[Tensor]:
    """q, k, v, log_decay, beta; keys are alike by a share, as those of similar frames are."""
    q, k = draw(1, length, HEADS, KEY), draw(1, length, HEADS, KEY, seed=7)
    k = alike * k[:, :1] + (1 - alike) * k
    q, k = (torch.nn.functional.normalize(x, dim=-1) for x in (q, k))
    decay = -torch.nn.functional.softplus(draw(1, length, HEADS) - 4)
    tensors = [
        q * KEY**-0.5,
        k,
        draw(1, length, HEADS, VALUE),
        decay,
        draw(1, length, HEADS, seed=9).sigmoid(),
    ]
    return [x.bfloat16() if i < 3 else x.float() for i, x in enumerate(tensors)]


def empty(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(1, HEADS, KEY, VALUE, device="cuda", dtype=dtype)


# Operands of 8 bits in plain torch are off by up to 0.0055 where keys differ, by 0.027 where they are alike.
@pytest.mark.parametrize(("alike", "bound"), [(0.0, 0.01), (0.9, 0.04)])
@pytest.mark.parametrize("length", [64, 1000])
def test_the_rule_and_its_gradients_are_as_exact_as_operands_of_8_bits_are(length, alike, bound):
    from infinitevl.ops.delta_net.train.rule import delta_rule

    inputs = rule_inputs(length, alike)
    wanted = taught(lambda *x: delta_rule_by_token(*x, empty(torch.float64))[0], [x.double() for x in inputs])
    given = taught(lambda *x: delta_rule(*x, empty())[0], inputs)
    assert max(errors(given, wanted)) < bound


def net_inputs(length: int) -> list[Tensor]:
    """mixed, a, b, conv_weight, A_log, dt_bias as a layer has them under autocast."""
    tensors = [draw(1, length, CHANNELS), draw(1, length, HEADS), draw(1, length, HEADS, seed=3)]
    tensors = [x.bfloat16() for x in tensors]
    others = [0.5 * draw(CHANNELS, 4), draw(HEADS), draw(HEADS, seed=5) - 4]
    return tensors + [x.float() for x in others]


def net(kernels, packed=None):
    """A layer's operation as a function of what has a gradient."""

    def run(*inputs: Tensor) -> Tensor:
        wide = torch.promote_types(inputs[0].dtype, torch.float32)
        conv_state = inputs[0].new_zeros(1, 3, CHANNELS)
        return kernels.delta_net_chunk(*inputs, empty(wide), conv_state, None, packed)[0]

    return run


@pytest.mark.parametrize("lengths", [[512], [1, 63, 64, 65, 300, 19]])
def test_a_delta_net_and_its_gradients_equal_the_definition_packed_or_not(lengths):
    inputs = net_inputs(sum(lengths))
    packed = None if len(lengths) == 1 else pack(lengths, 3, inputs[0].device)
    wanted = taught(net(TORCH, packed), [x.double() for x in inputs])
    kernels = trainable(torch.bfloat16)
    assert "Triton" in kernels.name
    given = taught(net(kernels, packed), inputs)
    assert max(errors(given, wanted)) < 0.02


def test_the_delta_net_repeats_bit_for_bit():
    lengths = [700, 1300, 48]
    inputs = net_inputs(sum(lengths))
    run = net(trainable(torch.bfloat16), pack(lengths, 3, inputs[0].device))
    for first, second in zip(taught(run, inputs), taught(run, inputs), strict=True):
        assert torch.equal(first, second)


def test_a_compiled_delta_net_is_the_same():
    inputs = net_inputs(256)
    run = net(trainable(torch.bfloat16))
    for first, second in zip(taught(torch.compile(run), inputs), taught(run, inputs), strict=True):
        assert relative_error(first, second) < 1e-2


def turns(length: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of angles that grow with the position."""
    rates = torch.logspace(0, -4, 64, device="cuda").repeat(2)
    angles = torch.arange(length, device="cuda")[None, :, None] * rates
    return angles.cos(), angles.sin()


# One query whose window has left the sinks, some that leave them one by one, many that left them all.
@pytest.mark.parametrize(
    ("window", "num_sinks"), [(None, 0), (100, 0), (4000, 0), (100, 1), (100, 4), (100, 256), (899, 300)]
)
@pytest.mark.parametrize("lengths", [[1], [1500], [1, 7, 900, 101, 1], [102, 100, 357]])
def test_flash_attention_and_its_gradients_equal_the_definition(window, num_sinks, lengths):
    total = sum(lengths)
    heads = [draw(1, total, 16, 128), draw(1, total, 2, 128, seed=3), draw(1, total, 2, 128, seed=5)]
    rounded = [x.bfloat16() for x in heads]
    angles = turns(total)
    packed = pack(lengths, 3, rounded[0].device) if len(lengths) > 1 else None
    assert flash.supports(rounded[0])

    def definition(*x: Tensor) -> Tensor:
        return TORCH.window_chunk(*x, *angles, window, packed, num_sinks)

    wanted = taught(definition, [x.double() for x in rounded])
    plain = taught(definition, rounded)
    kernels = trainable(torch.bfloat16)
    given = taught(lambda *x: kernels.window_chunk(*x, *angles, window, packed, num_sinks), rounded)
    for ours, theirs in zip(errors(given, wanted), errors(plain, wanted), strict=True):
        assert ours < max(1.5 * theirs, 5e-3)


def test_a_compiled_attention_with_sinks_is_the_same():
    lengths = [300, 90, 700]
    q, k, v = (draw(1, sum(lengths), heads, 128).bfloat16() for heads in (16, 2, 2))
    angles, packed = turns(sum(lengths)), pack(lengths, 3, q.device)

    def run(*x: Tensor) -> Tensor:
        return trainable(torch.bfloat16).window_chunk(*x, *angles, 100, packed, 16)

    compiled = torch.compile(run, dynamic=True)
    for first, second in zip(taught(compiled, [q, k, v]), taught(run, [q, k, v]), strict=True):
        assert relative_error(first, second) < 1e-2


@pytest.mark.parametrize("num_sinks", [0, 16])
def test_flash_attention_repeats_where_torch_is_asked_to(num_sinks):
    q, k, v = (draw(1, 3000, heads, 128).bfloat16() for heads in (16, 2, 2))
    angles = turns(3000)

    def run(*x: Tensor) -> Tensor:
        return trainable(torch.bfloat16).window_chunk(*x, *angles, 1000, None, num_sinks)

    torch.use_deterministic_algorithms(True)  # with warn_only the kernel adds up in any order
    try:
        pairs = zip(taught(run, [q, k, v]), taught(run, [q, k, v]), strict=True)
        assert all(torch.equal(first, second) for first, second in pairs)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", ["rms_norm", "gated_rms_norm", "swiglu"])
def test_norms_and_gates_are_as_exact_as_plain_torch(name):
    width = {"rms_norm": 2048, "gated_rms_norm": 256, "swiglu": 11008}[name]
    x, y, weight = draw(700, width).bfloat16(), draw(700, width, seed=3).bfloat16(), draw(width).float()
    inputs = {"rms_norm": [x, weight], "gated_rms_norm": [x, y, weight], "swiglu": [x, y]}[name]
    options = () if name == "swiglu" else (1e-6,)

    def run(kernels):
        return lambda *tensors: getattr(kernels, name)(*tensors, *options)

    wanted = taught(run(TORCH), [t.double() for t in inputs])
    plain = taught(run(TORCH), inputs)
    given = taught(run(trainable(torch.bfloat16)), inputs)
    for ours, theirs in zip(errors(given, wanted), errors(plain, wanted), strict=True):
        assert ours < max(1.5 * theirs, 4e-3)
