"""What an answer of a vendor that is asked again and again comes to: observations, or a reason why there are none.

    body of an answer --decoder--> Observations           records in order of time, and by what each is known again
                               '-> NotServed, KeyRefused, SlowDown, Unusable

The decoders of Alpha Vantage, FRED and Yahoo's charts give these to workers/sources/polled.py, which decides what of
them is new. Nothing here does I/O or reads a clock.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import msgspec
import numpy as np

from shm.layout import RecordType, empty
from workers.errors import DecodeError

SECOND_NS: Final = 1_000_000_000
MAX_TEXT_CHARS: Final = 200


class VendorError(DecodeError):
    """Base of answers that bring no observations; the text is the vendor's own words, on one line."""

    def __init__(self, text: str) -> None:
        super().__init__(" ".join(text.split())[:MAX_TEXT_CHARS])


class NotServed(VendorError):
    """Not this symbol, or not with this plan: the others may go on, and asking soon again is no use."""


class KeyRefused(VendorError):
    """Nothing is to be had with this key."""


class SlowDown(VendorError):
    """Too many requests of this key: none before `wait_s` are over."""

    def __init__(self, text: str, wait_s: float) -> None:
        super().__init__(text)
        self.wait_s = wait_s


class Unusable(VendorError):
    """Not an answer as it should be: broken off, not JSON, another shape, the vendor's own fault."""


class Observations(NamedTuple):
    """What one answer holds, oldest first.

    Attributes:
        records: dtype RECORD; ts_event, record_type, source_sequence and the body are set.
        keys: what time each speaks of (int64): the same one again is the same observation, or a correction of it.
        vintages: of each (int64) where the vendor keeps earlier ones of the same time; else 0.
        missing: values that the vendor says it does not have.
        malformed: entries that could not be read.
        live: another value of the same time is the next one and no correction.
        total: how many there are altogether, where an answer may hold a part of them; 0 = this is all.
    """

    records: np.ndarray
    keys: np.ndarray
    vintages: np.ndarray
    missing: int = 0
    malformed: int = 0
    live: bool = False
    total: int = 0


class Bar(NamedTuple):
    """One bar; `start_ns` is when it begins."""

    start_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float


def bars(found: list[Bar], interval_s: int, *, missing: int = 0, malformed: int = 0) -> Observations:
    """Observations of bars, each known by its start."""
    found = sorted(found)
    records = empty(len(found))
    records["record_type"] = RecordType.BAR
    for name in ("open", "high", "low", "close", "volume"):
        records[name] = [getattr(bar, name) for bar in found]
    records["ts_event"] = [bar.start_ns for bar in found]
    records["vwap"] = math.nan
    records["interval_s"] = interval_s
    keys = records["ts_event"].astype(np.int64)
    return Observations(records, keys, np.zeros(len(found), np.int64), missing, malformed)


def tick(price: float, *, ts_event: int, sequence: int = 0, volume: float = math.nan) -> np.ndarray:
    """A last price as one record; of size 0, since there is none."""
    record = empty(1)
    record["record_type"] = RecordType.TICK
    record["ts_event"] = ts_event
    record["source_sequence"] = sequence
    record["price"] = price
    record["volume"] = volume
    record["vwap"] = math.nan
    return record


def one(record: np.ndarray, key: int, *, live: bool = False) -> Observations:
    """Observations of a single record."""
    return Observations(record, np.array([key], np.int64), np.zeros(1, np.int64), live=live)


def read_json(body: bytes, what: str) -> object:
    """The body's JSON; Unusable if it is none."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        head = body[:60].decode("utf-8", "replace")
        raise Unusable(f"{what}: not JSON: {head!r}" if body else f"{what}: an empty answer") from None
