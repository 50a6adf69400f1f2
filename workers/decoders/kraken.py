"""Kraken WebSocket v2 messages -> records, with the venue's checksum of the book verified at every change.

    trade -> trade           ticker -> quote           ohlc: counted           book -> level2, CLEAR before a snapshot

Layout: Kraken "WebSocket API v2", guide "Book checksum". Prices and sizes are numbers whose digits count for the
checksum, so they are kept as they stand on the wire (checked_book.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm.layout import Flag, Side
from workers.decoders._coinbase import parse_time
from workers.decoders._decimal import parse_decimal
from workers.decoders.checked_book import Change, CheckedBooks, digits_of

_KINDS: Final = ("other", "trade", "ticker", "book", "ohlc", "heartbeat", "status", "reply")
_NUMBER: Final = {name: number for number, name in enumerate(_KINDS)}
_RAW: Final = msgspec.Raw(b"")


class Envelope(msgspec.Struct):
    """Any message."""

    channel: str = ""
    type: str = ""
    data: msgspec.Raw = _RAW


class Trade(msgspec.Struct):
    """One match; `side` is the taker's."""

    symbol: str
    side: str
    price: msgspec.Raw
    qty: msgspec.Raw
    trade_id: int
    timestamp: str


class Ticker(msgspec.Struct):
    """Best bid and ask, and day statistics that are not read."""

    symbol: str
    bid: msgspec.Raw
    bid_qty: msgspec.Raw
    ask: msgspec.Raw
    ask_qty: msgspec.Raw
    timestamp: str = ""


class Level(msgspec.Struct):
    """One price of a book; `qty` 0 = gone."""

    price: msgspec.Raw
    qty: msgspec.Raw


class BookData(msgspec.Struct):
    """A whole book, or what changed in it."""

    symbol: str
    bids: list[Level] = []
    asks: list[Level] = []
    checksum: int | None = None
    timestamp: str = ""


class KrakenDecoder(CheckedBooks):
    """Frames are the WebSocket's text messages."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"KRAKEN"

    def __init__(self, intern: Callable[[str], int], *, depth: int = 10, **stamp: Any) -> None:
        """`depth`: levels a side that books are subscribed to with."""
        super().__init__(intern, depth=depth, **stamp)
        self._last_trade: dict[str, int] = {}
        self._envelope = msgspec.json.Decoder(Envelope)
        self._trades = msgspec.json.Decoder(list[Trade])
        self._tickers = msgspec.json.Decoder(list[Ticker])
        self._data = msgspec.json.Decoder(list[BookData])

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        """See `MessageDecoder.message`."""
        envelope = self._envelope.decode(text)
        kind = _NUMBER.get(envelope.channel, 0)
        self.seen(kind)
        whole = envelope.type == "snapshot"
        if kind == 1:
            self._take_trades(self._trades.decode(envelope.data), whole, ts_receive)
        elif kind == 2:
            for ticker in self._tickers.decode(envelope.data):
                ts_event = parse_time(ticker.timestamp) if ticker.timestamp else ts_receive
                bid, bid_size, ask, ask_size = map(_number, (ticker.bid, ticker.bid_qty, ticker.ask, ticker.ask_qty))
                flags = int(Flag.SNAPSHOT) if whole else 0
                self.quote(ticker.symbol, ts_event, ts_receive, bid, bid_size, ask, ask_size, 0, flags)
        elif kind == 3:
            for data in self._data.decode(envelope.data):
                self._take_book(data, whole, ts_receive)
        elif kind == 5:
            self.heartbeat()

    def _take_trades(self, trades: list[Trade], whole: bool, ts_receive: int) -> None:
        for trade in trades:
            number = trade.trade_id
            last = self._last_trade.get(trade.symbol, 0)
            if number <= last:
                self.duplicate()
                continue
            price, size, ts_event = _number(trade.price), _number(trade.qty), parse_time(trade.timestamp)
            if last and number > last + 1:
                self.gap(0, last + 1, number, trade.symbol, ts_receive)
            self._last_trade[trade.symbol] = number
            side = Side.BUY if trade.side == "buy" else Side.SELL
            flags = int(Flag.SNAPSHOT) if whole else 0
            self.trade(trade.symbol, ts_event, ts_receive, price, size, number, int(side), flags)

    def _take_book(self, data: BookData, whole: bool, ts_receive: int) -> None:
        ts_event = parse_time(data.timestamp) if data.timestamp else ts_receive
        changes = [
            Change(
                side,
                _number(level.price),
                _number(level.qty),
                digits_of(bytes(level.price)) + digits_of(bytes(level.qty)),
            )
            for side, listed in ((Side.BUY, data.bids), (Side.SELL, data.asks))
            for level in listed
        ]
        self.take_book(data.symbol, changes, data.checksum, whole=whole, ts_event=ts_event, ts_receive=ts_receive)


def _number(raw: msgspec.Raw) -> float:
    return parse_decimal(bytes(raw).decode())
