"""Bytes from an http(s) address, without becoming a door into the private network (vllm issue 57157)."""

import ipaddress
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import urljoin

from infinitevl.errors import InputError

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 64 * 2**20
MAX_REDIRECTS = 5
READ_TIMEOUT = 10.0
TOTAL_TIMEOUT = 60.0

_NAT64 = ipaddress.ip_network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


def fetch(
    address: str,
    *,
    allow_private: bool = False,
    max_bytes: int = MAX_BYTES,
    total_timeout: float = TOTAL_TIMEOUT,
) -> bytes:
    """The body behind an http(s) address.

    Every host, that of each redirect too, is resolved once and refused if any of its addresses is private,
    loopback or otherwise not public, unless `allow_private`; the connection then goes to a checked address.
    Raises InputError for a refused or unreachable address, more than `max_bytes`, or more than
    `total_timeout` seconds.
    """
    import httpx

    deadline = time.monotonic() + total_timeout
    try:
        with httpx.Client(timeout=READ_TIMEOUT, follow_redirects=False) as client:
            return _follow(client, address, allow_private, max_bytes, deadline)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"{address} could not be fetched: {error or type(error).__name__}.") from error


def _follow(
    client: "httpx.Client", address: str, allow_private: bool, max_bytes: int, deadline: float
) -> bytes:
    target = address
    for _ in range(MAX_REDIRECTS + 1):
        request = _pinned_request(client, target, allow_private)
        response = client.send(request, stream=True)
        try:
            if response.has_redirect_location:
                target = urljoin(target, response.headers["location"])
                continue
            response.raise_for_status()
            return _body(address, response.iter_bytes(), max_bytes, deadline)
        finally:
            response.close()
    raise InputError(f"{address} redirects more than {MAX_REDIRECTS} times. Give the final address.")


def _pinned_request(client: "httpx.Client", address: str, allow_private: bool) -> "httpx.Request":
    """A request to an address that was checked: a second look-up of the name could give another one."""
    import httpx

    url = httpx.URL(address)
    if url.scheme not in ("http", "https") or not url.host:
        raise InputError(f"{address} is not an http(s) address.")
    checked = str(_resolve(url.host, allow_private)[0])
    headers = {"host": url.netloc.decode("ascii"), "user-agent": "infinitevl"}
    extensions = {"sni_hostname": url.host}
    return client.build_request("GET", url.copy_with(host=checked), headers=headers, extensions=extensions)


def _resolve(host: str, allow_private: bool) -> list[IPAddress]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"The host {host!r} could not be found: {error}.") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).split("%")[0]) for entry in found]
    for each in addresses:
        if not allow_private and not is_public(each):
            raise InputError(
                f"The host {host!r} leads to {each}, which is not a public address. Give a public address, "
                "a file or the bytes themselves, or pass allow_private=True if you trust it."
            )
    return addresses


def is_public(address: IPAddress) -> bool:
    """Whether an address, and every IPv4 address hidden in it, belongs to the public internet."""
    if isinstance(address, ipaddress.IPv6Address):
        hidden = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
        if address in _NAT64:
            hidden.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        if not all(is_public(each) for each in hidden if each is not None):
            return False
        if address.ipv4_mapped is not None:
            return True
    return address.is_global and not address.is_multicast


def _body(address: str, chunks: Iterator[bytes], max_bytes: int, deadline: float) -> bytes:
    body = bytearray()
    for chunk in chunks:
        body += chunk
        if len(body) > max_bytes:
            raise InputError(f"{address} holds more than {max_bytes} bytes, the limit. Give a smaller file.")
        if time.monotonic() > deadline:
            raise InputError(f"{address} is too slow: {len(body)} bytes so far. Download it, give the file.")
    return bytes(body)
