"""Opens, forks, fills and closes streams, for those to whom they belong."""

import asyncio
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from infinitevl.engine.session import StreamSession
from infinitevl.errors import InfiniteVLError, StateError
from infinitevl.server.errors import MOVING, ApiError, busy, moving
from infinitevl.server.keeper import StateKeeper
from infinitevl.server.leases import is_held
from infinitevl.server.rule_registry import RuleRegistry
from infinitevl.server.rules import StreamRule
from infinitevl.server.security import check_signature, sign_state
from infinitevl.server.settings import ServerSettings
from infinitevl.server.sources import Follower, check_source, is_live
from infinitevl.server.streams import Settings, Stream, new_id
from infinitevl.server.worker import EngineWorker, until_done

T = TypeVar("T")
_NUM_RESIDENT = 2  # slots that streams always have; see `Answering.max_slots`


class Registry:
    """The streams of one server."""

    def __init__(
        self, worker: EngineWorker, settings: ServerSettings, keeper: StateKeeper | None, rules: RuleRegistry
    ) -> None:
        self.worker, self.settings, self.keeper, self.rules = worker, settings, keeper, rules
        self.followers: dict[str, Follower] = {}

    def find(self, stream_id: str, owner: str) -> Stream:
        """The stream of this name.

        Raises:
            ApiError: 404, there is none, or it is somebody else's; 503, it is kept, and not open here.
        """
        stream = self.worker.streams.get(stream_id)
        if stream is None and self.keeper is not None and self.keeper.owner_of(stream_id) == owner:
            raise self._not_open(stream_id, self.keeper)
        if stream is None or stream.settings.owner != owner:
            raise ApiError(404, f"there is no stream {stream_id[:100]!r}.", code="stream_not_found")
        return stream

    def _not_open(self, stream_id: str, keeper: StateKeeper) -> ApiError:
        """Why a stream that is kept is not here."""
        if self.settings.is_replica or is_held(keeper.folder, stream_id):
            return moving(stream_id)
        text = (
            f"the stream {stream_id} is kept and not open: its files cannot be read, which the log says, or "
            "another server had it. A restart opens it."
        )
        return ApiError(503, text, code="stream_not_open")

    def of(self, owner: str) -> list[Stream]:
        """The streams of one key, oldest first."""
        return [stream for stream in list(self.worker.streams.values()) if stream.settings.owner == owner]

    async def open(self, settings: Settings, stream_id: str | None = None) -> Stream:
        """Open a stream, under a new id where none is given, and follow its source.

        Raises:
            ApiError: 400, a source that may not be followed; 429, too many streams.
        """
        address = None if settings.source is None else check_source(settings.source, self.settings)

        def make() -> Stream:
            self._check_room(settings.owner)
            self.worker.make_room(1)
            return self._add(settings, settings.open_on(self.worker.engine), stream_id or new_id())

        stream = await self.run(make)
        if address is not None:
            self.follow(stream, address)
        return stream

    def follow(self, stream: Stream, address: str) -> None:
        """Begin to read a stream's source."""
        follower = self.followers[stream.id] = Follower(self.worker, stream, address)
        follower.start()

    def follow_again(self) -> None:
        """Go on with the live sources of streams that were found at the start; a file is not read twice."""
        for stream in list(self.worker.streams.values()):
            self._follow_again(stream)

    def _follow_again(self, stream: Stream) -> None:
        source = stream.settings.source
        try:
            if source is not None and is_live(source):
                self.follow(stream, check_source(source, self.settings))
            elif source is not None:
                stream.source_status = "ended"
        except ApiError as error:
            stream.source_status, stream.source_error = "failed", error.message

    async def adopt(self, stream_id: str) -> None:
        """Open a stream that the state folder has and no server holds; nothing happens if there is none.

        Raises:
            ApiError: 503, another server holds it, and is asked to let it go.
        """
        keeper = self.keeper
        if keeper is None or stream_id in self.worker.streams:
            return

        def open_with_rules() -> Stream | None:
            stream = keeper.open(self.worker, stream_id)
            if stream is not None:
                self.rules.adopt(stream)
            return stream

        try:
            stream = await self.run(open_with_rules)
        except ApiError as error:
            if error.code == MOVING:
                keeper.leases.ask(stream_id)
            raise
        if stream is not None:
            self._follow_again(stream)

    def let_go(self, stream: Stream, is_saved: bool) -> None:
        """Do nothing more for a stream that goes on elsewhere, or later; in the worker's thread.

        Args:
            is_saved: whether this server may still write what is kept of it.
        """
        follower = self.followers.pop(stream.id, None)
        if follower is not None:
            threading.Thread(target=follower.stop, name=f"end of {stream.id}", daemon=True).start()
        self.rules.let_go(stream, is_saved)

    async def fork(self, stream: Stream) -> Stream:
        """Another stream that has seen the same, all frames that were sent included; it follows no source."""
        await self._all_read(stream)

        def make() -> Stream:
            self._check_room(stream.settings.owner)
            self.worker.make_resident(stream, extra=1)
            settings = Settings(
                **{
                    **vars(stream.settings),
                    "parent": stream.id,
                    "source": None,
                    "idle_seconds": None,
                    "created": int(time.time()),
                }
            )
            fork = self._add(settings, stream.session.fork(), new_id(stream.id))
            fork.newest_image = stream.newest_image
            return fork

        return await self.run(make)

    async def configure(self, stream: Stream, keep_turns: bool, system: str | None) -> None:
        """Change how a stream is asked from now on; answers under way end as they began."""

        def change() -> None:
            with self.worker.changed:
                stream.session.keep_turns, stream.session.system = keep_turns, system
                stream.settings = replace(stream.settings, keep_turns=keep_turns, system=system)
                stream.changes += 1
            if self.keeper is not None:
                self.keeper.register(stream)

        await self.run(change)

    async def close(self, stream: Stream) -> None:
        """Close a stream, and forget what is kept of it; its rules end."""
        follower = self.followers.pop(stream.id, None)
        if follower is not None:
            await asyncio.to_thread(follower.stop)

        def close() -> list[StreamRule]:
            with self.worker.changed:
                self.worker.streams.pop(stream.id, None)
                stream.close(ApiError(404, f"the stream {stream.id} was deleted.", code="stream_not_found"))
            rules = self.rules.leave(stream)
            stream.session.close()
            return rules

        await self.rules.delete(stream, await self.run(close))
        if self.keeper is not None:
            await until_done(self.keeper.forget(stream))

    async def state(self, stream: Stream) -> bytes:
        """The signed file of a stream as it is now, all frames that were sent included."""
        await self._all_read(stream)

        snapshot = await self.run(lambda: stream.session.snapshot())

        def write() -> bytes:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "state.safetensors")
                snapshot.save(path)
                return sign_state(path.read_bytes(), self.settings.secret, stream.settings.owner)

        return await asyncio.to_thread(write)

    async def fill(self, stream: Stream, data: bytes) -> None:
        """Let a stream hold the state of such a file.

        Raises:
            ApiError: 400, no state of this model; 403, not signed; 409, a turn that is kept is under way.
        """
        if not self.settings.allow_unsigned_states:
            check_signature(data, self.settings.secret, stream.settings.owner)

        def load() -> None:
            if stream.num_kept_answers:
                raise ApiError(409, "a turn that is kept is being answered; try again after it.", code="busy")
            self.worker.make_resident(stream, extra=1)
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, "state.safetensors")
                path.write_bytes(data)
                try:
                    session = StreamSession.load_on(path, self.worker.engine)
                except StateError as error:
                    message = str(error).replace(str(path), "the body")
                    raise ApiError(400, message, code="invalid_state") from error
            self._replace(stream, session)

        await self.run(load)

    async def _all_read(self, stream: Stream) -> None:
        """Wait for the frames that are in the queue now."""
        with self.worker.changed:
            newest = stream.queue[-1].done if stream.queue else None
        if newest is not None:
            with contextlib.suppress(Exception):  # whoever sent it is told
                await until_done(newest)

    def _replace(self, stream: Stream, session: StreamSession) -> None:
        with self.worker.changed:
            old, stream.session = stream.session, session
            stream.settings = replace(stream.settings, keep_turns=session.keep_turns, system=session.system)
            stream.changes += 1
            stream.refresh()
            stream.drop_queue()
            stream.newest_image = None  # of another past
            stream.last_time = stream.stats.seconds if stream.stats.frames else None
        self.rules.reset(stream)
        old.close()
        if self.keeper is not None:  # the file says the rest
            self.keeper.hurry(stream)

    def _add(self, settings: Settings, session: StreamSession, stream_id: str) -> Stream:
        stream = Stream(settings, session, self.worker.engine.mode, id=stream_id)
        stream.changes = 1
        if self.keeper is not None:
            try:
                self.keeper.register(stream)
            except InfiniteVLError as error:
                session.close()
                raise ApiError(503, f"no stream can be opened: {error}", code="disk_full") from error
        with self.worker.changed:
            self.worker.streams[stream.id] = stream
        return stream

    def _check_room(self, owner: str) -> None:
        limits = self.settings.limits
        if len(self.of(owner)) >= limits.streams_per_key:
            raise busy(f"{limits.streams_per_key} streams of this key are open, the limit: delete one.")
        if len(self.worker.streams) >= limits.streams:
            raise busy(f"{limits.streams} streams are open, the limit of this server.")
        if not self.worker.parking.has_room(self.worker.streams.values(), _NUM_RESIDENT):
            raise busy("there is no memory left for another stream: delete one (--park-memory, --park-disk).")

    async def run(self, function: Callable[[], T]) -> T:
        """Run something in the worker's thread."""
        return await until_done(self.worker.call(function))

    def stop(self) -> None:
        """Follow no source any more."""
        for follower in self.followers.values():
            follower.stop()
        self.followers.clear()
