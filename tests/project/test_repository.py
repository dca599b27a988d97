"""What the repository holds: no traces of one machine, light weights, short files, one public surface."""

import ast
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

import infinitevl
from tests.project.source import ROOT, modules

# A name here is a promise: taking one away breaks somebody's program.
PUBLIC_NAMES = """
    Answer ChatSession CheckpointError Engine Frame InfiniteVLConfig InfiniteVLError
    InfiniteVLForConditionalGeneration InfiniteVLProcessor InputError Sampling SourceError StateCache
    StateError StreamSession StreamState StreamStats list_models load merge_adapter_
    open_source process_vision_info
""".split()
MEGABYTE = 1_000_000
SKIPPED_FOLDERS = {".git", ".venv", "build", "dist"}


def tracked_files() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode == 0 and listing.stdout:
        paths = [ROOT / name for name in listing.stdout.split("\0") if name]
    else:  # an unpacked archive instead of a clone
        paths = [path for path in ROOT.rglob("*") if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)]
    return [path for path in paths if path.is_file()]


def test_the_public_names_are_these_and_all_exist() -> None:
    assert sorted(infinitevl.__all__) == sorted(PUBLIC_NAMES)
    assert all(hasattr(infinitevl, name) for name in PUBLIC_NAMES)


def test_no_file_knows_one_machine() -> None:
    # written in two parts, because this file is looked at too
    traces = [a + b for a, b in [("/wo", "rk/"), ("/op", "t/"), ("/ro", "ot/"), ("/us", "r/lib/python")]]
    found = [
        f"{path.relative_to(ROOT)}: {trace}"
        for path in tracked_files()
        for trace in traces
        if trace.encode() in path.read_bytes()
    ]
    assert not found, f"paths of one machine: {found}"


def test_packages_come_by_name_so_that_a_mirror_works() -> None:
    hosts = [
        a + b
        for a, b in [("pypi", ".org"), ("pythonhosted", ".org"), ("registry.npm", "js"), ("deb.", "debian")]
    ]
    found = [
        f"{path.relative_to(ROOT)}: {host}"
        for path in tracked_files()
        for host in hosts
        if host.encode() in path.read_bytes()
    ]
    assert not found, f"addresses of registries: {found}"


def test_weights_stay_small() -> None:
    sizes: Counter[Path] = Counter()
    for path in tracked_files():
        if path.suffix in {".safetensors", ".bin", ".pt", ".npz"}:
            sizes[path.parent.relative_to(ROOT)] += path.stat().st_size
    assert all(size <= 24 * MEGABYTE for size in sizes.values()), sizes
    assert sizes.total() <= 40 * MEGABYTE, sizes


@pytest.mark.parametrize("module", modules())
def test_a_file_can_be_read_in_one_sitting(module: str) -> None:
    lines = len(modules()[module].read_text().splitlines())
    assert lines <= 400, f"{modules()[module].relative_to(ROOT)} has {lines} lines: split it by idea"


@pytest.mark.parametrize("module", modules())
def test_nobody_reads_a_config_with_a_default(module: str) -> None:
    guesses = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(modules()[module].read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func) == "getattr"
        and len(node.args) == 3
        and ast.unparse(node.args[0]).endswith("config")
    ]
    assert not guesses, f"a config states its values; it is not asked with a default: {guesses}"


def test_bare_make_prints_help_and_help_knows_every_target() -> None:
    targets = re.findall(r"^([a-z][\w-]*):(.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets[0][0] == "help"  # the first target is what bare `make` runs
    assert all(re.search("## .", rest) for _, rest in targets), targets
