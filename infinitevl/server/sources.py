"""Sources that the server follows itself: files of allowed folders, cameras and network streams."""

import logging
import re
import threading

from infinitevl.errors import InfiniteVLError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.sources.frames import Source
from infinitevl.processing.sources.opening import open_source
from infinitevl.server.errors import ApiError, masked
from infinitevl.server.security import allowed_file
from infinitevl.server.settings import ServerSettings
from infinitevl.server.streams import Stream
from infinitevl.server.worker import EngineWorker

logger = logging.getLogger(__name__)
_NETWORK = re.compile(r"(rtsps?|https?|rtmps?|srt|udp|tcp)://", re.IGNORECASE)
_PATIENCE = 0.25  # seconds between two looks at whether to stop


def is_live(source: str) -> bool:
    """Whether a source is a camera or a network stream, not a file."""
    return _NETWORK.match(source) is not None or source.startswith("camera:")


def check_source(source: str, settings: ServerSettings) -> str:
    """What `open_source` is given for the source of a request.

    The video library follows redirects of network streams on its own, so these, and this machine's cameras,
    are open only to a server that trusts its callers.

    Raises:
        ApiError: 400, it may not be followed.
    """
    if is_live(source):
        if not settings.allow_private:
            raise ApiError(
                400,
                f"{printable(source)} is not followed: network streams and cameras need --allow-private.",
                param="source",
                code="source_refused",
            )
        return source
    return str(allowed_file(source, settings.folders, "source"))


class Follower:
    """Reads a source in a thread and pushes its frames; a file waits until its frames were read.

    Live sources are opened again when they are lost (see `LiveSource`).
    """

    def __init__(self, worker: EngineWorker, stream: Stream, address: str) -> None:
        self._worker, self._stream, self._address = worker, stream, address
        self._stopped = threading.Event()
        self._source: Source | None = None
        self._thread = threading.Thread(target=self._run, name=f"source of {stream.id}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._stream.source_status = "running"
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it."""
        self._stopped.set()
        source = self._source
        if source is not None:
            source.close()
        if self._thread.ident and self._thread is not threading.current_thread():
            self._thread.join(10)

    def _run(self) -> None:
        try:
            fps = self._stream.settings.fps
            # `check_source` lets an address pass only where private ones are allowed
            with open_source(self._address, fps=fps, allow_private=True) as source:
                self._source = source
                self._follow(source)
            self._stream.source_status = "ended"
        except (InfiniteVLError, ApiError) as error:
            self._stream.source_status = "ended" if self._stopped.is_set() else "failed"
            self._stream.source_error = masked(str(error))
        except Exception as error:
            logger.exception("the source of %s broke", self._stream.id)
            self._stream.source_status, self._stream.source_error = "failed", type(error).__name__

    def _follow(self, source: Source) -> None:
        start, known = self._first_time(), 0
        for frame in source:
            if self._stopped.is_set():
                return
            if not source.live:
                self._wait_for_room()
            dropped = source.dropped - known if source.live else frame.dropped
            known += dropped
            self._worker.push(self._stream, frame.image, start + frame.time, dropped)

    def _first_time(self) -> float:
        """A stream that has seen something goes on a second later."""
        newest = self._stream.last_time
        return 0.0 if newest is None else newest + 1.0

    def _wait_for_room(self) -> None:
        """Lose no frame of a file."""
        stream = self._stream
        while len(stream.queue) >= stream.settings.queue_size and not self._stopped.is_set():
            with self._worker.changed:
                self._worker.changed.wait(_PATIENCE)
