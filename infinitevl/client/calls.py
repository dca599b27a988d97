"""Calls to a server: tried again while it is busy, their errors as `ClientError`."""

import json
import math
import random
from asyncio import sleep
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from infinitevl.client.errors import ClientError
from infinitevl.errors import InputError

_BUSY = (429, 503)
_LONGEST_PAUSE = 30.0  # seconds between two tries


@dataclass(frozen=True)
class Call:
    """A request. params: of the query; those that are None are left out."""

    method: str
    path: str
    params: dict[str, Any] | None = None
    json: Any = None
    content: bytes | None = None
    headers: dict[str, str] | None = None


@dataclass(frozen=True)
class ServerEvent:
    """A server-sent event."""

    id: str | None
    data: str


class Caller:
    """Makes calls to one server.

    Args:
        retries: how often a call is tried again that the server is too busy for, or that cannot reach it.
        timeout: seconds without a byte.

    Raises:
        InputError: an address or a key that cannot be used.
    """

    def __init__(self, address: str, api_key: str | None, timeout: float, retries: int) -> None:
        self.retries, self.address = retries, address.rstrip("/").removesuffix("/v1")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(f"the address is {address[:200]!r}; give one as http://127.0.0.1:8000.")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise InputError("the API key has letters that no header can carry.")
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(
            base_url=self.address, headers=headers, timeout=httpx.Timeout(timeout, connect=min(10.0, timeout))
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def json(self, call: Call) -> Any:
        """The JSON that a call returns.

        Raises:
            ClientError: refused, or not reached.
        """
        body = await self.bytes(call)
        try:
            return json.loads(body)
        except ValueError as error:
            raise ClientError(f"{self.address} did not answer as infinitevl serve does.") from error

    async def bytes(self, call: Call) -> bytes:
        """The bytes that a call returns; errors as in `json`."""
        async with self.response(call) as response:
            return await response.aread()

    @asynccontextmanager
    async def response(self, call: Call) -> AsyncIterator[httpx.Response]:
        """A response whose body has not been read yet; errors as in `json`."""
        try:
            response = await self._sent(call)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            what = str(error) or type(error).__name__
            raise ClientError(f"{self.address} did not answer: {what}", code="unreachable") from error

    async def _sent(self, call: Call) -> httpx.Response:
        for attempt in range(self.retries + 1):
            is_last = attempt == self.retries
            try:
                response = await self._http.send(self._request(call), stream=True)
            except httpx.ConnectError:  # the server has not seen it
                if is_last:
                    raise
                await sleep(pause(attempt, None))
                continue
            if response.is_success:
                return response
            body = await response.aread()
            await response.aclose()
            if response.status_code not in _BUSY or is_last:
                raise ClientError.of_body(body, response.status_code)
            await sleep(pause(attempt, response.headers.get("retry-after")))
        raise AssertionError("the last try returns or raises")

    def _request(self, call: Call) -> httpx.Request:
        params = {name: value for name, value in (call.params or {}).items() if value is not None}
        return self._http.build_request(
            call.method, call.path, params=params, json=call.json, content=call.content, headers=call.headers
        )


def pause(attempt: int, retry_after: str | None) -> float:
    """Seconds until the next try: as long as the server asks, or longer each time."""
    try:
        asked = float(retry_after or "nan")
    except ValueError:  # a date
        asked = math.nan
    seconds = asked if asked >= 0 else 0.1 * 2**attempt
    return min(_LONGEST_PAUSE, seconds * (1 + 0.25 * random.random()))


async def server_events(response: httpx.Response) -> AsyncIterator[ServerEvent]:
    """The events of a body. Lines end with line feeds alone: texts may hold other separators."""
    rest = b""
    async for chunk in response.aiter_bytes():
        *events, rest = (rest + chunk).split(b"\n\n")
        for event in events:
            fields = [line.decode().partition(": ") for line in event.split(b"\n")]
            data = [value for name, _, value in fields if name == "data"]
            if data:
                yield ServerEvent(
                    next((value for name, _, value in fields if name == "id"), None), "\n".join(data)
                )
