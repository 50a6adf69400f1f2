"""Hyperliquid WebSocket messages -> records.

    trades -> trade     l2Book -> level2, a snapshot each time, and a quote where the best has changed     bbo -> quote

Layout: Hyperliquid "WebSocket subscriptions". Books state twenty levels a side, and how many orders stand at each. A
trade's number (tid) is a hash: it tells doubles, and no gaps. `source_sequence` of books is the venue's time in ms.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm.layout import Action, Flag, Side
from workers.decoders._decimal import parse_decimal
from workers.decoders._messages import MessageDecoder

_KINDS: Final = ("other", "trades", "l2Book", "bbo", "control")
_RAW: Final = msgspec.Raw(b"")
_REMEMBERED_TRADES: Final = 4096  # of all coins together; after a reconnect the venue repeats the last ones
_MS: Final = 1_000_000
_NONE: Final = (float("nan"), 0.0)


class Envelope(msgspec.Struct):
    """Any message."""

    channel: str = ""
    data: msgspec.Raw = _RAW


class Trade(msgspec.Struct):
    """One match; `side` is the taker's, B = bought, A = sold."""

    coin: str
    side: str
    px: str
    sz: str
    time: int
    tid: int


class Level(msgspec.Struct):
    """One price of a book."""

    px: str
    sz: str
    n: int


class BookData(msgspec.Struct):
    """A whole book: bids, asks, best first."""

    coin: str
    time: int
    levels: tuple[list[Level], list[Level]]


class BestData(msgspec.Struct):
    """Best bid and ask; null = there is none."""

    coin: str
    time: int
    bbo: tuple[Level | None, Level | None]


class HyperliquidDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages. The symbol is the coin: BTC."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"HYPERLIQ"

    def __init__(self, intern: Callable[[str], int], **stamp: Any) -> None:
        """`stamp`: source, feed_id, flags, venue."""
        super().__init__(intern, **stamp)
        self._seen_trades: OrderedDict[tuple[str, int], None] = OrderedDict()
        self._best: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {}
        self._envelope = msgspec.json.Decoder(Envelope)
        self._trades = msgspec.json.Decoder(list[Trade])
        self._book = msgspec.json.Decoder(BookData)
        self._bbo = msgspec.json.Decoder(BestData)

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        """See `MessageDecoder.message`."""
        envelope = self._envelope.decode(text)
        if envelope.channel == "trades":
            self.seen(1)
            for trade in self._trades.decode(envelope.data):
                self._take_trade(trade, ts_receive)
        elif envelope.channel == "l2Book":
            self.seen(2)
            self._take_book(self._book.decode(envelope.data), ts_receive)
        elif envelope.channel == "bbo":
            self.seen(3)
            found = self._bbo.decode(envelope.data)
            bid, ask = (_NONE if one is None else (parse_decimal(one.px), parse_decimal(one.sz)) for one in found.bbo)
            self._tell_best(found.coin, bid, ask, found.time, ts_receive)
        elif envelope.channel in ("subscriptionResponse", "pong", "error"):
            self.seen(4)
        else:
            self.seen(0)

    def _take_trade(self, trade: Trade, ts_receive: int) -> None:
        key = trade.coin, trade.tid
        if key in self._seen_trades:
            self.duplicate()
            return
        side = {"B": Side.BUY, "A": Side.SELL}[trade.side]
        price, size = parse_decimal(trade.px), parse_decimal(trade.sz)
        self.trade(trade.coin, trade.time * _MS, ts_receive, price, size, trade.tid, int(side))
        self._seen_trades[key] = None
        if len(self._seen_trades) > _REMEMBERED_TRADES:
            self._seen_trades.popitem(last=False)

    def _take_book(self, book: BookData, ts_receive: int) -> None:
        sides = [[(parse_decimal(one.px), parse_decimal(one.sz), one.n) for one in listed] for listed in book.levels]
        bid, ask = (listed[0][:2] if listed else _NONE for listed in sides)
        self._tell_best(book.coin, bid, ask, book.time, ts_receive)
        ts_event = book.time * _MS
        self.clear(book.coin, ts_event, ts_receive, book.time)
        flags = int(Flag.SNAPSHOT)
        for side, listed in zip((Side.BUY, Side.SELL), sides, strict=True):
            for price, size, orders in listed:
                self.level(
                    book.coin,
                    ts_event,
                    ts_receive,
                    int(side),
                    price,
                    size,
                    int(Action.ADD),
                    book.time,
                    flags,
                    orders=orders,
                )
        self.end_of_event()

    def _tell_best(
        self, coin: str, bid: tuple[float, float], ask: tuple[float, float], time_ms: int, ts_receive: int
    ) -> None:
        if self._best.get(coin) != (bid, ask):
            self._best[coin] = bid, ask
            self.quote(coin, time_ms * _MS, ts_receive, *bid, *ask, time_ms)
