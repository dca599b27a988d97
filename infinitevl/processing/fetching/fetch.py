"""Downloads http(s) addresses, but nothing from private networks unless allowed (vllm issue 57157)."""

import ipaddress
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urljoin

from infinitevl.errors import InputError
from infinitevl.processing.fetching.addresses import data_uri, is_data_uri, printable
from infinitevl.processing.fetching.public_ip import IPAddress, is_public

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
READ_TIMEOUT = 10.0
TOTAL_TIMEOUT = 60.0
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_PACKED = ("gzip", "x-gzip", "deflate")

T = TypeVar("T")


def fetch(
    address: str,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    total_timeout: float = TOTAL_TIMEOUT,
) -> bytes:
    """Downloads an http(s) address.

    Every host, that of each redirect too, is resolved once and refused if any of its addresses is private,
    loopback or otherwise not public, unless `allow_private`; the connection then goes to a checked address,
    never through a proxy, and what it reached is checked again. Raises InputError for a refused or
    unreachable address, more than `max_bytes` (unpacked), or more than `total_timeout` seconds.
    """
    import httpx

    from infinitevl.processing.fetching.transport import CheckedTransport

    deadline = time.monotonic() + total_timeout
    transport = CheckedTransport(deadline, None if allow_private else is_public)
    try:
        with httpx.Client(timeout=READ_TIMEOUT, follow_redirects=False, transport=transport) as client:
            return _follow(client, address, allow_private, max_bytes, deadline)
    except InputError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        if isinstance(error, TimeoutError | httpx.TimeoutException) and time.monotonic() >= deadline:
            raise InputError(
                f"{printable(address)} is too slow: not whole after {total_timeout:g} seconds. "
                "Download it, give the file."
            ) from error
        reason = str(error) or type(error).__name__
        raise InputError(f"{printable(address)} could not be fetched: {printable(reason)}.") from error


def _follow(
    client: "httpx.Client", address: str, allow_private: bool, max_bytes: int, deadline: float
) -> bytes:
    target = address
    for _ in range(MAX_REDIRECTS + 1):
        request = within(deadline, pinned_request, client, target, allow_private)
        response = client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                target = urljoin(target, response.headers["location"])
                continue
            if not response.is_success:  # httpx's own error would show the password of the address
                told = f"the server answers {response.status_code} {printable(response.reason_phrase)}"
                raise InputError(f"{printable(address)} could not be fetched: {told}.")
            return _body(printable(address), _unpacked(response, max_bytes), max_bytes, deadline)
        finally:
            response.close()
    raise InputError(
        f"{printable(address)} redirects more than {MAX_REDIRECTS} times. Give the final address."
    )


def within(deadline: float, call: Callable[..., T], *arguments: Any) -> T:
    """Runs a call without a timeout of its own (a DNS look-up) in a thread; raises TimeoutError if late."""
    result: Future[T] = Future()

    def run() -> None:
        try:
            result.set_result(call(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return result.result(max(0.0, deadline - time.monotonic()))


def pinned_request(
    client: "httpx.Client", address: str, allow_private: bool, body: bytes | None = None
) -> "httpx.Request":
    """Builds a request to the IP address that was checked: a second DNS look-up could give another.

    With a body it is a POST, else a GET. Raises InputError for an address that is refused or not found.
    """
    import httpx

    url = httpx.URL(address)
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{printable(address)} is not an http(s) address.")
    checked = str(_resolve(url.host, allow_private)[0])
    headers = {
        "host": url.netloc.decode("ascii"),
        "user-agent": "infinitevl",
        "accept-encoding": "identity",
    }
    extensions = {"sni_hostname": url.host}
    method = "GET" if body is None else "POST"
    pinned = url.copy_with(host=checked)
    return client.build_request(method, pinned, headers=headers, extensions=extensions, content=body)


def _resolve(host: str, allow_private: bool) -> list[IPAddress]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The host {host[:100]!r} could not be found: {error}.") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
    for each in addresses:
        if not allow_private and not is_public(each):
            raise InputError(
                f"The host {host!r} leads to {each}, which is not a public address. Give a public address, "
                "a file or the bytes themselves; or, if you trust it, allow_private=True (--allow-private)."
            )
    return addresses


def _unpacked(response: "httpx.Response", max_bytes: int) -> Iterator[bytes]:
    """Yields the chunks of a body, decompressed; never more than `max_bytes` and a byte."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    if encoding in ("", "identity"):
        return response.iter_bytes()
    if encoding not in _PACKED:
        raise InputError(
            f"{printable(str(response.url))} is packed as {encoding[:50]!r}; valid are {', '.join(_PACKED)} "
            "and no packing. Download it, give the file."
        )
    return _inflated(response.iter_raw(), max_bytes)


def _inflated(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    """Decompresses chunks of gzip or zlib data, up to one byte more than `max_bytes`."""
    inflater, room = zlib.decompressobj(_GZIP_OR_ZLIB), max_bytes + 1
    packed = 0
    for chunk in chunks:
        packed += len(chunk)
        while chunk and room > 0 and packed <= max_bytes:
            if inflater.eof:  # another compressed member follows
                inflater = zlib.decompressobj(_GZIP_OR_ZLIB)
            try:
                plain = inflater.decompress(chunk, room)
            except zlib.error as error:
                raise InputError(f"What was fetched cannot be unpacked: {error}.") from error
            room -= len(plain)
            chunk = inflater.unused_data
            yield plain
        if packed > max_bytes:
            raise InputError(f"More than {max_bytes} bytes, the limit, were sent. Give a smaller file.")
    if room > 0 and not inflater.eof:
        raise InputError("What was fetched ends too early to be unpacked. Try again, or give the file.")


def _body(address: str, chunks: Iterator[bytes], max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise InputError(f"{address} holds more than {max_bytes} bytes, the limit. Give a smaller file.")
        if time.monotonic() > deadline:
            raise InputError(f"{address} is too slow: {len(body)} bytes so far. Download it, give the file.")
    return bytes(body)


def read_remote(address: str, *, allow_private: bool = False, **limits: Any) -> bytes | None:
    """Reads an http(s):// address (`limits` are those of `fetch`) or a data: URI; None for a file's path."""
    if address[:8].lower().startswith(("http://", "https://")):
        return fetch(address, allow_private=allow_private, **limits)
    return data_uri(address) if is_data_uri(address) and not os.path.isfile(address) else None
