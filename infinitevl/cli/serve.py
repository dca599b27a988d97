"""`infinitevl serve`: a model, an engine, an address."""

import os
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import infinitevl
from infinitevl.cli.command import check_device, load_model
from infinitevl.errors import InfiniteVLError, InputError

if TYPE_CHECKING:
    from infinitevl.engine.engine import Engine

DEFAULT_MODEL = "builtin"
FrameMode = Literal["image", "video"]


@dataclass(frozen=True)
class ServeOptions:
    """The options of the command, by the names that they have on the command line."""

    host: str = "127.0.0.1"
    port: int = 8000
    slots: int = 8
    mode: FrameMode = "image"
    api_key_file: str | None = None
    allow_folder: list[str] = field(default_factory=list)
    allow_private: bool = False
    allow_unsigned_states: bool = False
    state_dir: str | None = None
    save_every: float = 5.0
    park_memory: float | None = None
    park_disk: float | None = None
    replicas: int = 1


def run_serve(
    options: ServeOptions,
    *,
    model: str | None,
    device: str | None,
    dtype: str,
    quantization: str,
    attention: str | None = None,
) -> None:
    """Load a model and serve it; what can be seen to be wrong is said before that.

    Raises:
        InputError: an open address without keys, a folder that does not exist, a missing extra.
    """
    try:
        from infinitevl.server.run import check_host, check_port, serve
        from infinitevl.server.security import server_secret
        from infinitevl.server.settings import ServerSettings
    except ImportError as error:
        raise InputError(
            f"the server needs {error.name}: install it with pip install 'infinitevl[serve]'"
        ) from error

    from infinitevl.model.opening import description_of

    if options.replicas > 1:
        _check_replicas(options, model, device)
    keys = _keys(options.api_key_file)
    check_host(options.host, keys)
    check_port(options.host, options.port)
    folders = tuple(_folder(path) for path in options.allow_folder)
    state_dir = None if options.state_dir is None else _state_dir(options.state_dir)
    settings = ServerSettings(
        model=model or DEFAULT_MODEL,
        description=description_of(model),
        version=infinitevl.__version__,
        keys=keys,
        secret=server_secret(state_dir, os.environ.get("INFINITEVL_SECRET")),
        folders=folders,
        allow_private=options.allow_private,
        allow_unsigned_states=options.allow_unsigned_states,
        state_dir=state_dir,
        save_every=options.save_every,
        park_memory=_gibibytes(options.park_memory),
        park_disk=_gibibytes(options.park_disk),
    )
    make_engine = partial(_engine, model, device, dtype, quantization, attention, options.slots, options.mode)
    whom = f"{len(keys)} API keys" if keys else "no API key: only this machine is answered"
    place = f"http://{options.host}:{options.port}"
    if options.replicas == 1:
        engine = make_engine()
        print(f"{place} serves {settings.model} ({whom}); /docs lists all calls", file=sys.stderr)
        serve(engine, settings, options.host, options.port)
        return
    from infinitevl.server.replicas.serving import Plan, serve_replicas

    print(f"{place} will serve {settings.model} with {options.replicas} replicas ({whom})", file=sys.stderr)
    plan = Plan.of(options.replicas, os.cpu_count() or 1, _num_gpus(device))
    serve_replicas(make_engine, replace(settings, is_replica=True), plan, options.host, options.port)


def _engine(
    model: str | None,
    device: str | None,
    dtype: str,
    quantization: str,
    attention: str | None,
    slots: int,
    mode: FrameMode,
) -> "Engine":
    from infinitevl.engine.engine import Engine

    network, processor = load_model(model, device, dtype, quantization, attention)
    return Engine(network, processor, num_slots=slots, mode=mode)


def _check_replicas(options: ServeOptions, model: str | None, device: str | None) -> None:
    """See what each replica would fail at, after a long start of all of them."""
    if options.state_dir is None:
        raise InputError("--replicas needs --state-dir: streams move between replicas through this folder")
    if device is not None and ":" in device:
        raise InputError(f"--device {device}: each replica is given its own GPU; with --replicas say cuda")
    from infinitevl.server.replicas.serving import check_ray

    check_ray()
    from infinitevl.engine.loading import find

    check_device(device)
    find(model)


def _num_gpus(device: str | None) -> int:
    import torch

    return 0 if device == "cpu" else torch.cuda.device_count()


def _gibibytes(number: float | None) -> int | None:
    return None if number is None else int(number * 2**30)


def _keys(path: str | None) -> tuple[str, ...]:
    from infinitevl.server.security import parse_keys

    text = os.environ.get("INFINITEVL_API_KEYS", "")
    if path is not None:
        try:
            text += "\n" + Path(path).read_text()
        except (OSError, ValueError) as error:
            raise InputError(f"--api-key-file {path} cannot be read: {error}") from error
    keys = parse_keys(text)
    if path is not None and not keys:
        raise InputError(f"--api-key-file {path} holds no key; write one a line")
    return keys


def _folder(path: str) -> Path:
    if not Path(path).is_dir():
        raise InputError(f"--allow-folder {path} is no folder")
    return Path(path)


def _state_dir(path: str) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfiniteVLError(f"--state-dir {path} cannot be used: {error}") from error
    return Path(path)
