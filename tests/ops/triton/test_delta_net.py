"""The kernels of Gated DeltaNet against the token-by-token rule in float64."""

import dataclasses
import functools
import itertools

import pytest
import torch
from torch import Tensor

from infinitevl.ops import early
from infinitevl.ops.delta_net import torch as definition
from infinitevl.ops.delta_net.triton.chunk import FEW_CHUNKS, MANY_CHUNKS, ChunkTuning, delta_net_chunk_
from infinitevl.ops.delta_net.triton.parts import supports
from infinitevl.ops.delta_net.triton.step import StepTuning, delta_net_step_
from infinitevl.ops.reference import delta_rule_by_token
from tests.support import relative_error

pytestmark = pytest.mark.usefixtures("poisoned")

# A_log, dt_bias and the share of tokens that forget everything.
DECAYS = {
    "near one": (-4.0, -6.0, 0.0),
    "ordinary": (0.0, -1.0, 0.0),
    "near zero": (2.0, 8.0, 0.0),
    "mixed": (-1.0, -5.0, 0.1),
}
ROW_PADDING = 40  # bytes of a state's row that belong to others


@dataclasses.dataclass
class Layer:
    """What a layer gets and keeps; the state has one row more than the batch."""

    mixed: Tensor
    a: Tensor
    b: Tensor
    conv_weight: Tensor
    A_log: Tensor
    dt_bias: Tensor
    recurrent_state: Tensor
    conv_state: Tensor

    def everything(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))

    def copy(self, dtype: torch.dtype | None = None) -> "Layer":
        return Layer(*(x.clone() if dtype is None else x.to(dtype, copy=True) for x in self.everything()))

    def part(self, tokens: slice) -> "Layer":
        return Layer(self.mixed[:, tokens], self.a[:, tokens], self.b[:, tokens], *self.everything()[3:])


def in_one_row(*tensors: Tensor) -> list[Tensor]:
    """Tensors [N, ...] as views of one buffer [N, bytes], side by side as in a stream's state."""
    flat = [x.flatten(1).contiguous().view(torch.uint8) for x in tensors]
    buffer = torch.cat([*flat, flat[0].new_zeros(len(flat[0]), ROW_PADDING)], dim=1)
    parts = buffer.split([*(x.shape[1] for x in flat), ROW_PADDING], dim=1)
    return [part.view(x.dtype).view(x.shape) for part, x in zip(parts, tensors, strict=False)]


def layer(
    device: str,
    length: int,
    decay: str = "ordinary",
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    sizes: tuple[int, int, int, int] = (2, 8, 16, 4),
) -> Layer:
    """Random inputs as slices of one product, on a state whose rows lie apart."""
    heads, key, value, width = sizes
    channels = heads * (2 * key + value)
    generator = torch.Generator().manual_seed(length)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    log_A, dt_bias, forgets = DECAYS[decay]
    product = draw(batch, length, channels + 2 * heads + 3)
    forgetting = torch.rand(batch, length, heads, generator=generator) < forgets
    product[..., channels : channels + heads] += 200.0 * forgetting
    product = product.to(device, dtype)
    mixed, a, b, _ = product.split([channels, heads, heads, 3], dim=-1)
    recurrent_state = draw(batch + 1, heads, key, value).to(device)
    conv_state = draw(batch + 1, width - 1, channels).to(device, dtype)
    conv_weight = (0.5 * draw(channels, width)).to(device, dtype)
    gates = [(x + 0.3 * draw(heads)).to(device, dtype) for x in (log_A, dt_bias)]
    return Layer(mixed, a, b, conv_weight, *gates, *in_one_row(recurrent_state, conv_state))


def by_token(given: Layer, rows: Tensor, num_valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Output, recurrent_state and conv_state of the batch's rows, in float64."""
    *inputs, recurrent_state, conv_state = given.copy(torch.float64).everything()
    return definition.delta_net_chunk(
        *inputs, recurrent_state[rows], conv_state[rows], num_valid, rule=delta_rule_by_token
    )


def rows_of(device: str, batch: int) -> Tensor:
    """The last row first; row 0 is not part of the batch."""
    return torch.arange(batch, 0, -1, device=device)


def assert_equals_the_tokens(given: Layer, num_valid: Tensor | None = None, **tuning) -> None:
    rows = rows_of(given.mixed.device, given.mixed.shape[0])
    before = given.copy()
    wanted = by_token(given, rows, num_valid)
    out = delta_net_chunk_(*given.everything(), rows, num_valid, **tuning)
    assert out.isfinite().all()
    assert relative_error(out, wanted[0]) < 1e-5
    assert relative_error(given.recurrent_state[rows], wanted[1]) < 1e-5
    assert torch.equal(given.conv_state[rows].double(), wanted[2])
    assert torch.equal(given.recurrent_state[0], before.recurrent_state[0]) and torch.equal(
        given.conv_state[0], before.conv_state[0]
    )


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 130])
def test_many_tokens_equal_one_after_the_other(device, length, decay):
    assert_equals_the_tokens(layer(device, length, decay))


