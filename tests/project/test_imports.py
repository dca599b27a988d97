"""Who may import whom."""

import graphlib
import re

import pytest

from tests.project.source import ROOT, imports_of, modules, room

EVERYBODY_MAY = {"errors", "files", "interrupt"}
ROOMS = {
    "errors": set(),
    "files": set(),
    "interrupt": set(),
    "config_fields": set(),
    "config": {"config_fields"},
    "ops": set(),
    "state_buffers": set(),
    "state_file": set(),
    "state": {"config", "state_buffers", "state_file"},
    "processing": {"config"},
    "model": {"config", "ops", "state"},
    "engine": {"config", "model", "processing", "state", "state_file"},
    "training": {"config", "model", "processing", "state"},
    "bench": {"config", "engine", "model", "ops", "processing", "state", "training"},
    "evaluation": {"engine", "processing"},
    "server": {"config", "engine", "processing", "state"},
    "client": set(),
}
# the folders of processing, from the bottom up
PROCESSING = {
    "fetching": set(),
    "prompt": set(),
    "pictures": {"fetching"},
    "sources": {"fetching", "pictures"},
    "processor": {"fetching", "pictures", "prompt", "sources"},
}
PROCESSING_DOORS = {"av": "sources", "httpx": "fetching", "httpcore": "fetching"}
# the package's own __init__, the commands and what the Auto classes are told may import every room
KERNELS = [f"infinitevl.ops.{name}.triton" for name in ("attention", "delta_net", "linear")]
EVERYTHING = {"", "cli", "registration"}
DOORS = {
    "accelerate": {"training"},
    "av": {"processing"},
    "datasets": {"training"},
    "fastapi": {"server"},
    "matplotlib": {"bench", "evaluation", "training"},
    "peft": {"training"},
    "prometheus_client": {"server"},
    "ray": {"server"},
    "rich": {"cli"},
    "triton": {"ops"},
    "starlette": {"server"},
    "typer": {"cli"},
    "uvicorn": {"server"},
    "websockets": {"server"},
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


@pytest.mark.parametrize("module", [name for name in modules() if name.startswith("infinitevl.processing.")])
def test_folders_of_processing_import_downward_only(module: str) -> None:
    here = module.split(".")[2]
    allowed = PROCESSING[here] | {here}
    for found in imports_of(module):
        if found.module.startswith("infinitevl.processing."):
            assert found.module.split(".")[2] in allowed, f"{module}, line {found.line}: {found.module}"
        elif door := PROCESSING_DOORS.get(found.module.split(".")[0]):
            assert here == door, f"{module}, line {found.line}: {found.module} belongs to {door}/"


def test_the_table_of_the_contributors_page_is_this_one() -> None:
    table = (ROOT / "CONTRIBUTING.md").read_text().split("```\ncli ")[1].split("```")[0]
    lines = [re.split(r" {2,}", line) for line in table.splitlines()[1:]]
    told = {
        name: set() if imports == "nothing" else set(imports.split(", "))
        for names, imports in lines
        for name in names.split(", ")
    }
    assert told == {name: allowed for name, allowed in ROOMS.items() if name not in EVERYBODY_MAY}


# What the built-in model is made with and the package need not know.
SMALL_WORLD = r"\b(emoji|sprites?|scenes?|buckets?|keyed|hands)\b"


@pytest.mark.parametrize("module", modules())
def test_the_package_knows_nothing_of_how_its_small_model_is_made(module: str) -> None:
    imported = [found.module for found in imports_of(module) if found.module.split(".")[0] == "builtin"]
    assert not imported, f"{module} imports {imported}"
    words = re.findall(SMALL_WORLD, modules()[module].read_text(), re.IGNORECASE)
    assert not words, f"{module} speaks of {sorted(set(words))}, which belong to builtin/"


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
