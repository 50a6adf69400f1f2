"""ib_async's client as a feed uses it: frames checked before it reads them, and what it can not read counted.

    bytes --> whole messages of bounded length --> ib_async.Client, Decoder --> Wire

Of ib_async the Client is used, which speaks the protocol, and not IB, which keeps a book of orders and positions and
asks for them. Its own reading of the stream is fed whole messages, since it would wait for ever, and keep all, when
four bytes of garbage announce a gigabyte. What it can not read it only logs; here it is told, and errors of our own on
the way are told apart from that. It starts no loop, no thread and no timer but that of its throttle.

Imported by workers/sources/ibkr_link.py when it first connects: this is the one module that imports ib_async at once.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, Final

from ib_async import Client
from ib_async.decoder import Decoder

from workers.session import Verdict
from workers.sources.ibkr_wire import MAX_REASON_CHARS, Wire

# What ib_async's decoder raises of a message that is not as it should be (the last: of its own report about that).
_UNREADABLE: Final = (ValueError, LookupError, TypeError, ArithmeticError, StopIteration, UnboundLocalError)
_HANDSHAKE_BYTES: Final = 256  # the answer to it is a version and a time
# What ib_async logs about its connection the feed tells itself.
logging.getLogger("ib_async").setLevel(logging.CRITICAL)

# Messages that mean something to a feed; all others that TWS may send are passed over.
_WANTED: Final = frozenset((1, 2, 4, 9, 10, 12, 13, 14, 15, 17, 18, 46, 49, 50, 52, 58, 81, 84, 90, 99))
_KNOWN: Final = frozenset(Decoder(None, 0).handlers)  # type: ignore[arg-type]  # it decodes nothing
_PASSED_OVER: Final = frozenset(str(kind).encode() for kind in _KNOWN - _WANTED)  # orders, accounts: never captured


class MarketDataClient(Client):
    """ib_async's client, fed whole messages of a length that is believed."""

    def __init__(self, wire: Wire, requests_per_s: int, max_message_bytes: int) -> None:
        """Not connected yet; `wire` hears what comes."""
        super().__init__(wire)  # type: ignore[no-untyped-call]
        self.MaxRequests = requests_per_s
        self.decoder = _Decoder(wire)
        self.conn.disconnected += self._gone
        self.conn.hasData.error_event += self._fault
        self.apiStart += wire.started
        self.throttleStart += wire.throttle_on
        self.throttleEnd += wire.throttle_off
        self.wire = wire
        self._max_message_bytes = max_message_bytes
        self._rest = bytearray()

    def _onSocketHasData(self, data: bytes) -> None:  # noqa: N802  ib_async's name
        wire, rest = self.wire, self._rest
        if wire.dead:
            return
        wire.arrived(len(data))
        rest += data
        at = 0
        while len(rest) - at >= 4 and not wire.dead:
            size = int.from_bytes(rest[at : at + 4], "big")
            if size > (self._max_message_bytes if self._serverVersion else _HANDSHAKE_BYTES):
                wire.end(
                    Verdict(f"a message of {size} bytes: that is not TWS's protocol, or max_message_bytes is too small")
                )
                break
            if len(rest) - at < 4 + size:
                break
            message = bytes(rest[at : at + 4 + size])
            if wire.captures and self._serverVersion and message[4:8].partition(b"\0")[0] not in _PASSED_OVER:
                wire.captured(message[4:])
            self.read(message)
            at += 4 + size
        del rest[:at]
        if not wire.dead:
            wire.processed()

    def read(self, message: bytes) -> None:
        """One whole message, with its length."""
        if not message.endswith(b"\0"):
            self.wire.complaint(f"a message without its end: {message[4:44]!r}")
        else:
            try:
                super()._onSocketHasData(message)  # type: ignore[no-untyped-call]
            except (ValueError, IndexError) as error:  # of its handshake, which trusts what comes
                self.wire.complaint(f"{error} in {message[4:44]!r}")
        if not self._serverVersion and not self.wire.dead:
            self.wire.end(Verdict(f"the handshake is answered with {message[4:44]!r}: that is not TWS's protocol"))

    def take_up(self, version: int) -> None:
        """As after a handshake and a login, without a socket: for a replay."""
        self._serverVersion = self.decoder.serverVersion = version
        self.connState, self._apiReady = self.CONNECTED, True

    def startApi(self) -> None:  # noqa: N802  ib_async's name
        """TWS has answered the handshake."""
        self.wire.version = self._serverVersion
        super().startApi()  # type: ignore[no-untyped-call]

    def _prefix(self, msg: bytes) -> bytes:
        if self.wire.captures and self._apiReady:  # before that come the versions and the client id
            self.wire.sent(msg)
        framed: bytes = super()._prefix(msg)  # type: ignore[no-untyped-call]
        return framed

    def _fault(self, _: Any, error: Exception) -> None:
        self.wire.failed(error)

    def _gone(self, text: str) -> None:
        said = f": {text}" if text else ""
        if self.wire.was_ready:
            self.wire.end(Verdict(f"the connection broke off{said}"[:MAX_REASON_CHARS]))
        else:
            self.wire.end(
                Verdict(
                    "TWS has closed the connection before it was ready: is this host among its trusted addresses, and "
                    f"client id {self.clientId} free?{said}"[:MAX_REASON_CHARS]
                )
            )


class _Decoder(Decoder):
    """ib_async's decoder without the messages that concern no feed; what it can not read is told, not just logged."""

    def __init__(self, wire: Wire) -> None:
        super().__init__(wire, 0)  # type: ignore[arg-type]  # a wrapper is what has the methods
        self.logger = _Complaints(wire)
        self.handlers = {number: handler for number, handler in self.handlers.items() if number in _WANTED}

    def interpret(self, fields: list[str]) -> None:
        number = int(fields[0]) if fields and fields[0].isdecimal() and len(fields[0]) < 6 else -1
        if number in self.handlers:
            super().interpret(fields)  # type: ignore[no-untyped-call]
        elif number not in _KNOWN:
            self.logger.error("a message of kind %.20r", fields[0] if fields else "")


class _Complaints(logging.Logger):
    """What ib_async's decoder says when it can not read a message."""

    def __init__(self, wire: Wire) -> None:
        super().__init__("ibkr.decoder")
        self._wire = wire

    def exception(self, msg: object, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002  as the logger has them
        error = sys.exc_info()[1]
        if isinstance(error, Exception) and not isinstance(error, _UNREADABLE):
            self._wire.failed(error)
        self._wire.complaint(f"{error!r}: {msg}"[:MAX_REASON_CHARS])

    def error(self, msg: object, *args: Any, **kwargs: Any) -> None:  # noqa: ARG002
        self._wire.complaint(str(msg) % args)
