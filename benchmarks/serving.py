"""Measure a server: what it costs beside its engine alone, and streams and answers under load.

    python benchmarks/serving.py                                             # the built-in model, two cores
    python benchmarks/serving.py --size 4b --streams 8 --fps 15 --answers 4  # random weights, on a GPU

Overhead: as many frames are read by `engine.observe` alone, from arrays that lie in memory, and over HTTP, as
JPEGs that another process sends one ahead, so that the engine always has a frame. Both run on one engine, in
turns. Decoding the JPEGs is the server's work; it overlaps with the engine's where there is a second core.
The processor time of both says what HTTP and JPEG cost in sum, also on a machine that is busy.

Load: frames come to every stream at their pace, questions for one token measure the time to the first token,
and `--answers` answers are always under way. A frame's time is from its sending until it was read.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from serving_client import NUM_PICTURES, camera_pictures

from infinitevl.bench.clock import Timing
from infinitevl.bench.record import OURS, Place, Record, append, counted, timed
from infinitevl.bench.sizes import model_of_size
from infinitevl.engine.engine import Engine
from infinitevl.engine.session import StreamSession
from infinitevl.processing.pictures.opening import open_image
from infinitevl.server.app import create_app
from infinitevl.server.context import Context
from infinitevl.server.run import KEEP_ALIVE
from infinitevl.server.settings import ServerSettings

CLIENT = Path(__file__).with_name("serving_client.py")
PAIRS = 5
WARM_FRAMES = 40
ANSWER_TOKENS = 128


@dataclass(frozen=True)
class Load:
    """Streams at a pace, with so many answers always under way."""

    streams: int
    fps: float
    answers: int


@dataclass
class Bench:
    """A server in this process, and what was measured."""

    context: Context
    url: str
    place: Place
    out: str | None

    @property
    def engine(self) -> Engine:
        """The server's engine."""
        return self.context.worker.engine

    def in_worker(self, function: Any) -> Any:
        """Run something where nothing else touches the engine meanwhile."""
        return self.context.worker.call(function).result()

    def client(self, **job: Any) -> dict[str, Any]:
        """Let another process do a job."""
        job |= {"url": self.url, "frame_size": self.engine.frame_size}
        done = subprocess.run([sys.executable, str(CLIENT), json.dumps(job)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"the client failed:\n{done.stderr}")
        return json.loads(done.stdout)

    @contextmanager
    def streams(self, count: int) -> Iterator[list[str]]:
        """Streams that have seen enough for nothing to be built any more."""
        with httpx.Client(base_url=self.url, timeout=600) as http:
            ids = [http.post("/v1/streams", json={}).raise_for_status().json()["id"] for _ in range(count)]
            self.client(do="paced", streams=ids, fps=4, seconds=4, answers=count, num_tokens=8, pause=1.0)
            for stream in ids:
                self.client(do="ahead", streams=[stream], count=WARM_FRAMES // count + 1, ahead=1)
            yield ids
            for stream in ids:
                http.delete(f"/v1/streams/{stream}").raise_for_status()

    def stats(self, streams: list[str]) -> dict[str, tuple[int, int]]:
        """Frames read and dropped of each stream."""
        return {
            each: (s.stats.frames, s.num_dropped)
            for each in streams
            if (s := self.context.worker.streams[each])
        }

    def note(self, record: Record) -> None:
        """Show a record, and keep it."""
        print(record.row(), flush=True)
        if self.out is not None:
            append(record, self.out)


def measure_overhead(bench: Bench, seconds: float) -> None:
    """Frames over HTTP beside frames of the engine alone, in turns."""
    pictures = [np.asarray(open_image(data)) for data in camera_pictures(*bench.engine.frame_size)]
    session = bench.in_worker(lambda: StreamSession.on(bench.engine))

    def alone(count: int) -> tuple[float, float]:
        def observe() -> float:
            started = time.perf_counter()
            for number in range(count):
                session.observe(pictures[number % NUM_PICTURES])
            bench.engine.settle()
            return time.perf_counter() - started

        return with_work(lambda: bench.in_worker(observe))

    def over_http(count: int) -> tuple[float, float]:
        job: dict[str, Any] = {"do": "ahead", "streams": streams, "count": count, "ahead": 1}
        return with_work(lambda: bench.client(**job)["seconds"])

    with bench.streams(1) as streams:
        alone(WARM_FRAMES)
        count = max(20, int(seconds / alone(20)[0] * 20))
        pairs = [(alone(count), over_http(count)) for _ in range(PAIRS)]
    bench.in_worker(session.close)
    for who, index in (("engine alone", 0), ("over HTTP", 1)):
        for what, kind in ((f"frame, {who}", 0), (f"processor, {who}", 1)):
            times = [1e3 * pair[index][kind] / count for pair in pairs]
            timing = Timing(statistics.median(times), min(times), max(times), PAIRS)
            bench.note(timed(bench.place, "serving", what, timing, who=OURS, frames=count))
    overheads = sorted(100 * (http[0] / engine[0] - 1) for engine, http in pairs)
    value = round(statistics.median(overheads), 2)
    spread = f"{overheads[0]:.2f} .. {overheads[-1]:.2f}"
    bench.note(counted(bench.place, "serving", "overhead", value, "%", who=OURS, range=spread))


def with_work(function: Callable[[], float]) -> tuple[float, float]:
    """The seconds that a function returns, and this process's processor time meanwhile."""
    before = time.process_time()
    return function(), time.process_time() - before


def measure_load(bench: Bench, load: Load, seconds: float) -> None:
    """Frames at a pace, questions, and answers under way."""
    with bench.streams(load.streams) as streams:
        before = bench.stats(streams)
        tokens = bench.context.metrics.answer_tokens._value.get()
        told = bench.client(
            do="paced",
            streams=streams,
            fps=load.fps,
            seconds=seconds,
            answers=load.answers,
            num_tokens=ANSWER_TOKENS,
            pause=0.5,
        )
        tokens = bench.context.metrics.answer_tokens._value.get() - tokens
        after = bench.stats(streams)
    read = [after[each][0] - before[each][0] for each in streams]
    dropped = sum(after[each][1] - before[each][1] for each in streams)
    settings = {"streams": load.streams, "fps": load.fps, "answers": load.answers}

    def count(what: str, value: float, unit: str) -> None:
        bench.note(counted(bench.place, "serving", what, value, unit, who=OURS, **settings))

    count("frames sent", len(told["frames"]), "")
    count("frames read", sum(read), "")
    count("frames dropped", dropped, "")
    count("slowest stream", round(min(read) / seconds, 2), "frames/s")
    count("fastest stream", round(max(read) / seconds, 2), "frames/s")
    count("answer tokens", round(tokens / seconds, 1), "tokens/s")
    for what, times in (("time of a frame", told["frames"]), ("first token", told["probes"])):
        low, median, high = np.percentile([1e3 * t for t in times], [5, 50, 95])
        timing = Timing(float(median), float(low), float(high), len(times))
        bench.note(timed(bench.place, "serving", what, timing, who=OURS, **settings))


@contextmanager
def serving(engine: Engine, size: str) -> Iterator[tuple[Context, str]]:
    """A server of this engine in a thread: its parts, and its address."""
    app = create_app(engine, ServerSettings(model=size))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", timeout_keep_alive=KEEP_ALIVE)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield app.state.context, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--size", default="builtin", choices=("builtin", "4b", "tiny"))
    parser.add_argument("--streams", type=int, help="one load of so many streams instead of the usual two")
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--answers", type=int, nargs="?", const=1, default=0, help="always under way")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    parser.add_argument("--quantization", choices=("int8", "int4", "fp8"))
    parser.add_argument("--skip-overhead", action="store_true")
    parser.add_argument("--commit", help="of the source, where git cannot tell it")
    parser.add_argument("--out", help="append JSON lines to this file")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model, processor = model_of_size(options.size, device, dtype)
    loads = [Load(1, 10.0, 0), Load(8, 1.0, 0)]
    if options.streams:
        loads = [Load(options.streams, options.fps, options.answers)]
    num_slots = max(load.streams + load.answers for load in loads) + 3  # a fork, a question, the engine alone
    engine = Engine(model, processor, num_slots=num_slots, quantization=options.quantization)
    place = Place.here(options.size, device, options.commit)
    with serving(engine, options.size) as (context, url):
        bench = Bench(context, url, place, options.out)
        if not options.skip_overhead:
            measure_overhead(bench, seconds=min(5.0, options.seconds))
        for load in loads:
            measure_load(bench, load, options.seconds)


if __name__ == "__main__":
    main()
