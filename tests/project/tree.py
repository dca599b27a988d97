"""Write docs/tree.md from the first sentence of each module: python -m tests.project.tree"""

import ast
from pathlib import Path

from tests.project.source import ROOT

PAGE = ROOT / "docs" / "tree.md"
HEAD = """# The tree of files

Written by `python -m tests.project.tree` from the first sentence of every module; a test compares the two.
"""
FOLDERS = {
    "infinitevl": "The package; what follows directly is open to all of its folders.",
    "builtin": "How the built-in model is made: fetch, draw, train, score. Not part of the wheel.",
    "benchmarks": "Measurements, one JSON line each, with device, commit and versions.",
    "examples": "Short programs, and a picture and a video to try them on.",
}
OTHERS = {
    "check.py": "Format, lint, types and tests: the same for people and for CI.",
    "docs/": "These pages.",
    "recipes/": "Settings of training runs: the published 4B model, a small one, the built-in model.",
    "tests/": "Mirrors the package; `tests/gpu` needs a CUDA device.",
}


def page() -> str:
    """The whole page: one section for each folder with modules, one line for each module."""
    sections = [_section(folder) for top in FOLDERS for folder in _folders(ROOT / top)]
    others = "\n".join(f"- `{name}` {text}" for name, text in OTHERS.items())
    return "\n".join([HEAD, *sections, f"## Beside them\n\n{others}\n"])


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring up to its first full stop, on one line.

    Raises:
        ValueError: the module has no docstring.
    """
    text = ast.get_docstring(ast.parse(path.read_text()))
    if not text:
        raise ValueError(
            f"{path.relative_to(ROOT)} has no docstring: its first sentence is its line in docs/tree.md"
        )
    line = " ".join(text.split("\n\n")[0].split())
    return line.partition(". ")[0].rstrip(".") + "."


def _folders(top: Path) -> list[Path]:
    """A folder and those below it that hold modules, in the order of their paths."""
    return sorted({top, *(path.parent for path in top.rglob("*.py"))})


def _section(folder: Path) -> str:
    name = folder.relative_to(ROOT).as_posix()
    init = folder / "__init__.py"
    about = FOLDERS.get(name) or first_sentence(init)
    lines = [
        f"- `{path.name}` {first_sentence(path)}" for path in sorted(folder.glob("*.py")) if path != init
    ]
    return "\n\n".join([f"## {name}/", about, *(["\n".join(lines)] if lines else [])]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
