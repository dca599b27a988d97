"""`infinitevl models`: what is known by name, and what each is good for."""

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from infinitevl.cli.terminal import print_json
from infinitevl.engine.loading import CATALOGUE


def show_models(*, as_json: bool) -> None:
    """Print the catalogue as a table, or one JSON object a line."""
    if as_json:
        for entry in CATALOGUE:
            print_json(asdict(entry))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "size", "stage", "trained on", "good"):
        table.add_column(heading, overflow="fold")
    for entry in CATALOGUE:
        length = f"{entry.training_length:,} tokens"
        table.add_row(entry.name, entry.parameters, entry.stage, length, entry.advice)
    console = Console()
    console.print(table)
    console.print("Take one with --model NAME; --model FOLDER takes any folder with config.json and weights.")
