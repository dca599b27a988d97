"""What comes without torch and transformers: the import, help, the version, and errors in how one calls."""

import ast
import importlib
import json
import re
import subprocess
import sys

import infinitevl
from tests.project.source import PACKAGE, ROOT

HEAVY = ["torch", "transformers", "numpy", "PIL", "av", "safetensors", "accelerate", "huggingface_hub"]
LOADED = f"print(*sorted(set(sys.modules) & set({HEAVY!r})), sep=',')"
CALLS = f"""
import json, sys
from infinitevl.cli import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    try:
        main()
    except SystemExit as end:
        code = end.code
    print("called", json.dumps([words, code, sorted(set(sys.modules) & set({HEAVY!r}))]))
"""
HELPS = [
    [],
    ["demo"],
    ["chat"],
    ["watch"],
    ["serve"],
    ["models"],
    ["doctor"],
    ["bench"],
    ["bench", "decode"],
    ["train"],
    ["train", "init"],
    ["train", "sft"],
]
MISTAKES = [
    ["--colour"],
    ["wathc"],
    ["watch"],
    ["watch", "clip.mp4", "--colour"],
    ["watch", "clip.mp4", "--mode", "sepia"],
    ["watch", "clip.mp4", "--max-frames", "0"],
    ["watch", "clip.mp4", "--fps", "fast"],
    ["watch", "clip.mp4", "--ask", "3x: what?"],
    ["watch", "clip.mp4", "--report", "no/such/folder/page.html"],
    ["watch", "clip.mp4", "--save-state", "no/such/folder/state"],
    ["chat", "--dtype", "float12"],
    ["chat", "--temperature", "-1"],
    ["serve", "--slots", "2"],
    ["serve", "--port", "0"],
    ["demo", "--frames", "7"],
    ["demo", "--report", "no/such/folder/page.html"],
    ["bench", "decode", "--contexts", "1,two"],
    ["bench", "decode", "--size", "9b"],
    ["bench", "stream", "--out", "no/such/folder/lines.jsonl"],
    ["train", "sft"],
    ["train", "init", "--teacher", "there", "--out", "here", "--period", "0"],
]


def results(calls: list[list[str]]) -> list[tuple[list[str], int, list[str]]]:
    """Of calls made one after the other in one interpreter: words, exit code, heavy packages by then."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, json.dumps(calls)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("called ")]
    return [tuple(json.loads(line.removeprefix("called "))) for line in lines]


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys, infinitevl, infinitevl.errors; {LOADED}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == ""


def test_the_whole_public_surface_needs_no_extra_and_no_forbidden_package() -> None:
    unwanted = ["peft", "datasets", "matplotlib", "pydantic", "typer", "cv2", "scipy", "pandas"]
    unwanted += [f"infinitevl.ops.{name}.triton" for name in ("attention", "delta_net", "linear")]
    unwanted += ["torchvision", "torchaudio", "flash_attn", "causal_conv1d", "qwen_vl_utils"]
    program = (
        "import sys, infinitevl\n"
        "[getattr(infinitevl, name) for name in infinitevl.__all__]\n"
        f"print(*[name for name in {unwanted!r} if sys.modules.get(name)])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == ""


def test_help_and_the_version_come_without_torch() -> None:
    calls = [*([*words, "--help"] for words in HELPS), ["--version"]]
    assert results(calls) == [(words, 0, []) for words in calls]


def test_a_mistake_in_a_call_is_told_without_torch() -> None:
    assert results(MISTAKES) == [(words, 2, []) for words in MISTAKES]


def test_type_checkers_read_the_same_names_as_python() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    told = {
        alias.asname: node.module
        for block in tree.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == infinitevl._HOMES


def test_a_public_name_is_the_one_of_its_module() -> None:
    for name, home in infinitevl._HOMES.items():
        assert getattr(infinitevl, name) is getattr(sys.modules[home], name)
        assert name in dir(infinitevl)
    assert not hasattr(infinitevl, "lood")


def test_pages_and_examples_import_public_names_only() -> None:
    """Names of the package itself, of its client, and of its training, which are too many for it."""
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").glob("*.py")]
    line = re.compile(r"^ *from (infinitevl[\w.]*) import (.+)$", re.MULTILINE)
    found = {
        (home, name.strip())
        for path in pages
        for home, names in line.findall(path.read_text())
        for name in names.strip("()").split(",")
    }
    homes = {home for home, _ in found if not home.startswith("infinitevl.training.")}
    assert homes == {"infinitevl", "infinitevl.client"}
    assert all(name in infinitevl.__all__ for home, name in found if home == "infinitevl")
    assert all(hasattr(importlib.import_module(home), name) for home, name in found)
