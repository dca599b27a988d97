"""Kills a server while frames come, and looks at what it finds again.

    python -m tests.server.kill --times 100

Each time the process gets SIGKILL at a random moment, among saves of three streams. Started again, it must
list every stream as of its last save, with whole files, and answer as an engine does that saw the same frames
and turns without any interruption.
"""

import argparse
import random
import signal
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import httpx

from infinitevl.engine.engine import Engine
from infinitevl.engine.loading import load
from infinitevl.engine.session import StreamSession
from infinitevl.state_file import checksum, read_file
from tests.server.process import Process
from tests.server.serving import asked, opened, picture, push

QUESTION, NUM_TOKENS = "What is on the sign?", 8
LONGEST_LIFE = 2.0  # seconds between a start and a kill


class Script:
    """What happens to a stream: frame after frame; where turns are kept, every fourth event is a question."""

    def __init__(self, keep_turns: bool) -> None:
        self.keep_turns = keep_turns

    def frame(self, event: int) -> int | None:
        """The number of the frame that this event is; None for a question."""
        if not self.keep_turns:
            return event
        return None if event % 4 == 3 else event - event // 4


class Quiet:
    """A stream that nobody interrupts, `events` of its script far."""

    def __init__(self, engine: Engine, script: Script) -> None:
        self.session, self.script = StreamSession.on(engine, keep_turns=script.keep_turns), script
        self.events = 0

    def reach(self, frames: int, tokens: int) -> None:
        """Go on until it has read so much; AssertionError where it never has."""
        while (stats := self.session.stats()).frames < frames or stats.tokens < tokens:
            number = self.script.frame(self.events)
            if number is None:
                self.session.ask(QUESTION, max_new_tokens=NUM_TOKENS)
            else:
                self.session.observe(picture(number), at=float(number))
            self.events += 1
        assert (stats.frames, stats.tokens) == (frames, tokens), "no state of this stream"

    def answer(self) -> str:
        """To the question; the stream stays as it is."""
        with self.session.fork() as fork:
            return fork.ask(QUESTION, max_new_tokens=NUM_TOKENS)


class Feed(threading.Thread):
    """Goes on with a stream's script until the server is gone."""

    def __init__(self, url: str, stream: str, script: Script, events: int) -> None:
        super().__init__(daemon=True)
        self.url, self.stream, self.script, self.events = url, stream, script, events
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            with httpx.Client(base_url=self.url, timeout=60) as client, suppress(httpx.TransportError):
                while True:
                    number = self.script.frame(self.events)
                    if number is None:
                        asked(client, self.stream, QUESTION, max_tokens=NUM_TOKENS)
                    else:
                        response = push(client, self.stream, number, number)
                        assert response.status_code == 200, response.text
                    self.events += 1
        except BaseException as error:
            self.error = error


def check_files(folder: Path) -> None:
    """See that every state on disk is whole."""
    for path in folder.glob("streams/*.safetensors"):
        tensors, metadata = read_file(path)
        assert metadata["checksum"] == checksum(tensors, metadata), path


def fork_answer(client: httpx.Client, stream: str) -> str:
    """A stream's answer, given by a fork of it, which is deleted."""
    fork = client.post(f"/v1/streams/{stream}/fork").json()["id"]
    answer = asked(client, fork, QUESTION, max_tokens=NUM_TOKENS)
    client.delete(f"/v1/streams/{fork}")
    return answer


def check_found(client: httpx.Client, streams: dict[str, Quiet], least: dict[str, int]) -> None:
    """See that the streams are there, not older than the last save that was seen, and answer as they must."""
    listed = {each["id"]: each for each in client.get("/v1/streams").json()["data"]}
    assert listed.keys() == streams.keys(), "a stream is lost, or a deleted one is back"
    for stream, quiet in streams.items():
        found = listed[stream]
        assert found["frames"] == (found["saved_frames"] or 0) >= least[stream]
        quiet.reach(found["frames"], found["tokens"])
        if found["frames"]:
            assert fork_answer(client, stream) == quiet.answer()


def kill_while_frames_come(folder: Path, times: int, seed: int = 0) -> dict[str, int]:
    """Kill and start a server so often: what was seen meanwhile. AssertionError where anything is lost."""
    moments = random.Random(seed)
    model, processor = load()
    engine = Engine(model, processor, num_slots=6)
    server = Process("--state-dir", folder, "--save-every", 0.05)
    scripts = [Script(keep_turns) for keep_turns in (False, True, False)]
    streams = {
        opened(server.client, keep_turns=script.keep_turns): Quiet(engine, script) for script in scripts
    }
    counts = {"kills": 0, "kills during a save": 0, "frames": 0}
    for _ in range(times):
        feeds = [Feed(server.url, stream, quiet.script, quiet.events) for stream, quiet in streams.items()]
        time.sleep(moments.uniform(0.1, LONGEST_LIFE))
        listed = server.client.get("/v1/streams").json()["data"]
        server.end(signal.SIGKILL)
        for feed in feeds:
            feed.join(60)
            assert feed.error is None, feed.error
        counts["kills"] += 1
        print(f"kill {counts['kills']} of {times}", file=sys.stderr, flush=True)
        counts["kills during a save"] += any(folder.glob("streams/.*.part"))
        check_files(folder)
        server = Process("--state-dir", folder, "--save-every", 0.05)
        check_found(server.client, streams, {each["id"]: each["saved_frames"] or 0 for each in listed})
    counts["frames"] = sum(quiet.session.stats().frames for quiet in streams.values())
    server.end(signal.SIGTERM)
    assert not list(folder.rglob("*.part"))
    check_files(folder)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        counts = kill_while_frames_come(Path(folder), arguments.times, arguments.seed)
    counts["seconds"] = round(time.monotonic() - started)
    print(", ".join(f"{name}: {count}" for name, count in counts.items()))


if __name__ == "__main__":
    main()
