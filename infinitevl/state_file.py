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


def shape_text(tensors: dict[str, Tensor], name: str) -> str:
    """How a message names the shape of a tensor that may be missing."""
    return f"shape {tuple(tensors[name].shape)}" if name in tensors else "nothing"


def checksum(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Of all that a file holds but the checksum itself."""
    rest = {key: text for key, text in metadata.items() if key != "checksum"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {shape_text(tensors, name)}".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def saved_settings(path: str | os.PathLike[str]) -> str:
    """The settings that were saved beside a state.

    Raises:
        StateError: not a readable state.
    """
    return read_file(Path(path))[1].get("settings", "")


def read_file(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata; StateError where there is no readable file."""
    if not path.is_file():
        raise StateError(f"there is no state at {path}. Save one with session.save(path).")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise StateError(
            f"{path} is not a readable state ({error}). It may be damaged; use another copy."
        ) from error


def check_metadata(
    path: str | os.PathLike[str], metadata: dict[str, str], fingerprint: str, tensors: dict[str, Tensor]
) -> None:
    """Refuse, with a StateError, what is no state of this format and this model, whole."""
    if metadata.get("format") != "infinitevl-state":
        raise StateError(f"{path} is a safetensors file but not a state of InfiniteVL.")
    if metadata.get("version") != FORMAT_VERSION:
        raise StateError(
            f"{path} was saved in state format {metadata.get('version')}, and this version of infinitevl "
            f"reads format {FORMAT_VERSION}; their fields differ. Go on with the version that saved it, or "
            "watch the stream again and save it anew."
        )
    if metadata.get("checksum") != checksum(tensors, metadata):
        raise StateError(f"{path} is damaged: its contents do not match their checksum. Use another copy.")
    if metadata.get("fingerprint") != fingerprint:
        raise StateError(
            f"{path} belongs to another model: its fingerprint is {metadata.get('fingerprint')}, "
            f"this model's is {fingerprint}. Load the model that saved it."
        )
