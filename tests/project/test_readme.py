"""The pages tell the truth: their commands exist, the tree is the tree, links lead somewhere."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.core import TyperGroup as Group
from typer.main import get_command

import infinitevl
from infinitevl.cli import app
from tests.project import tree
from tests.project.source import ROOT

README = (ROOT / "README.md").read_text()
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def block_after(mark: str) -> list[str]:
    """The lines of the fenced block that follows the comment `<!-- mark -->`."""
    found = re.search(rf"<!-- {re.escape(mark)} -->\n```\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README.md has no block after <!-- {mark} -->"
    return found[1].splitlines()


def shell_lines(page: Path) -> list[list[str]]:
    """Every call of `infinitevl` in a page's blocks and in its text, in words; remarks are cut off."""
    blocks = re.findall(r"```(?:bash|sh|)\n(.*?)```", page.read_text(), re.DOTALL)
    lines = [line.split("   ")[0] for block in blocks for line in block.splitlines()]
    lines += re.findall(r"`(infinitevl [\w-]+ [^`]*)`", page.read_text())
    return [shlex.split(line) for line in lines if re.match(r"(\.venv/bin/)?infinitevl ", line)]


@pytest.mark.parametrize("name", ["demo", "test"])
def test_a_promised_command_is_one_line_that_installs_the_tested_versions(name: str) -> None:
    (line,) = block_after(f"command: {name}")
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_pages_exists(page: Path) -> None:
    commands = get_command(app).commands
    for _, name, *words in shell_lines(page):
        assert name in commands, f"{page.name} speaks of `infinitevl {name}`; there are {sorted(commands)}"
        command = commands[name]
        if isinstance(command, Group):
            assert words and words[0] in command.commands, f"{page.name}: `infinitevl {name}` needs a command"
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        unknown = {word for word in words if word.startswith("--")} - options
        assert not unknown, f"{page.name}: `infinitevl {name}` has no {unknown}"


def test_the_page_of_the_tree_is_what_the_modules_say() -> None:
    written, true = tree.PAGE.read_text().splitlines(), tree.page().splitlines()
    missing = [line for line in true if line not in written]
    stale = [line for line in written if line not in true]
    assert written == true, (
        "docs/tree.md is not what the modules say; write it anew with `python -m tests.project.tree`\n"
        f"missing: {missing}\nstale: {stale}"
    )


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 170


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to {missing}"


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the hosts of repositories make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_headings_lead_to_a_heading(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)", page.read_text())
    missing = [
        (name, anchor)
        for name, anchor in targets
        if anchor not in anchors(page.parent / name if name else page)
    ]
    assert not missing, f"{page.name} links to {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_in_the_pages_uses_names_that_exist(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module == "infinitevl":
                missing = {alias.name for alias in node.names} - set(infinitevl.__all__)
                assert not missing, f"{page.name} imports {missing}"


def test_the_programs_in_the_readme_run_one_after_the_other_and_read_their_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for program in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(program, "README.md", "exec"), names)
    assert (tmp_path / "stream.safetensors").is_file()
    assert capsys.readouterr().out.splitlines() == ["HELLO", "HELLO", str(["HELLO"] * 3)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_in_the_pages_exist(page: Path) -> None:
    pictures = re.findall(r"(?:src|srcset)=\"([^\"]+)\"", page.read_text())
    missing = [picture for picture in pictures if not (page.parent / picture).is_file()]
    assert not missing, f"{page.name} shows {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_pages_name_exist(page: Path) -> None:
    named = re.findall(r"`((?:tests|docs|examples|builtin|infinitevl|recipes)/[\w./-]+)`", page.read_text())
    missing = [name for name in named if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names {missing}"
