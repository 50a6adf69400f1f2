"""Coinbase Advanced Trade: public market data, one subscription a channel, acknowledged by the list of what is
subscribed.

Layouts: Coinbase Developer Platform, "Advanced Trade WebSocket Overview" and "Channels". The channel `heartbeats` is
always subscribed to: it keeps quiet connections open, and counts in the same numbering. The decoder is
workers/decoders/_coinbase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from shm.layout import NO_INSTRUMENT
from workers.decoders._coinbase import CoinbaseDecoder
from workers.spec import FeedSpec
from workers.venues.channels import ChannelDialect
from workers.venues.dialect import (
    ALIVE,
    NO_RECOVERY,
    UNREADABLE,
    Control,
    ControlKind,
    Recovery,
    Request,
    VenueOptions,
)

_HEARTBEATS: Final = "heartbeats"


class _Message(msgspec.Struct):
    channel: str = ""
    type: str = ""
    message: str = ""
    events: msgspec.Raw = msgspec.Raw(b"")


class _Subscribed(msgspec.Struct):
    subscriptions: dict[str, list[str]] = {}


_message = msgspec.json.Decoder(_Message)
_subscribed = msgspec.json.Decoder(list[_Subscribed])


class CoinbaseDialect(ChannelDialect):
    """See the module. Symbols are products, BTC-USD."""

    URL = "wss://advanced-trade-ws.coinbase.com"
    CODE = b"COINBASE"
    TYPES = {"trade": "market_trades", "quote": "ticker", "level2": "level2"}  # noqa: RUF012
    STREAMS_PER_CONNECTION = 90
    REQUEST_GAP_S = 0.15  # the venue takes eight unauthenticated messages a second

    def __init__(self, spec: FeedSpec, options: VenueOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self.decoder = CoinbaseDecoder(self.intern, **self.stamp)

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """See `ChannelDialect.subscribe`; and the heartbeats, which name no product."""
        return [
            *super().subscribe(streams),
            Request(msgspec.json.encode({"type": "subscribe", "channel": _HEARTBEATS})),
        ]

    def request(self, what: str, channel: str, symbols: list[str]) -> bytes:
        """See `ChannelDialect.request`."""
        return msgspec.json.encode({"type": what, "product_ids": symbols, "channel": channel})

    def control(self, message: bytes) -> Control | None:
        """The channel's name comes first; errors have a type instead."""
        if message.startswith((b'{"channel":"l2_data"', b'{"channel":"market_trades"', b'{"channel":"ticker"')):
            return None
        try:
            told = _message.decode(message)
            if told.channel == "subscriptions":
                keys = [
                    f"{channel}:{product}"
                    for event in _subscribed.decode(told.events)
                    for channel, products in event.subscriptions.items()
                    for product in products
                ]
                return Control(ControlKind.ACKNOWLEDGED, tuple(keys))
        except UNREADABLE:
            return None  # the decoder counts it
        if told.type == "error":
            wait_s = 10.0 if "rate limit" in told.message.lower() else 0.0
            return Control(ControlKind.REFUSED, (), told.message or "error without a message", wait_s)
        return ALIVE if told.channel == _HEARTBEATS else None

    def after_gap(self, message: bytes, instrument_id: int, resumed: int) -> Recovery:  # noqa: ARG002
        """A hole in the connection's numbering may be one in a book, which comes whole only with a subscription."""
        if instrument_id == NO_INSTRUMENT and "level2" in self.types:
            return Recovery(reconnect="messages are missing: books begin anew")
        return NO_RECOVERY
