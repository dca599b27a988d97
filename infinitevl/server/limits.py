"""Limits on the bodies of requests and the messages of WebSockets, before anything else looks at them."""

import asyncio
import time
from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinitevl.server.errors import ApiError, response_of
from infinitevl.server.security import check_caller

MESSAGE_TOO_BIG = 1009  # the close code of RFC 6455


class Guard:
    """Refuses bodies that are too large or too slow, and strangers' pages where there are no keys.

    Args:
        max_bytes: of a body. max_seconds: until it is whole. max_message: bytes of a WebSocket's message.
        has_keys: whether callers show a key. count: is told the method and the status of every response;
            of a WebSocket WEBSOCKET, and 101 once it is open.
    """

    def __init__(
        self,
        app: ASGIApp,
        max_bytes: int,
        max_seconds: float,
        max_message: int,
        has_keys: bool,
        count: Callable[[str, int], None],
    ) -> None:
        self.app, self.max_bytes, self.max_seconds = app, max_bytes, max_seconds
        self.max_message, self.has_keys, self.count = max_message, has_keys, count

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                self.count(scope.get("method", "WEBSOCKET"), message["status"])
            elif message["type"] == "websocket.accept":
                self.count("WEBSOCKET", 101)
            await send(message)

        try:
            self._check_head(dict(scope["headers"]))
        except ApiError as error:
            await response_of(error)(scope, receive, counted)
        else:
            await (self._run if scope["type"] == "http" else self._connect)(scope, receive, counted)

    def _check_head(self, headers: dict[bytes, bytes]) -> None:
        texts = {name: value.decode("latin-1") for name, value in headers.items()}
        if not self.has_keys:
            check_caller(texts.get(b"host"), texts.get(b"origin"))
        stated = texts.get(b"content-length")
        if stated is not None and (not stated.isdecimal() or int(stated) > self.max_bytes):
            raise self._too_large()

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive, self.max_bytes, self.max_seconds, self._too_large)

        async def unless_refused(message: Message) -> None:
            if body.refusal is None:  # else it is what the app says to a body that it did not get
                await send(message)

        try:
            await self.app(scope, body.receive, unless_refused)
        except Exception:  # whatever the app made of a body that was cut off; the refusal is the answer
            if body.refusal is None:
                raise
        if body.refusal is not None:
            response = response_of(body.refusal)
            response.headers["connection"] = "close"
            await response(scope, receive, send)

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a WebSocket, which ends where a message is too large."""

        async def limited() -> Message:
            message = await receive()
            text, data = message.get("text") or "", message.get("bytes") or b""
            if len(data) <= self.max_message and not _is_longer(text, self.max_message):
                return message
            reason = f"a message has at most {self.max_message} bytes"
            await send({"type": "websocket.close", "code": MESSAGE_TOO_BIG, "reason": reason})
            return {"type": "websocket.disconnect", "code": MESSAGE_TOO_BIG, "reason": reason}

        await self.app(scope, limited, send)

    def _too_large(self) -> ApiError:
        return ApiError(
            413, f"the body is larger than {self.max_bytes} bytes, the limit.", code="body_too_large"
        )


def _is_longer(text: str, num_bytes: int) -> bool:
    """Whether a text has more bytes than so many; most need not be encoded to know."""
    return len(text) > num_bytes or (4 * len(text) > num_bytes and len(text.encode()) > num_bytes)


class _Body:
    """A body that is taken in within limits; `refusal` says why one was not."""

    def __init__(
        self, receive: Receive, max_bytes: int, max_seconds: float, too_large: Callable[[], ApiError]
    ) -> None:
        self._receive, self._max_bytes, self._too_large = receive, max_bytes, too_large
        self._max_seconds, self._deadline = max_seconds, time.monotonic() + max_seconds
        self._size, self._is_whole = 0, False
        self.refusal: ApiError | None = None

    async def receive(self) -> Message:
        """The next part, or after the body that the client has gone."""
        if self._is_whole:
            return await self._receive()
        try:
            left = max(0.0, self._deadline - time.monotonic())
            message = await asyncio.wait_for(self._receive(), left)
        except TimeoutError as error:
            text = f"the body was not whole after {self._max_seconds:g} seconds."
            self.refusal = ApiError(408, text, code="body_too_slow")
            raise self.refusal from error
        self._size += len(message.get("body", b""))
        self._is_whole = not message.get("more_body", False)
        if self._size > self._max_bytes:
            self.refusal = self._too_large()
            raise self.refusal
        return message
