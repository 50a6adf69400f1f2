"""The HTTP side of webhooks: one signed POST, and what became of it. The one module that imports aiohttp.

    Content-Type            application/json; the body is an array of messages
    X-Tickengine-Timestamp  seconds since the epoch, when it was sent; a retry has its own
    X-Tickengine-Signature  sha256= and the HMAC-SHA256, in hexadecimal, of timestamp, ".", body
    X-Tickengine-Subscription
                            subscription_id
    X-Tickengine-Delivery   number of the delivery, growing; a retry carries the number of what it repeats

What counts is the status line: 2xx acknowledges, whatever becomes of the answer's body, of which MAX_ANSWER_BYTES are
read. Redirects are never followed, no proxy and no cookie is used, and each address is checked when it is about to be
connected to (workers/webhook_target.py). Called by workers/webhooks.py; it retries nothing and keeps nothing.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import socket
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp.abc import AbstractResolver

from shm.ledger import Failure
from workers.webhook_target import Addresses

MAX_ANSWER_BYTES: Final = 16384
CONNECT_S: Final = 5.0
NAMES_TTL_S: Final = 10
_REFUSED: Final = "address refused: "


class Outcome(NamedTuple):
    """What became of a request: `failure` 0 = acknowledged, else a shm.ledger.Failure or the HTTP status."""

    failure: int
    detail: str = ""
    retry_after_ns: int = 0


class AddressRefused(OSError):
    """A connection to an address that webhooks must not reach."""


def sign(secret: str, timestamp: str, body: bytes) -> str:
    """The signature header's value."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Poster:
    """Sends; made in the running event loop, closed in it."""

    def __init__(
        self,
        addresses: Addresses,
        *,
        timeout_s: float,
        connections: int,
        resolver: AbstractResolver | None = None,
    ) -> None:
        """`resolver` takes the place of the system's."""
        self._addresses = addresses
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=connections, ttl_dns_cache=NAMES_TTL_S, socket_factory=self._socket, resolver=resolver
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s)),
            auto_decompress=False,
            trust_env=False,
            headers={"User-Agent": "tickengine", "Content-Type": "application/json"},
        )

    def _socket(self, info: tuple[Any, ...]) -> socket.socket:
        """A socket for the address that is connected to next: the last moment at which it can be refused."""
        family, kind, protocol, _, address = info
        if family not in (socket.AF_INET, socket.AF_INET6) or not self._addresses.permits(str(address[0])):
            raise AddressRefused(errno.EACCES, f"{_REFUSED}{address[0]}")
        return socket.socket(family, kind, protocol)

    async def post(
        self, url: str, body: bytes, *, secret: str, subscription_id: str, delivery: int, now_s: Callable[[], float]
    ) -> Outcome:
        """Send one body; returns what became of it and never raises for the receiver's sake."""
        timestamp = str(int(now_s()))
        headers = {
            "X-Tickengine-Timestamp": timestamp,
            "X-Tickengine-Signature": sign(secret, timestamp, body),
            "X-Tickengine-Subscription": subscription_id,
            "X-Tickengine-Delivery": str(delivery),
        }
        found: Outcome | None = None
        try:
            async with self._session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                found = _outcome(answer, now_s())
                await _read_some(answer)
        except (aiohttp.ClientError, OSError, ValueError, TimeoutError) as error:
            return found or _failure(error)
        return found

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()


async def _read_some(answer: aiohttp.ClientResponse) -> None:
    """The body, so that the connection can be used again; one that has no end costs it."""
    left = MAX_ANSWER_BYTES
    async for piece in answer.content.iter_any():
        left -= len(piece)
        if left < 0:
            answer.close()
            return


def _outcome(answer: aiohttp.ClientResponse, now_s: float) -> Outcome:
    if 200 <= answer.status < 300:
        return Outcome(0)
    return Outcome(
        answer.status, f"status {answer.status}", retry_after_ns(answer.headers.get("Retry-After", ""), now_s)
    )


def retry_after_ns(text: str, now_s: float) -> int:
    """A Retry-After header, seconds or a date, as ns from now; 0 where there is none or it can't be read."""
    try:
        seconds = float(text) if text.strip().isdigit() else parsedate_to_datetime(text).timestamp() - now_s
    except (ValueError, TypeError, OverflowError):
        return 0
    return int(max(0.0, min(seconds, 1e9)) * 1e9)


def _failure(error: Exception) -> Outcome:
    text = str(error)
    if _REFUSED in text:
        return Outcome(Failure.REFUSED_TARGET, text)
    for kinds, failure in _FAILURES:
        if isinstance(error, kinds):
            return Outcome(failure, text or type(error).__name__)
    return Outcome(Failure.PROTOCOL, text or type(error).__name__)


# In order: some are subclasses of others.
_FAILURES: Final[tuple[tuple[Any, Failure], ...]] = (
    (TimeoutError, Failure.TIMEOUT),
    (aiohttp.ClientConnectorDNSError, Failure.NO_ADDRESS),
    ((aiohttp.ClientSSLError, ssl.SSLError), Failure.TLS),
    (aiohttp.ClientConnectorError, Failure.NO_CONNECTION),
    ((aiohttp.ServerDisconnectedError, aiohttp.ClientOSError, aiohttp.ClientPayloadError), Failure.CLOSED),
    (OSError, Failure.NO_CONNECTION),
)
