"""An asyncio client of `infinitevl serve`: open a stream, push frames, ask. It needs httpx, and no torch."""

from infinitevl.client.client import Client
from infinitevl.client.errors import ClientError
from infinitevl.client.stream import Stream

__all__ = ["Client", "ClientError", "Stream"]
