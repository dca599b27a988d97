"""Starts a server on an engine, until a signal ends it."""

import logging
import socket
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from infinitevl.engine.engine import Engine
from infinitevl.errors import InputError
from infinitevl.server.app import create_app
from infinitevl.server.connections import TimeoutProtocol
from infinitevl.server.security import is_loopback
from infinitevl.server.settings import ServerSettings

KEEP_ALIVE = 75  # seconds; clients give idle connections up after 5 or 60, and must come first
DRAIN = 20  # seconds for answers under way, after SIGTERM; many who send it kill after 30


def check_host(host: str, keys: tuple[str, ...]) -> None:
    """Refuse to be open to a network without keys.

    Raises:
        InputError: a host that others can reach, and no key.
    """
    if not keys and not is_loopback(host):
        raise InputError(
            f"--host {host} can be reached by others, and there is no API key: give --api-key-file, or "
            "INFINITEVL_API_KEYS, or listen on 127.0.0.1."
        )


def check_port(host: str, port: int) -> None:
    """See whether the address is free, before a model is loaded for it.

    Raises:
        InputError: it is taken, not allowed, or not of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen()
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(
            f"port {port} of {host} cannot be used: {reason}. Give another --port, or end what uses it."
        ) from error


class EndingServer(uvicorn.Server):
    """Ends connections that wait for events before it waits for all to end."""

    def __init__(self, config: uvicorn.Config, end_listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._end_listening = end_listening

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._end_listening()
        await super().shutdown(sockets)


def serve(engine: Engine, settings: ServerSettings, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; then answers end, and streams are saved.

    A second SIGINT (Ctrl-C) cuts answers short; streams are saved all the same.
    """
    check_host(host, settings.keys)
    logging.getLogger("infinitevl").setLevel(logging.INFO)
    logging.getLogger("infinitevl").addHandler(logging.StreamHandler())  # events are a line of JSON each
    app = create_app(engine, settings)
    listen(app, settings, host, port, app.state.context.rules.events.end_listening)


def listen(
    app: ASGIApp, settings: ServerSettings, host: str, port: int, end_listening: Callable[[], None]
) -> None:
    """Answer calls at an address until a signal ends it.

    Args:
        end_listening: ends connections that wait for events, before all others are waited for.
    """
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        timeout_graceful_shutdown=DRAIN,
        timeout_keep_alive=KEEP_ALIVE,
        log_level="info",
        http=TimeoutProtocol,
        ws_max_size=settings.limits.message_bytes,
    )
    EndingServer(config, end_listening).run()
