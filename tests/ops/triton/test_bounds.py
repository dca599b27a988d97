"""The watch over kernels' accesses finds what a GPU would not tell."""

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

pytestmark = pytest.mark.skipif(
    not triton.knobs.runtime.interpret, reason="needs triton: in its interpreter, where accesses are watched"
)


@triton.jit
def copy_kernel(x, y, stride, size, BLOCK: tl.constexpr, MASKED: tl.constexpr):
    i = tl.arange(0, BLOCK)
    if MASKED:
        tl.store(y + i, tl.load(x + i * stride, mask=i < size), mask=i < size)
    else:
        tl.store(y + i, tl.load(x + i * stride))


@triton.jit
def first_kernel(pair, y):
    tl.store(y, tl.load(pair[0]) + tl.load(pair[1]))


@triton.jit
def add_kernel(x, at):
    tl.atomic_add(x + at, 1.0)


@triton.jit
def swap_kernel(x, at):
    tl.atomic_cas(x + at, 0, 1)


def copied(x, y, stride=1, size=5, masked=True):
    copy_kernel[(1,)](x, y, stride, size, BLOCK=8, MASKED=masked)
    return y


def test_every_element_of_a_view_may_be_read_and_nothing_between():
    table = torch.arange(50.0).view(5, 10)
    assert torch.equal(copied(table[:, 3], torch.zeros(5), stride=10), table[:, 3])
    with pytest.raises(
        InterpreterError, match=r"copy_kernel: a load at 4 .* element 1 of x \(5,\), strides \(10"
    ):
        copied(table[:, 3], torch.zeros(5))


def test_nothing_beyond_an_end_may_be_read_or_written():
    many, few = torch.zeros(8), torch.zeros(8)[:5]
    assert torch.equal(copied(few, many), many)
    with pytest.raises(InterpreterError, match=r"a load at 3 places .* element 5 of x \(5,\)"):
        copied(few, many, masked=False)
    with pytest.raises(InterpreterError, match=r"a load at 1 places .* element -1 of x \(5,\)"):
        copied(torch.zeros(9)[4:], many, stride=-1, size=2)
    with pytest.raises(InterpreterError, match=r"a store at 3 places .* element 5 of y \(5,\)"):
        copied(many, few, masked=False)


def test_a_refused_store_changes_nothing():
    table = torch.zeros(5, 10)
    with pytest.raises(InterpreterError, match="a store"):
        copied(torch.ones(5), table[:, 3])
    assert not table.any()


def test_rows_that_lie_in_one_place_and_tensors_in_tuples_may_be_read():
    one = torch.full((1,), 2.0)
    assert copied(one.expand(5), torch.zeros(5), stride=0).eq(2).all()
    y = torch.zeros(1)
    first_kernel[(1,)]((one, one + 1), y)
    assert y == 5


@pytest.mark.parametrize(("kernel", "dtype"), [(add_kernel, torch.float32), (swap_kernel, torch.int32)])
def test_atomic_operations_are_watched(kernel, dtype):
    x = torch.zeros(4, dtype=dtype)[:3]
    kernel[(1,)](x, 2)
    assert x[2] == 1
    with pytest.raises(InterpreterError, match=r"an atomic .* element 3 of x"):
        kernel[(1,)](x, 3)
