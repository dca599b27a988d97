"""Rules on disk: one file a stream in `<state-dir>/rules`, written aside and renamed."""

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from infinitevl.errors import InfiniteVLError
from infinitevl.files import atomic_write

logger = logging.getLogger(__name__)
Record = list[dict[str, Any]]


class RuleFiles:
    """Keeps the rules of streams; `record` returns those of a stream as they are now, from any thread."""

    def __init__(self, state_dir: Path, record: Callable[[str], Record]) -> None:
        self._folder, self._record = state_dir / "rules", record
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._writer = ThreadPoolExecutor(1, "rules")
        self._dirty: set[str] = set()
        self._lock = threading.Lock()

    def save(self, stream: str) -> "Future[None]":
        """Write the rules of a stream soon; several changes may share a write."""
        with self._lock:
            self._dirty.add(stream)
        return self._writer.submit(self._write, stream)

    def _write(self, stream: str) -> None:
        with self._lock:
            if stream not in self._dirty:
                return
            self._dirty.discard(stream)
        record = self._record(stream)
        if not record:
            self._path(stream).unlink(missing_ok=True)
            return
        try:
            with atomic_write(self._path(stream)) as part:
                part.chmod(0o600)  # secrets of webhooks are in it
                part.write_text(json.dumps(record))
        except InfiniteVLError as error:
            logger.error("the rules of %s were not saved: %s", stream, error)
            raise

    def load(self, stream: str) -> Record:
        """The rules of a stream as they were last saved; a file that holds none is put aside."""
        path = self._path(stream)
        try:
            record = json.loads(path.read_text())
            if not isinstance(record, list):
                raise ValueError("it is no list")
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            aside = path.with_suffix(".damaged")
            logger.error("the rules of %s are left out, and kept as %s: %s", stream, aside, error)
            with contextlib.suppress(OSError):
                path.replace(aside)
            return []
        return record

    def stop(self) -> None:
        """Write what is to be written."""
        self._writer.shutdown()

    def _path(self, stream: str) -> Path:
        return self._folder / f"{stream}.json"
