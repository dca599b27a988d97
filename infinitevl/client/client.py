"""The client: a server's address, and the streams behind it."""

import asyncio
import os
from pathlib import Path
from typing import Self
from urllib.parse import quote

from infinitevl.client.calls import Call, Caller
from infinitevl.client.stream import Stream
from infinitevl.errors import InputError


class Client:
    """A server that can be reached, as an asynchronous context manager.

    Args:
        address: as in http://127.0.0.1:8000. api_key: where the server wants one. timeout: seconds without a
            byte. retries: how often a call is tried again while the server is busy (429, 503) or away.

    Raises:
        InputError: an address or a key that cannot be used.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout: float = 60.0,
        retries: int = 5,
    ) -> None:
        self._caller = Caller(address, api_key, timeout, retries)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; the streams of the server stay."""
        await self._caller.close()

    async def open(
        self,
        name: str | None = None,
        *,
        system: str | None = "You are a helpful assistant.",
        keep_turns: bool = False,
        queue_size: int = 4,
        source: str | None = None,
        fps: float | None = None,
    ) -> Stream:
        """Open a stream.

        Args:
            name: for people. system: text of the system turn. keep_turns: questions and answers become part
                of the stream. queue_size: frames that may wait; the newest win. source: a file, camera or
                address that the server follows by itself, `fps` times a second at most.

        Raises:
            ClientError: refused, or not reached; 429 where there are too many streams.
        """
        body = {
            "name": name,
            "system": system,
            "keep_turns": keep_turns,
            "queue_size": queue_size,
            "source": source,
            "fps": fps,
        }
        return Stream(self._caller, await self._caller.json(Call("POST", "/v1/streams", json=body)))

    async def stream(self, stream_id: str) -> Stream:
        """A stream that is open; ClientError with status 404 where there is none."""
        if not isinstance(stream_id, str) or not stream_id.strip():
            raise InputError(f"{stream_id!r} is the name of no stream; give one as in stream_2f...")
        path = f"/v1/streams/{quote(stream_id, safe='')}"
        return Stream(self._caller, await self._caller.json(Call("GET", path)))

    async def streams(self) -> list[Stream]:
        """All streams of this key, oldest first."""
        listed = await self._caller.json(Call("GET", "/v1/streams"))
        return [Stream(self._caller, info) for info in listed["data"]]

    async def load(self, path: str | os.PathLike[str], name: str | None = None) -> Stream:
        """Open a stream that goes on from a file of `Stream.save`.

        Raises:
            InputError: a file that cannot be read. ClientError: a state that the server does not take.
        """
        await asyncio.to_thread(_check_readable, Path(path))
        stream = await self.open(name)
        try:
            await stream.load(path)
        except BaseException:
            await asyncio.shield(stream.delete())
            raise
        return stream


def _check_readable(path: Path) -> None:
    if not path.is_file():
        raise InputError(f"{path} is no file: give one that Stream.save wrote.")
