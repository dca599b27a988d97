"""Reading the project's own files: which modules there are, and what each imports."""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "infinitevl"


@dataclass(frozen=True)
class Import:
    """One imported module, by its full dotted name, and the line that says so."""

    module: str
    line: int
    at_import_time: bool


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(module: str) -> str:
    """The room of a module of ours: `model` for infinitevl.model.decoder, `` for infinitevl itself."""
    return [*module.split("."), ""][1]


def imports_of(module: str) -> list[Import]:
    """Every import statement of a module, those inside functions too."""
    path = modules()[module]
    tree = ast.parse(path.read_text())
    early = set(map(id, _run_at_import(tree.body)))
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return [
        Import(name, node.lineno, id(node) in early)
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _names(node, package)
    ]


def _run_at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements that run when the module is imported: no function bodies, no TYPE_CHECKING blocks."""
    found = []
    for node in body:
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        found.append(node)
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found += _run_at_import(
                [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            )
    return found


def _names(node: ast.Import | ast.ImportFrom, package: str) -> list[str]:
    """Full names; `from package import module` counts as the module where there is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*parents, *([node.module] if node.module else [])])
    ours = modules() if base.startswith("infinitevl") else {}
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in ours else base for alias in node.names]
