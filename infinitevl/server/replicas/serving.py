"""Starts replicas on Ray Serve, on this machine, and the ingress before them; ends them all in order."""

import asyncio
import contextlib
import logging
import math
import os
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from infinitevl.engine.engine import Engine
from infinitevl.errors import InfiniteVLError, InputError
from infinitevl.server.replicas.ingress import create_ingress
from infinitevl.server.replicas.replica import Replica
from infinitevl.server.replicas.ring import Unreachable
from infinitevl.server.run import DRAIN, listen
from infinitevl.server.settings import ServerSettings
from infinitevl.server.streams import root_of

logger = logging.getLogger(__name__)
_NAME = "infinitevl"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_SAVE = 90.0  # seconds for the saves of all streams of a replica, after the answers under way have ended
_CALL = 10.0  # seconds in which a replica answers where a stream is
_LOGS = {"log_level": "WARNING", "enable_access_log": False}
_TOKEN = "RAY_AUTH_TOKEN"
_OBJECTS = 100 * 2**20  # bytes of Ray's store, in which next to nothing is kept


@dataclass(frozen=True)
class Plan:
    """How many replicas there are, and what each gets of the machine."""

    num_replicas: int
    num_cpus: int
    num_gpus: float

    @classmethod
    def of(cls, num_replicas: int, cpus: int, gpus: int) -> "Plan":
        """Equal shares; a GPU is shared where there are more replicas than GPUs."""
        share = min(1.0, gpus / num_replicas)
        return cls(num_replicas, max(1, cpus // num_replicas), math.floor(share * 100) / 100)


def check_ray() -> None:
    """See that Ray Serve is there; what it may do on its own is decided before it is imported.

    It listens on loopback alone, asks for a token, tells nobody that it is used, and has no dashboard.

    Raises:
        InputError: it is not installed.
    """
    if "ray" in sys.modules and _TOKEN not in os.environ:
        raise InputError("ray was imported already, so its ports would be open: start replicas before that")
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",  # its name for: no cluster, so no address but loopback
        RAY_AUTH_MODE="token",
        **{_TOKEN: os.environ.get(_TOKEN) or secrets.token_hex(32)},
        RAY_USAGE_STATS_ENABLED="0",
    )
    try:
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--replicas needs {error.name}: install it with pip install 'infinitevl[scale]'"
        ) from error


def _on_loopback(make_engine: Callable[[], Engine]) -> Engine:
    """Make an engine; before that see that Ray Serve's own port of this replica is open to loopback alone.

    It asks for the token as well, so what is not found in a later version of Ray leaves that one lock.
    """
    from ray.serve._private import replica

    bind = getattr(replica, "add_port_to_grpc_server", None)
    if bind is None:
        logger.warning("Ray Serve's port of this replica may be open to other machines, which have no token.")
    else:
        replica.add_port_to_grpc_server = lambda server, address: bind(server, "127.0.0.1:0")
    return make_engine()


class RayRing:
    """Ray Serve's consistent hashing: the replica of a stream is known from the id of its first ancestor."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def place(self, stream_id: str) -> Path:
        """See `ring.Ring`."""
        handle = self._handle.options(session_id=root_of(stream_id))
        try:
            path = await asyncio.wait_for(handle.place.remote(stream_id), _CALL)
        except Exception as error:  # of Ray: the replica has just died, is being replaced, or does not answer
            logger.info("no replica answers for %s: %r", stream_id, error)
            raise Unreachable from error
        if path is None:
            raise Unreachable
        return Path(path)


class _Deployed(Replica):
    async def __del__(self) -> None:
        """Ray Serve calls this before it ends a replica, also one that did not start, and waits for it."""
        if hasattr(self, "socket"):
            await self.end()


class Replicas:
    """The replicas of one server.

    Args:
        make_engine: makes a replica's engine in its process; goes there as a pickle.
    """

    def __init__(
        self, make_engine: Callable[[], Engine], settings: ServerSettings, folder: Path, plan: Plan
    ) -> None:
        self._arguments, self.plan = (partial(_on_loopback, make_engine), settings, str(folder)), plan

    def scale(self, num_replicas: int) -> RayRing:
        """Have so many from now on; those that run are drained and replaced. Returns when all are ready.

        Raises:
            InfiniteVLError: they do not start.
        """
        from ray import serve
        from ray.serve.config import RequestRouterConfig

        deployment = serve.deployment(
            _Deployed,
            name="replica",
            num_replicas=num_replicas,
            ray_actor_options={"num_cpus": self.plan.num_cpus, "num_gpus": self.plan.num_gpus},
            logging_config=_LOGS,
            max_ongoing_requests=1024,  # of `place`, which is short; calls go to the replica's own socket
            graceful_shutdown_timeout_s=DRAIN + _SAVE,
            graceful_shutdown_wait_loop_s=0.1,
            health_check_period_s=2,
            health_check_timeout_s=30,
            request_router_config=RequestRouterConfig(
                request_router_class=_ROUTER, request_router_kwargs={"num_fallback_replicas": 0}
            ),
        )
        try:
            handle = serve.run(deployment.bind(*self._arguments), name=_NAME, route_prefix=None)
        except RuntimeError as error:
            raise InfiniteVLError(f"the replicas do not start: {error}") from error
        return RayRing(handle)

    def end(self) -> None:
        """Let each end its answers and save its streams, then end Ray Serve."""
        from ray import serve

        deadline = time.monotonic() + DRAIN + _SAVE
        serve.delete(_NAME, _blocking=False)
        while _NAME in serve.status().applications and time.monotonic() < deadline:
            time.sleep(0.1)
        serve.shutdown()


@contextlib.contextmanager
def started(
    make_engine: Callable[[], Engine], settings: ServerSettings, plan: Plan
) -> Iterator[tuple[Replicas, RayRing, Path]]:
    """Replicas, their ring and the folder of their sockets, until the block ends.

    Raises:
        InputError: Ray is not installed. InfiniteVLError: they do not start.
    """
    check_ray()
    import ray
    from ray import serve

    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(plan.num_cpus))}
    with tempfile.TemporaryDirectory(prefix="infinitevl-") as folder:
        ray.init(
            address="local",
            num_cpus=plan.num_cpus * plan.num_replicas,
            num_gpus=math.ceil(plan.num_gpus * plan.num_replicas),
            include_dashboard=False,
            object_store_memory=_OBJECTS,
            logging_level=logging.WARNING,
            runtime_env={"env_vars": threads},
        )
        try:
            serve.start(
                proxy_location="Disabled",
                logging_config=_LOGS,
            )
            replicas = Replicas(make_engine, settings, Path(folder), plan)
            try:
                yield replicas, replicas.scale(plan.num_replicas), Path(folder)
            finally:
                replicas.end()
        finally:
            ray.shutdown()


def serve_replicas(
    make_engine: Callable[[], Engine], settings: ServerSettings, plan: Plan, host: str, port: int
) -> None:
    """Serve until SIGINT or SIGTERM; then answers end, and the replicas save their streams."""
    with started(make_engine, settings, plan) as (_, ring, folder):
        signal.signal(signal.SIGTERM, _leave)  # Ray's own handler would end this process at once
        app = create_ingress(ring, folder, settings)
        with contextlib.suppress(KeyboardInterrupt):
            listen(app, settings, host, port, app.state.ingress.end_listening)


def _leave(number: int, frame: object) -> None:
    raise SystemExit(0)
