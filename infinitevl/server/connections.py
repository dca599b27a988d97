"""Connections that do not say what they want: closed after a while, so that nobody holds them all."""

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_Protocol: Any = AutoHTTPProtocol
HEAD_SECONDS = 30.0  # for the head of a request, from its first byte or from the opening of a connection


class TimeoutProtocol(_Protocol):
    """uvicorn's protocol, which has no limit of its own on how long the head of a request may take.

    A connection that waits for its next request has uvicorn's limit for idle ones.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Expect a first request."""
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; where they are not the whole head of a request, the rest has to come soon."""
        super().data_received(data)
        if not self._lacks_head:
            self._cancel_deadline()
        elif data:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._cancel_deadline()
        super().connection_lost(exc)

    @property
    def _lacks_head(self) -> bool:
        """Whether no request is being answered; never once the connection is a WebSocket's."""
        is_ours = self.transport.get_protocol() is self
        return is_ours and (self.cycle is None or self.cycle.response_complete)

    def _expect_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if self._lacks_head:
            self.transport.close()
