"""The kernels of window attention against their definition, before, at and far after the wrap of the ring."""

import dataclasses
import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from infinitevl.ops import reference
from infinitevl.ops.attention import torch as definition
from infinitevl.ops.attention.rotary import rotate
from infinitevl.ops.attention.triton import window
from infinitevl.ops.attention.triton.window import Tiles
from tests.support import relative_error

SLOTS, HEADS, KV_HEADS, WIDTH = 12, 4, 2, 8
# Several splits, some without keys; blocks that divide the ring, so that whole blocks are met without a mask.
SPLIT, ALIGNED = Tiles(8, 16, 3, 4, 1), Tiles(8, 4, 2, 4, 1)


@dataclass
class Case:
    """A batch that continues rows of a ring: what the operations take, in their order."""

    q: Tensor
    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    keys: Tensor
    values: Tensor
    length: Tensor

    def copy(self) -> "Case":
        """The same with a ring of its own."""
        keys, values = strided(self.keys), strided(self.values)
        return dataclasses.replace(self, keys=keys, values=values)

    def __iter__(self):
        return iter(getattr(self, field.name) for field in dataclasses.fields(self))

    def part(self, start: int, stop: int) -> list[Tensor]:
        """The tokens start .. stop, and the ring and its length then."""
        new = [x[:, start:stop] for x in (self.q, self.k, self.v, self.cos, self.sin)]
        return [*new, self.keys, self.values, self.length + start]


def strided(ring: Tensor) -> Tensor:
    """A copy whose rows lie apart, with other numbers between them."""
    room = ring[0].numel()
    buffer = torch.full((len(ring), room + 48), 7.0, dtype=ring.dtype, device=ring.device)
    copy = buffer[:, 16 : 16 + room].unflatten(1, ring.shape[1:])
    return copy.copy_(ring)


def between(ring: Tensor) -> Tensor:
    """What lies between the rows of a ring that `strided` made."""
    stored = ring[0].numel()
    whole = ring.as_strided((len(ring), stored + 48), (stored + 48, 1), ring.storage_offset() - 16)
    return torch.cat([whole[:, :16], whole[:, 16 + stored :]], dim=1)


