"""The address of all replicas: sends each call to the replica of its stream, and joins what all say."""

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infinitevl.server.errors import ApiError, response_of
from infinitevl.server.limits import Guard
from infinitevl.server.replicas.forwarding import answer_with, ask, forward_request, forward_socket
from infinitevl.server.replicas.gathering import joined_lists, joined_metrics
from infinitevl.server.replicas.ring import Ring, Unreachable, no_replica, sockets
from infinitevl.server.replicas.routing import Call, call_of, passed_on, target_of
from infinitevl.server.replicas.waiting import Unheld
from infinitevl.server.settings import ServerSettings

logger = logging.getLogger(__name__)
_PATIENCE = 15.0  # seconds in which a replica that died is replaced by another
_PAUSE = 0.1
_REMEMBERED = 5.0  # seconds for which the replica of a stream is not asked for again
_MOST_PLACES = 4096


class Ingress:
    """Finds the replica of each call, and passes it on.

    It keeps nothing that matters: a stream's replica is known from the ring, and that no two replicas have a
    stream is the work of its lease.

    Args:
        folder: of the replicas' sockets.
    """

    def __init__(self, ring: Ring, folder: Path, settings: ServerSettings) -> None:
        assert settings.state_dir is not None
        self.ring, self.folder, self.settings = ring, folder, settings
        self.unheld = Unheld(settings.state_dir, ring)
        self._places: dict[str, tuple[Path, float]] = {}
        self._under_way: Counter[Path] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on; a replica that is gone is looked for again, as long as nothing was sent to it."""
        call, deadline = call_of(scope), time.monotonic() + _PATIENCE
        try:
            while True:
                try:
                    path = await self._path(call)
                    await self._forward(scope, receive, send, path, call)
                    return
                except Unreachable:
                    self._places.pop(call.stream or "", None)
                    if time.monotonic() > deadline:
                        raise no_replica() from None
                    await asyncio.sleep(_PAUSE)
        except ApiError as error:
            self._places.pop(call.stream or "", None)
            await answer_with(error, scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send, path: Path, call: Call) -> None:
        forward = forward_socket if scope["type"] == "websocket" else forward_request

        async def watched(message: Message) -> None:
            if message.get("status") == 503:  # the stream may be another's now: the next call asks again
                self._places.pop(call.stream or "", None)
            await send(message)

        self._under_way[path] += 1
        try:
            await forward(scope, receive, watched, path, call.headers)
        finally:
            self._under_way[path] -= 1

    async def _path(self, call: Call) -> Path:
        """The socket of the replica that a stream belongs to; for other calls of the one with the fewest."""
        if call.stream is None:
            return min(self.all(), key=lambda path: self._under_way[path])
        path, until = self._places.get(call.stream, (None, 0.0))
        if path is None or until < time.monotonic():
            path = await self.ring.place(call.stream)
            while len(self._places) >= _MOST_PLACES:
                self._places.pop(next(iter(self._places)))
            self._places[call.stream] = path, time.monotonic() + _REMEMBERED
        return path

    def all(self) -> list[Path]:
        """The sockets of all replicas.

        Raises:
            ApiError: 503, there is none.
        """
        found = sockets(self.folder)
        if not found:
            raise no_replica()
        return found

    async def list_streams(self, request: Request) -> Response:
        """The streams of this key, of all replicas."""
        await self.unheld.open_all()
        headers, bodies = passed_on(request.scope["headers"]), []
        for path in self.all():
            with contextlib.suppress(
                Unreachable
            ):  # it has just ended; its streams are listed when they are open
                status, kept, body = await ask(path, target_of(request.scope), headers)
                if status != 200:
                    return Response(body, status, {k.decode(): v.decode("latin-1") for k, v in kept})
                bodies.append(body)
        if not bodies:
            raise no_replica()
        return JSONResponse(joined_lists(bodies))

    async def metrics(self, request: Request) -> Response:
        """The counts of all replicas."""
        texts = {}
        for path in sockets(self.folder):
            with contextlib.suppress(Unreachable):
                status, _, body = await ask(path, b"/metrics", passed_on(request.scope["headers"]))
                if status == 200:
                    texts[path.stem] = body.decode()
        return Response(joined_metrics(texts), media_type=CONTENT_TYPE_LATEST)

    async def ready(self, request: Request) -> Response:
        """Whether calls are taken."""
        num = len(self.all())
        return JSONResponse({"status": "ready", "model": self.settings.model, "replicas": num})


def create_ingress(ring: Ring, folder: Path, settings: ServerSettings) -> ASGIApp:
    """The app that listens where the clients are."""
    ingress = Ingress(ring, folder, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        opening = asyncio.create_task(ingress.unheld.go_on())
        yield
        opening.cancel()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def failed(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return response_of(error)

    limits = settings.limits
    app = Starlette(
        routes=[
            Route("/health", health),
            Route("/ready", ingress.ready),
            Route("/metrics", ingress.metrics),
            Route("/v1/streams", ingress.list_streams, methods=["GET"]),
            Mount("/", ingress),
        ],
        exception_handlers={ApiError: failed},
        lifespan=lifespan,
    )
    app.add_middleware(
        Guard,
        max_bytes=limits.body_bytes,
        max_seconds=limits.body_seconds,
        max_message=limits.message_bytes,
        has_keys=bool(settings.keys),
        count=lambda method, status: None,  # the replicas count
    )
    return app
