"""Fetches the picture at an http(s) address again and again, as cameras offer their snapshot."""

import time
from collections.abc import Iterator

import numpy as np

from infinitevl.errors import InputError, SourceError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.fetching.fetch import fetch
from infinitevl.processing.pictures.opening import open_image
from infinitevl.processing.sources.container import OPEN_TIMEOUT
from infinitevl.processing.sources.frames import Frame
from infinitevl.processing.sources.live import LiveSource, WallClock

DEFAULT_EVERY = 1.0


class SnapshotSource(LiveSource):
    """Gives the picture at an address every `every` seconds; fetching may take longer, then it is fewer.

    A picture that cannot be fetched or read is tried again as a lost live source is. The first one raises
    InputError, also where it lies in a private network and `allow_private` is not set.
    """

    def __init__(
        self,
        address: str,
        *,
        every: float = DEFAULT_EVERY,
        fps: float | None = None,
        allow_private: bool = False,
    ) -> None:
        super().__init__(self._snapshots, printable(address), fps=fps)
        self._address, self._every, self._allow_private = address, every, allow_private
        self._times = WallClock()
        self._seen = False

    def _snapshots(self) -> Iterator[Frame]:
        place = self._times.connection()
        while not self._stopped.is_set():
            due = time.monotonic() + self._every
            yield Frame(self._snapshot(), place(None))
            self._wait(max(0.0, due - time.monotonic()))

    def _snapshot(self) -> np.ndarray:
        try:
            data = fetch(self._address, allow_private=self._allow_private, total_timeout=OPEN_TIMEOUT)
            pixels = np.asarray(open_image(data))
        except InputError as error:
            if not self._seen:
                raise
            raise SourceError(str(error)) from error
        self._seen = True
        return pixels
