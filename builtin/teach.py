"""Teach one stage of the built-in model, on one GPU or, under torchrun, on several.

python -m builtin.teach builtin/recipes/sft.yaml --dry-run    # what would train, and the first batch
python -m builtin.teach builtin/recipes/sft.yaml              # Ctrl-C stops it after a step
python -m builtin.teach builtin/recipes/sft.yaml --resume     # ... and this goes on from there
"""

import argparse
from pathlib import Path

from builtin.command import command
from builtin.stages import read_stage, show, teach


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Teach one stage of the built-in model.")
    parser.add_argument("recipe", type=Path, help="one of builtin/recipes")
    parser.add_argument("--dry-run", action="store_true", help="print what would train, and end")
    parser.add_argument("--pictures", type=Path, help="with --dry-run: write the first batch's pictures here")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    arguments = parser.parse_args()
    stage = read_stage(arguments.recipe)
    if arguments.dry_run:
        print(show(stage, arguments.pictures))
        return
    folder = teach(stage, resume=arguments.resume)
    if folder is not None:
        print(f"The finished model is in {folder}.")


if __name__ == "__main__":
    main()
