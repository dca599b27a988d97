"""The file of a saved state: what is checked before any of it is believed."""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from infinitevl.errors import StateError

FORMAT_VERSION = "2"
# Of states with sinks, which other versions would read wrongly; others stay in the format before.
FORMAT_VERSION_WITH_SINKS = "3"
_SINKS = "num_sink_tokens"
# What a window or a recurrent state may have been saved in; it is rounded to the model's own.
_ROUNDED = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST = 10**18  # of counts, positions and microseconds: sums of two are counted safely in int64


def shape_text(tensors: dict[str, Tensor], name: str) -> str:
    """How a message names the shape of a tensor that may be missing."""
    return f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Of all that a file holds but the checksum itself and a signature of it."""
    rest = {key: text for key, text in metadata.items() if key not in ("checksum", "signature")}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {shape_text(tensors, name)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def version_fields(num_sinks: int) -> dict[str, str]:
    """What a file's metadata says of its format, and of sinks where there are any."""
    if not num_sinks:
        return {"version": FORMAT_VERSION}
    return {"version": FORMAT_VERSION_WITH_SINKS, _SINKS: str(num_sinks)}


def saved_settings(path: str | os.PathLike[str]) -> str:
    """The settings that were saved beside a state.

    Raises:
        StateError: not a readable state.
    """
    return read_file(Path(path))[1].get("settings", "")


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; StateError where there is no readable file."""
    try:
        if not path.is_file():
            raise StateError(f"there is no state at {path}. Save one with session.save(path).")
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except StateError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(
            f"{path} is not a readable state ({error}). It may be damaged; use another copy."
        ) from error


def check_metadata(
    path: str | os.PathLike[str],
    metadata: dict[str, str],
    fingerprint: str,
    tensors: dict[str, Tensor],
    dtype: torch.dtype,
    num_sinks: int,
) -> None:
    """Refuse, with a StateError, what is no state of this format and this model, whole."""
    if metadata.get("format") != "infinitevl-state":
        raise StateError(f"{path} is a safetensors file but not a state of InfiniteVL.")
    if metadata.get("version") not in (FORMAT_VERSION, FORMAT_VERSION_WITH_SINKS):
        raise StateError(
            f"{path} was saved in state format {metadata.get('version')}, and this version of infinitevl "
            f"reads formats {FORMAT_VERSION} and {FORMAT_VERSION_WITH_SINKS}; their fields differ. Go on "
            "with the version that saved it, or watch the stream again and save it anew."
        )
    if metadata.get("checksum") != checksum(tensors, metadata):
        raise StateError(f"{path} is damaged: its contents do not match their checksum. Use another copy.")
    if (saved_sinks := metadata.get(_SINKS, "0")) != str(num_sinks):
        raise StateError(
            f"{path} holds windows with {saved_sinks} sink tokens, and this model's have {num_sinks}. Load "
            "the model with the attention that it had when the state was saved."
        )
    if metadata.get("fingerprint") != fingerprint:
        found = {tensor.dtype for tensor in tensors.values() if tensor.dtype in _ROUNDED}
        advice = "Load the model that saved it."
        if (torch.float16 in found) != (dtype == torch.float16):
            advice = (
                f"If it is the same model, load it in the dtype of then (it is {dtype} now): float16 rounds "
                "weights in a way of its own, which makes another model."
            )
        raise StateError(
            f"{path} belongs to another model: its fingerprint is {metadata.get('fingerprint')}, "
            f"this model's is {fingerprint}. {advice}"
        )


def stated_sizes(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], full_layer: int | None
) -> tuple[int, tuple[int, int], int | None]:
    """Batch size, height and width of a waiting frame, and the room of full-attention layers.

    Raises:
        StateError: the tensors that say so are not there, or have not so many axes.
    """
    wanted = {"length": 1, "span.waiting": 4}
    if full_layer is not None:
        wanted[f"layers.{full_layer}.keys"] = 4
    for name, num_axes in wanted.items():
        if name not in tensors or tensors[name].dim() != num_axes or 0 in tensors[name].shape[:2]:
            raise _damaged(path, f"{name} has {shape_text(tensors, name)}")
    room = None if full_layer is None else tensors[f"layers.{full_layer}.keys"].shape[2]
    height, width = tensors["span.waiting"].shape[2:]
    return len(tensors["length"]), (height, width), room


def check_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    wanted: dict[str, Tensor],
    room: int | None,
) -> None:
    """Refuse, with a StateError, tensors whose names, shapes, dtypes or values no state can have.

    Args:
        wanted: those of a state in the smallest dtypes that a file may have, such as one on the meta device.
        room: tokens that full-attention layers have room for.
    """
    for name in sorted(tensors.keys() | wanted.keys()):
        if shape_text(tensors, name) != shape_text(wanted, name):
            raise _damaged(
                path,
                f"{name} has {shape_text(tensors, name)}, this model's state has "
                f"{shape_text(wanted, name)} there",
            )
        given, least = tensors[name], wanted[name].dtype
        rounds = least.is_floating_point and given.dtype in _ROUNDED and given.itemsize >= least.itemsize
        if given.dtype != least and not rounds:
            raise _damaged(path, f"{name} is {given.dtype}")
        if not _is_possible(name, given):
            raise _damaged(path, f"{name} holds values that no stream has")
    if room is not None and int(tensors["length"].max()) > room:
        raise _damaged(path, f"length is more than the {room} tokens that its layers have room for")
    if 0 in tensors["span.waiting"].shape and bool(tensors["span.has_waiting"].any()):
        raise _damaged(path, "a frame waits in it that has no pixels")


def _is_possible(name: str, values: Tensor) -> bool:
    if values.is_floating_point():
        return bool(torch.isfinite(values).all())
    if values.dtype == torch.bool:
        return bool((values.view(torch.uint8) <= 1).all())
    if values.dtype == torch.int64:
        least = -_LARGEST if name.endswith("_time") else 0
        return bool(((values >= least) & (values <= _LARGEST)).all())
    return True


def _damaged(path: str | os.PathLike[str], what: str) -> StateError:
    return StateError(f"{path} is damaged: {what}. Use another copy.")
