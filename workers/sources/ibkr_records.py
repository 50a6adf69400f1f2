# ruff: noqa: PLR0917 -- the fields of one message, in its order
"""What TWS says about the market, as records: one method for each kind of message.

    trade, tick   a print with the venue's time: whole seconds tick by tick, ms of an aggregate
    quote         tick by tick as it comes; of an aggregate never half of one moment's (see `Sides`)
    bar           start, open, high, low, close, volume, vwap, count
    level2        a row of the book by its position, as TWS inserts, changes and deletes it, and the best prices then
    news          headline, cut into pieces

A message with no time of its own (aggregate quotes, market depth) has the time of receipt as ts_event. Sizes and
prices that TWS does not have (-1, 0 of none) are NaN. Used by workers/sources/ibkr.py. No I/O, reads no clock.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Final

import numpy as np

from shm.layout import RECORD, Action, Flag, RecordType, Side, Source, StatusCode
from shm.message import news_pieces
from shm.ring import status_record
from workers.sources.ibkr_streams import Stream, Way

HOLD_NS: Final = 10_000_000
CROSSED_HOLD_NS: Final = 100_000_000
MAX_BOOK_ROWS: Final = 200
_NAN: Final = float("nan")
_NO_FLAG: Final = Flag(0)
_SECOND_NS: Final = 1_000_000_000
_DATE: Final = re.compile(r"\d{10,}")
_METADATA: Final = re.compile(r"^\{[^{}]*\}\s*")  # "{A:800015:L:en:K:n/a:C:0.98}" in front of a headline

# Tick types of prices and sizes: (side, whether it is a price); delayed ones count as the others.
_BID, _ASK = 0, 1
_SIDE_OF_PRICE: Final = {1: _BID, 66: _BID, 2: _ASK, 67: _ASK}
_SIDE_OF_SIZE: Final = {0: _BID, 69: _BID, 3: _ASK, 70: _ASK}
_LAST: Final = (4, 68)
_PRINTS: Final = {48: "tick", 77: "trade"}  # RTVolume, RTTrdVolume


@dataclass(eq=False, slots=True)
class Sides:
    """Best bid and ask of an aggregate, which come one after the other.

    A price comes together with its size, in one message; the other side, if it has changed too, in a message of its own
    right behind it. Both together make a quote at once. One side alone waits for the other: HOLD_NS, or CROSSED_HOLD_NS
    where what stands there is crossed or lacks a side, so that one moment's bid is not put beside another's ask.
    Another price of a side that waits is the next moment's: what was told before is a quote then.
    """

    price: list[float] = field(default_factory=lambda: [_NAN, _NAN])
    size: list[float] = field(default_factory=lambda: [_NAN, _NAN])
    told: int = 0  # bits of the sides that have changed since the last quote
    since_ns: int = 0  # the first of these changes
    at_ns: int = 0  # the last one

    def differs(self, side: int, price: float, size: float) -> bool:
        """Whether that is a change; no size and no price means there is none."""
        was = self.price[side]
        if size != self.size[side]:
            return True
        return not math.isnan(was) if size == 0 and price <= 0 else price != was

    def tell(self, side: int, price: float, size: float, now_ns: int) -> None:
        """A price with its size."""
        self.price[side], self.size[side] = (_NAN if size == 0 and price <= 0 else price), size
        self._changed(side, now_ns)

    def resize(self, side: int, size: float, now_ns: int) -> bool:
        """Another size at the price that stands. True = that is a change."""
        if size == self.size[side]:
            return False
        self.size[side] = size
        self._changed(side, now_ns)
        return True

    @property
    def due_ns(self) -> int:
        """When what was told makes a quote, whatever the other side does."""
        if self.told == 3:
            return self.since_ns
        bid, ask = self.price
        return self.since_ns + (HOLD_NS if bid <= ask else CROSSED_HOLD_NS)

    def _changed(self, side: int, now_ns: int) -> None:
        self.since_ns = self.since_ns if self.told else now_ns
        self.at_ns = now_ns
        self.told |= 1 << side


@dataclass(eq=False, slots=True)
class Book:
    """The rows of one side each, (price, size), best first."""

    rows: dict[Side, list[tuple[float, float]]] = field(default_factory=lambda: {Side.BUY: [], Side.SELL: []})

    def best(self, side: Side) -> float:
        """NaN where there is none."""
        rows = self.rows[side]
        return rows[0][0] if rows else _NAN


class Unfit(ValueError):
    """A message that says something impossible; the text says what."""


class Records:
    """See the module.

    `put` takes each record, as the bytes of a row, in order; before those that are no past and no CLEAR, `alive` is
    told that the stream speaks.
    """

    def __init__(
        self, feed_id: int, depth_rows: int, *, put: Callable[[bytes], None], alive: Callable[[Stream], None]
    ) -> None:
        """Nothing is known yet."""
        self.duplicates = 0  # bars that were had before
        self.lag_ns: int | None = None  # from the venue's time to the receipt of the last print or quote that has one
        self._put = put
        self._alive = alive
        self._depth_rows = depth_rows
        self._row = np.zeros(1, dtype=RECORD)
        self._bytes = self._row.view(np.uint8)
        self._one: Any = self._row[0]
        self._feed_id = feed_id
        self._sides: dict[Stream, Sides] = {}
        self._changed: dict[Stream, None] = {}  # whose quotes are still to be made, in the order of their changes
        self._books: dict[Stream, Book] = {}
        self._bars: dict[Stream, tuple[int, tuple[float, ...]]] = {}  # the open one of 60 s: start and values
        self._last_bar: dict[Stream, int] = {}  # start of the last one that was made

    def begin(self, stream: Stream, now_ns: int) -> None:
        """It was asked for (again): quotes and books begin anew, bars go on after the last one."""
        self._sides.pop(stream, None)
        self._changed.pop(stream, None)
        self._bars.pop(stream, None)
        if self._books.pop(stream, None) is not None:
            self.clear_book(stream, now_ns)

    # -- prints and quotes

    def by_tick_print(self, stream: Stream, time_s: int, price: float, size: float, venue: str, condition: str,
                      ts_receive: int) -> None:  # fmt: skip
        """Last or AllLast."""
        kind = "tick" if stream.way is Way.ALL_LAST else "trade"
        self._print(stream, kind, _time_ns(time_s), ts_receive, price, size)
        self._one["condition"], self._one["venue"] = _code(condition), _code(venue)
        self._done(stream)

    def by_tick_quote(self, stream: Stream, time_s: int, bid: float, ask: float, bid_size: float, ask_size: float,
                      ts_receive: int) -> None:  # fmt: skip
        """BidAsk."""
        bid = _NAN if bid <= 0 and not bid_size else bid
        ask = _NAN if ask <= 0 and not ask_size else ask
        self._quote(stream, _time_ns(time_s), ts_receive, (bid, ask), (bid_size, ask_size))

    def price(self, stream: Stream, tick_type: int, price: float, size: float, ts_receive: int) -> None:
        """A price of an aggregate, with its size."""
        side = _SIDE_OF_PRICE.get(tick_type)
        if side is not None and "quote" in stream.types:
            sides = self._sides.setdefault(stream, Sides())
            if sides.differs(side, price, size):
                if sides.told >> side & 1:
                    self._make_quote(stream, sides)  # of the moment before
                sides.tell(side, price, size, ts_receive)
                self._changed[stream] = None
        elif stream.volumeless and tick_type in _LAST:
            for kind in stream.types:
                if kind in _PRINTS.values():
                    self._print(stream, kind, ts_receive, ts_receive, price, size)
                    self._done(stream)

    def size(self, stream: Stream, tick_type: int, size: float, ts_receive: int) -> None:
        """A size of an aggregate."""
        side, sides = _SIDE_OF_SIZE.get(tick_type), self._sides.get(stream)
        if side is not None and sides is not None and sides.resize(side, size, ts_receive):
            self._changed[stream] = None

    def quotes(self, now_ns: int) -> int | None:
        """Make the aggregates' quotes that are due; returns when the next one is; None = none.

        To be called after each packet, and at its time before whatever comes next: then how often it is called in
        between makes no difference, and a capture replays to the same quotes.
        """
        waiting = sorted(((self._sides[stream].due_ns, stream) for stream in self._changed), key=itemgetter(0))
        for due_ns, stream in waiting:
            if due_ns > now_ns:
                return due_ns
            del self._changed[stream]
            self._make_quote(stream, self._sides[stream])
        return None

    def _make_quote(self, stream: Stream, sides: Sides) -> None:
        sides.told = 0
        bid, ask = sides.price
        if math.isnan(bid) and math.isnan(ask) and not stream.had_data:
            return  # before the market opens there is neither, which is no sign of life
        self._quote(stream, sides.at_ns, sides.at_ns, (bid, ask), (sides.size[_BID], sides.size[_ASK]))

    def volume_print(self, stream: Stream, tick_type: int, text: str, ts_receive: int) -> None:
        """RTVolume: "price;size;time in ms;volume of the day;vwap;single". No price: only the volume has changed."""
        kind = _PRINTS.get(tick_type)
        if kind is None or kind not in stream.types:
            return
        fields = text.split(";")
        if len(fields) < 5:
            raise Unfit(f"RTVolume of {len(fields)} fields")
        if not fields[0]:
            return
        price, size, time_ms = float(fields[0]), float(fields[1] or 0), int(fields[2])
        volume, vwap = float(fields[3] or _NAN), float(fields[4] or _NAN)
        self._print(stream, kind, _in_range(time_ms * 1_000_000), ts_receive, price, size)
        self._one["volume"], self._one["vwap"] = volume, vwap
        self._done(stream)

    def _print(self, stream: Stream, kind: str, ts_event: int, ts_receive: int, price: float, size: float) -> None:
        self._head(stream, RecordType.TICK if kind == "tick" else RecordType.TRADE, ts_event, ts_receive)
        one = self._one
        one["price"], one["size"], one["volume"], one["vwap"] = price, size, _NAN, _NAN
        self.lag_ns = ts_receive - ts_event if ts_receive != ts_event else self.lag_ns

    def _quote(
        self, stream: Stream, ts_event: int, ts_receive: int, price: tuple[float, ...], size: tuple[float, ...]
    ) -> None:
        self._head(stream, RecordType.QUOTE, ts_event, ts_receive)
        one = self._one
        one["bid"], one["ask"] = price
        one["bid_size"], one["ask_size"] = size
        one["mid"], one["spread"] = (price[0] + price[1]) / 2, price[1] - price[0]
        self.lag_ns = ts_receive - ts_event if ts_receive != ts_event else self.lag_ns
        self._done(stream)

    # -- bars

    def bar(self, stream: Stream, time_s: int, values: tuple[float, ...], ts_receive: int) -> None:
        """A finished bar of 5 s; `values`: open, high, low, close, volume, vwap, count."""
        self._bar(stream, _time_ns(time_s), values, 5, ts_receive)

    def kept_bar(self, stream: Stream, date: str, values: tuple[float, ...], ts_receive: int, *, past: bool) -> None:
        """The newest bar of 60 s as it is so far, or (`past`) one before it. It is finished when the next begins."""
        if not _DATE.fullmatch(date):
            raise Unfit(f"bar at {date!r}, which is no number of seconds")
        start_ns = _time_ns(int(date))
        open_bar = self._bars.get(stream)
        if open_bar is not None and start_ns < open_bar[0]:
            self.duplicates += 1
            return
        if open_bar is not None and start_ns > open_bar[0]:
            self._bar(stream, *open_bar, 60, ts_receive, Flag.BACKFILLED if past else _NO_FLAG)
        self._bars[stream] = start_ns, values
        if not past:
            self._alive(stream)

    def last_bar_ns(self, stream: Stream) -> int | None:
        """Start of the last bar that was made of it, ns."""
        return self._last_bar.get(stream)

    def _bar(self, stream: Stream, start_ns: int, values: tuple[float, ...], interval_s: int, ts_receive: int,
             flags: Flag = _NO_FLAG) -> None:  # fmt: skip
        if start_ns <= self._last_bar.get(stream, -1):
            self.duplicates += 1
            return
        self._last_bar[stream] = start_ns
        self._head(stream, RecordType.BAR, start_ns, ts_receive, flags)
        one = self._one
        one["open"], one["high"], one["low"], one["close"], volume, vwap, count = values
        one["volume"], one["vwap"] = (_NAN if volume < 0 else volume), (_NAN if vwap < 0 else vwap)
        one["interval_s"], one["trade_count"] = interval_s, max(0, int(count))
        self._done(stream)

    # -- books

    def depth(self, stream: Stream, position: int, operation: int, side_code: int, price: float, size: float,
              maker: str, ts_receive: int) -> None:  # fmt: skip
        """One row: operation 0 inserts, 1 changes, 2 deletes; side 0 is ask, 1 bid."""
        if side_code not in (0, 1) or operation not in (0, 1, 2) or not 0 <= position < MAX_BOOK_ROWS:
            raise Unfit(f"market depth row {position}, operation {operation}, side {side_code}")
        book = self._books.setdefault(stream, Book())
        side = Side.BUY if side_code else Side.SELL
        rows = book.rows[side]
        if operation == 2:
            if position >= len(rows):
                raise Unfit(f"market depth: row {position} of {len(rows)} is deleted")
            price, size = rows.pop(position)[0], 0.0
            action = Action.DELETE
        elif operation == 0 and position <= len(rows):
            rows.insert(position, (price, size))
            del rows[MAX_BOOK_ROWS:]
            action = Action.ADD
        elif position < len(rows):
            rows[position] = price, size
            action = Action.MODIFY
        elif position == len(rows):
            rows.append((price, size))  # a change of a row that was not told of before
            action = Action.ADD
        else:
            raise Unfit(f"market depth: row {position} of {len(rows)}")
        self._head(stream, RecordType.LEVEL2, ts_receive, ts_receive)
        one = self._one
        one["price"], one["size"], one["level"], one["action"], one["side"] = price, size, position, action, side
        one["depth"], one["venue"] = self._depth_rows, _code(maker)
        one["best_bid"], one["best_ask"] = book.best(Side.BUY), book.best(Side.SELL)
        self._done(stream)

    def clear_book(self, stream: Stream, now_ns: int) -> None:
        """What was told of the book counts no more: CLEAR."""
        self._books.pop(stream, None)
        self._head(stream, RecordType.LEVEL2, now_ns, now_ns, Flag.SNAPSHOT)
        one = self._one
        one["price"], one["action"], one["depth"] = _NAN, Action.CLEAR, self._depth_rows
        one["best_bid"] = one["best_ask"] = _NAN
        self._done(stream)

    # -- news

    def news(self, stream: Stream, time_ms: int, venue: str, headline: str, ts_receive: int) -> None:
        """A headline, without the metadata in front of it; `time_ms` 0 = it has no time."""
        pieces = news_pieces(_METADATA.sub("", headline) or headline)
        ts_event = _in_range(time_ms * 1_000_000) if time_ms else ts_receive
        for number, piece in enumerate(pieces):
            last = number == len(pieces) - 1
            self._head(stream, RecordType.NEWS, ts_event, ts_receive, _NO_FLAG if last else Flag.CONTINUES)
            self._one["headline"], self._one["venue"] = piece, _code(venue)
            self._done(stream, last=last)

    # -- what all have

    def tell(self, code: StatusCode, text: str, now_ns: int) -> None:
        """Something to say about the feed, in its place among the records; `alive` may do so, before its record."""
        told = status_record(code, text=text, feed_id=self._feed_id, source=Source.IBKR, ts_event=now_ns)
        row = np.frombuffer(told, RECORD).copy()
        row["ts_receive"] = now_ns
        self._put(row.tobytes())

    def speaks(self, stream: Stream) -> None:
        """A sign of life that is no record."""
        self._alive(stream)

    def _head(self, stream: Stream, kind: RecordType, ts_event: int, ts_receive: int, flags: Flag = _NO_FLAG) -> None:
        self._bytes[:] = 0
        one = self._one
        one["ts_event"], one["ts_receive"], one["instrument_id"] = ts_event, ts_receive, stream.instrument_id
        one["record_type"], one["source"], one["feed_id"] = kind, Source.IBKR, self._feed_id
        one["flags"] = flags

    def _done(self, stream: Stream, *, last: bool = True) -> None:
        flags = int(self._one["flags"])
        if not flags & (Flag.SNAPSHOT | Flag.BACKFILLED):
            self._alive(stream)
            if stream.gap_before:
                stream.gap_before = False
                flags |= Flag.GAP_BEFORE
        self._one["flags"] = flags | (Flag.LAST_OF_BATCH if last else 0)
        self._put(self._row.tobytes())


def _code(text: str) -> bytes:
    return text.strip().encode("ascii", "replace")[:8]


def _time_ns(time_s: int) -> int:
    return _in_range(time_s * _SECOND_NS)


def _in_range(time_ns: int) -> int:
    if not 0 < time_ns < 1 << 62:
        raise Unfit(f"a time of {time_ns / 1e9:.0f} s since 1970")
    return time_ns
