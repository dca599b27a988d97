"""The checkpoint of a run: one file, the same whatever the number of processes and the sharding."""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write
from infinitevl.training.sharding import Sharding

CHECKPOINT = "checkpoint.pt"
Moments = dict[str, dict[str, Tensor]]
_KINDS = {"step": int, "trained": dict, "moments": dict, "feed": dict, "identity": dict}


def read_checkpoint(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads what `Trainer.save` wrote, onto the CPU.

    Raises:
        InfiniteVLError: there is no checkpoint, or it is damaged.
    """
    path = Path(folder) / CHECKPOINT
    if not path.is_file():
        raise InfiniteVLError(f"there is no {path} to resume from. Start the stage without --resume.")
    try:
        with zipfile.ZipFile(path) as archive:  # torch writes checksums, and does not look at them
            if (part := archive.testzip()) is not None:
                raise EOFError(f"{part} does not have its checksum")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, EOFError, ValueError, zipfile.BadZipFile, pickle.PickleError) as error:
        raise InfiniteVLError(f"{path} is damaged: {error}. Remove it and start the stage again.") from error
    kinds = {name: type(state.get(name)) for name in _KINDS} if isinstance(state, dict) else {}
    if kinds != _KINDS:
        raise InfiniteVLError(f"{path} is no checkpoint of a run. Remove it and start the stage again.")
    return state


def slim_checkpoint(folder: Path, out: Path) -> None:
    """Writes the checkpoint of a run without AdamW's moments and in bfloat16: a sixth of its bytes.

    A run resumes from it with a short warm-up, in which the moments are collected anew; the rounding of the
    weights is kept. Raises as `read_checkpoint`.
    """
    state = read_checkpoint(folder)
    trained = {name: weight.to(torch.bfloat16) for name, weight in state["trained"].items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as path:
        torch.save({**state, "trained": trained, "moments": {}}, path)


@contextlib.contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keeps other runs out of a folder, on systems and disks that can; a killed run's claim ends with it.

    Raises:
        InfiniteVLError: another run is at work there.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(place)
        raise InfiniteVLError(
            f"another run is at work in {folder}. Wait for its end, or give another folder as `out`."
        ) from error
    except OSError:  # a disk without locks
        pass
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_UN)
        os.close(place)


def remove_partial(folder: Path) -> None:
    """Removes half-written checkpoints of a process that was killed."""
    for path in folder.glob(f".{CHECKPOINT}.*.part"):
        path.unlink()


def check_same_run(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Compares the settings of a checkpoint with those of the run that resumes from it.

    Raises:
        InfiniteVLError: names the settings that differ.
    """
    other = [
        f"{key}: {saved.get(key)!r} then, {wanted.get(key)!r} now"
        for key in sorted({*saved, *wanted})
        if saved.get(key) != wanted.get(key)
    ]
    if other:
        raise InfiniteVLError(
            f"the checkpoint is of a run with other settings ({'; '.join(other)}). Take them back, or start "
            "in another folder."
        )


def gather_moments(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, nn.Parameter], sharding: Sharding
) -> Moments:
    """Returns AdamW's moments by the weight's name, whole, in the first process; nothing in the others.

    All processes must call it.
    """
    found: Moments = {}
    for name, weight in weights.items():
        for key, value in optimizer.state[weight].items():
            whole = sharding.gather(name, value) if value.dim() else value
            if whole is not None:
                found.setdefault(name, {})[key] = whole
    return found


def load_moments(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, nn.Parameter],
    sharding: Sharding,
    moments: Moments,
) -> None:
    """Gives AdamW the moments that `gather_moments` returned, or this process's parts of them."""
    names = {weight: name for name, weight in weights.items()}
    ordered = [weight for group in optimizer.param_groups for weight in group["params"]]
    parts = {
        number: {
            key: sharding.local_part(names[weight], value) if value.dim() else value
            for key, value in moments[names[weight]].items()
        }
        for number, weight in enumerate(ordered)
        if names[weight] in moments
    }
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": parts, "param_groups": groups})
