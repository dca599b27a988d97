"""Which stream a call is about, so that all calls of a stream reach the replica that has it."""

from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Scope

from infinitevl.server.stream_calls import CHOSEN_ID
from infinitevl.server.streams import is_id, new_id

_STREAMS, _REALTIME = "/v1/streams", "/v1/realtime"
_OURS = CHOSEN_ID.encode()
# What belongs to one connection, and is not passed on (RFC 9110, 7.6.1).
_OF_THE_CONNECTION = {
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
}
Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Call:
    """A call on its way. stream: whose replica it goes to; None for any. headers: that are passed on."""

    stream: str | None
    headers: Headers


def call_of(scope: Scope) -> Call:
    """Where a request or a WebSocket goes. A stream that it opens gets its id here."""
    headers = passed_on(scope["headers"])
    path, query = scope["path"].rstrip("/"), parse_qs(scope["query_string"].decode("latin-1"))
    stream = _named(path, query)
    opens = path == _STREAMS and scope.get("method") == "POST"
    if opens or (path == _REALTIME and stream is None):
        stream = new_id()
        headers.append((_OURS, stream.encode()))
    return Call(stream if stream is not None and is_id(stream) else None, headers)


def _named(path: str, query: dict[str, list[str]]) -> str | None:
    """The stream in the path, or in the query as `stream` or as the realtime session of it."""
    if path.startswith(f"{_STREAMS}/"):
        return path.split("/")[3]
    if "stream" in query:
        return query["stream"][-1]
    if path == _REALTIME and "session_id" in query:
        return f"stream_{query['session_id'][-1].removeprefix('sess_')}"
    return None


def passed_on(headers: Headers) -> Headers:
    """The headers of one connection that are also for the next one; nobody but the ingress chooses ids."""
    named = [value for name, value in headers if name.lower() == b"connection"]
    dropped = {word.strip().lower() for value in named for word in value.split(b",")}
    dropped |= _OF_THE_CONNECTION | {_OURS}
    return [(name, value) for name, value in headers if name.lower() not in dropped]


def target_of(scope: Scope) -> bytes:
    """Path and query as the client wrote them."""
    path = scope.get("raw_path") or scope["path"].encode()
    return path + (b"?" + scope["query_string"] if scope["query_string"] else b"")
