"""What all commands of the built-in model share: a mistake is told in a sentence, not as a traceback."""

import functools
from collections.abc import Callable

from infinitevl.errors import InfiniteVLError


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
