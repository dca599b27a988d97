"""Shows how far a run is: a line that is written over on a terminal, lines of JSON elsewhere."""

import json
import sys
from datetime import timedelta
from typing import Any


class Progress:
    """Shows the lines of a log; as a context manager it leaves the last one on a terminal when it ends."""

    def __init__(self) -> None:
        self._is_open = False

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        if self._is_open:
            print(flush=True)
            self._is_open = False

    def show(self, line: dict[str, Any]) -> None:
        """Shows step, loss and time left on a terminal; all of the line on any other standard output."""
        if not sys.stdout.isatty():
            print(json.dumps(line), flush=True)
            return
        left = timedelta(seconds=round(line["seconds_left"]))
        told = f"step {line['step']:,} of {line['num_steps']:,}, loss {line['loss']:.4g}, {left} left"
        # back at the start of the line, so that a message of others is written over it
        print(f"{told}\x1b[K", end="\r", flush=True)
        self._is_open = True
