"""The record: one table of fields, from which every other description of it is derived.

`FIELDS` is the single statement of record layout v1. The numpy dtypes below, the C struct in
`shm/include/tickengine.h` (`python -m shm.header` prints it) and the table in `shm/README.md` are generated from it or
checked against it by `tests/unit/test_layout.py`. Called by everything; it does no I/O and touches no shared memory.

A record is 128 bytes, little-endian: a 64-byte head that every record has, and a 64-byte body whose meaning depends on
`record_type`. Prices and sizes are float64 (NaN = undefined); times are int64 nanoseconds since the Unix epoch, UTC.
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final, NamedTuple

import numpy as np

LAYOUT_VERSION: Final = 1
RECORD_SIZE_BYTES: Final = 128
HEAD_SIZE_BYTES: Final = 64
SYMBOL_SIZE_BYTES: Final = 32
MAX_RINGS: Final = 16
NO_INSTRUMENT: Final = 0xFFFF_FFFF  # instrument_id of a record that concerns no single instrument


class RecordType(enum.IntEnum):
    """What a record is; decides how its body is read (offset 36, u8)."""

    TICK = 1
    QUOTE = 2
    BAR = 3
    TRADE = 4
    LEVEL2 = 5
    NEWS = 6
    STATUS = 7


class Source(enum.IntEnum):
    """Where a record came from (offset 37, u8); the lower-case names are the DataSource values of the HTTP API."""

    UNKNOWN = 0
    IBKR = 1
    ALPHA_VANTAGE = 2
    FRED = 3
    YAHOO = 4
    INTERNAL = 5
    MOCK = 6
    WEBSOCKET = 7
    FIX = 8
    MULTICAST = 9
    REPLAY = 10
    PLUGIN = 64  # plug-ins count up from here, in the order in which they are met (shm/source_names.py)


class Flag(enum.IntFlag):
    """Verdict and provenance bits (offset 38, u16)."""

    OUTLIER = 1 << 0
    VOLUME_SPIKE = 1 << 1
    OUT_OF_ORDER = 1 << 2
    LATE = 1 << 3
    CROSSED = 1 << 4
    CROSS_SOURCE_MISMATCH = 1 << 5
    OUT_OF_SESSION = 1 << 6
    INCOMPLETE = 1 << 7
    CORRECTED = 1 << 8
    BACKFILLED = 1 << 9
    REPLAYED = 1 << 10
    SYNTHETIC = 1 << 11
    SNAPSHOT = 1 << 12
    GAP_BEFORE = 1 << 13
    CONTINUES = 1 << 14
    LAST_OF_BATCH = 1 << 15


class Priority(enum.IntEnum):
    """Shedding order under overload (offset 50, u8)."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class Side(enum.IntEnum):
    """Aggressor side of a trade, or book side of a level (offset 51, u8)."""

    NONE = 0
    BUY = 1
    SELL = 2


class Action(enum.IntEnum):
    """What a level2 record does to its book (offset 86, u8)."""

    NONE = 0
    ADD = 1
    MODIFY = 2
    DELETE = 3
    CLEAR = 4
    EXECUTE = 5


class StatusCode(enum.IntEnum):
    """`code` of a status record (offset 64, u32)."""

    FEED_UP = 1
    FEED_DOWN = 2
    FEED_SWITCHED = 3
    GAP = 4
    OVERLOAD = 5
    LATENCY_ALERT = 6
    END_OF_REPLAY = 7
    WRITER_RESTARTED = 8
    REJECTED = 9
    FEED_DEGRADED = 10
    FEED_STALE = 11
    FEED_RECOVERED = 12
    TRADING_STATUS = 13  # of the record's instrument; `text` is "STATE: what the venue says", STATE of TRADING_STATES


# What the text of a TRADING_STATUS record begins with, up to its colon: whether orders are matched, in the same words
# for every venue. No two begin with the same letter.
TRADING_STATES: Final = {
    "trading": "orders are matched as they come",
    "halted": "nothing is traded, by decision of a regulator, the venue or its operators",
    "paused": "nothing is traded for a few minutes, after a price moved too fast",
    "quote only": "quotes are taken and shown, and not matched yet",
    "auction": "orders are collected and matched all at once: before the opening, after a halt, in a cross",
    "closed": "there is no session",
    "unknown": "the venue says something that is none of these, or does not say which",
}


class Field(NamedTuple):
    """One field of the record: `body` is "head" or the body it belongs to; `type` a numpy type string without order."""

    body: str
    name: str
    offset: int
    type: str
    doc: str

    @property
    def dtype(self) -> np.dtype:
        """Little-endian numpy dtype of this field."""
        return np.dtype(self.type if self.type[0] == "S" else "<" + self.type)


