"""Kraken spot, WebSocket v1: pairs as XBT/USD, each of a channel acknowledged by itself, books with checksums.

Layout: Kraken "WebSocket API v1". Quotes come from channel `spread`, or with option `quotes` from `ticker`. A book with
a wrong checksum is unsubscribed from and subscribed to again; the decoder is workers/decoders/kraken_v1.py. New feeds
do better with v2 (workers/venues/kraken.py): v1 has no trade ids, so a hole among trades does not show.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import msgspec

from shm.layout import NO_INSTRUMENT
from workers.decoders.kraken_v1 import KrakenV1Decoder
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


class KrakenV1Options(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of venue "kraken-v1"."""

    depth: Literal[10, 25, 100, 500, 1000] = 10  # levels of books, a side
    quotes: Literal["spread", "ticker"] = "spread"  # channel of quotes


class _Named(msgspec.Struct):
    name: str = ""


class _Told(msgspec.Struct):
    event: str = ""
    status: str = ""
    pair: str = ""
    subscription: _Named = msgspec.field(default_factory=_Named)
    errorMessage: str = ""  # noqa: N815 -- the venue's name


_told = msgspec.json.Decoder(_Told)


class KrakenV1Dialect(ChannelDialect):
    """See the module."""

    OPTIONS = KrakenV1Options
    URL = "wss://ws.kraken.com"
    TYPES = {"trade": "trade", "quote": "spread", "level2": "book"}  # noqa: RUF012
    STREAMS_PER_CONNECTION = 150
    REQUEST_GAP_S = 0.1

    def __init__(self, spec: FeedSpec, options: KrakenV1Options, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self._depth = options.depth
        self.TYPES = {**self.TYPES, "quote": options.quotes}  # type: ignore[misc]  # of this feed
        self.decoder = KrakenV1Decoder(self.intern, depth=options.depth, **self.stamp)

    def request(self, what: str, channel: str, symbols: list[str]) -> bytes:
        """See `ChannelDialect.request`."""
        subscription: dict[str, Any] = {"name": channel}
        if channel == "book":
            subscription["depth"] = self._depth
        return msgspec.json.encode({"event": what, "pair": symbols, "subscription": subscription})

    def control(self, message: bytes) -> Control | None:
        """Data is an array, everything else an object with an event."""
        if message.startswith(b"["):
            return None
        try:
            told = _told.decode(message)
        except UNREADABLE:
            return None  # the decoder counts it
        key = f"{told.subscription.name}:{told.pair}"
        if told.event == "subscriptionStatus" and told.status == "subscribed":
            return Control(ControlKind.ACKNOWLEDGED, (key,))
        if told.event == "subscriptionStatus" and told.status == "error":
            wait_s = 10.0 if "rate limit" in told.errorMessage.lower() else 0.0
            return Control(ControlKind.REFUSED, (key,) if told.pair else (), told.errorMessage, wait_s)
        if told.event == "systemStatus" and told.status != "online":
            return Control(ControlKind.COMPLAINT, text=f"the venue's system is {told.status}")
        if told.event == "error":
            return Control(ControlKind.COMPLAINT, text=told.errorMessage)
        return ALIVE if told.event else None

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:  # noqa: ARG002
        """A new snapshot for a book whose checksum was wrong."""
        symbol = self.symbol_of(instrument_id)
        if b'"book-' not in message[-80:] or instrument_id == NO_INSTRUMENT or not symbol:
            return NO_RECOVERY
        return Recovery(requests=self.again("book", symbol))
