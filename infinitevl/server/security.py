"""Who may call, what belongs to whom, which states are ours, and which files may be named."""

import hashlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Sequence
from pathlib import Path

from starlette.requests import HTTPConnection

from infinitevl.errors import InputError
from infinitevl.files import atomic_write
from infinitevl.processing.fetching.addresses import local_path
from infinitevl.server.errors import ApiError

LOCAL_OWNER = "local"
_HEADER_SIZE = 8  # bytes of a safetensors file that hold the length of its JSON header
_LARGEST_HEADER = 1 << 20
# Browsers cannot give a WebSocket headers; OpenAI's clients send the key as one of the protocols they offer.
SUBPROTOCOL, _KEY_PROTOCOL = "realtime", "openai-insecure-api-key."


class Keys:
    """API keys; every key is an owner of its own, and without keys there is one owner."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def owner(self, connection: HTTPConnection) -> str:
        """Whose call it is: an HTTP request, or a WebSocket that is being opened.

        Raises:
            ApiError: 401, no such key.
        """
        if not self._digests:
            return LOCAL_OWNER
        digest = hashlib.sha256(_key_of(connection).encode()).digest()
        found = [hmac.compare_digest(digest, known) for known in self._digests]  # always all of them
        if not any(found):
            raise ApiError(401, "no valid API key: send 'Authorization: Bearer KEY'.", code="invalid_api_key")
        return digest.hex()[:32]


def _key_of(connection: HTTPConnection) -> str:
    """The key that a caller shows; empty, which no key is, where there is none."""
    if "authorization" in connection.headers:
        scheme, _, key = connection.headers["authorization"].partition(" ")
        return key.strip() if scheme.lower() == "bearer" else ""
    offered = connection.scope.get("subprotocols", ())
    return next((name.removeprefix(_KEY_PROTOCOL) for name in offered if name.startswith(_KEY_PROTOCOL)), "")


def parse_keys(text: str) -> tuple[str, ...]:
    """Keys, one a line or separated by commas; lines that begin with # are comments.

    Raises:
        InputError: a key that no header can carry, or that is too short to be a secret.
    """
    lines = [line for line in text.splitlines() if not line.strip().startswith("#")]
    keys = [key.strip() for line in lines for key in line.split(",") if key.strip()]
    for number, key in enumerate(keys, 1):
        if len(key) < 8 or not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"API key number {number} is no key: give 8 or more ASCII letters and digits.")
    return tuple(keys)


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_caller(request_host: str | None, origin: str | None) -> None:
    """Refuse calls that a web page of somebody else makes a browser send to a server without keys.

    Raises:
        ApiError: 403, the host is no loopback name, or the page comes from elsewhere.
    """
    host = (request_host or "").rsplit(":", 1)[0] if not (request_host or "").endswith("]") else request_host
    if not is_loopback(host or ""):
        raise ApiError(403, "without API keys only loopback names are answered; start it with keys.")
    if origin is not None and origin.partition("://")[2] != request_host:
        raise ApiError(403, "a page of another address called; start the server with keys to allow that.")


def allowed_file(address: str, folders: Sequence[Path], param: str) -> Path:
    """The file that a file:// address names, below one of the folders, links followed.

    Raises:
        ApiError: 400, it lies elsewhere or is no file; which of both is not told.
    """
    try:
        path = local_path(address).resolve()
        is_allowed = any(path.is_relative_to(folder.resolve()) for folder in folders) and path.is_file()
    except (OSError, ValueError, RuntimeError):
        is_allowed = False
    if not is_allowed:
        advice = "no folder is allowed" if not folders else "it is no file below an allowed folder"
        raise ApiError(
            400, f"this file is not served: {advice} (--allow-folder).", param=param, code="file_refused"
        )
    return path


def server_secret(state_dir: Path | None, given: str | None) -> bytes:
    """What states are signed with: given, kept in the folder of states, or good until the server ends."""
    if given:
        return given.encode()
    if state_dir is None:
        return secrets.token_bytes(32)
    path = state_dir / "secret"
    if not path.exists():
        with atomic_write(path) as part:
            part.chmod(0o600)
            part.write_text(secrets.token_hex(32))
    return path.read_text().strip().encode()


def sign_state(data: bytes, secret: bytes, owner: str) -> bytes:
    """A saved state with a signature in its metadata, which `StreamSession.load` does not mind."""
    header, rest = _split(data)
    metadata = header["__metadata__"]
    metadata["signature"] = _signature(metadata["checksum"], secret, owner)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(_HEADER_SIZE, "little") + text + rest


def check_signature(data: bytes, secret: bytes, owner: str) -> None:
    """See that a state was signed for this owner; that its checksum is right is seen when it is loaded.

    Raises:
        ApiError: 400, no state; 403, not signed with this secret for this owner.
    """
    metadata = _split(data)[0].get("__metadata__")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("checksum"), str):
        raise ApiError(400, "the body is no state: give what GET .../state returned.", code="invalid_state")
    wanted = _signature(metadata["checksum"], secret, owner)
    if not hmac.compare_digest(str(metadata.get("signature")).encode(), wanted.encode()):
        raise ApiError(
            403,
            "this state was not signed by this server for your key; --allow-unsigned-states takes any.",
            code="unsigned_state",
        )


def _signature(checksum: str, secret: bytes, owner: str) -> str:
    return hmac.new(secret, f"{owner}\n{checksum}".encode(), hashlib.sha256).hexdigest()


def _split(data: bytes) -> tuple[dict, bytes]:
    """Header and the rest of a safetensors file."""
    size = int.from_bytes(data[:_HEADER_SIZE], "little")
    try:
        if not 0 < size <= min(len(data), _LARGEST_HEADER):
            raise ValueError("no header")
        header = json.loads(data[_HEADER_SIZE : _HEADER_SIZE + size])
        if not isinstance(header, dict):
            raise ValueError("no header")
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "the body is no safetensors file.", code="invalid_state") from error
    return header, data[_HEADER_SIZE + size :]
