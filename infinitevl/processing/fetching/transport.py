"""An httpx transport that stops at a deadline and connects to checked IP addresses only."""

import functools
import ipaddress
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx

from infinitevl.errors import InputError
from infinitevl.processing.fetching.public_ip import IPAddress

Check = Callable[[IPAddress], bool]


class CheckedTransport(httpx.HTTPTransport):
    """Connects without proxies; no wait lasts beyond `deadline`, a value of time.monotonic().

    httpx limits each read alone, so a server that sends a header byte at a time, or "continue" for ever,
    could hold a client without end. `is_allowed` gets the IP address that was reached; None allows all.
    Raises TimeoutError after the deadline and InputError for an address that is not allowed.
    """

    def __init__(self, deadline: float, is_allowed: Check | None = None) -> None:
        super().__init__(verify=_ssl_context(), trust_env=False)
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(), network_backend=_Backend(deadline, is_allowed)
        )


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    """Made once: reading all certificates takes 50 ms."""
    return httpx.create_ssl_context()


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the time is over")
    return left if timeout is None else min(timeout, left)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, deadline: float, is_allowed: Check | None) -> None:
        self._deadline, self._is_allowed = deadline, is_allowed
        self._sockets = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        limit = _left(self._deadline, timeout)
        stream = self._sockets.connect_tcp(host, port, limit, local_address, socket_options)
        reached = ipaddress.ip_address(str(stream.get_extra_info("server_addr")[0]).split("%")[0])
        if self._is_allowed is not None and not self._is_allowed(reached):
            stream.close()
            raise InputError(f"A connection led to {reached}, which is not a public address.")
        return _Stream(stream, self._deadline)


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        limit = _left(self._deadline, timeout)
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, limit), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
