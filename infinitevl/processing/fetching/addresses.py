"""Reads paths, file:// addresses and data: URIs; only regular files, and only up to a limit."""

import base64
import binascii
import os
import re
import stat
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

from infinitevl.errors import InputError

MAX_FILE_BYTES = 2**30  # of a picture's file; no raw picture within MAX_PIXELS is larger

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def printable(address: str) -> str:
    """Shortens an address for an error message, and masks a password in it."""
    masked = re.sub(r"(://)[^/?#@]*@", r"\1***@", address)
    return masked if len(masked) <= 200 else masked[:200] + "..."


def local_path(address: str) -> Path:
    """Returns the path of a file:// address or path; percent signs are decoded if that file exists."""
    raw = re.sub(r"^file://(localhost(?=/))?", "", address, flags=re.IGNORECASE)
    decoded = unquote(raw)
    return Path(decoded) if raw != address and os.path.exists(decoded) else Path(raw)


def other_than_file(path: str | os.PathLike[str]) -> str | None:
    """Names what lies at a path ("a pipe", "a device", ...); None for a regular file, or for nothing.

    Reading a device may never end, and opening a pipe waits for its writer.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return None
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "no file")


def read_file(path: Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Reads a file. Raises InputError if it is none, cannot be read, or has more than `max_bytes`."""
    name = str(path)[:200]
    if kind := other_than_file(path):
        raise InputError(f"The picture {name!r} cannot be read: it is {kind}. Give a file.")
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"The picture {name!r} cannot be read: {reason}. Give a file, bytes, an array, or an address."
        ) from error
    if len(data) > max_bytes:
        raise InputError(f"{name!r} has more than {max_bytes} bytes, the limit. Give a smaller file.")
    return data


def is_data_uri(address: str) -> bool:
    """Tells whether an address is a data: URI."""
    return address[:5].lower() == "data:"


def data_uri(address: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Decodes a data: URI. Raises InputError if it is malformed or holds more than `max_bytes`."""
    head, comma, payload = address.partition(",")
    if not comma:
        raise InputError("A data: URI needs a comma before its data, as in data:image/png;base64,iVBOR...")
    if len(payload) > 3 * max_bytes:  # percent-encoded: three letters a byte
        raise InputError(f"The data: URI has more than {max_bytes} bytes, the limit. Give a smaller file.")
    try:
        if not head.lower().endswith(";base64"):
            return unquote_to_bytes(payload)
        return base64.b64decode("".join(unquote(payload).split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"The data: URI does not hold base64: {error}.") from error
