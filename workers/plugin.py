"""What the author of a plug-in source needs; workers/PLUGINS.md is the manual, tests/plugin_example a package to copy.

    class MySource(Plugin):
        def __init__(self, context: SourceContext) -> None:
            super().__init__(context)
            self.options = read_options(context.spec, MyOptions)

        def poll(self, out: np.ndarray, now_ns: int) -> int:
            rows = Rows(out, self.context, now_ns)
            while not rows.full and (line := self.next_line()):
                rows.trade(line.symbol, line.price, line.size, ts_event_ns=line.time_ns)
            return rows.count

Imported by plug-ins only; the process that hosts one is workers/sources/hosted.py. What is here stays as it is within a
major version.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType, Side, StatusCode
from shm.message import NEWS_PIECE_BYTES, news_pieces
from workers.errors import SettingsError, SourceError
from workers.source import SourceContext, read_options

__all__ = ["Action", "Flag", "Plugin", "Rows", "SettingsError", "Side", "SourceContext", "SourceError", "read_options"]

NAN: Final = float("nan")
NO_FLAGS: Final = Flag(0)
ANY_LEVEL: Final = 65535  # `level` of a book entry whose rank is not known


class Plugin:
    """Base of a plug-in source. Any class with `poll` will do; this one has the rest.

    Attributes:
        context: what it was made with: `spec` (symbols, data_types, options), `intern`.
        errors: pieces of input that could not be used, since the start; yours to count.
        gaps: holes in the venue's numbering, since the start; yours to count.
        bytes_received: input bytes taken so far.
        next_due_ns: when `poll` is to be called next, ns since 1970; 0 = at once, None = there will be nothing more.
        fd: a file descriptor that is readable when there is something to do, or None. With one, set `next_due_ns` far
            ahead: the process sleeps on it.
    """

    errors: int = 0
    gaps: int = 0
    bytes_received: int = 0
    next_due_ns: int | None = 0
    fd: int | None = None

    def __init__(self, context: SourceContext) -> None:
        """Read the settings and open what is needed. SettingsError: they can't work. SourceError: not now."""
        self.context = context

    def poll(self, out: np.ndarray, now_ns: int) -> int:
        """Fill what is due into `out` (shape (n,), dtype RECORD, zeroed) from its start; returns how many, 0 = none.

        It must not wait: a call that takes longer than `[supervisor] heartbeat_timeout_s` (1 s) is ended with its
        process. What it raises closes this object; a new one is made later.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of files and connections. May be called twice."""


