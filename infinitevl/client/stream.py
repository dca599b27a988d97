"""A stream of a server: frames in, questions and answers, forks, files, rules and events."""

import asyncio
import json
import os
import time as clock
from asyncio import sleep
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypedDict, Unpack

from infinitevl.client.calls import Call, Caller, pause, server_events
from infinitevl.client.errors import ClientError
from infinitevl.client.pictures import encoded
from infinitevl.errors import InputError
from infinitevl.files import atomic_write


class Sampling(TypedDict, total=False):
    """How an answer is generated; what is left out is the server's default."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: str | list[str]


class RuleOptions(TypedDict, total=False):
    """What a watch rule can be told beside its question; see docs/serving.md."""

    expect: str
    confirm: int
    release: int
    cooldown: float
    name: str
    webhook: dict[str, str]


class Stream:
    """A stream of a server.

    info: what the server said of it last. num_skipped: pictures that `offer` did not send.
    """

    def __init__(self, caller: Caller, info: dict[str, Any]) -> None:
        self._caller, self.info = caller, info
        self.num_skipped = 0
        self._offered: asyncio.Task[Any] | None = None
        self._began: float | None = None

    def __repr__(self) -> str:
        return f"Stream({self.id!r}, name={self.info.get('name')!r})"

    @property
    def id(self) -> str:
        """Its name at the server."""
        return self.info["id"]

    # ------ frames

    async def push(self, picture: Any, time: float | None = None, *, wait: bool = False) -> dict[str, Any]:
        """Send a frame.

        Args:
            picture: bytes of a JPEG or PNG, a path, a PIL picture, or an array [H, W, 3] of uint8.
            time: seconds, not before the newest frame; None: one second after it.
            wait: return when it was read, and drop none.

        Returns:
            The server's counts: accepted, dropped, queued, time.

        Raises:
            InputError: no picture. ClientError: refused, or not reached.
        """
        data = await asyncio.to_thread(encoded, picture)
        params = {"time": time, "wait": "true" if wait else None}
        headers = {"content-type": "application/octet-stream"}
        counts = await self._json("POST", "/frames", params=params, content=data, headers=headers)
        self.info["time"] = counts["time"]
        return counts

    def offer(self, picture: Any, time: float | None = None) -> bool:
        """Send a frame of a live camera, unless the one before is still on its way.

        Args:
            time: seconds; None: by the clock, from the first frame that was offered.

        Returns:
            Whether it is sent; `num_skipped` counts those that are not.

        Raises:
            InputError, ClientError: what the frame before failed with.
        """
        if self._offered is not None:
            if not self._offered.done():
                self.num_skipped += 1
                return False
            before, self._offered = self._offered, None
            before.result()
        if self._began is None:
            newest = self.info.get("time")
            self._began = clock.monotonic() - (0.0 if newest is None else newest + 1.0)
        seconds = clock.monotonic() - self._began if time is None else time
        self._offered = asyncio.create_task(self.push(picture, seconds))
        return True

    # ------ questions

    async def ask(self, question: str, **sampling: Unpack[Sampling]) -> str:
        """The answer to a question about all frames that were sent before it.

        Raises:
            ClientError: refused, or not reached.
        """
        return (await self.answer(question, **sampling))["answer"]

    async def answer(self, question: str, **sampling: Unpack[Sampling]) -> dict[str, Any]:
        """As `ask`, with all that the server says: answer, frames, time, finish_reason, usage."""
        parts = [data async for data in self._answer(question, sampling)]
        if not parts or parts[-1]["object"] != "stream.answer":
            raise ClientError("the answer broke off.", code="unreachable")
        return parts[-1]

    async def ask_streamed(self, question: str, **sampling: Unpack[Sampling]) -> AsyncIterator[str]:
        """As `ask`, piece by piece while the answer grows; an iterator that is closed ends the answer."""
        is_whole = False
        async with aclosing(self._answer(question, sampling)) as parts:
            async for data in parts:
                is_whole = data["object"] == "stream.answer"
                if not is_whole:
                    yield data["delta"]
        if not is_whole:
            raise ClientError("the answer broke off.", code="unreachable")

    async def _answer(self, question: str, sampling: Sampling) -> AsyncGenerator[dict[str, Any], None]:
        """The pieces of an answer, then the whole."""
        await self._last_offered()
        call = Call("POST", self._path("/ask"), json={"question": question, "stream": True, **sampling})
        async with self._caller.response(call) as response:
            async for event in server_events(response):
                if event.data == "[DONE]":
                    return
                data = json.loads(event.data)
                if "error" in data:
                    raise ClientError.of_json(data, None)
                yield data

    async def _last_offered(self) -> None:
        """Let the frame that was offered last arrive; what it failed with is told by the next `offer`."""
        if self._offered is not None:
            await asyncio.wait([self._offered])

    # ------ the stream as a whole

    async def stats(self) -> dict[str, Any]:
        """What it has seen, and how large it is; kept as `info`."""
        self.info = await self._json("GET", "")
        return self.info

    async def fork(self) -> "Stream":
        """Another stream that has seen the same."""
        return Stream(self._caller, await self._json("POST", "/fork"))

    async def save(self, path: str | os.PathLike[str]) -> None:
        """Write the state to a file, complete or not at all; `Client.load` goes on with it.

        Raises:
            ClientError: refused, or not reached. InfiniteVLError: the file cannot be written.
        """
        data = await self._caller.bytes(Call("GET", self._path("/state")))
        await asyncio.to_thread(_write, Path(path), data)

    async def load(self, path: str | os.PathLike[str]) -> None:
        """Go on from a file of `save`; what the stream held is lost.

        Raises:
            InputError: a file that cannot be read. ClientError: a state that the server does not take.
        """
        try:
            data = await asyncio.to_thread(Path(path).read_bytes)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        self.info = await self._json("PUT", "/state", content=data)
        self._began = None

    async def delete(self) -> None:
        """Close it for good."""
        await self._json("DELETE", "")

    # ------ rules and events

    async def add_rule(self, question: str, every: float, **options: Unpack[RuleOptions]) -> dict[str, Any]:
        """Ask a question every so many seconds of the stream; when its answer turns to yes, an event comes.

        Returns:
            The rule, with its `id`.
        """
        return await self._json("POST", "/rules", json={"question": question, "every": every, **options})

    async def remove_rule(self, rule_id: str) -> None:
        """Ask a rule no more."""
        await self._json("DELETE", f"/rules/{rule_id}")

    async def events(self, after: str | None = None) -> AsyncIterator[dict[str, Any]]:
        """The events of rules as they come, for as long as the stream is there; none twice, none left out.

        A connection that is lost is made again, and goes on after the last event.

        Args:
            after: the id of an event; None: those from now on.

        Raises:
            ClientError: the stream is gone, or the server stays away.
        """
        last, failures = await self._newest_event() if after is None else after, 0
        while True:
            headers = {"accept": "text/event-stream"}
            call = Call("GET", self._path("/events"), params={"after": last}, headers=headers)
            try:
                async with self._caller.response(call) as response:
                    failures = 0
                    async for event in server_events(response):
                        last = last if event.id is None else event.id
                        yield json.loads(event.data)
            except ClientError as error:
                failures += 1
                if error.code != "unreachable" or failures > self._caller.retries:
                    raise
            await sleep(pause(failures, None))

    async def _newest_event(self) -> str:
        """The id of the newest event; empty, after which all come, where there is none."""
        data = (await self._json("GET", "/events"))["data"]
        return data[-1]["id"] if data else ""

    async def event_picture(self, event: dict[str, Any]) -> bytes:
        """The JPEG of the frame that an event is about."""
        return await self._caller.bytes(Call("GET", event["picture"]))

    def _path(self, rest: str) -> str:
        return f"/v1/streams/{self.id}{rest}"

    async def _json(self, method: str, rest: str, **parts: Any) -> Any:
        return await self._caller.json(Call(method, self._path(rest), **parts))


def _write(path: Path, data: bytes) -> None:
    with atomic_write(path) as part:
        part.write_bytes(data)
