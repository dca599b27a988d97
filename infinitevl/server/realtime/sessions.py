"""The realtime sessions of a server: opened, found again by the same client, and forgotten after a while."""

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING

from infinitevl.processing.prompt.template import DEFAULT_SYSTEM
from infinitevl.server.errors import MOVING, ApiError, invalid
from infinitevl.server.realtime.session import RealtimeSession
from infinitevl.server.streams import Settings, Stream

if TYPE_CHECKING:
    from infinitevl.server.context import Context

logger = logging.getLogger(__name__)
_TICK = 1.0  # seconds between two looks at who is there
MOVED = (1012, "the stream is another replica's now; connect again with session_id")
GONE, TAKEN_OVER = (1008, "the stream was deleted"), (1008, "another connection took the session over")


class Sessions:
    """A session for each stream that a client talks to."""

    def __init__(self) -> None:
        self._sessions: dict[str, RealtimeSession] = {}
        self._task: asyncio.Task[None] | None = None

    async def find_or_open(
        self,
        owner: str,
        context: "Context",
        session_id: str | None,
        stream_id: str | None,
        name: str | None,
        chosen_id: str | None = None,
    ) -> RealtimeSession:
        """The session of this name, one over the stream of this name, or a new one.

        Args:
            chosen_id: of a new stream, where the ingress of replicas has chosen it.

        Raises:
            ApiError: 400, two names; 404, there is no such session or stream; 429, too many streams.
        """
        if session_id is not None and stream_id is not None:
            raise invalid("session_id and stream name the same thing: give one of them.", "stream")
        if session_id is not None:
            stream = _found(f"stream_{session_id.removeprefix('sess_')}", session_id, owner, context)
        elif stream_id is not None:
            stream = context.registry.find(stream_id, owner)
        else:
            idle = context.limits.session_seconds if name is None else None
            settings = Settings(owner, name=name, system=DEFAULT_SYSTEM, keep_turns=True, idle_seconds=idle)
            stream = await context.registry.open(settings, chosen_id)
        if stream.id not in self._sessions:
            self._sessions[stream.id] = RealtimeSession(stream, context)
        return self._sessions[stream.id]

    def start(self, context: "Context") -> None:
        """Begin to look after the sessions."""
        self._task = asyncio.create_task(self._look_after(context))

    def stop(self) -> None:
        """Forget all sessions; their streams stay."""
        if self._task is not None:
            self._task.cancel()
        for session in self._sessions.values():
            session.close(1012, "the server restarts")
        self._sessions.clear()

    async def _look_after(self, context: "Context") -> None:
        while True:
            await asyncio.sleep(min(_TICK, context.limits.session_seconds))
            try:
                await self._forget(context)
            except Exception:  # the others are looked after all the same
                logger.exception("a realtime session could not be forgotten")

    async def _forget(self, context: "Context") -> None:
        for session in list(self._sessions.values()):
            if session.stream.is_closed:
                is_moved = getattr(session.stream.ended_by, "code", None) == MOVING
                self._sessions.pop(session.stream.id).close(*(MOVED if is_moved else GONE))
        for stream in list(context.worker.streams.values()):
            if self._is_forgotten(stream):
                await self._delete(stream, context)

    def _is_forgotten(self, stream: Stream) -> bool:
        """Whether a stream that is kept for a while has not been used for that long."""
        idle, session = stream.settings.idle_seconds, self._sessions.get(stream.id)
        if idle is None or (session is not None and session.left is None):
            return False
        used = stream.used if session is None or session.left is None else max(stream.used, session.left)
        return time.monotonic() - used > idle

    async def _delete(self, stream: Stream, context: "Context") -> None:
        session = self._sessions.pop(stream.id, None)
        if session is not None:
            session.close(*GONE)
        with contextlib.suppress(ApiError):  # the server ends
            await context.registry.close(stream)


def _found(stream_id: str, session_id: str, owner: str, context: "Context") -> Stream:
    try:
        return context.registry.find(stream_id, owner)
    except ApiError as error:
        if error.status != 404:
            raise
        text = f"there is no session {session_id[:100]!r}: it was deleted, or has been idle for too long."
        raise ApiError(404, text, param="session_id", code="session_not_found") from error
