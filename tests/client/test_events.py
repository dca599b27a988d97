"""Events of rules through the asyncio client."""

import asyncio

import pytest

from infinitevl.client import Client, ClientError, Stream
from tests.server.serving import png, running
from tests.server.watching import answered_by


def test_events_of_a_rule_come_with_their_pictures_until_the_stream_is_gone() -> None:
    async def watch(url: str) -> tuple[list[dict], list[bytes], str | None]:
        found, pictures = [], []
        async with Client(url) as client:
            stream = await client.open("door")

            async def listen(heard: Stream) -> None:
                async for event in heard.events():
                    found.append(event)
                    pictures.append(await heard.event_picture(event))

            listening = asyncio.create_task(listen(stream))
            await asyncio.sleep(0.3)
            await stream.add_rule("word", 1.0, expect="yes", name="r")
            for at in range(4):
                await stream.push(png(at), at, wait=True)
                await asyncio.sleep(0.3)
            await stream.delete()
            with pytest.raises(ClientError) as gone:
                await asyncio.wait_for(listening, 20)
            return found, pictures, gone.value.code

    with running() as server:
        answered_by(server, lambda frame: "Yes. a\u2028b" if frame > 1 else "no")
        found, pictures, code = asyncio.run(watch(server.url))
    assert [(event["answer"], event["frame"]) for event in found] == [("Yes. a\u2028b", 2)]
    assert pictures[0].startswith(b"\xff\xd8") and code == "stream_not_found"
