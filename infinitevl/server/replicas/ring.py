"""Where the replicas are: a socket each in one folder, and the one that a stream belongs to."""

import logging
import socket
from pathlib import Path
from typing import Protocol

from infinitevl.server.errors import ApiError

logger = logging.getLogger(__name__)


class Unreachable(Exception):
    """Nobody took a call; it can be made again a moment later."""


class Ring(Protocol):
    """Says which replica a stream belongs to (see `serving.RayRing`)."""

    async def place(self, stream_id: str) -> Path:
        """The socket of a stream's replica, which has opened the stream if there is one.

        Raises:
            Unreachable: no replica answers now, or the stream is still on its way to it.
        """
        ...


def no_replica() -> ApiError:
    """Nobody is there to answer."""
    return ApiError(
        503,
        "no replica can answer now: one is starting, or the stream is on its way to one; try again soon.",
        code="no_replica",
    )


def sockets(folder: Path) -> list[Path]:
    """The sockets of all replicas that listen; those that dead ones left are removed.

    A socket gets its name when it listens, so one that refuses is nobody's.
    """
    found = []
    for path in sorted(folder.glob("*.sock")):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1.0)
            try:
                probe.connect(str(path))
            except (ConnectionRefusedError, FileNotFoundError):
                path.unlink(missing_ok=True)
            except OSError as error:
                logger.warning("the replica at %s does not answer: %s", path, error)
            else:
                found.append(path)
    return found
