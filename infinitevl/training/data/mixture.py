"""Mixes several sources in an order that follows from seed and epoch alone."""

from collections.abc import Sequence

import numpy as np

from infinitevl.errors import InputError
from infinitevl.training.data.source import Samples


class Mixture:
    """Samples of several sources, an epoch of `num_samples` at a time.

    Args:
        weights: of each source in an epoch, in any unit; None: its number of rows.
        num_samples: of one epoch; None: all rows once.

    If an epoch takes a part of a source, the next epoch continues after it, so that no row repeats before all
    were used; if an epoch takes more than all rows, they repeat in another order.

    Raises:
        InputError: there is no source, a source is empty, or the weights do not fit.
    """

    def __init__(
        self,
        sources: Sequence[Samples],
        seed: int,
        weights: Sequence[float] | None = None,
        num_samples: int | None = None,
    ):
        sizes = [len(source) for source in sources]
        weights = sizes if weights is None else weights
        for source, size in zip(sources, sizes, strict=True):
            if not size:
                raise InputError(f"{source.name} has no rows. Take it out, or give a file with samples.")
        if len(weights) != len(sources) or not sources or min(weights) <= 0:
            raise InputError(
                f"weights are {list(weights)} for {len(sources)} sources. Give a positive one each."
            )
        self.sources, self.seed = list(sources), seed
        self._last: tuple[int, np.ndarray] | None = None
        self.counts = _shared_out(sum(sizes) if num_samples is None else num_samples, weights)

    @property
    def num_samples(self) -> int:
        """Samples of one epoch."""
        return sum(self.counts)

    def order(self, epoch: int) -> np.ndarray:
        """Returns source and row of each sample of an epoch, int64 [num_samples, 2]; not to be changed.

        The last one is kept: shards of one process share it, and it may have millions of rows.
        """
        if self._last is None or self._last[0] != epoch:
            self._last = (epoch, self._order(epoch))
        return self._last[1]

    def _order(self, epoch: int) -> np.ndarray:
        parts = [self._rows(index, epoch) for index in range(len(self.sources))]
        pairs = np.concatenate(
            [np.stack([np.full_like(rows, index), rows], axis=1) for index, rows in enumerate(parts)]
        )
        return pairs[np.random.default_rng([self.seed, epoch]).permutation(len(pairs))]

    def _rows(self, index: int, epoch: int) -> np.ndarray:
        """Returns the rows of one source: a part of its endless list of permutations."""
        size, count = len(self.sources[index]), self.counts[index]
        first, last = divmod(epoch * count, size)[0], -(-(epoch + 1) * count // size)
        endless = [
            np.random.default_rng([self.seed, index, turn]).permutation(size) for turn in range(first, last)
        ]
        start = epoch * count - first * size
        return np.concatenate(endless)[start : start + count] if endless else np.zeros(0, dtype=np.int64)


def _shared_out(total: int, weights: Sequence[float]) -> list[int]:
    """Divides `total` into whole parts by weight; what is left over goes to the largest remainders."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * total
    counts = np.floor(exact).astype(int)
    largest = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[largest] += 1
    return counts.tolist()
