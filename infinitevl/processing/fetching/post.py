"""Sends bytes to http(s) addresses, under the same rules under which others are downloaded."""

import time
from collections.abc import Mapping

from infinitevl.errors import InputError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.fetching.fetch import pinned_request, within
from infinitevl.processing.fetching.public_ip import is_public


def post(
    address: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    allow_private: bool = False,
    timeout: float = 10.0,
) -> int:
    """Posts a body once; returns the HTTP status, of which no redirect is followed.

    The host is checked as in `fetch`. No answer's body is read. Raises InputError for a refused or
    unreachable address, or one that did not answer within `timeout` seconds.
    """
    import httpx

    from infinitevl.processing.fetching.transport import CheckedTransport

    deadline = time.monotonic() + timeout
    transport = CheckedTransport(deadline, None if allow_private else is_public)
    try:
        with httpx.Client(timeout=timeout, follow_redirects=False, transport=transport) as client:
            request = within(deadline, pinned_request, client, address, allow_private, body)
            request.headers.update(headers)
            response = client.send(request, stream=True)
            response.close()
            return response.status_code
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = printable(str(error)) or type(error).__name__
        raise InputError(f"{printable(address)} could not be reached: {reason}.") from error


def check_address(address: str, *, allow_private: bool = False, timeout: float = 5.0) -> None:
    """Raises InputError for an address that `post` would refuse now, or whose host is not found."""
    import httpx

    try:
        with httpx.Client(trust_env=False) as client:
            within(time.monotonic() + timeout, pinned_request, client, address, allow_private)
    except (httpx.InvalidURL, ValueError, OSError) as error:
        if isinstance(error, InputError):
            raise
        reason = printable(str(error)) or type(error).__name__
        raise InputError(f"{printable(address)} cannot be used: {reason}.") from error
