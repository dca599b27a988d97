"""The asyncio client: what it sends is what was given, and every error is one of its kind."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from infinitevl.client import Client, ClientError
from infinitevl.engine.session import StreamSession
from infinitevl.errors import InputError
from infinitevl.server.settings import Limits
from tests.server.serving import Running, endless_engine, picture, png, running, until
from tests.support import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def server():
    with running() as started:
        yield started


def quiet(num_frames: int) -> StreamSession:
    """A session alone on an engine that has seen the same."""
    session = StreamSession(tiny_model(), tiny_processor())
    for seed in range(num_frames):
        session.observe(picture(seed), at=seed)
    return session


def test_pictures_of_every_kind_are_seen_as_they_are(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png(1))
    kinds = [png(0), path, str(path), Image.fromarray(picture(3)), picture(4), memoryview(png(5))]

    async def watch() -> tuple[str, list[str], dict]:
        async with Client(server.url) as client:
            stream = await client.open("door")
            for at, each in enumerate(kinds):
                counts = await stream.push(each, at, wait=True)
                assert (counts["accepted"], counts["time"]) == (1, at)
            pieces = [piece async for piece in stream.ask_streamed("word", max_tokens=8)]
            return await stream.ask("word", max_tokens=8), pieces, await stream.stats()

    answer, pieces, stats = asyncio.run(watch())
    session = StreamSession(tiny_model(), tiny_processor())
    for at, seed in enumerate([0, 1, 1, 3, 4, 5]):
        session.observe(picture(seed), at=at)
    assert answer == "".join(pieces) == session.ask("word", max_new_tokens=8) and answer
    assert (stats["frames"], stats["name"], stats["dropped"]) == (6, "door", 0)


def test_a_stream_is_forked_saved_and_loaded(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "door.safetensors"

    async def live() -> list[str]:
        async with Client(server.url + "/v1/") as client:
            stream = await client.open()
            await stream.push(picture(0), 0)
            twin = await stream.fork()
            await stream.push(picture(1), 1)
            await stream.save(path)
            again = await client.load(path, "again")
            listed = [each.id for each in await client.streams()]
            assert {stream.id, twin.id, again.id} <= set(listed)
            found = await client.stream(again.id)
            answers = [await each.ask("word", max_tokens=8) for each in (twin, stream, found)]
            await stream.load(path)
            for each in (stream, twin, again):
                await each.delete()
            with pytest.raises(ClientError) as gone:
                await stream.stats()
            assert (gone.value.status, gone.value.code) == (404, "stream_not_found")
            return answers

    assert asyncio.run(live()) == [quiet(n).ask("word", max_new_tokens=8) for n in (1, 2, 2)]


def test_what_cannot_be_used_is_told_before_it_is_sent(tmp_path: Path) -> None:
    for address in ("", "127.0.0.1:8000", "ftp://x"):
        with pytest.raises(InputError, match="address"):
            Client(address)
    with pytest.raises(InputError, match="key"):
        Client(api_key="schlüssel")

    async def push(what: object) -> None:
        async with Client() as client:
            from infinitevl.client import Stream

            await Stream(client._caller, {"id": "x"}).push(what)

    for what in (None, 5, tmp_path / "none.png", "\0", picture(0)[0], picture(0).astype(float), [[0]]):
        with pytest.raises(InputError):
            asyncio.run(push(what))

    async def find(path: Path, name: str) -> None:
        async with Client() as client:
            await (client.load(path) if not name else client.stream(name))

    with pytest.raises(InputError, match="no file"):
        asyncio.run(find(tmp_path / "none", ""))
    with pytest.raises(InputError, match="no stream"):
        asyncio.run(find(tmp_path, " "))


def test_errors_are_of_one_kind(tmp_path: Path) -> None:
    async def fail(url: str) -> list[ClientError]:
        found = []
        (tmp_path / "bad").write_bytes(b"no state")
        async with Client(url, api_key="first-key", retries=0) as client, Client(url, retries=0) as nobody:
            stream = await client.open()
            calls = (
                lambda: nobody.open(),
                lambda: client.stream("stream_none"),
                lambda: client.stream("a/../b?c"),
                lambda: stream.push(b"no picture"),
                lambda: stream.ask(""),
                lambda: stream.ask("word", max_tokens=-1),
                lambda: client.load(tmp_path / "bad"),
            )
            for call in calls:
                with pytest.raises(ClientError) as error:
                    await call()
                found.append(error.value)
            assert len(await client.streams()) == 1  # what was opened to be filled is gone
            await client.open()
            with pytest.raises(ClientError) as error:
                await client.open()
            found.append(error.value)
        async with Client("http://127.0.0.1:1", retries=1) as client:
            with pytest.raises(ClientError) as error:
                await client.streams()
            found.append(error.value)
        return found

    with running(keys=("first-key",), limits=Limits(streams_per_key=2)) as server:
        found = asyncio.run(fail(server.url))
    assert [(each.status, each.code) for each in found] == [
        (401, "invalid_api_key"),
        (404, "stream_not_found"),
        (404, None),
        (400, "invalid_image"),
        (400, "invalid_value"),
        (400, "invalid_value"),
        (400, "invalid_state"),
        (429, "busy"),
        (None, "unreachable"),
    ]
    assert found[3].param == "frame" and "first-key" not in str(found)


def test_an_offered_picture_is_dropped_while_another_is_on_its_way(server: Running) -> None:
    async def watch() -> tuple[list[bool], dict, int]:
        async with Client(server.url) as client:
            stream = await client.open()
            offered = [stream.offer(png(seed)) for seed in range(3)]
            await stream.ask("word", max_tokens=1)  # after the frame that was offered
            offered.append(stream.offer(png(3)))
            await stream.ask("word", max_tokens=1)
            assert stream.offer(b"no picture")
            await asyncio.sleep(0.3)
            with pytest.raises(ClientError, match="picture"):
                stream.offer(png(4))
            assert stream.offer(png(5), 30.0)
            await stream.ask("word", max_tokens=1)
            return offered, await stream.stats(), stream.num_skipped

    offered, stats, num_skipped = asyncio.run(watch())
    assert offered == [True, False, False, True] and num_skipped == 2
    assert stats["frames"] == 3 and stats["time"] == 30.0


def test_an_answer_that_nobody_wants_any_more_is_given_up() -> None:
    async def ask(url: str) -> str:
        async with Client(url) as client:
            stream = await client.open()
            await stream.push(png(0))
            pieces = stream.ask_streamed("word", max_tokens=8000)
            first = await anext(pieces)
            await pieces.aclose()
            return first

    with running(endless_engine()) as server:
        assert asyncio.run(ask(server.url))
        until(lambda: not server.context.worker.answering.growing)


def test_the_client_needs_no_torch() -> None:
    heavy = ("torch", "transformers", "numpy", "PIL", "fastapi", "pydantic", "websockets", "starlette")
    program = f"import sys, infinitevl.client; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
