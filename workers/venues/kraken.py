"""Kraken spot, WebSocket v2: each symbol of a channel acknowledged by itself, books with checksums.

Layout: Kraken "WebSocket API v2". A book whose checksum is wrong is unsubscribed from and subscribed to again, which
brings a new snapshot; the decoder is workers/decoders/kraken.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from shm.layout import NO_INSTRUMENT
from workers.decoders.kraken import KrakenDecoder
from workers.spec import FeedSpec
from workers.venues.channels import ChannelDialect
from workers.venues.dialect import (
    ALIVE,
    NO_RECOVERY,
    UNREADABLE,
    Control,
    ControlKind,
    Recovery,
    VenueOptions,
)


class KrakenOptions(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of venue "kraken"."""

    depth: Literal[10, 25, 100, 500, 1000] = 10  # levels of books, a side


class _Result(msgspec.Struct):
    channel: str = ""
    symbol: str = ""


class _Reply(msgspec.Struct):
    method: str = ""
    success: bool | None = None
    error: str = ""
    symbol: str = ""
    result: _Result | None = None
    channel: str = ""


_reply = msgspec.json.Decoder(_Reply)


class KrakenDialect(ChannelDialect):
    """See the module. Symbols as the venue writes them, BTC/USD."""

    OPTIONS = KrakenOptions
    URL = "wss://ws.kraken.com/v2"
    TYPES = {"trade": "trade", "quote": "ticker", "level2": "book"}  # noqa: RUF012
    STREAMS_PER_CONNECTION = 150
    REQUEST_GAP_S = 0.1

    def __init__(self, spec: FeedSpec, options: KrakenOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self._depth = options.depth
        self.decoder = KrakenDecoder(self.intern, depth=options.depth, **self.stamp)

    def control(self, message: bytes) -> Control | None:
        """Answers have a method; data has a channel first."""
        if message.startswith((b'{"channel":"book"', b'{"channel":"trade"', b'{"channel":"ticker"')):
            return None
        try:
            reply = _reply.decode(message)
        except UNREADABLE:
            return None  # the decoder counts it
        if reply.method == "subscribe" and reply.success and reply.result is not None:
            return Control(ControlKind.ACKNOWLEDGED, (f"{reply.result.channel}:{reply.result.symbol}",))
        if reply.method == "subscribe" and reply.success is False:
            keys = tuple(f"{channel}:{reply.symbol}" for channel in self.TYPES.values()) if reply.symbol else ()
            wait_s = 10.0 if "rate limit" in reply.error.lower() else 0.0
            return Control(ControlKind.REFUSED, keys, reply.error, wait_s)
        if reply.success is False:
            return Control(ControlKind.COMPLAINT, text=reply.error)
        return ALIVE if reply.channel in ("heartbeat", "status") or reply.method == "pong" else None

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:  # noqa: ARG002
        """A new snapshot for a book whose checksum was wrong; missing trades stay missing."""
        symbol = self.symbol_of(instrument_id)
        if not message.startswith(b'{"channel":"book"') or instrument_id == NO_INSTRUMENT or not symbol:
            return NO_RECOVERY
        return Recovery(requests=self.again("book", symbol))

    def request(self, what: str, channel: str, symbols: list[str]) -> bytes:
        """See `ChannelDialect.request`."""
        params: dict[str, Any] = {"channel": channel, "symbol": symbols}
        if channel == "book":
            params["depth"] = self._depth
        elif channel == "ticker" and what == "subscribe":
            params["event_trigger"] = "bbo"  # every change of the best prices, and not only trades
        return msgspec.json.encode({"method": what, "params": params})
