"""`infinitevl serve` as a user starts it: a process of its own, on a free loopback port."""

import os
import signal
import socket
import subprocess
import sys
import tempfile

import httpx

from tests.project.source import ROOT
from tests.server.serving import until

_PROGRAM = "from infinitevl.cli import main; main()"


class Process:
    """A server, and a client of it. words: further options of the command."""

    def __init__(self, *words: object, program: str = _PROGRAM) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", "--port", str(port), *map(str, words)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=self._log,
        )
        self.url = f"http://127.0.0.1:{port}"
        self.client = httpx.Client(base_url=self.url, timeout=60)
        until(self._is_ready, 120)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        try:
            return self.client.get("/ready").status_code == 200
        except httpx.TransportError:
            return False

    def log(self) -> str:
        """What it has said so far."""
        self._log.seek(0)
        return self._log.read()

    def end(self, how: int = signal.SIGTERM, seconds: float = 60) -> int:
        """Send a signal and wait: the exit status."""
        self.process.send_signal(how)
        self.process.wait(seconds)
        self.client.close()
        return self.process.returncode
