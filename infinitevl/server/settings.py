"""What a server is told when it starts, and its limits."""

from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """How much one request, one stream or one key may take.

    body_bytes, body_seconds: of a request's body. message_bytes: of a WebSocket's message. pictures, videos:
    of a chat. max_pixels: that a request may ask for, of a picture or a video's frame. prompt_tokens,
    answer_tokens: of one answer. question_letters: of a question to a stream. waiting: answers that wait for
    a slot. streams_per_key, streams: that are open. session_seconds: for which a realtime session without a
    name is kept while no client is there. unread_bytes: of events that a realtime client has not taken.
    rules_per_stream, rules_per_key: that watch. listeners_per_key: connections that wait for events.
    """

    body_bytes: int = 64 * MEBIBYTE
    body_seconds: float = 60.0
    message_bytes: int = 16 * MEBIBYTE
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
    session_seconds: float = 600.0
    unread_bytes: int = 4 * MEBIBYTE
    rules_per_stream: int = 8
    rules_per_key: int = 64
    listeners_per_key: int = 64


@dataclass(frozen=True)
class Retries:
    """When an event is sent to a webhook again: after `first` seconds, then after `factor` times as many.

    longest: pause. attempts: after so many in vain an event is given up. timeout: seconds of one attempt.
    """

    first: float = 1.0
    factor: float = 3.0
    longest: float = 600.0
    attempts: int = 10
    timeout: float = 10.0

    def pause(self, attempt: int) -> float:
        """Seconds after the attempt with this number, from 1."""
        return min(self.longest, self.first * self.factor ** (attempt - 1))


@dataclass(frozen=True)
class ServerSettings:
    """How a server was started.

    model: the name that it answers to. description: what people should know of it. version: of the package.
    keys: API keys, none for a server of one user. secret: signs states. folders: whose files may be named.
    save_every: seconds between two saves of a stream that goes on. park_memory, park_disk: bytes for streams
    without a slot, None for half of what is free. retries: of webhooks. is_replica: whether calls come
    through `replicas.ingress` alone, which chooses the ids of streams; then a stream is opened when it is
    asked for, not at the start.
    """

    model: str = "builtin"
    description: str | None = None
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
    retries: Retries = Retries()
    is_replica: bool = False
    limits: Limits = Limits()
