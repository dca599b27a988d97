"""Passes requests and WebSockets on to a server that listens on a Unix socket, byte for byte as they come."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import httpcore
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.typing import Origin, Subprotocol

from infinitevl.server.errors import MOVED_HEADER, ApiError, response_of
from infinitevl.server.replicas.ring import Unreachable
from infinitevl.server.replicas.routing import Headers, passed_on, target_of

_CONNECT, _WRITE = 5.0, 60.0  # seconds; an answer may take as long as it takes
RESTART = 1012  # the close code of a server that restarts: connect again
_READING = (b"GET", b"HEAD", b"OPTIONS")  # methods that change nothing, so that a call can be made again
_NO_STATUS = (1005, 1006)  # close codes that are never sent


async def forward_request(scope: Scope, receive: Receive, send: Send, socket: Path, headers: Headers) -> None:
    """Let a server answer a request; it is told when the client goes away.

    Raises:
        Unreachable: nobody has taken the request, or it may be sent again.
        ApiError: 503, the server ended before it answered.
    """
    body = _Body(receive)
    request = httpcore.Request(
        scope["method"],
        httpcore.URL(scheme=b"http", host=b"replica", port=None, target=target_of(scope)),
        headers=_framed(headers),
        content=body if _has_body(headers, scope) else None,
        extensions={"timeout": {"connect": _CONNECT, "write": _WRITE, "read": None, "pool": None}},
    )
    async with httpcore.AsyncConnectionPool(uds=str(socket)) as pool:
        answering = asyncio.create_task(_answer(pool, request, send))
        leaving = asyncio.create_task(body.gone())
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
    if not answering.cancelled() and (error := answering.exception()) is not None and not body.is_gone:
        raise error


async def _answer(pool: httpcore.AsyncConnectionPool, request: httpcore.Request, send: Send) -> None:
    is_begun = False
    try:
        response = await pool.handle_async_request(request)
        try:
            if _is_moved(response.headers) and request.method in _READING:
                raise Unreachable
            start = {"type": "http.response.start", "status": response.status}
            await send(start | {"headers": passed_on(response.headers)})
            is_begun = True
            async for part in response.aiter_stream():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        finally:
            await response.aclose()
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
        raise Unreachable from error
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        if is_begun:
            return  # the client sees that the answer has no end
        if request.method in _READING:
            raise Unreachable from error  # asking twice changes nothing
        raise lost() from error


def lost() -> ApiError:
    """A server that has died in the middle of a call."""
    return ApiError(
        503,
        "the replica ended while it had this call, which may have been carried out or not; try again soon.",
        code="replica_lost",
    )


def _has_body(headers: Headers, scope: Scope) -> bool:
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    return lengths[:1] != [b"0"] if lengths else scope["method"] not in ("GET", "HEAD", "OPTIONS", "DELETE")


def _framed(headers: Headers) -> Headers:
    """Headers that say where the body ends, on a connection for this one request."""
    is_counted = any(name.lower() == b"content-length" for name, _ in headers)
    return [
        *headers,
        (b"connection", b"close"),
        *([] if is_counted else [(b"transfer-encoding", b"chunked")]),
    ]


class _Body:
    """The body of a request as it arrives, and whether the client has gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._whole = receive, asyncio.Event()
        self.is_gone = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        message: Message = {"more_body": True}
        while message.get("more_body", False):
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self.is_gone = True
                self._whole.set()
                raise ConnectionError("the client went away")
            if message.get("body"):
                yield message["body"]
        self._whole.set()

    async def gone(self) -> None:
        """Return when the client has gone; `receive` is left alone while the body is read."""
        await self._whole.wait()
        while not self.is_gone:
            self.is_gone = (await self._receive())["type"] == "http.disconnect"


