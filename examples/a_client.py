"""Show pictures to a server and ask: python examples/a_client.py "What is on the sign?" PICTURE [...]"""

import asyncio
import sys

from infinitevl.client import Client, ClientError


async def main(question: str, *pictures: str, address: str = "http://127.0.0.1:8000") -> None:
    """Open a stream, push every picture as a frame, and print the answer as it grows."""
    async with Client(address) as client:
        stream = await client.open("example")
        for second, picture in enumerate(pictures):
            await stream.push(picture, second)
        async for piece in stream.ask_streamed(question):
            print(piece, end="", flush=True)
        print(f"\n{(await stream.stats())['frames']} frames seen")
        await stream.delete()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as error:
        sys.exit(f"error: {error}")
