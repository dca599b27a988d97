"""The app: its parts, its calls, its start and its end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, WebSocket
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from infinitevl.engine.engine import Engine
from infinitevl.server import chat, errors, responses, rule_calls, stream_calls
from infinitevl.server.context import Context, Parts
from infinitevl.server.errors import ApiError
from infinitevl.server.keeper import StateKeeper
from infinitevl.server.limits import Guard
from infinitevl.server.media import MediaReader
from infinitevl.server.metrics import Metrics
from infinitevl.server.page import add_page
from infinitevl.server.parking import ParkLimits
from infinitevl.server.prompts import PromptMaker
from infinitevl.server.realtime import connection
from infinitevl.server.realtime.sessions import Sessions
from infinitevl.server.registry import Registry
from infinitevl.server.rule_registry import RuleRegistry
from infinitevl.server.security import Keys
from infinitevl.server.settings import ServerSettings
from infinitevl.server.worker import EngineWorker


def create_app(engine: Engine, settings: ServerSettings) -> FastAPI:
    """An app that serves an engine, which nobody else may use from now on.

    Raises:
        InputError: the engine has fewer than three slots.
    """
    context = _context(engine, settings)
    app = FastAPI(
        title="InfiniteVL",
        version=settings.version,
        description="OpenAI's chat API for pictures and videos, and streams that are watched and asked.",
        lifespan=_lifespan,
        docs_url=None,  # FastAPI's own pages load scripts from elsewhere; see `add_page`
        redoc_url=None,
    )
    app.state.context = context
    errors.install(app)
    app.add_middleware(
        Guard,
        max_bytes=settings.limits.body_bytes,
        max_seconds=settings.limits.body_seconds,
        max_message=settings.limits.message_bytes,
        has_keys=bool(settings.keys),
        count=context.metrics.count_request,
    )
    app.include_router(chat.router)
    app.include_router(responses.router)
    app.include_router(stream_calls.router)
    app.include_router(rule_calls.router)
    app.include_router(rule_calls.sockets)
    app.include_router(connection.router)
    _add_operation(app)
    add_page(app)
    app.add_api_websocket_route("/{path:path}", _no_socket)
    return app


async def _no_socket(socket: WebSocket) -> None:
    """What is said to WebSockets of unknown paths."""
    raise ApiError(404, f"{socket.url.path} is no WebSocket: there are /v1/realtime and /v1/events.")


def _context(engine: Engine, settings: ServerSettings) -> Context:
    metrics = Metrics()
    keeper = None if settings.state_dir is None else StateKeeper(settings.state_dir, settings.save_every)
    limits = ParkLimits.of(settings.park_memory, settings.park_disk, settings.state_dir)
    worker = EngineWorker(engine, metrics, settings.limits.waiting, keeper, limits)
    metrics.watch(worker, keeper)
    size = engine.processor.image_processor.size
    edges = size["shortest_edge"], size["longest_edge"]
    rules = RuleRegistry(worker, settings, metrics)
    return Context(
        settings,
        engine.processor,
        worker,
        metrics,
        Keys(settings.keys),
        Registry(worker, settings, keeper, rules),
        keeper,
        PromptMaker(engine.processor, MediaReader(settings, edges), settings.limits),
        rules,
        Sessions(),
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Find the streams of the last time, serve, and save them all at the end."""
    context: Context = app.state.context
    context.worker.start()
    keeper = context.keeper
    if keeper is not None and not context.settings.is_replica:
        await context.registry.run(lambda: keeper.restore(context.worker))
    context.worker.on_leave = context.registry.let_go
    await context.rules.start()
    if keeper is not None:
        context.registry.follow_again()
    context.realtime.start(context)
    try:
        yield
    finally:
        context.realtime.stop()
        context.prompts.stop()
        await asyncio.to_thread(context.registry.stop)
        await asyncio.to_thread(context.worker.stop)
        context.rules.stop()


def _add_operation(app: FastAPI) -> None:
    @app.get("/health", tags=["operation"], response_model=None)
    async def health(context: Parts) -> dict[str, Any] | Response:
        """Whether the process works; and whether streams can be saved, where they are kept."""
        if not context.worker.is_alive:
            return JSONResponse({"status": "ending"}, 503)
        keeper = context.keeper
        if keeper is None:
            return {"status": "ok"}
        return {"status": "ok", "saving": "failing" if keeper.is_failing else "ok"}

    @app.get("/ready", tags=["operation"], response_model=None)
    async def ready(context: Parts) -> dict[str, Any] | Response:
        """Whether calls are taken."""
        if not context.worker.is_alive:
            return JSONResponse({"status": "ending"}, 503)
        return {"status": "ready", "model": context.settings.model}

    @app.get("/metrics", tags=["operation"], response_class=Response)
    async def metrics(context: Parts) -> Response:
        """Counts for Prometheus."""
        return Response(generate_latest(context.metrics.registry), media_type=CONTENT_TYPE_LATEST)
