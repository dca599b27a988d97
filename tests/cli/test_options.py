"""Scripts rely on these names: a change here is a change for users, and belongs in the change log."""

import typer.main

from infinitevl.cli import app

COMMON = {"--help", "--debug"}
MODEL = {"--model", "--device", "--dtype"}
LOADED = MODEL | {"--quantization", "--attention"}
ANSWER = {"--max-new-tokens", "--temperature"}
BENCH = COMMON | {"--size", "--device", "--dtype", "--out", "--commit", "--attention"}
STAGES = ("distill-layers", "distill-logits", "sft", "long-sft")
FROZEN = {
    "demo": COMMON | LOADED | {"--frames", "--json", "--report"},
    "chat": COMMON | LOADED | ANSWER | {"--image", "--video", "--prompt", "--allow-private", "--json"},
    "watch": COMMON
    | LOADED
    | ANSWER
    | {"--ask", "--fps", "--live", "--mode", "--keep-turns", "--save-state", "--resume-state", "--max-frames"}
    | {"--when", "--every", "--confirm", "--release", "--cooldown", "--events", "--fetch-every"}
    | {"--allow-private", "--report", "--json"},
    "serve": COMMON
    | LOADED
    | {"--host", "--port", "--slots", "--mode", "--api-key-file", "--state-dir"}
    | {"--save-every", "--park-memory", "--park-disk", "--replicas"}
    | {"--allow-folder", "--allow-private", "--allow-unsigned-states"},
    "models": COMMON | {"--json"},
    "doctor": COMMON | MODEL | {"--json", "--attention"},
    "bench": {"--help"},
    "bench stream": BENCH | {"--frames", "--mode", "--peer", "--repeats", "--quantization"},
    "bench decode": BENCH | {"--contexts", "--answers", "--peer", "--repeats", "--quantization"},
    "bench prefill": BENCH | {"--lengths", "--peer", "--repeats", "--quantization"},
    "bench streams": BENCH | {"--counts", "--mode", "--repeats", "--quantization"},
    "bench fork": BENCH | {"--repeats"},
    "bench memory": BENCH | {"--tokens", "--mode"},
    "bench train": BENCH | {"--stage", "--tokens", "--rows", "--steps", "--checkpointed", "--sharding"},
    "bench draw": COMMON | {"--folder"},
    "train": {"--help"},
    "train init": COMMON
    | {"--teacher", "--out", "--layer-types", "--period", "--window", "--linear-heads", "--linear-head-dim"}
    | {"--sinks", "--expand", "--initializer-range", "--seed"},
    "train export": COMMON | {"--recipe", "--attention"},
    **{
        f"train {stage}": COMMON | {"--recipe", "--dry-run", "--pictures", "--resume", "--attention"}
        for stage in STAGES
    },
}


def options_of(command):
    context = typer.Context(command)
    return {
        name for parameter in command.get_params(context) for name in parameter.opts if name.startswith("-")
    }


def all_commands(group, before=""):
    found = {}
    for name, command in group.commands.items():
        found[before + name] = command
        found |= all_commands(command, f"{before}{name} ") if hasattr(command, "commands") else {}
    return found


def test_the_commands_and_their_options_are_frozen():
    commands = all_commands(typer.main.get_command(app))
    assert {name: options_of(command) for name, command in commands.items()} == FROZEN


def test_the_program_itself_has_a_version():
    assert "--version" in options_of(typer.main.get_command(app))
