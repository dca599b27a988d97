"""Gives streams to the server that asks for them: work ends, the state is saved, the lease is released."""

import logging
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING

from infinitevl.server.errors import moving
from infinitevl.server.streams import Stream

if TYPE_CHECKING:
    from infinitevl.server.keeper import StateKeeper
    from infinitevl.server.worker import EngineWorker

logger = logging.getLogger(__name__)
_EVERY = 0.1  # seconds between two looks at what is asked for


class HandOver:
    """Part of a keeper, and run in the worker's thread; each step is short, so that others go on meanwhile.

    lost: streams whose lease turned out to be lost; they are closed, and what they held is not saved.
    """

    def __init__(self, keeper: "StateKeeper") -> None:
        self._keeper, self._next = keeper, 0.0
        self.lost: list[Stream] = []

    def step(self, worker: "EngineWorker") -> None:
        """Bring every stream that another server asks for a step nearer to it."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _EVERY
        while self.lost:
            self._let_go(self.lost.pop(), worker)
        for stream_id in self._keeper.leases.wanted():
            stream = worker.streams.get(stream_id)
            if stream is not None:
                self._advance(stream, worker)

    def _advance(self, stream: Stream, worker: "EngineWorker") -> None:
        """Let what was accepted end, then save, then let go."""
        with worker.changed:
            stream.is_leaving = True
            if stream.queue or worker.answering.concerns(stream):
                return
        if stream.changes == stream.saved_changes:
            self._let_go(stream, worker)
        elif not self._keeper.is_writing:
            self._keeper.save(stream).add_done_callback(lambda done: _wake(done, worker))

    def _let_go(self, stream: Stream, worker: "EngineWorker") -> None:
        with worker.changed:
            worker.streams.pop(stream.id, None)
            stream.close(moving(stream.id))
        worker.on_leave(stream)
        try:
            stream.session.close()
        finally:
            self._keeper.leases.release(stream.id)
        logger.info("%s is let go", stream.id)


def _wake(done: "Future[None]", worker: "EngineWorker") -> None:
    with worker.changed:
        worker.changed.notify_all()
