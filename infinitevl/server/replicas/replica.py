"""One replica: an engine and its server, which listens on a Unix socket that only this user can reach."""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

import uvicorn

from infinitevl.engine.engine import Engine
from infinitevl.errors import InfiniteVLError
from infinitevl.server.app import create_app
from infinitevl.server.context import Context
from infinitevl.server.errors import MOVING, ApiError
from infinitevl.server.run import DRAIN, KEEP_ALIVE
from infinitevl.server.settings import ServerSettings

logger = logging.getLogger(__name__)
_START = 60.0  # seconds
_PATIENCE, _PAUSE = 5.0, 0.05  # seconds for a stream to come from another replica


class Replica:
    """An engine, its server and its socket.

    Args:
        make_engine: makes the engine, in the replica's process. folder: of the replicas' sockets.

    Raises:
        RuntimeError: the server does not start.
    """

    def __init__(self, make_engine: Callable[[], Engine], settings: ServerSettings, folder: str) -> None:
        logging.getLogger("infinitevl").setLevel(logging.INFO)
        name = secrets.token_hex(4)
        app = create_app(make_engine(), settings)
        self.context: Context = app.state.context
        unnamed = Path(folder, f".{name}")
        config = uvicorn.Config(
            app,
            uds=str(unnamed),
            timeout_graceful_shutdown=DRAIN,
            timeout_keep_alive=KEEP_ALIVE + 5,  # the ingress, its only client, gives up before
            log_config=None,  # it would close the log files of Ray in this process
            log_level="warning",
            access_log=False,
            ws_max_size=settings.limits.message_bytes,
            date_header=False,  # the ingress sends its own
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, name="server", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _START
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the server of this replica did not start; its log says why.")
            time.sleep(_PAUSE)
        self.socket = unnamed.rename(Path(folder, f"{name}.sock"))

    async def place(self, stream_id: str) -> str | None:
        """Open a stream that is kept and that nobody has; the socket, or None while another has it."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                await self.context.registry.adopt(stream_id)
            except ApiError as error:
                if error.code != MOVING or time.monotonic() > deadline:
                    return None
                await asyncio.sleep(_PAUSE)
            except (InfiniteVLError, ValueError, TypeError, OSError) as error:
                logger.error("%s cannot be opened, and stays where it is: %s", stream_id, error)
                return str(self.socket)
            else:
                return str(self.socket)

    def check_health(self) -> None:
        """See that the server and its engine work.

        Raises:
            RuntimeError: they do not; Ray Serve starts another replica.
        """
        if not self._thread.is_alive() or not self.context.worker.is_alive:
            raise RuntimeError("the server of this replica has ended.")

    async def end(self) -> None:
        """Take no more calls, let answers end, save all streams and let them go."""
        self.socket.unlink(missing_ok=True)
        self._server.should_exit = True
        await asyncio.to_thread(self._thread.join)