FIELDS: Final[tuple[Field, ...]] = (
    Field("head", "sequence", 0, "u8", "ring sequence from 1; also the slot's commit stamp"),
    Field("head", "ts_event", 8, "i8", "the venue's own time, ns"),
    Field("head", "ts_receive", 16, "i8", "bytes arrived in this host, ns"),
    Field("head", "ts_publish", 24, "i8", "record committed to the ring, ns"),
    Field("head", "instrument_id", 32, "u4", "index into the instrument table"),
    Field("head", "record_type", 36, "u1", "RecordType"),
    Field("head", "source", 37, "u1", "Source"),
    Field("head", "flags", 38, "u2", "Flag bits"),
    Field("head", "source_sequence", 40, "u8", "the venue's sequence number or trade id; 0 = none"),
    Field("head", "feed_id", 48, "u2", "index of the feed within its engine"),
    Field("head", "priority", 50, "u1", "Priority"),
    Field("head", "side", 51, "u1", "Side"),
    Field("head", "conditions", 52, "u4", "venue conditions, mapped bits"),
    Field("head", "venue", 56, "S8", "MIC or venue code, NUL padded"),
    Field("tick", "price", 64, "f8", "price"),
    Field("tick", "size", 72, "f8", "size"),
    Field("tick", "trade_id", 80, "u8", "the venue's trade id; 0 = none"),
    Field("tick", "condition", 88, "S8", "sale condition as the venue writes it"),
    Field("tick", "volume", 96, "f8", "session volume after this trade"),
    Field("tick", "vwap", 104, "f8", "session volume-weighted average price"),
    Field("quote", "bid", 64, "f8", "best bid price"),
    Field("quote", "ask", 72, "f8", "best ask price"),
    Field("quote", "bid_size", 80, "f8", "size at the best bid"),
    Field("quote", "ask_size", 88, "f8", "size at the best ask"),
    Field("quote", "mid", 96, "f8", "(bid + ask) / 2"),
    Field("quote", "spread", 104, "f8", "ask - bid"),
    Field("quote", "bid_count", 112, "u4", "orders at the best bid; 0 = unknown"),
    Field("quote", "ask_count", 116, "u4", "orders at the best ask; 0 = unknown"),
    Field("bar", "open", 64, "f8", "first price"),
    Field("bar", "high", 72, "f8", "highest price"),
    Field("bar", "low", 80, "f8", "lowest price"),
    Field("bar", "close", 88, "f8", "last price"),
    Field("bar", "volume", 96, "f8", "sum of sizes"),
    Field("bar", "vwap", 104, "f8", "volume-weighted average price"),
    Field("bar", "interval_s", 112, "u4", "length in seconds; ts_event is the start"),
    Field("bar", "trade_count", 116, "u4", "number of trades"),
    Field("level2", "price", 64, "f8", "price of the level or order"),
    Field("level2", "size", 72, "f8", "size after the change; 0 = removed"),
    Field("level2", "order_count", 80, "u4", "orders at the level; 0 = unknown"),
    Field("level2", "level", 84, "u2", "0 = best"),
    Field("level2", "action", 86, "u1", "Action"),
    Field("level2", "depth", 87, "u1", "levels the venue sends; 0 = full book"),
    Field("level2", "best_bid", 88, "f8", "best bid after the change"),
    Field("level2", "best_ask", 96, "f8", "best ask after the change"),
    Field("news", "headline", 64, "S64", "UTF-8; longer text goes on in following records (Flag.CONTINUES)"),
    Field("status", "code", 64, "u4", "StatusCode"),
    Field("status", "from_sequence", 72, "u8", "first sequence concerned"),
    Field("status", "to_sequence", 80, "u8", "one past the last sequence concerned"),
    Field("status", "text", 88, "S40", "UTF-8, for people"),
)

BODIES: Final = ("tick", "quote", "bar", "level2", "news", "status")


def _struct(*bodies: str) -> np.dtype:
    wanted: dict[str, Field] = {}
    for field in FIELDS:
        if field.body == "head" or field.body in bodies:
            wanted.setdefault(field.name, field)
    chosen = sorted(wanted.values(), key=lambda field: field.offset)
    return np.dtype(
        {
            "names": [field.name for field in chosen],
            "formats": [field.dtype for field in chosen],
            "offsets": [field.offset for field in chosen],
            "itemsize": RECORD_SIZE_BYTES,
        }
    )


# One body each, fields do not overlap: what to hand to pandas, Arrow or a printer.
TICK: Final = _struct("tick")
TRADE: Final = TICK
QUOTE: Final = _struct("quote")
BAR: Final = _struct("bar")
LEVEL2: Final = _struct("level2")
NEWS: Final = _struct("news")
STATUS: Final = _struct("status")

# Every field of every body at its offset (a union: bodies overlap). The dtype of rings, batches and raw frames.
# A name that two bodies share (price, size, volume, vwap) stands at the same offset in both.
RECORD: Final = _struct(*BODIES)

DTYPE_OF_TYPE: Final[dict[RecordType, np.dtype]] = {
    RecordType.TICK: TICK,
    RecordType.QUOTE: QUOTE,
    RecordType.BAR: BAR,
    RecordType.TRADE: TRADE,
    RecordType.LEVEL2: LEVEL2,
    RecordType.NEWS: NEWS,
    RecordType.STATUS: STATUS,
}

# Topic and API names of the record types, indexed by RecordType; index 0 is unused.
TYPE_NAMES: Final = ("", "tick", "quote", "bar", "trade", "level2", "news", "status")


def schema_hash() -> int:
    """64-bit digest of the field table; a ring's header carries it so that builds with another layout can't attach."""
    text = ";".join(f"{f.body}.{f.name}:{f.offset}:{f.type}" for f in FIELDS)
    return int.from_bytes(hashlib.sha256(f"v{LAYOUT_VERSION};{text}".encode()).digest()[:8], "little")


def empty(count: int) -> np.ndarray:
    """A zeroed, 128-byte aligned array of `count` records, shape (count,), dtype RECORD.

    Alignment matters to the native copy loops only for speed: an unaligned array is accepted everywhere.
    """
    raw = np.zeros((count + 1) * RECORD_SIZE_BYTES, dtype=np.uint8)
    skip = -raw.ctypes.data % RECORD_SIZE_BYTES
    return raw[skip : skip + count * RECORD_SIZE_BYTES].view(RECORD)


def concatenate(batches: list[np.ndarray]) -> np.ndarray:
    """One RECORD array from several. (`np.concatenate` keeps the values but repacks the overlapping fields.)"""
    joined = np.concatenate([batch.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES) for batch in batches])
    return joined.reshape(-1).view(RECORD)
