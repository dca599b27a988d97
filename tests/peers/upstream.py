"""Fetches the tests that transformers carries in its source package, and imports what they need.

Nothing of transformers is kept in this repository: pip fetches the source package of the installed version
into a folder of the user's cache. It lacks some of the files that its tests import; stand-ins take their
places here, and the tests of those files do not run.
"""

import importlib
import os
import subprocess
import sys
import tarfile
import types
from pathlib import Path
from typing import Any

import pytest
import transformers

from tests.processing.media import make_picture, write_video

PACKAGES = (f"transformers=={transformers.__version__}", "parameterized==0.9.0")
NO_NETWORK = "no network for transformers' source package"
_NAME = "transformers_own_tests"  # the package that holds them, beside our own `tests`
_UNREACHABLE = ("No matching distribution", "onnection", "Could not fetch", "timed out")


def cache_folder() -> Path:
    """Where the source package of the installed transformers is kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "infinitevl-tests" / f"transformers-{transformers.__version__}"


def fetch(folder: Path) -> None:
    """Download and unpack the tests of the installed transformers.

    Skips the test that asks where no package registry answers.
    """
    done = _tests(folder) / "__init__.py"
    if done.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    _download(folder)
    (source,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    done.touch()  # their tests of configurations read it; it comes last, when all else is there


def _tests(folder: Path) -> Path:
    return folder / f"transformers-{transformers.__version__}" / "tests"


def _download(folder: Path) -> None:
    call = [sys.executable, "-m", "pip", "download", "--no-deps"]
    call += ["--no-binary", "transformers", "--dest", str(folder), *PACKAGES]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode and any(words in done.stderr for words in _UNREACHABLE):
        pytest.skip(NO_NETWORK)
    assert done.returncode == 0, f"{call}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


def read(folder: Path, name: str) -> Any:
    """Import one file of the fetched tests, with stand-ins for what the source package lacks.

    It stays imported: call this in a process of its own.
    """
    package = types.ModuleType(_NAME)
    package.__path__ = [str(_tests(folder))]
    sys.modules |= {_NAME: package, **_stand_ins(folder)}
    sys.path += [str(path) for path in folder.glob("parameterized-*.whl")]
    return importlib.import_module(f"{_NAME}.{name}")


def _stand_ins(folder: Path) -> dict[str, types.ModuleType]:
    """Modules that the tests import and the source package has not, with the names that are asked of them."""
    given: dict[str, dict[str, Any]] = {
        f"{_NAME}.exporters": {},
        f"{_NAME}.exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
        f"{_NAME}.generation": {},
        f"{_NAME}.generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
        f"{_NAME}.utils": {},
        f"{_NAME}.utils.test_configuration_utils": {"config_common_kwargs": {}},
        "fetch_hub_objects_for_ci": {"url_to_local_path": lambda url: _local_medium(folder, url)},
    }
    modules = {name: types.ModuleType(name) for name in given}
    for name, names in given.items():
        vars(modules[name]).update(names)
    return modules


def _local_medium(folder: Path, address: str) -> str:
    """A picture or a video of ours in place of one on the hub."""
    place = folder / Path(address).name
    if place.suffix in (".png", ".jpg") and not place.exists():
        make_picture(width=112, height=112).save(place)
    if place.suffix == ".mp4" and not place.exists():
        write_video(place, list(range(11)))
    return str(place)
