"""Shows the numbers of a run in TensorBoard or Weights & Biases, through accelerate's trackers."""

import uuid
from pathlib import Path

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from infinitevl.errors import InputError


def open_board(name: str, folder: Path, step: int) -> GeneralTracker:
    """Opens "tensorboard" or "wandb" for the run in `folder`, which stands after `step` steps.

    TensorBoard writes to `folder`/tensorboard, where repeated steps replace earlier ones. Weights & Biases
    gets a run of the project `infinitevl`, named by the folder.

    Raises:
        InputError: the package is not installed.
    """
    board = (
        TensorBoardTracker("tensorboard", logging_dir=folder, purge_step=step + 1)
        if name == "tensorboard"
        else WandBTracker("infinitevl", name=folder.name, dir=folder, id=_run_id(folder), resume="allow")
    )
    try:
        board.start()
    except ImportError as error:
        raise InputError(
            f"log_to names {name}, which is not installed: pip install {name}, or take it out of log_to."
        ) from error
    return board


def _run_id(folder: Path) -> str:
    """Returns the id of the run's curves, kept beside its log, so that a resumed run continues them."""
    known = folder / "wandb-id"
    if not known.exists():
        known.write_text(uuid.uuid4().hex)
    return known.read_text()
