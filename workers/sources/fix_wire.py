"""One attempt's TCP (or TLS) connection of a FIX feed, as asyncio sees it. Made by workers/sources/fix.py.

It cuts nothing and decides nothing: bytes and ends go to the owner, with the attempt that they belong to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Final, Protocol

from workers.session import Verdict
from workers.sources.channel import why_not

MAX_UNSENT: Final = 1 << 20  # bytes that wait for a venue that takes none


class Owner(Protocol):
    """What is told of a connection."""

    def opened(self, attempt: int) -> None:
        """It is there."""

    def received(self, attempt: int, data: bytes) -> None:
        """Bytes came."""

    def ended(self, attempt: int, verdict: Verdict) -> None:
        """It could not be made, or is over."""


class FixWire(asyncio.Protocol):
    """See the module."""

    def __init__(self, owner: Owner, attempt: int) -> None:
        self.attempt = attempt
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._over = False

    async def connect(
        self, host: str, port: int, tls: ssl.SSLContext | None, connect_s: float, clock: Callable[[], int]
    ) -> None:
        """Make the connection; how that went is told to the owner."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(connect_s):
                await loop.create_connection(lambda: self, host, port, ssl=tls)
        except TimeoutError:
            self._owner.ended(self.attempt, Verdict(f"{host}:{port} does not answer within {connect_s:g} s"))
        except (OSError, ssl.SSLError) as error:
            self._owner.ended(self.attempt, why_not(error, clock()))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if self._over:
            transport.abort()
            return
        self._transport = transport
        connected = transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._owner.opened(self.attempt)

    def data_received(self, data: bytes) -> None:
        self._owner.received(self.attempt, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        reason = f"the connection broke off: {exc}" if exc else "the venue closed the connection"
        self._owner.ended(self.attempt, Verdict(reason))

    def send(self, data: bytes) -> None:
        """To the venue; what it does not take within `MAX_UNSENT` bytes ends the connection."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)
            if self._transport.get_write_buffer_size() > MAX_UNSENT:
                self._transport.abort()

    def end(self) -> None:
        """Close it, after what was sent."""
        self._over = True
        if self._transport is not None:
            self._transport.close()
