"""Teach one stage of the built-in model, on one GPU or, under torchrun, on several.

python -m builtin.teach builtin/recipes/sft.yaml --dry-run    # what would train, and the first batch
python -m builtin.teach builtin/recipes/sft.yaml              # Ctrl-C stops it after a step
python -m builtin.teach builtin/recipes/sft.yaml --resume     # ... and this goes on from there
torchrun --nproc-per-node 2 -m builtin.teach builtin/recipes/sft.yaml --minutes 9   # stops with a checkpoint
"""

import argparse
import math
from pathlib import Path

from builtin.command import command
from builtin.stages import read_stage, show, teach
from builtin.timed import teach_for


@command
def main() -> None:
    parser = argparse.ArgumentParser(description="Teach one stage of the built-in model.")
    parser.add_argument("recipe", type=Path, help="one of builtin/recipes")
    parser.add_argument("--dry-run", action="store_true", help="print what would train, and end")
    parser.add_argument("--pictures", type=Path, help="with --dry-run: write the first batch's pictures here")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then, with a checkpoint")
    parser.add_argument(
        "--fit", type=float, metavar="SECONDS", help="as many steps as fit into these; goes on by itself"
    )
    arguments = parser.parse_args()
    stage = read_stage(arguments.recipe)
    if arguments.dry_run:
        print(show(stage, arguments.pictures))
        return
    left = 60 * arguments.minutes
    if arguments.fit is not None:
        plan = Path(stage.recipe.out).with_suffix(".json")
        folder = teach_for(stage, plan, arguments.fit, left)
    else:
        folder = teach(stage, resume=arguments.resume, seconds=left)
    if folder is not None:
        print(f"The finished model is in {folder}.")


if __name__ == "__main__":
    main()
