"""Where a run's numbers can be watched besides its log: TensorBoard, Weights & Biases."""

import uuid
from pathlib import Path
from typing import Any

from infinitevl.errors import InputError

BOARDS = ("tensorboard", "wandb")


class TensorBoard:
    """Files beside the log, for `tensorboard --logdir`; steps that are done again replace those before."""

    def __init__(self, folder: Path, step: int):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("tensorboard") from error
        self.writer: Any = SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One point of each curve."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Everything is on disk."""
        self.writer.close()


class WandB:
    """A run of the project `infinitevl`, named by the folder, where the user's wandb is logged in.

    The run's id stands in `wandb-id` beside the log, so that a stage that goes on goes on with its curves.
    """

    def __init__(self, folder: Path, step: int):
        try:
            import wandb
        except ImportError as error:
            raise _missing("wandb") from error
        known = folder / "wandb-id"
        if not known.exists():
            known.write_text(uuid.uuid4().hex)
        self.run: Any = wandb.init(
            project="infinitevl", name=folder.name, id=known.read_text(), dir=folder, resume="allow"
        )

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """One point of each curve."""
        self.run.log(numbers, step=step)

    def close(self) -> None:
        """Everything is sent."""
        self.run.finish()


def open_board(name: str, folder: Path, step: int) -> TensorBoard | WandB:
    """The board `name` of BOARDS for a run in `folder` that stands after `step` steps.

    Raises:
        InputError: its package is not installed.
    """
    return TensorBoard(folder, step) if name == "tensorboard" else WandB(folder, step)


def _missing(package: str) -> InputError:
    return InputError(
        f"log_to names {package}, which is not installed: pip install {package}, or take it out of log_to."
    )
