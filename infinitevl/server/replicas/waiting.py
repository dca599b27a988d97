"""Streams of the state folder that no server holds: after a start, and after the death of a replica."""

import asyncio
import logging
from pathlib import Path

from infinitevl.server.leases import is_held
from infinitevl.server.replicas.ring import Ring, Unreachable
from infinitevl.server.streams import is_id

logger = logging.getLogger(__name__)
_EVERY = 2.0  # seconds between two looks


class Unheld:
    """Has every such stream opened by the replica that it belongs to, asked for or not.

    So sources of dead replicas are followed again, and a list of streams has them all.
    """

    def __init__(self, state_dir: Path, ring: Ring) -> None:
        self.folder, self.ring = state_dir / "streams", ring
        self._given_up: set[str] = set()

    async def open_all(self) -> None:
        """Open all that no server holds now; one that cannot be opened is not tried again."""
        for stream_id in await asyncio.to_thread(self._find):
            try:
                await self.ring.place(stream_id)
            except Unreachable:
                return  # the next look is soon
            if not is_held(self.folder, stream_id) and self._is_kept(stream_id):
                self._given_up.add(stream_id)

    def _find(self) -> list[str]:
        ids = [record.stem for record in sorted(self.folder.glob("*.json"))]
        return [
            stream_id
            for stream_id in ids
            if is_id(stream_id) and stream_id not in self._given_up and not is_held(self.folder, stream_id)
        ]

    def _is_kept(self, stream_id: str) -> bool:
        return (self.folder / f"{stream_id}.json").exists()

    async def go_on(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.open_all()
            except Exception:  # the folder may be there again the next time
                logger.exception("streams that no replica holds were not opened")
            await asyncio.sleep(_EVERY)
