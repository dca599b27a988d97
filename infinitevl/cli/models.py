"""`infinitevl models`: the models that can be named, and what each is good for."""

from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from infinitevl.cli.output import print_json
from infinitevl.engine.loading import list_models


def show_models(*, as_json: bool) -> None:
    """Print the models as a table, or one JSON object a line."""
    if as_json:
        for entry in list_models():
            print_json(asdict(entry))
        return
    console = Console(highlight=False)
    for entry in list_models():
        console.print(Text(entry.name, style="bold"), Text(entry.parameters, style="cyan"))
        console.print(Text(f"  {entry.advice}"))
        console.print(
            Text(f"  {entry.stage}; samples of up to {entry.training_length:,} tokens\n", style="dim")
        )
    console.print("Take one with --model NAME. --model FOLDER takes any folder with config.json and weights.")