class Rows:
    """Fills records into the array of one `poll`; `count` are there, `full` says that there is room for no more.

    Symbols are interned at their first use. Times are ns since 1970; a record without one gets `now_ns`. Prices and
    sizes that are not known are NaN.
    """

    def __init__(self, out: np.ndarray, context: SourceContext, now_ns: int) -> None:
        """Begin at the start of `out`."""
        self.count = 0
        self._out = out
        self._intern: Callable[[str], int] = context.intern
        self._now_ns = now_ns

    @property
    def full(self) -> bool:
        """Whether there is room for no more."""
        return self.count >= len(self._out)

    @property
    def room(self) -> int:
        """How many more there is room for."""
        return len(self._out) - self.count

    def trade(
        self,
        symbol: str,
        price: float,
        size: float = NAN,
        *,
        ts_event_ns: int = 0,
        trade_id: int = 0,
        side: Side = Side.NONE,
        venue: str = "",
        flags: Flag = NO_FLAGS,
    ) -> None:
        """One trade; `side` is the aggressor's."""
        row = self._print(RecordType.TRADE, symbol, price, size)
        row["trade_id"], row["side"] = trade_id, side
        _stamp(row, ts_event_ns, trade_id, venue, flags)

    def tick(
        self,
        symbol: str,
        price: float,
        size: float = NAN,
        *,
        ts_event_ns: int = 0,
        trade_id: int = 0,
        venue: str = "",
        flags: Flag = NO_FLAGS,
    ) -> None:
        """One price that is no single trade's: an index, a rate, a last price."""
        row = self._print(RecordType.TICK, symbol, price, size)
        row["trade_id"] = trade_id
        _stamp(row, ts_event_ns, trade_id, venue, flags)

    def quote(
        self,
        symbol: str,
        bid: float = NAN,
        ask: float = NAN,
        *,
        bid_size: float = NAN,
        ask_size: float = NAN,
        ts_event_ns: int = 0,
        sequence: int = 0,
        venue: str = "",
        flags: Flag = NO_FLAGS,
    ) -> None:
        """Best bid and ask."""
        row = self._row(RecordType.QUOTE, self._intern(symbol))
        _stamp(row, ts_event_ns, sequence, venue, flags)
        row["bid"], row["ask"], row["bid_size"], row["ask_size"] = bid, ask, bid_size, ask_size
        row["mid"], row["spread"] = (bid + ask) / 2, ask - bid

    def bar(
        self,
        symbol: str,
        *,
        first: float,
        high: float,
        low: float,
        last: float,
        volume: float = NAN,
        interval_s: int,
        start_ns: int,
        vwap: float = NAN,
        trade_count: int = 0,
        venue: str = "",
    ) -> None:
        """One closed bar of `interval_s` seconds from `start_ns` on."""
        row = self._row(RecordType.BAR, self._intern(symbol))
        _stamp(row, start_ns, 0, venue, NO_FLAGS)
        row["open"], row["high"], row["low"], row["close"] = first, high, low, last
        row["volume"], row["vwap"], row["interval_s"], row["trade_count"] = volume, vwap, interval_s, trade_count

    def level(
        self,
        symbol: str,
        side: Side,
        price: float,
        size: float,
        *,
        action: Action = Action.MODIFY,
        level: int = ANY_LEVEL,
        ts_event_ns: int = 0,
        sequence: int = 0,
        venue: str = "",
        flags: Flag = NO_FLAGS,
    ) -> None:
        """One price of a book. A snapshot is a CLEAR and then ADD of each price, all flagged SNAPSHOT."""
        row = self._row(RecordType.LEVEL2, self._intern(symbol))
        _stamp(row, ts_event_ns, sequence, venue, flags)
        row["side"], row["price"], row["size"], row["action"], row["level"] = side, price, size, action, level
        row["best_bid"] = row["best_ask"] = NAN

    def news(self, symbol: str, headline: str, body: str = "", url: str = "", *, ts_event_ns: int = 0) -> bool:
        """One news item, in as many records as it takes; False, and none of them, where there is no room left."""
        pieces = news_pieces(headline, body, url)
        if len(pieces) > self.room:
            return False
        assert all(len(piece) <= NEWS_PIECE_BYTES for piece in pieces)
        for piece in pieces:
            flags = Flag.LAST_OF_BATCH if piece is pieces[-1] else Flag.CONTINUES
            row = self._row(RecordType.NEWS, self._intern(symbol))
            _stamp(row, ts_event_ns, 0, "", flags)
            row["headline"] = piece
        return True

    def gap(self, first: int, end: int, symbol: str = "", text: str = "") -> None:
        """Messages [first, end) of the venue's numbering never came; of one symbol, or of the feed."""
        row = self._row(RecordType.STATUS, NO_INSTRUMENT if not symbol else self._intern(symbol))
        row["code"], row["from_sequence"], row["to_sequence"] = StatusCode.GAP, first, end
        row["text"] = text.encode()[:40].decode(errors="ignore").encode()

    def _print(self, kind: RecordType, symbol: str, price: float, size: float) -> np.void:
        row = self._row(kind, self._intern(symbol))
        row["price"], row["size"] = price, size
        row["volume"] = row["vwap"] = NAN
        return row

    def _row(self, kind: RecordType, instrument_id: int) -> np.void:
        if self.full:
            raise IndexError(f"no room for another record: `out` has {len(self._out)}; look at `full` before each")
        row: np.void = self._out[self.count]
        self.count += 1
        row["record_type"], row["instrument_id"] = kind, instrument_id
        row["ts_event"] = row["ts_receive"] = self._now_ns
        return row


def _stamp(row: np.void, ts_event_ns: int, sequence: int, venue: str, flags: Flag) -> None:
    if ts_event_ns:
        row["ts_event"] = ts_event_ns
    row["source_sequence"], row["flags"] = sequence, flags
    if venue:
        row["venue"] = venue.encode()