WAYS = {
    "at once": ChunkTuning(block_v=32, prepare_block_v=32, convolve_first=False),
    "convolved first": ChunkTuning(block_v=32, convolve_first=True, channels=16),
    "rounded twice": ChunkTuning(brief=False),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sizes", [(1, 8, 16, 2), (3, 12, 24, 3), (2, 32, 80, 5)])
def test_sizes_that_are_no_powers_of_two(device, sizes, way):
    assert_equals_the_tokens(layer(device, 70, sizes=sizes), tuning=WAYS[way])


@pytest.mark.parametrize("way", WAYS)
def test_every_way_knows_which_tokens_count(device, way):
    given = layer(device, 70, batch=3)
    assert_equals_the_tokens(given, torch.tensor([0, 65, 70], device=device), tuning=WAYS[way])


@pytest.mark.parametrize("decay", DECAYS)
def test_rounding_twice_is_as_exact_as_plain_torch(device, decay):
    given, rows = layer(device, 130, decay, torch.bfloat16, sizes=(2, 32, 32, 4)), rows_of(device, 2)
    wanted = by_token(given, rows)
    errors = []
    for run in (
        functools.partial(delta_net_chunk_, tuning=ChunkTuning(brief=False)),
        definition.delta_net_chunk_,
    ):
        used = given.copy()
        out = run(*used.everything(), rows)
        errors.append((relative_error(out, wanted[0]), relative_error(used.recurrent_state[rows], wanted[1])))
    assert all(x <= 1.5 * y for x, y in zip(*errors, strict=True)), errors


def test_keys_that_are_all_alike_and_written_in_full(device):
    given = layer(device, 130, "near one")
    keys = slice(2 * 8, 4 * 8)
    given.mixed[..., keys] = 1 + 0.01 * given.mixed[..., keys]
    given.conv_weight[keys] = 0.25
    given.b.fill_(12.0)
    assert_equals_the_tokens(given)


@pytest.mark.parametrize("length", [5, 70])
def test_only_the_first_tokens_of_a_row_may_count(device, length):
    counts = [0, 1, 2, 3, 4, length - 1, length]
    given = layer(device, length, batch=len(counts))
    assert_equals_the_tokens(given, torch.tensor(counts, device=device))


@pytest.mark.parametrize("length", [1, 5])
def test_rows_and_counts_may_lie_apart(device, length):
    given, rows = layer(device, length, batch=3), rows_of(device, 3)
    again, numbers = given.copy(), [rows] if length == 1 else [rows, rows - 1]
    far = [torch.stack([x, x + 1], dim=1)[:, 0] for x in numbers]
    run = delta_net_step_ if length == 1 else delta_net_chunk_
    assert torch.equal(run(*given.everything(), *far), run(*again.everything(), *numbers))
    assert torch.equal(given.recurrent_state, again.recurrent_state) and torch.equal(
        given.conv_state, again.conv_state
    )


def test_without_rows_all_rows_go_in_order(device):
    given = layer(device, 66)
    given.recurrent_state, given.conv_state = given.recurrent_state[:2], given.conv_state[:2]
    again = given.copy()
    out = delta_net_chunk_(*given.everything())
    wanted = definition.delta_net_chunk_(*again.everything())
    assert relative_error(out, wanted) < 1e-5
    assert relative_error(given.recurrent_state, again.recurrent_state) < 1e-5
    assert torch.equal(given.conv_state, again.conv_state)


@pytest.mark.parametrize("decay", ["near one", "ordinary"])
@pytest.mark.parametrize("length", [1, 65, 130])
def test_bfloat16_is_as_exact_as_plain_torch(device, length, decay):
    given = layer(device, length, decay, torch.bfloat16, sizes=(2, 32, 32, 4))
    rows = rows_of(device, 2)
    wanted = by_token(given, rows)
    runs = (delta_net_chunk_, definition.delta_net_chunk_)
    runs += (delta_net_step_, definition.delta_net_step_) if length == 1 else ()
    errors = []
    for run in runs:
        used = given.copy()
        out = run(*used.everything(), rows)
        assert torch.equal(used.conv_state[rows].double(), wanted[2])
        errors.append((relative_error(out, wanted[0]), relative_error(used.recurrent_state[rows], wanted[1])))
    for ours, plain in zip(errors[::2], errors[1::2], strict=True):
        assert all(x <= 1.5 * y for x, y in zip(ours, plain, strict=True)), (ours, plain)


@pytest.mark.parametrize("block_v", [8, 16, 64])
@pytest.mark.parametrize("decay", DECAYS)
def test_one_token_equals_the_definition(device, decay, block_v):
    given = layer(device, 1, decay, sizes=(3, 12, 24, 4))
    rows, before = rows_of(device, 2), given.copy()
    wanted = by_token(given, rows)
    out = delta_net_step_(*given.everything(), rows, StepTuning(block_v))
    assert relative_error(out, wanted[0]) < 1e-5
    assert relative_error(given.recurrent_state[rows], wanted[1]) < 1e-5
    assert torch.equal(given.conv_state[rows].double(), wanted[2])
    assert torch.equal(given.recurrent_state[0], before.recurrent_state[0]) and torch.equal(
        given.conv_state[0], before.conv_state[0]
    )


def test_one_token_without_rows(device):
    given = layer(device, 1)
    given.recurrent_state, given.conv_state = given.recurrent_state[:2], given.conv_state[:2]
    again = given.copy()
    out, wanted = delta_net_step_(*given.everything()), definition.delta_net_step_(*again.everything())
    assert relative_error(out, wanted) < 1e-5
    assert torch.equal(given.conv_state, again.conv_state)


def test_a_chunk_equals_its_steps(device):
    given = layer(device, 18)
    stepped = given.copy()
    rows = rows_of(device, 2)
    out = delta_net_chunk_(*given.everything(), rows)
    steps = [delta_net_step_(*stepped.part(slice(t, t + 1)).everything(), rows) for t in range(18)]
    assert relative_error(torch.cat(steps, 1), out) < 1e-5
    assert relative_error(stepped.recurrent_state, given.recurrent_state) < 1e-5
    assert torch.equal(stepped.conv_state, given.conv_state)


def test_chunks_of_any_length_equal_one(device):
    given = layer(device, 130)
    parted = given.copy()
    out = delta_net_chunk_(*given.everything(), rows_of(device, 2))
    cuts = (0, 2, 3, 67, 130)
    parts = [parted.part(slice(*cut)) for cut in itertools.pairwise(cuts)]
    outs = [delta_net_chunk_(*part.everything(), rows_of(device, 2)) for part in parts]
    assert relative_error(torch.cat(outs, 1), out) < 1e-5
    assert relative_error(parted.recurrent_state, given.recurrent_state) < 1e-5
    assert torch.equal(parted.conv_state, given.conv_state)


def test_what_cannot_be_computed_is_refused(device):
    given = layer(device, 4)
    recurrent_state, conv_weight = given.recurrent_state, given.conv_weight
    assert supports(torch.float32, recurrent_state, conv_weight) and supports(
        torch.bfloat16, recurrent_state, conv_weight
    )
    assert not supports(torch.float16, recurrent_state, conv_weight)
    assert not supports(torch.float32, recurrent_state.double(), conv_weight)
    assert not supports(torch.float32, recurrent_state.new_zeros(1, 1, 129, 16), conv_weight)
    with pytest.raises(AssertionError):
        delta_net_chunk_(*given.copy(torch.float64).everything())


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("way", ["one token", *WAYS])
def test_a_replayed_graph_continues_bit_for_bit(way, dtype, monkeypatch):
    """Replays, and launches that overlap or do not, leave the same state."""
    length, run = 1, delta_net_step_
    if way in WAYS:
        length, run = 200, functools.partial(delta_net_chunk_, tuning=WAYS[way])
    states = []
    for enabled in (False, True):
        monkeypatch.setattr(early, "ENABLED", enabled)
        # Not a copy: where rows lie decides how a kernel reads them, and so the order of its sums.
        eager, replayed = (layer("cuda", length, dtype=dtype, batch=8, sizes=(16, 128, 256, 4)) for _ in "ab")
        rows = rows_of("cuda", 8)
        for _ in range(4):
            out = run(*eager.everything(), rows)
        run(*replayed.everything(), rows)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            again = run(*replayed.everything(), rows)
        for _ in range(3):
            graph.replay()
        states += [
            (out, eager.recurrent_state, eager.conv_state),
            (again, replayed.recurrent_state, replayed.conv_state),
        ]
    for other in states[1:]:
        assert all(torch.equal(x, y) for x, y in zip(states[0], other, strict=True))


@pytest.mark.parametrize("tuning", [FEW_CHUNKS, MANY_CHUNKS], ids=["few", "many"])
@pytest.mark.parametrize(("heads", "key", "value", "length"), [(2, 128, 32, 256), (1, 64, 128, 128)])
def test_alike_keys_and_slow_decay_do_not_let_the_state_grow(device, heads, key, value, length, tuning):
    """A stream of similar frames: an inverse that is off by a little would feed the state with itself."""
    torch.manual_seed(0)
    channels = heads * (2 * key + value)
    mixed = (torch.rand(1, 1, channels) * 2 + 0.5 * torch.randn(1, length, channels)).bfloat16()
    a, b = torch.randn(1, length, heads).bfloat16(), torch.randn(1, length, heads).bfloat16()
    conv_weight = torch.zeros(channels, 4)
    conv_weight[:, -1] = 1
    rest = conv_weight.bfloat16(), torch.zeros(heads).bfloat16(), torch.full((heads,), -6.9).bfloat16()
    inputs = [x.to(device) for x in (mixed, a, b, *rest)]
    wide = [x.double() for x in inputs]
    recurrent_state = torch.zeros(1, heads, key, value, device=device)
    conv_state = torch.zeros(1, 3, channels, dtype=torch.bfloat16, device=device)
    wanted, wide_conv_state = recurrent_state.double(), conv_state.double()
    for _ in range(3):
        delta_net_chunk_(*inputs, recurrent_state, conv_state, tuning=tuning)
        definition.delta_net_chunk_(*wide, wanted, wide_conv_state)
    assert relative_error(recurrent_state, wanted) < 0.02
