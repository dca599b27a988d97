"""Webhooks: events of rules as signed POSTs (Standard Webhooks), sent again until they are taken.

Each rule has a line of its own: its events arrive in order, and a receiver that hangs holds up nobody else's
but those of the same key. An event is sent at least once; receivers tell repeated ones by their webhook-id.
"""

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from infinitevl.errors import InputError
from infinitevl.processing.fetching.addresses import printable
from infinitevl.processing.fetching.post import check_address, post
from infinitevl.server.errors import invalid, masked
from infinitevl.server.settings import Retries

if TYPE_CHECKING:
    from infinitevl.server.rules import StreamRule

T = TypeVar("T")

logger = logging.getLogger(__name__)
_PREFIX = "whsec_"
_SECRET_BYTES = range(24, 65)  # as the standard has it
_NUM_SENDERS = 16
_SENDERS_PER_KEY = 4
_GONE = 410  # the receiver wants no more


@dataclass(frozen=True)
class Webhook:
    """Where events are sent, and what they are signed with; without a secret they are not signed."""

    url: str
    secret: str | None = None

    @property
    def printable(self) -> str:
        """The address without a password, and without its query, which may hold one."""
        shown = masked(printable(re.sub(r"[?#].*", "", self.url, flags=re.DOTALL)))
        return shown + ("?***" if "?" in self.url else "")

    def told(self, error: Exception) -> str:
        """An error of this address, which shows no more of it than `printable`."""
        text = str(error)
        for shown in (self.url, printable(self.url)):
            text = text.replace(shown, self.printable)
        return masked(text)

    def headers(self, event: dict[str, Any], body: bytes, now: int) -> dict[str, str]:
        """Of one attempt to send an event."""
        headers = {
            "content-type": "application/json",
            "webhook-id": event["id"],
            "webhook-timestamp": str(now),
        }
        if self.secret is not None:
            signed = f"{event['id']}.{now}.".encode() + body
            digest = hmac.new(_key_of(self.secret), signed, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers


class Webhooks:
    """Sends what waits in `StreamRule.undelivered`; made and used in the server's event loop.

    changed: is told a rule whose events were taken or given up. count: is told whether one was taken.
    """

    def __init__(
        self,
        allow_private: bool,
        retries: Retries,
        changed: Callable[["StreamRule"], None],
        count: Callable[[bool], None],
    ) -> None:
        self._allow_private, self._retries, self._changed, self._count = (
            allow_private,
            retries,
            changed,
            count,
        )
        self._senders = ThreadPoolExecutor(_NUM_SENDERS, "webhooks")
        self._of_key: dict[str, asyncio.Semaphore] = {}
        self._lines: dict[StreamRule, asyncio.Task[None]] = {}

    async def checked(self, owner: str, url: str, secret: str | None) -> Webhook:
        """A webhook of a key, whose address may be used now.

        Raises:
            ApiError: 400, a refused address, or a secret that is none of Standard Webhooks.
        """
        hook = Webhook(url, secret)
        if secret is not None and len(_decoded(secret) or b"") not in _SECRET_BYTES:
            raise invalid(
                "webhook.secret is none of Standard Webhooks: give 'whsec_' and 24 to 64 bytes as base64.",
                "webhook.secret",
            )
        try:
            await self._in_sender(owner, lambda: check_address(url, allow_private=self._allow_private))
        except InputError as error:
            raise invalid(f"webhook.url: {hook.told(error)}", "webhook.url") from error
        return hook

    async def _in_sender(self, owner: str, function: Callable[[], T]) -> T:
        """Run what waits for a network in a thread; no key has all threads."""
        async with self._of_key.setdefault(owner, asyncio.Semaphore(_SENDERS_PER_KEY)):
            return await asyncio.get_running_loop().run_in_executor(self._senders, function)

    def wake(self, rule: "StreamRule") -> None:
        """Send what waits, unless that is going on."""
        if rule.webhook is not None and rule.undelivered and rule not in self._lines:
            self._lines[rule] = asyncio.get_running_loop().create_task(self._send_all(rule))

    def forget(self, rule: "StreamRule") -> None:
        """Send no more of a rule."""
        line = self._lines.pop(rule, None)
        if line is not None:
            line.cancel()

    def stop(self) -> None:
        """Send no more; what waits stays in `undelivered`."""
        for rule in list(self._lines):
            self.forget(rule)
        self._senders.shutdown(wait=False, cancel_futures=True)

    async def _send_all(self, rule: "StreamRule") -> None:
        try:
            while rule.undelivered:
                event = rule.undelivered[0]
                is_taken = await self._send(rule, event)
                if rule.undelivered and rule.undelivered[0] is event:
                    rule.undelivered.popleft()
                self._count(is_taken)
                self._changed(rule)
        finally:
            if self._lines.get(rule) is asyncio.current_task():
                del self._lines[rule]

    async def _send(self, rule: "StreamRule", event: dict[str, Any]) -> bool:
        """Send one event until it is taken or given up: which of both."""
        for attempt in range(1, self._retries.attempts + 1):
            reason = await self._attempt(rule, event)
            if reason is None:
                return True
            is_last = attempt == self._retries.attempts or reason == _GONE
            told = "is given up" if is_last else f"is sent again in {self._retries.pause(attempt):g} s"
            logger.warning(
                "%s of %s was not taken by its webhook (%s) and %s", event["id"], rule.id, reason, told
            )
            if is_last:
                return False
            await asyncio.sleep(self._retries.pause(attempt))
        return False

    async def _attempt(self, rule: "StreamRule", event: dict[str, Any]) -> str | int | None:
        """Send an event once; why it was not taken, None if it was."""
        hook = rule.webhook
        assert hook is not None
        body = json.dumps(event, ensure_ascii=False).encode()

        def send() -> int:
            headers = hook.headers(event, body, int(time.time()))
            timeout, allow = self._retries.timeout, self._allow_private
            return post(hook.url, body, headers, allow_private=allow, timeout=timeout)

        try:
            status = await self._in_sender(rule.owner, send)
        except InputError as error:
            return hook.told(error)
        except Exception as error:  # the events after it shall be sent all the same
            logger.exception("a webhook of %s failed", rule.id)
            return type(error).__name__
        return None if 200 <= status < 300 else status


def _key_of(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(_PREFIX))


def _decoded(secret: str) -> bytes | None:
    """The bytes of a secret; None if it is written in another way."""
    try:
        return base64.b64decode(secret[len(_PREFIX) :], validate=True) if secret.startswith(_PREFIX) else None
    except (binascii.Error, ValueError):
        return None
