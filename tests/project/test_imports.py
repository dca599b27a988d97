"""Who may import whom, and what `import infinitevl` costs."""

import graphlib
import subprocess
import sys

import pytest

from tests.project.source import imports_of, modules, room

EVERYBODY_MAY = {"errors", "files", "interrupt"}
ROOMS = {
    "errors": set(),
    "files": set(),
    "interrupt": set(),
    "config_fields": set(),
    "config": {"config_fields"},
    "ops": set(),
    "scenes": set(),
    "state_file": set(),
    "state": {"config", "state_file"},
    "processing": {"config"},
    "model": {"config", "ops", "state"},
    "engine": {"config", "model", "processing", "state", "state_file"},
    "training": {"config", "model", "processing", "scenes", "state"},
    "bench": {"config", "engine", "model", "ops", "processing", "state", "training"},
    "evaluation": {"engine", "processing", "scenes"},
    "server": {"engine", "processing"},
}
EVERYTHING = {"", "cli"}  # the package's own __init__ and the commands may import every room
DOORS = {
    "accelerate": {"training"},
    "av": {"processing"},
    "datasets": {"training"},
    "fastapi": {"server"},
    "fla": {"ops"},
    "matplotlib": {"bench", "evaluation", "training"},
    "peft": {"training"},
    "prometheus_client": {"server"},
    "rich": {"cli"},
    "triton": {"ops"},
    "typer": {"cli"},
    "uvicorn": {"server"},
    # these must never be needed
    "causal_conv1d": set(),
    "flash_attn": set(),
    "qwen_vl_utils": set(),
    "torchaudio": set(),
    "torchvision": set(),
}


@pytest.mark.parametrize("module", modules())
def test_rooms_import_downward_only(module: str) -> None:
    here = room(module)
    if here in EVERYTHING:
        return
    allowed = ROOMS[here] | EVERYBODY_MAY | {here}
    wrong = [
        f"line {found.line}: {found.module}"
        for found in imports_of(module)
        if found.module.split(".")[0] == "infinitevl" and room(found.module) not in allowed
    ]
    assert not wrong, f"{module} may import {sorted(allowed)} of ours, but has {wrong}"


@pytest.mark.parametrize("module", modules())
def test_heavy_packages_have_one_door(module: str) -> None:
    wrong = [
        f"line {found.line}: {found.module}"
        for found in imports_of(module)
        if room(module) not in DOORS.get(found.module.split(".")[0], {room(module)})
    ]
    assert not wrong, f"{module} imports {wrong}, which belongs to other rooms: see DOORS in this file"


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {
        module: {found.module for found in imports_of(module) if found.at_import_time}
        & set(modules()) - {module}
        for module in modules()
        if module != "infinitevl"
    }
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = [*DOORS, "cv2", "resvg_py", "scipy", "pandas", "infinitevl.ops.triton"]
    for name in ("accelerate", "rich", "triton"):  # transformers, httpx and torch load these themselves
        heavy.remove(name)
    program = (
        "import sys, infinitevl\n"
        f"print(*[name for name in {heavy!r} if sys.modules.get(name) is not None], sep=',')"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout.strip() == "", f"import infinitevl also loads {finished.stdout.strip()}"
