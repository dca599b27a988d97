"""The client of `serving.py`, in a process of its own: takes a job as JSON, prints what it measured as JSON.

python benchmarks/serving_client.py '{"do": "ahead", "url": "http://127.0.0.1:8000", ...}'
"""

import asyncio
import io
import json
import sys
import time
from typing import Any

import httpx
import numpy as np
from PIL import Image

QUESTION = "What is on the sign?"
NUM_PICTURES = 16


def camera_pictures(height: int, width: int) -> list[bytes]:
    """JPEGs as a camera gives them: a scene with shading, edges and noise, of which a part moves."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width] / max(height, width)
    scene = np.stack([rows, columns, 1 - rows * columns], -1) * 180 + 30
    for _ in range(12):
        y, x = generator.integers(0, height * 3 // 4), generator.integers(0, width * 3 // 4)
        scene[y : y + height // 5, x : x + width // 5] = generator.integers(0, 256, 3)
    return [_jpeg(scene, step, generator) for step in range(NUM_PICTURES)]


def _jpeg(scene: np.ndarray, step: int, generator: np.random.Generator) -> bytes:
    picture = scene + generator.normal(0, 4, scene.shape)
    side = scene.shape[0] // 4
    picture[side : 2 * side, step * side // 4 : step * side // 4 + side] = (220, 40, 40)
    file = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(file, "jpeg", quality=85)
    return file.getvalue()


class Client:
    """Sends frames and questions to streams that are open."""

    def __init__(self, job: dict[str, Any]) -> None:
        limits = httpx.Limits(max_connections=512, max_keepalive_connections=512)
        self.http = httpx.AsyncClient(base_url=job["url"], timeout=120, limits=limits)
        self.pictures = camera_pictures(*job["frame_size"])
        self.sent = 0

    async def frame(self, stream: str) -> float:
        """Send a frame and wait until it was read (or dropped): seconds."""
        self.sent += 1
        picture = self.pictures[self.sent % NUM_PICTURES]
        return await self._timed(
            self.http.post(
                f"/v1/streams/{stream}/frames?wait=true",
                content=picture,
                headers={"content-type": "image/jpeg"},
            )
        )

    async def ask(self, stream: str, num_tokens: int) -> float:
        """Ask and wait for the whole answer: seconds."""
        body = {"question": QUESTION, "max_tokens": num_tokens}
        return await self._timed(self.http.post(f"/v1/streams/{stream}/ask", json=body))

    async def _timed(self, call: Any) -> float:
        started = time.perf_counter()
        response = await call
        response.raise_for_status()
        return time.perf_counter() - started


async def ahead(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Send `count` frames with `ahead` + 1 always on their way, so that the engine never waits for one."""
    stream, left = job["streams"][0], job["count"]
    started = time.perf_counter()

    async def send() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await client.frame(stream)

    await asyncio.gather(*(send() for _ in range(job["ahead"] + 1)))
    return {"seconds": time.perf_counter() - started}


async def paced(client: Client, job: dict[str, Any]) -> dict[str, Any]:
    """Send `fps` frames a second to each stream for some seconds, while questions are asked.

    answers: so many answers of `num_tokens` are always under way. probes: questions for one token, one after
    the other with a pause.
    """
    loop, streams, end = asyncio.get_running_loop(), job["streams"], time.perf_counter() + job["seconds"]
    frames: list[asyncio.Task[float]] = []
    probes: list[float] = []
    counts = {"answers": 0}

    async def feed(stream: str, delay: float) -> None:
        due = time.perf_counter() + delay
        while due < end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            frames.append(loop.create_task(client.frame(stream)))
            due += 1 / job["fps"]

    async def answer(index: int) -> None:
        await asyncio.sleep(1.5 / job["fps"])
        while time.perf_counter() < end:
            await client.ask(streams[index % len(streams)], job["num_tokens"])
            counts["answers"] += 1

    async def probe() -> None:
        await asyncio.sleep(1.5 / job["fps"])
        while time.perf_counter() < end:
            probes.append(await client.ask(streams[len(probes) % len(streams)], 1))
            await asyncio.sleep(job["pause"])

    spread = [index / len(streams) / job["fps"] for index in range(len(streams))]
    await asyncio.gather(
        *(feed(stream, delay) for stream, delay in zip(streams, spread, strict=True)),
        *(answer(index) for index in range(job["answers"])),
        probe(),
    )
    return {"frames": await asyncio.gather(*frames), "probes": probes, **counts}


async def run(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    client = Client(job)
    async with client.http:
        return await {"ahead": ahead, "paced": paced}[job["do"]](client, job)


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.argv[1])))))
