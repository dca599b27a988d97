"""The kernels of window attention on a GPU with sinks, at the published widths, as they divide their work."""

import pytest
import torch

from infinitevl.ops.attention import torch as definition
from tests.support import relative_error

pytestmark = pytest.mark.gpu
# What comes before: nothing, sinks in part, all of them, slots nearly full, full, and long after.
LENGTHS = [0, 100, 256, 300, 2303, 2304, 7001, 10**9]
SIZES = [(0, 2304), (1, 63), (4, 64), (256, 65), (256, 2048)]


def runs(num_sinks, size, tokens, dtype):
    """Outputs of the kernel and of plain torch, and the two rings."""
    pytest.importorskip("triton", reason="needs triton")
    from infinitevl.ops.attention.triton import window
    from tests.ops.triton.test_window import make_case

    slots = num_sinks + size
    case = make_case("cuda", tokens, LENGTHS, dtype=dtype, slots=slots, heads=16, width=128)
    given = case.copy()
    if tokens == 1:
        wanted = definition.window_step_(*case, None, num_sinks)
        return window.window_step_(*given, None, num_sinks), wanted, given, case
    wanted = definition.window_chunk_(*case, size, None, None, num_sinks)
    return window.window_chunk_(*given, size, None, None, num_sinks), wanted, given, case


@pytest.mark.parametrize("tokens", [1, 17, 256, 1000])
@pytest.mark.parametrize(("num_sinks", "size"), SIZES)
def test_kernels_with_sinks_equal_the_definition(num_sinks, size, tokens):
    out, wanted, given, case = runs(num_sinks, size, tokens, torch.float32)
    assert relative_error(out, wanted) < 1e-5
    assert relative_error(given.keys, case.keys) < 1e-6 and torch.equal(given.values, case.values)


@pytest.mark.parametrize("tokens", [1, 256])
@pytest.mark.parametrize(("num_sinks", "size"), SIZES)
def test_kernels_with_sinks_err_no_more_in_bfloat16_than_plain_torch(num_sinks, size, tokens):
    exact = runs(num_sinks, size, tokens, torch.float32)[1]
    out, plain, given, case = runs(num_sinks, size, tokens, torch.bfloat16)
    assert relative_error(out.float(), exact) <= 1.5 * relative_error(plain.float(), exact)
    assert torch.equal(given.values, case.values)
