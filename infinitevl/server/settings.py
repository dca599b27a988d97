"""What a server is told when it starts, and its limits."""

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """How much one request, one stream or one key may take.

    body_bytes, body_seconds: of a request's body. pictures, videos: of a chat. max_pixels: that a request may
    ask for, of a picture or a video's frame. prompt_tokens, answer_tokens: of one answer. question_letters:
    of a question to a stream. waiting: answers that wait for a slot. streams_per_key, streams: that are open.
    """

    body_bytes: int = 64 * MEBIBYTE
    body_seconds: float = 60.0
    pictures: int = 64
    videos: int = 4
    video_frames: int = 768
    max_pixels: int = 12_845_056
    prompt_tokens: int = 65_536
    answer_tokens: int = 8_192
    question_letters: int = 8_192
    frames_per_request: int = 256
    waiting: int = 64
    streams_per_key: int = 64
    streams: int = 256


@dataclass(frozen=True)
class ServerSettings:
    """How a server was started.

    model: the name that it answers to. version: of the package. keys: API keys, none for a server of one
    user. secret: signs states. folders: whose files may be named. save_every: seconds between two saves of a
    stream that goes on. park_memory, park_disk: bytes for streams without a slot, None for half of what is
    free.
    """

    model: str = "builtin"
    version: str = "0"
    keys: tuple[str, ...] = ()
    secret: bytes = b""
    folders: tuple[Path, ...] = ()
    allow_private: bool = False
    allow_unsigned_states: bool = False
    state_dir: Path | None = None
    save_every: float = 5.0
    park_memory: int | None = None
    park_disk: int | None = None
    limits: Limits = Limits()
