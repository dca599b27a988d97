"""Scripts rely on these names: a change here is a change for users, and belongs in the change log."""

import typer.main

from infinitevl.cli import app

COMMON = {"--help", "--debug"}
MODEL = {"--model", "--device", "--dtype"}
ANSWER = {"--max-new-tokens", "--temperature"}
FROZEN = {
    "demo": COMMON | MODEL | {"--frames", "--json", "--report"},
    "chat": COMMON | MODEL | ANSWER | {"--image", "--video", "--prompt", "--json"},
    "watch": COMMON
    | MODEL
    | ANSWER
    | {"--ask", "--fps", "--live", "--mode", "--keep-turns", "--save-state", "--resume-state", "--max-frames"}
    | {"--report", "--json"},
    "models": COMMON | {"--json"},
    "doctor": COMMON | MODEL | {"--json"},
}


def options_of(command):
    context = typer.Context(command)
    return {
        name for parameter in command.get_params(context) for name in parameter.opts if name.startswith("-")
    }


def test_the_commands_and_their_options_are_frozen():
    group = typer.main.get_command(app)
    assert {name: options_of(command) for name, command in group.commands.items()} == FROZEN


def test_the_program_itself_has_a_version():
    assert "--version" in options_of(typer.main.get_command(app))
