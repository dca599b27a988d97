"""The kernels of vision attention against their definition."""

import pytest
import torch

from infinitevl.ops.attention import vision as definition
from infinitevl.ops.attention.triton import vision
from infinitevl.ops.attention.triton.vision import Tiles
from infinitevl.ops.attention.vision import Segments
from tests.support import relative_error


def make_case(device, patches, heads=2, width=16, dtype=torch.float32):
    """A strided product of queries, keys and values, and angles."""
    generator = torch.Generator().manual_seed(patches + width)
    product = torch.randn(patches, 3 * heads * width + 16, generator=generator).to(device, dtype)
    angles = torch.randn(patches, width // 2, generator=generator).repeat(1, 2).to(device)
    return product[:, 8:-8].unflatten(1, (3, heads, width)), angles.cos(), angles.sin()


def shuffled(patches, device):
    return torch.randperm(patches, generator=torch.Generator().manual_seed(0)).to(device)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "size, runs, width",
    [
        (16, 4, 16),
        (16, 2, 8),
        (64, 2, 80),
        (64, 1, 32),
        (20, 3, 72),
        (100, 1, 16),
        (100, 1, 80),
        (128, 1, 80),
    ],
)
@pytest.mark.parametrize("gathered", [False, True])
def test_runs_equal_the_definition(device, size, runs, width, gathered):
    case = make_case(device, size * runs, width=width)
    segments = [Segments(size, shuffled(size * runs, device) if gathered else None)]
    wanted = definition.vision_attention(*case, segments)
    assert relative_error(vision.vision_attention(*case, segments), wanted) < 1e-5


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("sizes", [(16, 24, 64), (4, 96), (12, 64, 70)])
def test_runs_of_unequal_lengths_fill_every_patch_once(device, sizes):
    patches = 2 * sum(sizes)
    case, order = make_case(device, patches), shuffled(patches, device)
    segments = [
        Segments(size, index) for size, index in zip(sizes, order.split([2 * s for s in sizes]), strict=True)
    ]
    wanted = definition.vision_attention(*case, segments)
    assert relative_error(vision.vision_attention(*case, segments), wanted) < 1e-5


@pytest.mark.parametrize("tiles", [Tiles(16, 32, 4, 1), Tiles(64, 64, 4, 2), Tiles(128, 64, 4, 1)])
@pytest.mark.parametrize("size", [48, 96])
def test_any_division_of_the_work_gives_the_same(device, tiles, size):
    case, segments = make_case(device, 96, width=80), [Segments(size, None)]
    wanted = definition.vision_attention(*case, segments)
    assert relative_error(vision.vision_attention(*case, segments, tiles=tiles), wanted) < 1e-5


@pytest.mark.parametrize("size", [64, 128])
def test_bfloat16_errs_no_more_than_the_definition_in_bfloat16(device, size):
    segments = [Segments(size, None)]
    exact = definition.vision_attention(*make_case(device, 128, width=80), segments)
    case = make_case(device, 128, width=80, dtype=torch.bfloat16)
    ours, torchs = (ops.vision_attention(*case, segments).float() for ops in (vision, definition))
    assert relative_error(ours, exact) <= 1.5 * relative_error(torchs, exact)


def test_widths_the_kernels_cannot_do_are_refused(device):
    qkv, cos, sin = make_case(device, 16)
    with pytest.raises(ValueError, match="no vision kernel"):
        vision.vision_attention(qkv.double(), cos, sin, [Segments(16, None)])
    assert not vision.supports(512, torch.bfloat16)
