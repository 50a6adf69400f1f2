"""FRED's observations -> ticks; every vintage of an observation is one of its own.

    {"realtime_start": "2020-05-20", "date": "1954-07-01", "value": "0.80"}
        -> tick  ts_event 1954-07-01 00:00 UTC, price 0.80, source_sequence 20200520

Layout: FRED API, fred/series/observations, output type 1. `source_sequence` is the vintage: the day since when this
value is the valid one. Without vintages FRED gives the day of the request there: no vintage, but still the day on which
the value was read. A value of "." is missing. Called by workers/sources/fred.py; no I/O.
"""

from __future__ import annotations

from datetime import date
from functools import lru_cache
from typing import Final

import msgspec
import numpy as np

from shm.layout import RecordType, empty
from workers.decoders._decimal import parse_decimal
from workers.decoders.observations import (
    SECOND_NS,
    KeyRefused,
    NotServed,
    Observations,
    SlowDown,
    Unusable,
    VendorError,
)

MISSING: Final = (".", "")
_DAY_S: Final = 86_400
_WAIT_S: Final = 60.0  # FRED counts by the minute
_EPOCH: Final = date(1970, 1, 1).toordinal()
_WHAT: Final = "FRED"


class Entry(msgspec.Struct):
    """One observation."""

    date: str
    value: str
    realtime_start: str


class Answer(msgspec.Struct):
    """What fred/series/observations gives."""

    count: int
    observations: list[Entry]


class Rough(msgspec.Struct):
    """The same, where an entry is not as it should be."""

    count: int
    observations: list[msgspec.Raw]


class Problem(msgspec.Struct):
    """What FRED gives with an error."""

    error_message: str = ""


_answer = msgspec.json.Decoder(Answer)
_rough = msgspec.json.Decoder(Rough)
_entry = msgspec.json.Decoder(Entry)
_problem = msgspec.json.Decoder(Problem)


def read_observations(body: bytes, *, vintages: bool) -> Observations:
    """The observations of one answer; with `vintages` each is known by its vintage, too."""
    count, entries = _entries(body)
    rows: list[tuple[int, int, float]] = []
    missing = malformed = 0
    for entry in entries:
        if entry is not None and entry.value in MISSING:
            missing += 1
            continue
        try:
            if entry is None:
                raise ValueError("another shape")
            rows.append((_day(entry.date), _day(entry.realtime_start), number(entry.value)))
        except ValueError:
            malformed += 1
    if malformed and not rows and not missing:
        raise Unusable(f"{_WHAT}: none of {malformed} observations can be read")
    rows.sort()
    records = empty(len(rows))
    records["record_type"] = RecordType.TICK
    records["ts_event"] = [(day - _EPOCH) * _DAY_S * SECOND_NS for day, _, _ in rows]
    records["source_sequence"] = [_written(vintage) for _, vintage, _ in rows]
    records["price"] = [value for _, _, value in rows]
    records["volume"] = records["vwap"] = np.nan
    known_by = records["source_sequence"].astype(np.int64) if vintages else np.zeros(len(rows), np.int64)
    keys = records["ts_event"].astype(np.int64)
    return Observations(records, keys, known_by, missing, malformed, total=count)


def read_problem(status: int, body: bytes) -> VendorError:
    """What an answer other than HTTP 200 means."""
    try:
        text = _problem.decode(body).error_message
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = ""
    text = text or f"HTTP {status}"
    if status == 429:
        return SlowDown(text, _WAIT_S)
    if "api_key" in text or status in (401, 403):
        return KeyRefused(text)
    return NotServed(text) if status in (400, 404, 423) else Unusable(f"HTTP {status}: {text}")


def number(text: str) -> float:
    """A decimal number with or without a sign; ValueError for anything else."""
    return -parse_decimal(text[1:]) if text[:1] == "-" else parse_decimal(text)


def _entries(body: bytes) -> tuple[int, list[Entry | None]]:
    """How many observations there are altogether, and those of this answer; None for what is none."""
    try:
        answer = _answer.decode(body)
        return answer.count, list(answer.observations)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # one of them, or all of it
    try:
        rough = _rough.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        head = body[:60].decode("utf-8", "replace")
        raise Unusable(f"{_WHAT}: no observations in the answer: {head!r}") from None
    return rough.count, [_entry_of(raw) for raw in rough.observations]


def _entry_of(raw: msgspec.Raw) -> Entry | None:
    try:
        return _entry.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None


@lru_cache(maxsize=4096)
def _day(text: str) -> int:
    if len(text) != 10:
        raise ValueError("not a day")
    return date.fromisoformat(text).toordinal()


def _written(ordinal: int) -> int:
    day = date.fromordinal(ordinal)
    return day.year * 10_000 + day.month * 100 + day.day
