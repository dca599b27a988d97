"""What all commands of the built-in model share: a mistake is told in a sentence, not as a traceback."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

from builtin.world.splits import SPLITS
from infinitevl.errors import InfiniteVLError, InputError


def command(main: Callable[[], None]) -> Callable[[], None]:
    """`main`, which ends with the sentence of the package's own errors, and with exit status 1."""

    @functools.wraps(main)
    def told() -> None:
        try:
            main()
        except InfiniteVLError as error:
            raise SystemExit(f"Error: {error}") from error
        except KeyboardInterrupt as error:
            raise SystemExit(str(error) or "Stopped.") from error

    return told


def check_data(folder: Path, splits: Sequence[str] = SPLITS) -> None:
    """Raises InputError if a folder lacks files that `builtin.build_data` writes, of these splits."""
    names = [*(f"{split}.pack" for split in splits), "tokenizer.json"]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise InputError(
            f"{folder} lacks {', '.join(missing)}. Build the data first, with `python -m "
            "builtin.build_data`, or say where it is with --data."
        )
