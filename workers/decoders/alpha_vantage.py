"""Alpha Vantage's JSON answers -> ticks, quotes of currencies, bars; and its ways of saying no, all of them HTTP 200.

    "Global Quote" -> tick     "Realtime Currency Exchange Rate" -> quote     "Time Series (1min)", "(Daily)" -> bars

Layout: Alpha Vantage "API Documentation". Numbers are text. A Global Quote knows its day and no time: see `read_quote`.
Times are those of the zone that the answer names. Pure: time is passed in. Called by workers/sources/alpha_vantage.py.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, time, timedelta, tzinfo
from functools import lru_cache
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np

from shm.layout import RecordType, empty
from workers.decoders._decimal import parse_decimal
from workers.decoders.observations import (
    SECOND_NS,
    Bar,
    KeyRefused,
    NotServed,
    Observations,
    SlowDown,
    Unusable,
    bars,
    one,
    read_json,
    tick,
)

NEW_YORK: Final = "America/New_York"
DAY_S: Final = 86_400
_CLOSE: Final = time(16)  # of a day whose quote comes later than that
_DAILY_DONE: Final = time(20)  # a day's bar changes no more
_ZONES: Final = {"US/Eastern": NEW_YORK}
_WHAT: Final = "Alpha Vantage"

# What its texts mean, the first that fits. One text speaks of several limits, and all of them of premium plans and
# endpoints; "is a premium" is what it says of a thing that the key has no right to.
_BURST_WAIT_S: Final = 2.0
_MINUTE_WAIT_S: Final = 60.0
_DAY_WAIT_S: Final = 3600.0  # when its day begins it does not say
_PREMIUM: Final = re.compile(r"\b(is|are)( an?)? premium\b", re.IGNORECASE)
_LIMITS: Final = (
    (re.compile(r"sparingly|per[- ]second", re.IGNORECASE), _BURST_WAIT_S),
    (re.compile(r"per minute|call frequency", re.IGNORECASE), _MINUTE_WAIT_S),
    (re.compile(r"per day|daily|rate limit", re.IGNORECASE), _DAY_WAIT_S),
)
_KEY: Final = re.compile(r"api ?key", re.IGNORECASE)


def read(body: bytes) -> dict[str, Any]:
    """An answer that brings something; raises what its words mean if it says no."""
    answer = read_json(body, _WHAT)
    if not isinstance(answer, dict) or not answer:
        raise Unusable(f"{_WHAT}: an answer without content")
    if "Error Message" in answer:
        text = str(answer["Error Message"])
        if re.search(r"apikey[^.]*(invalid|missing)", text, re.IGNORECASE):
            raise KeyRefused(text)
        raise NotServed(text)
    for name in ("Note", "Information"):
        if name in answer:
            text = str(answer[name])
            if _PREMIUM.search(text):
                raise NotServed(f"needs a premium plan: {text}")
            for pattern, wait_s in _LIMITS:
                if pattern.search(text):
                    raise SlowDown(text, wait_s)
            raise KeyRefused(text) if _KEY.search(text) else Unusable(text)
    return answer


def read_quote(body: bytes, now_ns: int) -> Observations:
    """A Global Quote as a tick: price, and the day's volume; `source_sequence` is the day, as 20181005.

    While it is that day in New York the tick's time is `now_ns`, its receipt; later it is the close, 16:00.
    """
    quote = read(body).get("Global Quote")
    if quote == {}:
        raise NotServed("no such symbol")
    if not isinstance(quote, dict):
        raise Unusable(f"{_WHAT}: no Global Quote in the answer")
    zone = zone_of(NEW_YORK)
    try:
        day = datetime.strptime(_field(quote, "latest trading day"), "%Y-%m-%d").date()  # noqa: DTZ007 -- a day
        price, volume = parse_decimal(_field(quote, "price")), parse_decimal(_field(quote, "volume"))
    except (ValueError, KeyError, TypeError):
        raise Unusable(f"{_WHAT}: a Global Quote without day, price or volume") from None
    key = _ns(datetime.combine(day, time(), UTC))
    close_ns = _ns(datetime.combine(day, _CLOSE, zone))
    today = datetime.fromtimestamp(now_ns // SECOND_NS, zone).date()
    live = day >= today and now_ns < close_ns
    sequence = day.year * 10_000 + day.month * 100 + day.day
    return one(tick(price, ts_event=now_ns if live else close_ns, sequence=sequence, volume=volume), key, live=live)


def read_rate(body: bytes) -> Observations:
    """The exchange rate of two currencies as a quote."""
    rate = read(body).get("Realtime Currency Exchange Rate")
    if not isinstance(rate, dict):
        raise Unusable(f"{_WHAT}: no exchange rate in the answer")
    try:
        zone = zone_of(_field(rate, "Time Zone"))
        ts_event = _ns(datetime.strptime(_field(rate, "Last Refreshed"), "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone))
        bid, ask = (parse_decimal(_field(rate, f"{name} Price")) for name in ("Bid", "Ask"))
    except (ValueError, KeyError, TypeError):
        raise Unusable(f"{_WHAT}: an exchange rate without time, bid or ask") from None
    record = empty(1)
    record["record_type"] = RecordType.QUOTE
    record["ts_event"] = ts_event
    record["bid"], record["ask"] = bid, ask
    record["mid"], record["spread"] = (bid + ask) / 2, ask - bid
    return one(record, ts_event)


def read_series(body: bytes, interval_s: int, now_ns: int) -> Observations:
    """A time series as bars. The last bar is left out until its time is over: it still changes."""
    answer = read(body)
    names = [name for name in answer if name.startswith("Time Series")]
    series = answer[names[0]] if names else None
    about = answer.get("Meta Data")
    if not isinstance(series, dict) or not isinstance(about, dict):
        raise Unusable(f"{_WHAT}: no time series in the answer")
    try:
        zone = zone_of(_field(about, "Time Zone"))
    except (KeyError, TypeError):
        zone = zone_of(NEW_YORK)
    daily = interval_s >= DAY_S
    found, malformed = [], 0
    for text, entry in series.items():
        try:
            start = datetime.strptime(text, "%Y-%m-%d" if daily else "%Y-%m-%d %H:%M:%S").replace(tzinfo=zone)
            prices = [parse_decimal(_field(entry, name)) for name in ("open", "high", "low", "close", "volume")]
        except (ValueError, KeyError, TypeError):
            malformed += 1
            continue
        end = datetime.combine(start.date(), _DAILY_DONE, zone) if daily else start + timedelta(seconds=interval_s)
        if _ns(end) <= now_ns:
            found.append(Bar(_ns(start), *prices))
    if malformed and malformed == len(series):
        raise Unusable(f"{_WHAT}: a time series none of whose {malformed} entries can be read")
    return bars(found, interval_s, malformed=malformed)


def _field(entry: dict[str, Any], name: str) -> str:
    """The text called `name`, whatever number stands before it ("5. volume", "05. price")."""
    for key, value in entry.items():
        if key.partition(". ")[2] == name:
            if not isinstance(value, str):
                raise TypeError(name)
            return value
    raise KeyError(name)


@lru_cache(maxsize=64)
def zone_of(name: str) -> tzinfo:
    """A time zone by the vendor's name of it; Unusable for one that is not known."""
    try:
        return ZoneInfo(_ZONES.get(name, name))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        if name in ("UTC", "GMT"):
            return UTC
        raise Unusable(f"{_WHAT}: time zone {name!r} is not known here") from None


def _ns(moment: datetime) -> int:
    return round(moment.timestamp()) * SECOND_NS


def key_of(records: np.ndarray) -> np.ndarray:
    """The keys of records that were published before, as the readers here give them."""
    keys = records["ts_event"].astype(np.int64)
    ticks = records["record_type"] == RecordType.TICK
    for row in np.flatnonzero(ticks):
        number = int(records["source_sequence"][row])
        day = datetime(number // 10_000, number // 100 % 100, number % 100, tzinfo=UTC)
        keys[row] = _ns(day)
    return keys
