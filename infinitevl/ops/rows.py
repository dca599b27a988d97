"""Rows of a state: a step may work on some of the streams that a state holds."""

from torch import Tensor


def read_rows(stored: Tensor, rows: Tensor | None) -> Tensor:
    """What a batch continues: stored [N, ...] at rows int64 [B], or all of it."""
    return stored if rows is None else stored.index_select(0, rows)


def write_rows_(stored: Tensor, new: Tensor, rows: Tensor | None) -> None:
    """Put new [B, ...] where it came from, in place and in the dtype stored there."""
    if rows is None:
        stored.copy_(new)
    else:
        stored.index_copy_(0, rows, new.to(stored.dtype))


def dense(numbers: Tensor | None) -> Tensor | None:
    """Numbers [B], one right behind the other, as kernels read them; in a state they lie a row apart."""
    return None if numbers is None else numbers.contiguous()