async def forward_socket(scope: Scope, receive: Receive, send: Send, socket: Path, headers: Headers) -> None:
    """Join a WebSocket with one to a server; either side's close code reaches the other.

    Raises:
        Unreachable: nobody listens there.
        ApiError: 503, the server ended before it answered; 400, a Host that is none.
    """
    texts = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in headers]
    special = {name: value for name, value in texts if name in ("host", "origin")}
    try:
        upstream = await unix_connect(
            str(socket),
            f"ws://{special.get('host', 'localhost')}{target_of(scope).decode('latin-1')}",
            additional_headers=[
                each for each in texts if each[0] not in special and not each[0].startswith("sec-websocket-")
            ],
            origin=Origin(special["origin"]) if "origin" in special else None,
            subprotocols=[Subprotocol(name) for name in scope.get("subprotocols", ())] or None,
            user_agent_header=None,
            compression=None,
            max_size=None,
            ping_interval=None,
            open_timeout=None,
        )
    except InvalidStatus as refused:
        await _refuse(refused, scope, receive, send)
        return
    except (FileNotFoundError, ConnectionRefusedError) as error:
        raise Unreachable from error
    except InvalidURI as error:
        raise ApiError(400, "the header Host is no host.") from error
    except (InvalidHandshake, OSError, EOFError) as error:
        raise lost() from error
    async with upstream:
        await receive()  # websocket.connect
        await send({"type": "websocket.accept", "subprotocol": upstream.subprotocol, "headers": []})
        await _join(upstream, receive, send)


def _is_moved(headers: Headers) -> bool:
    """Whether a server says that a stream is another's now."""
    return any(name.lower() == MOVED_HEADER.encode() for name, _ in headers)


async def _refuse(refused: InvalidStatus, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer as the server did that does not want the WebSocket."""
    response = refused.response
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers.raw_items()]
    if _is_moved(raw):
        raise Unreachable
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    start = {"status": response.status_code, "headers": passed_on(raw)}
    await send({"type": "websocket.http.response.start"} | start)
    await send({"type": "websocket.http.response.body", "body": bytes(response.body or b"")})


async def _join(upstream: ClientConnection, receive: Receive, send: Send) -> None:
    tasks = [asyncio.create_task(_up(upstream, receive)), asyncio.create_task(_down(upstream, send))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _up(upstream: ClientConnection, receive: Receive) -> None:
    while (message := await receive())["type"] == "websocket.receive":
        with contextlib.suppress(ConnectionClosed):  # the other direction tells the client
            await upstream.send(message["bytes"] if message.get("bytes") is not None else message["text"])
    code = message.get("code", 1005)
    await upstream.close(*((1000,) if code in _NO_STATUS else (code, message.get("reason") or "")))


async def _down(upstream: ClientConnection, send: Send) -> None:
    try:
        while True:
            part = await upstream.recv()
            await send({"type": "websocket.send", ("text" if isinstance(part, str) else "bytes"): part})
    except ConnectionClosed as closed:
        code, reason = (RESTART, "the replica ended") if closed.rcvd is None else _shown(closed)
        await send({"type": "websocket.close", "code": code, "reason": reason})


def _shown(closed: ConnectionClosed) -> tuple[int, str]:
    assert closed.rcvd is not None
    code = 1000 if closed.rcvd.code in _NO_STATUS else closed.rcvd.code
    return code, closed.rcvd.reason


async def ask(socket: Path, target: bytes, headers: Headers) -> tuple[int, Headers, bytes]:
    """A GET: status, headers and body.

    Raises:
        Unreachable: nobody listens there, or it ended meanwhile.
    """
    framed = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    request = httpcore.Request(
        "GET",
        httpcore.URL(scheme=b"http", host=b"replica", port=None, target=target),
        headers=[*framed, (b"connection", b"close")],
        extensions={"timeout": {"connect": _CONNECT, "read": _WRITE, "write": _CONNECT, "pool": None}},
    )
    try:
        async with httpcore.AsyncConnectionPool(uds=str(socket)) as pool:
            response = await pool.handle_async_request(request)
            return response.status, passed_on(response.headers), await response.aread()
    except (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError) as error:
        raise Unreachable from error


async def answer_with(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send an error as the answer to a request or to a WebSocket that is not open yet."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": RESTART})
        return
    await response_of(error)(scope, receive, send)
