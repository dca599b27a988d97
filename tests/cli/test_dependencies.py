"""What the package imports is declared, and what an extra declares is imported."""

import re
import sys
import tomllib

from tests.project.source import ROOT, imports_of, modules, room


def test_what_the_commands_import_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = "\n" + "\n".join(project["dependencies"])
    used = {
        found.module.partition(".")[0]
        for module in modules()
        if room(module) == "cli"
        for found in imports_of(module)
        if found.at_import_time
    }
    packages = used - set(sys.stdlib_module_names) - {"infinitevl"}
    assert "psutil" in packages
    assert [name for name in packages if f"\n{name}" not in declared] == []


IMPORTED_BY_OTHERS = {"python_multipart"}  # by FastAPI, for forms


def test_the_package_imports_what_its_extras_bring():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    imported = {found.module.partition(".")[0] for module in modules() for found in imports_of(module)}
    brought = {
        re.split(r"[<>=;\[ ]", line)[0].replace("-", "_")
        for name, lines in extras.items()
        if name != "dev"
        for line in lines
    }
    assert {"peft", "pydantic"} <= brought and brought <= imported | IMPORTED_BY_OTHERS


def test_an_extra_that_a_message_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    texts = [path.read_text() for path in [*modules().values(), *ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
    named = {name for text in texts for name in re.findall(r"infinitevl\[(\w+)\]", text)}
    assert {"train", "plot"} <= named <= set(extras)
