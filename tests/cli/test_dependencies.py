"""Every package that the commands import at once comes with a plain installation."""

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
