"""Values that worker processes make ahead of their use."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch.utils.data import DataLoader, Dataset

from infinitevl.interrupt import ignore_interrupts


def endless(make: Callable[[int], Any], first: int, workers: int) -> Iterator[Any]:
    """make(first), make(first + 1), ... in order, made ahead by `workers` processes (0: here)."""
    if workers == 0:
        number = first
        while True:
            yield make(number)
            number += 1
    loader: DataLoader = DataLoader(
        _Calls(make),
        batch_size=None,
        sampler=_Count(first),
        num_workers=workers,
        prefetch_factor=4,
        collate_fn=_as_it_is,
        worker_init_fn=ignore_interrupts,
    )
    yield from loader


def _as_it_is(value: Any) -> Any:
    return value


@dataclass
class _Count:
    first: int

    def __iter__(self) -> Iterator[int]:
        number = self.first
        while True:
            yield number
            number += 1


class _Calls(Dataset):
    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, number: int) -> Any:
        return self.make(number)

    def __len__(self) -> int:
        return 1 << 60
