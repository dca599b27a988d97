"""The model that comes with the package: its names, and where it lies."""

import os
from importlib import resources
from pathlib import Path

BUILTIN, BUILTIN_STAGE_2 = "builtin", "builtin-stage2"  # whole, and without its adapter


def builtin_folder() -> Path:
    """Where the built-in model lies in the installed package."""
    return Path(str(resources.files("infinitevl"))) / "assets" / BUILTIN


def is_builtin(name: str | os.PathLike[str] | None) -> bool:
    """Whether a name, or none, means the built-in model."""
    return name in (None, BUILTIN, BUILTIN_STAGE_2)