def make_case(
    device, tokens, lengths, *, rows=None, dtype=torch.float32, slots=SLOTS, heads=HEADS, width=WIDTH
):
    """Random tokens and rings; q, k and v are strided slices of one product."""
    generator = torch.Generator().manual_seed(tokens + 100 * slots + sum(lengths))
    batch, columns = len(lengths), (heads + 2 * KV_HEADS) * width
    product = torch.randn(batch, tokens, columns + 3, generator=generator).to(device, dtype)[..., :columns]
    sizes = (heads * width, KV_HEADS * width, KV_HEADS * width)
    q, k, v = (x.unflatten(-1, (-1, width)) for x in product.split(sizes, dim=-1))
    angles = torch.randn(batch, tokens, width // 2, generator=generator).repeat(1, 1, 2).to(device)
    shape = (rows or batch, KV_HEADS, slots, width)
    keys, values = (strided(torch.randn(shape, generator=generator).to(device, dtype)) for _ in range(2))
    length = torch.tensor(lengths, dtype=torch.int64, device=device)
    return Case(q, k, v, angles.cos(), angles.sin(), keys, values, length)


def check_equal(case: Case, given: Case, out: Tensor, wanted: Tensor, tolerance: float) -> None:
    assert relative_error(out, wanted) < tolerance
    for ring, expected in ((given.keys, case.keys), (given.values, case.values)):
        assert relative_error(ring, expected) < tolerance
        assert (between(ring) == 7.0).all()


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, SPLIT, ALIGNED])
@pytest.mark.parametrize("tokens", [1, 5, 12, 13, 30])
@pytest.mark.parametrize("lengths", [[0, 12], [11, 100]])
def test_a_chunk_equals_the_definition_and_so_does_the_ring_after_it(device, tokens, lengths, tiles):
    case = make_case(device, tokens, lengths)
    given = case.copy()
    wanted = definition.window_chunk_(*case, SLOTS)
    check_equal(case, given, window.window_chunk_(*given, SLOTS, tiles=tiles), wanted, 1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("num_past", [3, 14])
def test_a_chunk_equals_attention_over_the_whole_history(device, num_past):
    """Read from an empty ring; the reference never sees a ring."""
    case = make_case(device, num_past + 13, [0])
    first = window.window_chunk_(*case.part(0, num_past), SLOTS)
    out = torch.cat([first, window.window_chunk_(*case.part(num_past, num_past + 13), SLOTS)], dim=1)
    q, k = rotate(case.q, case.cos, case.sin), rotate(case.k, case.cos, case.sin)
    assert relative_error(out, reference.window_attention(q, k, case.v, SLOTS)) < 1e-5


@pytest.mark.parametrize("slots", [12, 20, 64])
@pytest.mark.parametrize("limit", [5, None])
def test_other_windows_than_the_ring(device, slots, limit):
    """A window shorter than the ring; full attention with room for all tokens."""
    case = make_case(device, 9, [0, min(slots - 9, 11)], slots=slots)
    given = case.copy()
    wanted = definition.window_chunk_(*case, limit)
    for tiles in (SPLIT, ALIGNED):
        own = given.copy()
        check_equal(case, own, window.window_chunk_(*own, limit, tiles=tiles), wanted, 1e-5)


def test_a_window_longer_than_the_ring_sees_what_the_ring_still_holds(device):
    case = make_case(device, 9, [3, 43])
    given = case.copy()
    wanted = definition.window_chunk_(*case, 30)
    check_equal(case, given, window.window_chunk_(*given, 30, tiles=ALIGNED), wanted, 1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tokens", [5, 30])
def test_padding_is_no_key_and_never_stored(device, tokens):
    case = make_case(device, tokens, [3, 12, 14])
    given, num_valid = case.copy(), torch.tensor([tokens - 2, 0, 1], device=device)
    wanted = definition.window_chunk_(*case, SLOTS, None, num_valid)
    for tiles in (None, ALIGNED):
        own = given.copy()
        out = window.window_chunk_(*own, SLOTS, None, num_valid, tiles=tiles)
        assert out.isfinite().all()
        real = torch.arange(tokens, device=device)[None] < num_valid[:, None]
        check_equal(case, own, out[real], wanted[real], 1e-5)


@pytest.mark.parametrize("step", [False, True])
def test_only_the_slots_of_the_new_tokens_in_the_named_rows_change(device, step):
    tokens = 1 if step else 5
    case = make_case(device, tokens, [10, 3], rows=5)
    before, rows = case.copy(), torch.tensor([3, 1], device=device)
    whole, parts = case.copy(), case.copy()
    if step:
        wanted = definition.window_step_(*whole, rows)
        out = window.window_step_(*parts, rows, tiles=Tiles(1, 16, 3, 4, 1))
    else:
        wanted = definition.window_chunk_(*whole, SLOTS, rows)
        out = window.window_chunk_(*parts, SLOTS, rows, tiles=SPLIT)
    check_equal(whole, parts, out, wanted, 1e-5)
    kept = torch.ones(5, SLOTS, dtype=torch.bool, device=device)
    for row, length in ((3, 10), (1, 3)):
        kept[row, [(length + t) % SLOTS for t in range(tokens)]] = False
    for ring, old in ((parts.keys, before.keys), (parts.values, before.values)):
        same = (ring == old).all(dim=-1).all(dim=1)  # [rows, slots]
        assert torch.equal(same, kept)


def apart(numbers: Tensor) -> Tensor:
    """The same numbers, each a row of a state from the next."""
    return torch.stack([numbers, numbers + 1, numbers + 2], dim=1)[:, 0]


@pytest.mark.parametrize("step", [False, True])
def test_lengths_rows_and_counts_may_lie_apart(device, step):
    case = make_case(device, 1 if step else 5, [3, 17], rows=3)
    given, rows = case.copy(), torch.tensor([2, 0], device=device)
    given.length = apart(case.length)
    counts = [torch.tensor([4, 2], device=device)] * (not step)
    run = (
        (lambda c, *n: window.window_step_(*c, *n))
        if step
        else (lambda c, *n: window.window_chunk_(*c, SLOTS, *n))
    )
    assert torch.equal(run(given, apart(rows), *map(apart, counts)), run(case, rows, *counts))
    assert torch.equal(given.keys, case.keys) and torch.equal(given.values, case.values)


def test_rows_that_share_a_scratch_row_leave_the_others_alone(device):
    case = make_case(device, 1, [10, 3, 3], rows=4)
    given, rows = case.copy(), torch.tensor([2, 0, 0], device=device)
    window.window_step_(*given, rows)
    window.window_chunk_(*given, SLOTS, rows)
    for ring, old in ((given.keys, case.keys), (given.values, case.values)):
        assert torch.equal(ring[[1, 3]], old[[1, 3]])


@pytest.mark.parametrize("cuts", [[1, 6, 14], [12, 24], [13, 14, 15, 29], [5, 10, 15, 20, 25]])
def test_chunks_cut_anyhow_equal_one_chunk(device, cuts):
    case = make_case(device, 30, [4, 0])
    whole, pieces = case.copy(), case.copy()
    wanted = window.window_chunk_(*whole, SLOTS)
    spans = itertools.pairwise([0, *cuts, 30])
    out = torch.cat([window.window_chunk_(*pieces.part(a, b), SLOTS) for a, b in spans], dim=1)
    check_equal(whole, pieces, out, wanted, 1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, Tiles(1, 16, 3, 4, 1), Tiles(1, 4, 2, 4, 1)])
@pytest.mark.parametrize("lengths", [[0, 1], [11, 12], [13, 100]])
def test_a_step_equals_the_definition_and_a_chunk_of_one(device, lengths, tiles):
    case = make_case(device, 1, lengths)
    step, chunk = case.copy(), case.copy()
    wanted = definition.window_step_(*case)
    check_equal(case, step, window.window_step_(*step, tiles=tiles), wanted, 1e-5)
    check_equal(case, chunk, window.window_chunk_(*chunk, SLOTS), wanted, 1e-5)


def test_steps_read_a_history_like_one_chunk(device):
    case = make_case(device, 15, [0, 7])
    steps = case.copy()
    wanted = definition.window_chunk_(*case, SLOTS)
    out = torch.cat([window.window_step_(*steps.part(t, t + 1)) for t in range(15)], dim=1)
    check_equal(case, steps, out, wanted, 1e-5)


@pytest.mark.parametrize("step", [False, True])
def test_what_an_empty_slot_holds_is_never_read(device, step):
    case = make_case(device, 1 if step else 5, [3, 0])
    for ring in (case.keys, case.values):
        for row, length in enumerate([3, 0]):
            ring[row, :, length:] = float("nan")
    out = window.window_step_(*case) if step else window.window_chunk_(*case, SLOTS)
    assert out.isfinite().all()


def test_a_stream_of_a_billion_tokens_equals_a_short_one(device):
    """Slots follow from the length mod S, in numbers of 32 bits."""
    far = SLOTS * 10**9
    for tokens, run in (
        (5, lambda c: window.window_chunk_(*c, SLOTS)),
        (1, lambda c: window.window_step_(*c)),
    ):
        near = make_case(device, tokens, [17, 12])
        late = dataclasses.replace(near.copy(), length=near.length + far)
        assert torch.equal(run(near), run(late))
        assert torch.equal(near.keys, late.keys) and torch.equal(near.values, late.values)


@pytest.mark.parametrize("heads, width", [(2, 16), (6, 24), (16, 64), (2, 128)])
@pytest.mark.parametrize("step", [False, True])
def test_other_groups_and_widths(device, heads, width, step):
    case = make_case(device, 1 if step else 5, [15, 2], heads=heads, width=width)
    given = case.copy()
    if step:
        check_equal(case, given, window.window_step_(*given), definition.window_step_(*case), 1e-5)
    else:
        wanted = definition.window_chunk_(*case, SLOTS)
        check_equal(case, given, window.window_chunk_(*given, SLOTS), wanted, 1e-5)


@pytest.mark.parametrize("step", [False, True])
def test_bfloat16_errs_no_more_than_the_definition_in_bfloat16(device, step):
    exact = make_case(device, 1 if step else 30, [15, 2], slots=64, width=64)
    half = make_case(device, 1 if step else 30, [15, 2], slots=64, width=64, dtype=torch.bfloat16)
    given = half.copy()
    run = (lambda ops, c: ops.window_step_(*c)) if step else (lambda ops, c: ops.window_chunk_(*c, 64))
    wanted, torchs, ours = run(definition, exact), run(definition, half), run(window, given)
    assert relative_error(ours.float(), wanted) <= 1.5 * relative_error(torchs.float(), wanted)
    assert relative_error(given.keys.float(), half.keys.float()) < 1e-3
    assert torch.equal(given.values, half.values)


SINKED = [SPLIT, ALIGNED, Tiles(4, 8, 2, 4, 1)]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", SINKED)
@pytest.mark.parametrize("num_sinks", [1, 4, 8])
@pytest.mark.parametrize("tokens", [5, 30])
@pytest.mark.parametrize("lengths", [[0, 7], [11, 100]])
def test_a_chunk_with_sinks_equals_the_definition_and_so_do_the_slots(
    device, tokens, lengths, num_sinks, tiles
):
    case = make_case(device, tokens, lengths, slots=num_sinks + 8)
    given = case.copy()
    wanted = definition.window_chunk_(*case, 8, num_sinks=num_sinks)
    out = window.window_chunk_(*given, 8, num_sinks=num_sinks, tiles=tiles)
    check_equal(case, given, out, wanted, 1e-5)


@pytest.mark.usefixtures("poisoned")
def test_sinks_of_many_blocks_and_padding(device):
    num_sinks, window_size, tokens = 40, 16, 12
    case = make_case(device, tokens, [0, 33, 1000], slots=num_sinks + window_size)
    given, num_valid = case.copy(), torch.tensor([12, 9, 0], device=device)
    wanted = definition.window_chunk_(*case, window_size, None, num_valid, num_sinks)
    real = torch.arange(tokens, device=device)[None] < num_valid[:, None]
    for tiles in (Tiles(8, 8, 3, 4, 1), Tiles(8, 16, 7, 4, 1)):
        own = given.copy()
        out = window.window_chunk_(*own, window_size, None, num_valid, num_sinks, tiles=tiles)
        assert out.isfinite().all()
        check_equal(case, own, out[real], wanted[real], 1e-5)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("tiles", [None, Tiles(1, 16, 3, 4, 1), Tiles(1, 4, 2, 4, 1)])
@pytest.mark.parametrize("num_sinks", [1, 4])
@pytest.mark.parametrize("lengths", [[0, 1], [3, 4], [11, 12], [13, 100]])
def test_a_step_with_sinks_equals_the_definition_and_a_chunk_of_one(device, lengths, num_sinks, tiles):
    case = make_case(device, 1, lengths, slots=num_sinks + 8)
    step, chunk = case.copy(), case.copy()
    wanted = definition.window_step_(*case, num_sinks=num_sinks)
    own = window.window_step_(*step, num_sinks=num_sinks, tiles=tiles)
    check_equal(case, step, own, wanted, 1e-5)
    own = window.window_chunk_(*chunk, 8, num_sinks=num_sinks)
    check_equal(case, chunk, own, wanted, 1e-5)


def test_a_whole_history_with_sinks_equals_attention_with_that_mask(device):
    """The reference never sees a slot; cut before, at and after the moment when the ring first wraps."""
    case = make_case(device, 40, [0], slots=12)
    pieces, outputs = [0, 3, 4, 11, 12, 13, 14, 30, 31, 40], []
    for start, stop in itertools.pairwise(pieces):
        part = case.part(start, stop)
        step = stop - start == 1
        run = window.window_step_(*part, None, 4) if step else window.window_chunk_(*part, 8, num_sinks=4)
        outputs.append(run)
    q, k = rotate(case.q, case.cos, case.sin), rotate(case.k, case.cos, case.sin)
    wanted = reference.window_attention(q, k, case.v, 8, 0, 4)
    assert relative_error(torch.cat(outputs, 1), wanted) < 1e-5


def test_sinks_of_a_billion_tokens_equal_those_of_a_few(device):
    far = 8 * 10**9
    for tokens, run in (
        (5, lambda c: window.window_chunk_(*c, 8, num_sinks=4)),
        (1, lambda c: window.window_step_(*c, num_sinks=4)),
    ):
        near = make_case(device, tokens, [17, 12])
        late = dataclasses.replace(near.copy(), length=near.length + far)
        assert torch.equal(run(near), run(late))
        assert torch.equal(near.keys, late.keys) and torch.equal(near.values, late.values)


def test_the_work_is_divided_by_shapes_alone_and_within_bounds(device):
    for tokens, batch in itertools.product((1, 17, 256, 4096), (1, 3, 64)):
        q = torch.empty(batch, tokens, 16, 128, dtype=torch.bfloat16, device="meta")
        k = torch.empty(batch, tokens, 2, 128, dtype=torch.bfloat16, device="meta")
        keys = torch.empty(batch, 2, 8192, 128, dtype=torch.bfloat16, device="meta")
        tiles = window.chunk_tiles(q, k, keys)
        assert tiles.tokens * 8 >= 16 and 1 <= tiles.splits <= 64
        assert 1 <= window.step_tiles(q, keys).splits <= 64


def test_sizes_the_kernels_cannot_do_are_refused(device):
    case = make_case(device, 5, [3], width=7 + 1)
    odd = dataclasses.replace(case, keys=case.keys.double(), values=case.values.double())
    with pytest.raises(ValueError, match="a ring needs the activations' dtype"):
        window.window_chunk_(*odd, SLOTS)
    assert not window.supports(16, 2, 127, torch.float32)
    assert not window.supports(16, 3, 128, torch.float32)
    assert not window.supports(16, 2, 128, torch.float64)
