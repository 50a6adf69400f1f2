"""Kraken WebSocket v2 messages -> records, with the venue's checksum of the book verified at every change.

    trade -> trade           ticker -> quote           ohlc: counted           book -> level2, CLEAR before a snapshot

Layout: Kraken "WebSocket API v2", guide "Book checksum". Prices and sizes are numbers whose digits count for the
checksum, so they are kept as they stand on the wire. A book whose checksum is wrong is a GAP of its instrument; its
changes are no longer handed out until the next snapshot.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm.layout import Action, Flag, Side
from workers.decoders._coinbase import parse_time
from workers.decoders._decimal import parse_decimal
from workers.decoders._messages import MessageDecoder

CHECKED_LEVELS: Final = 10
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


class Book:
    """One book's levels as the wire has them: price -> (digits of price and size for the checksum)."""

    def __init__(self, depth: int) -> None:
        """`depth` levels a side are subscribed to; what falls behind them is let go of."""
        self.depth = depth
        self.bids: dict[float, bytes] = {}
        self.asks: dict[float, bytes] = {}

    def change(self, side: Side, price: float, size: float, digits: bytes) -> None:
        """One level."""
        levels = self.bids if side is Side.BUY else self.asks
        if size:
            levels[price] = digits
        else:
            levels.pop(price, None)

    def cut(self) -> list[tuple[Side, float]]:
        """Levels that are behind `depth` after all changes of a message: the venue speaks of them no more."""
        gone = []
        for side, levels in ((Side.BUY, self.bids), (Side.SELL, self.asks)):
            if len(levels) > self.depth:
                for price in sorted(levels, reverse=side is Side.BUY)[self.depth :]:
                    del levels[price]
                    gone.append((side, price))
        return gone

    def checksum(self) -> int:
        """CRC-32 of the ten best asks and the ten best bids, as the venue counts it."""
        asks = sorted(self.asks)[:CHECKED_LEVELS]
        bids = sorted(self.bids, reverse=True)[:CHECKED_LEVELS]
        return zlib.crc32(b"".join([self.asks[price] for price in asks] + [self.bids[price] for price in bids]))


def digits_of(number: bytes) -> bytes:
    """A number's digits without point and leading zeros."""
    return number.replace(b".", b"").lstrip(b"0")


class KrakenDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"KRAKEN"

    def __init__(self, intern: Callable[[str], int], *, depth: int = 10, **stamp: Any) -> None:
        """`depth`: levels a side that books are subscribed to with."""
        super().__init__(intern, **stamp)
        self.bad_checksums = 0
        self._depth = depth
        self._books: dict[str, Book] = {}
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
        symbol = data.symbol
        levels = [
            (
                side,
                _number(level.price),
                _number(level.qty),
                digits_of(bytes(level.price)) + digits_of(bytes(level.qty)),
            )
            for side, listed in ((Side.BUY, data.bids), (Side.SELL, data.asks))
            for level in listed
        ]
        if whole:
            self._books[symbol] = Book(self._depth)
            self.clear(symbol, ts_event, ts_receive)
        book = self._books.get(symbol)
        if book is None:
            return  # a change before its snapshot, or after a checksum that was wrong
        flags = int(Flag.SNAPSHOT) if whole else 0
        for side, price, size, digits in levels:
            book.change(side, price, size, digits)
            action = Action.DELETE if size == 0 else Action.ADD if whole else Action.MODIFY
            self.level(symbol, ts_event, ts_receive, int(side), price, size, int(action), 0, flags)
        for side, price in book.cut():
            self.level(symbol, ts_event, ts_receive, int(side), price, 0.0, int(Action.DELETE), 0, flags)
        if levels or whole:
            self.end_of_event()
        if data.checksum is not None and book.checksum() != data.checksum:
            self.bad_checksums += 1
            del self._books[symbol]
            self.gap(0, 0, 0, symbol, ts_receive)


def _number(raw: msgspec.Raw) -> float:
    return parse_decimal(bytes(raw).decode())
