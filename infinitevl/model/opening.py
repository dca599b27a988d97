"""A model's weights by name: the one that comes with the package, a folder, or a name of the hub."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import huggingface_hub
import transformers
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import get_session

from infinitevl.config import InfiniteVLConfig
from infinitevl.errors import CheckpointError
from infinitevl.model import adapters
from infinitevl.model.attention_variants import apply_variant_
from infinitevl.model.infinitevl import InfiniteVLForConditionalGeneration
from infinitevl.model.qwen import foreign_config
from infinitevl.model.weights import loading_errors

BUILTIN, BUILTIN_STAGE_2 = "builtin", "builtin-stage2"  # whole, and without its adapter
_ABILITIES = re.compile(r"^## What it can and cannot do$(.*?)(?=^## |\Z)", re.DOTALL | re.MULTILINE)
_SECONDS_TO_ANSWER = 5
Name = str | os.PathLike[str]


def open_model(
    name: Name | None, dtype: Any, attention: str | None = None
) -> InfiniteVLForConditionalGeneration:
    """The model of a name, on the CPU; an adapter beside its weights is merged.

    A folder of Qwen2.5-VL runs as it is: its layers are full attention, so states need a `max_length`.

    Args:
        name: None for the built-in model. dtype: what transformers takes; "auto" is the folder's own.
        attention: one of `attention_variants.VARIANTS`, or None for the folder's own.

    Raises:
        CheckpointError, OSError, ValueError: nothing usable under that name.
    """
    place = place_of(name)
    with loading_errors(place):
        config = foreign_config(place)
        if attention is not None:
            config = config or InfiniteVLConfig.from_pretrained(place)
            apply_variant_(config, attention)
    own: dict[str, Any] = {} if config is None else {"config": config}
    with quiet_progress(everywhere=is_builtin(name)):
        model = InfiniteVLForConditionalGeneration.from_pretrained(place, dtype=dtype, **own)
    if name != BUILTIN_STAGE_2 and (Path(place) / adapters.FOLDER).is_dir():
        adapters.merge_adapter_(model, Path(place) / adapters.FOLDER)
    return model


@contextlib.contextmanager
def quiet_progress(everywhere: bool = False) -> Iterator[None]:
    """Show progress bars of transformers and the hub on a terminal only, where a person sees them move.

    everywhere: not there either, for what takes no time.
    """
    logging = transformers.utils.logging
    wanted = huggingface_hub.constants.HF_HUB_DISABLE_PROGRESS_BARS is False  # by the environment
    shown = not everywhere and sys.stderr is not None and sys.stderr.isatty()
    if wanted or shown or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def place_of(name: Name | None) -> str:
    """What `from_pretrained` takes for a name: a folder with a model, or the name itself.

    Without a network a hub name gives the folder of its download.

    Raises:
        CheckpointError: a path of a folder that is not there, or that holds no model; no hub is asked for it.
            A hub name that was not downloaded before, without a network.
    """
    if is_builtin(name):
        return str(builtin_folder())
    if not isinstance(name, str | os.PathLike) or not os.fspath(name) or isinstance(os.fspath(name), bytes):
        raise CheckpointError(f"{name!r} is no name of a model. Give a folder, a name of the hub, or None.")
    path = Path(name)
    try:
        is_there, has_config = path.exists(), (path / "config.json").is_file()
    except (OSError, ValueError) as error:  # a folder that may not be read, a name that no file can have
        raise CheckpointError(f"{str(name)[:200]!r} cannot be read: {error}.") from error
    if is_there and not has_config:
        raise CheckpointError(f"{name} has no config.json. Give a folder with config.json and weights.")
    if not is_there and is_path(str(name)):
        raise CheckpointError(
            f"there is no folder {name}. Give a folder with config.json and weights, or a name."
        )
    return str(name) if path.exists() or _hub_answers() else _cached_folder(str(name))


def _hub_answers() -> bool:
    """Whether the model hub can be asked; one short question, where its own calls would try for a minute."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(huggingface_hub.constants.ENDPOINT, timeout=_SECONDS_TO_ANSWER)
    except (httpx.HTTPError, OSError):
        return False
    return True


def _cached_folder(name: str) -> str:
    """Where an earlier download of a hub name lies.

    Raises:
        CheckpointError: it was never downloaded.
    """
    try:
        config = huggingface_hub.try_to_load_from_cache(name, "config.json")
    except HFValidationError as error:
        raise CheckpointError(f"{name!r} is no name of a model: {error}") from error
    if isinstance(config, str):
        return str(Path(config).parent)
    raise CheckpointError(
        f"{name!r} is no folder here, was not downloaded before, and the model hub cannot be reached."
    )


def builtin_folder() -> Path:
    """Where the built-in model lies in the installed package."""
    return Path(str(resources.files("infinitevl"))) / "assets" / BUILTIN


def is_builtin(name: Name | None) -> bool:
    """Whether a name, or none, means the built-in model."""
    return name in (None, BUILTIN, BUILTIN_STAGE_2)


def description_of(name: Name | None) -> str | None:
    """What the card in a model's folder says that it can and cannot do; None where it says nothing."""
    folder = builtin_folder() if is_builtin(name) else Path(str(name))
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):  # no folder, no card, or one that is no text
        return None
    found = _ABILITIES.search(card)
    return " ".join(found[1].replace("*", "").split()) if found else None


def is_path(name: str) -> bool:
    """Whether no hub can know it: names of the hub have one slash at most, and no dot in front."""
    return name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1
