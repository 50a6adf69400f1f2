"""Bitstamp WebSocket messages -> records.

    live_trades_PAIR -> trade       diff_order_book_PAIR -> level2       order_book_PAIR -> level2, a snapshot each time

Layout: Bitstamp "WebSocket API v2". Changes of a book carry a time (microtimestamp) and no number: `source_sequence`
is that time in microseconds. A picture from REST comes as {"event": "picture", "channel": ..., "data": BODY}; changes
that are no newer than it stand in it already.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm.layout import Action, Flag, Side
from workers.decoders._decimal import parse_decimal
from workers.decoders._messages import MessageDecoder

_KINDS: Final = ("other", "live_trades", "diff_order_book", "order_book", "heartbeat", "control")
_RAW: Final = msgspec.Raw(b"")


class Envelope(msgspec.Struct):
    """Any message."""

    event: str = ""
    channel: str = ""
    data: msgspec.Raw = _RAW


class Trade(msgspec.Struct):
    """One match; `type` is the taker's side, 0 = bought."""

    id: int
    price_str: str
    amount_str: str
    type: int
    microtimestamp: str


class BookData(msgspec.Struct):
    """A book, or what changed in it."""

    microtimestamp: str
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]


class BitstampDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages. The symbol is the pair of the channel, btcusd."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"BITSTAMP"

    def __init__(self, intern: Callable[[str], int], **stamp: Any) -> None:
        """`stamp`: source, feed_id, flags, venue."""
        super().__init__(intern, **stamp)
        self._last_trade: dict[str, int] = {}
        self._pictures: dict[str, int] = {}  # symbol -> time of its last picture, us
        self._envelope = msgspec.json.Decoder(Envelope)
        self._trade = msgspec.json.Decoder(Trade)
        self._data = msgspec.json.Decoder(BookData)

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        """See `MessageDecoder.message`."""
        envelope = self._envelope.decode(text)
        if envelope.event.startswith("bts:"):
            self.seen(4 if envelope.event == "bts:heartbeat" else 5)
            return
        kind, _, symbol = envelope.channel.rpartition("_")
        if kind == "live_trades" and envelope.event == "trade":
            self.seen(1)
            self._take_trade(self._trade.decode(envelope.data), symbol, ts_receive)
        elif kind in ("diff_order_book", "order_book"):
            self.seen(2 if kind == "diff_order_book" else 3)
            whole = kind == "order_book" or envelope.event == "picture"
            data = self._data.decode(envelope.data)
            if envelope.event == "picture":
                self._pictures[symbol] = int(data.microtimestamp)
            elif not whole and int(data.microtimestamp) <= self._pictures.get(symbol, 0):
                self.duplicate()
                return
            self._take_book(data, symbol, whole, ts_receive)
        else:
            self.seen(0)

    def _take_trade(self, trade: Trade, symbol: str, ts_receive: int) -> None:
        # Ids grow and leave numbers out: they tell doubles, and no gaps.
        if trade.id <= self._last_trade.get(symbol, 0):
            self.duplicate()
            return
        ts_event = int(trade.microtimestamp) * 1000
        price, size = parse_decimal(trade.price_str), parse_decimal(trade.amount_str)
        self._last_trade[symbol] = trade.id
        side = Side.BUY if trade.type == 0 else Side.SELL
        self.trade(symbol, ts_event, ts_receive, price, size, trade.id, int(side))

    def _take_book(self, data: BookData, symbol: str, whole: bool, ts_receive: int) -> None:
        update = int(data.microtimestamp)
        levels = [
            (side, parse_decimal(price), parse_decimal(size))
            for side, listed in ((Side.BUY, data.bids), (Side.SELL, data.asks))
            for price, size in listed
        ]
        flags = 0
        if whole:
            self.clear(symbol, update * 1000, ts_receive, update)
            flags = int(Flag.SNAPSHOT)
        for side, price, size in levels:
            action = Action.DELETE if size == 0 else Action.ADD if whole else Action.MODIFY
            self.level(symbol, update * 1000, ts_receive, int(side), price, size, int(action), update, flags)
        if levels or whole:
            self.end_of_event()
