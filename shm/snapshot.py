"""The snapshot of one instrument: what a state of the latest-value table says, in words that Python users know.

Made by shm/latest.py from the bytes that the native reader copied whole (struct tk_state of shm/latest.h). It reads no
shared memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from shm.layout import MAX_RINGS

# struct tk_state of shm/latest.h: applied sequences, the quote line, the trade line, the day line, then the intervals.
_HEAD = struct.Struct("<16Q 4dqQQIHH ddqqQ8sBBHIQ q6dQ")
_BAR = struct.Struct("<q6dII")
_INTERVAL_BYTES = 192
_APPLIED = struct.Struct("<2Q")  # records ever applied to each lane, in the quote line
_APPLIED_OFFSET = 168
_MARK_TRADE, _MARK_QUOTE = 1, 2
_FLAGS_MASK = 0xFFFF


@dataclass(frozen=True, slots=True)
class LastTrade:
    """The newest trade or tick by its own time; of equal times the one that came last.

    `ts_event` is the venue's time, ns (ts_receive where the venue gave none or an impossible one); `sequence` its
    number in its ring; `side`, `source`, `flags` and `conditions` as in the record.
    """

    price: float
    size: float
    ts_event: int
    ts_receive: int
    trade_id: int
    venue: str
    source: int
    side: int
    flags: int
    conditions: int
    feed_id: int
    sequence: int


@dataclass(frozen=True, slots=True)
class LastQuote:
    """The newest quote by its own time, ns; NaN where the venue left a field open."""

    bid: float
    ask: float
    bid_size: float
    ask_size: float
    ts_event: int
    feed_id: int


@dataclass(frozen=True, slots=True)
class DayStatistics:
    """Trades of the newest UTC day seen: `day` counts from 1970-01-01. `open` is the day's first trade to arrive."""

    day: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trade_count: int


@dataclass(frozen=True, slots=True)
class OpenBar:
    """A bar under way. `start` in ns; `vwap` NaN without volume; `flags` as the bar's record will have."""

    interval_s: int
    start: int
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float
    trade_count: int
    flags: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the table holds of one instrument, all of one moment.

    `as_of` maps ring ids to sequences: this instrument's records up to there are in here, exactly; a ring left out
    is 0.
    `version` grows with every change of the entry.
    """

    instrument_id: int
    last_trade: LastTrade | None
    quote: LastQuote | None
    day: DayStatistics | None
    open_bars: tuple[OpenBar, ...]
    as_of: dict[int, int]
    version: int


def snapshot_of(
    instrument_id: int, complete: list[int], intervals_s: tuple[int, ...], version: int, state: bytes
) -> Snapshot:
    """The snapshot that a state says: `state` its bytes, `version` its own, `complete` read before it, by ring.

    `intervals_s` are the bar intervals of the table.
    """
    fields = _HEAD.unpack_from(state)
    bid, ask, bid_size, ask_size, quote_ns, _, _, marks, trade_feed, quote_feed = fields[16:26]
    price, size, trade_ns, receive_ns, trade_id, venue, source, side, flags, conditions, sequence = fields[26:37]
    day, day_open, high, low, close, volume, notional, trades = fields[37:45]
    return Snapshot(
        instrument_id=instrument_id,
        last_trade=LastTrade(
            price=price,
            size=size,
            ts_event=trade_ns,
            ts_receive=receive_ns,
            trade_id=trade_id,
            venue=venue.rstrip(b"\0").decode("ascii", "replace"),
            source=source,
            side=side,
            flags=flags,
            conditions=conditions,
            feed_id=trade_feed,
            sequence=sequence,
        )
        if marks & _MARK_TRADE
        else None,
        quote=LastQuote(bid, ask, bid_size, ask_size, quote_ns, quote_feed) if marks & _MARK_QUOTE else None,
        day=DayStatistics(day, day_open, high, low, close, volume, _vwap(notional, volume), trades) if trades else None,
        open_bars=tuple(_open_bars(state, intervals_s)),
        as_of={ring: max(complete[ring], fields[ring]) for ring in range(MAX_RINGS) if complete[ring] or fields[ring]},
        version=version,
    )


def applied(state: bytes) -> tuple[int, int]:
    """Records ever applied to each lane of the instrument whose state this is: everything but bars, bars."""
    events, bars = _APPLIED.unpack_from(state, _APPLIED_OFFSET)
    return events, bars


def _open_bars(state: bytes, intervals_s: tuple[int, ...]) -> list[OpenBar]:
    bars = []
    for k, interval_s in enumerate(intervals_s):
        start, opened, high, low, close, volume, notional, count, flags = _BAR.unpack_from(
            state, _HEAD.size + k * _INTERVAL_BYTES
        )
        if count:
            vwap = _vwap(notional, volume)
            bars.append(OpenBar(interval_s, start, opened, high, low, close, volume, vwap, count, flags & _FLAGS_MASK))
    return bars


def _vwap(notional: float, volume: float) -> float:
    return notional / volume if volume > 0 else float("nan")
