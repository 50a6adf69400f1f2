"""Yahoo Finance's charts (v8/finance/chart) -> bars.

    {"chart": {"result": [{"meta", "timestamp": [s, ...], "indicators": {"quote": [{"open": [...], ...}]}}], "error"}}

Prices are doubles made from floats of 32 bits, 166.69000244140625 for 166.69: snapped by the chart's priceHint. An
entry whose prices are null is missing. The bar of the present is left out until its time is over. Pure; called by
workers/sources/yahoo.py.
"""

from __future__ import annotations

import math
from typing import Final

import msgspec

from workers.decoders.observations import (
    SECOND_NS,
    Bar,
    KeyRefused,
    NotServed,
    Observations,
    SlowDown,
    Unusable,
    VendorError,
    bars,
)
from workers.decoders.yahoo import snap

DAY_S: Final = 86_400
_WAIT_S: Final = 60.0  # where it does not say how long
_WHAT: Final = "Yahoo"

Numbers = list[float | None]


class Quote(msgspec.Struct):
    """Columns."""

    open: Numbers = []
    high: Numbers = []
    low: Numbers = []
    close: Numbers = []
    volume: Numbers = []


class Indicators(msgspec.Struct):
    """The first quote is the instrument's."""

    quote: list[Quote]


class Hours(msgspec.Struct):
    """Of the present or the last day, s."""

    start: int = 0
    end: int = 0


class Period(msgspec.Struct):
    """Regular hours."""

    regular: Hours = msgspec.field(default_factory=Hours)


class Meta(msgspec.Struct):
    """About the instrument."""

    priceHint: int = -1  # noqa: N815 -- the vendor's name
    currentTradingPeriod: Period = msgspec.field(default_factory=Period)  # noqa: N815


class Result(msgspec.Struct):
    """One instrument."""

    meta: Meta
    indicators: Indicators
    timestamp: list[int] = []


class Problem(msgspec.Struct):
    """Why there is none."""

    code: str = ""
    description: str = ""


class Chart(msgspec.Struct):
    """Either is null."""

    result: list[Result] | None = None
    error: Problem | None = None


class Answer(msgspec.Struct):
    """The body."""

    chart: Chart


_answer = msgspec.json.Decoder(Answer)


def read_chart(body: bytes, interval_s: int, now_ns: int) -> Observations:
    """The finished bars of an answer."""
    try:
        chart = _answer.decode(body).chart
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Unusable(f"{_WHAT}: no chart in the answer: {error}") from None
    if chart.error is not None:
        raise NotServed(f"{chart.error.code}: {chart.error.description}")
    if not chart.result or not chart.result[0].indicators.quote:
        raise Unusable(f"{_WHAT}: a chart without content")
    result = chart.result[0]
    quote, hours, hint = result.indicators.quote[0], result.meta.currentTradingPeriod.regular, result.meta.priceHint
    columns = (quote.open, quote.high, quote.low, quote.close, quote.volume)
    found: list[Bar] = []
    missing = malformed = 0
    if result.timestamp and any(len(column) != len(result.timestamp) for column in columns):
        raise Unusable(f"{_WHAT}: a chart whose columns are not of one length")
    for row, start_s in enumerate(result.timestamp):
        *prices, volume = (column[row] for column in columns)
        if any(price is None for price in prices):
            missing += 1
            continue
        if not 0 < start_s < 1 << 33 or not all(math.isfinite(price or 0.0) for price in prices):
            malformed += 1
            continue
        if _ends_s(start_s, interval_s, hours) * SECOND_NS > now_ns:
            continue
        if interval_s < DAY_S and hours.start and (start_s - hours.start) % min(interval_s, 1800):
            continue  # the last price, dressed as a bar
        first, high, low, close = (snap(price or 0.0, hint) for price in prices)
        found.append(Bar(start_s * SECOND_NS, first, high, low, close, float(volume or 0.0)))
    return bars(found, interval_s, missing=missing, malformed=malformed)


def read_problem(status: int, body: bytes) -> VendorError:
    """What an answer other than HTTP 200 means."""
    text = ""
    try:
        error = _answer.decode(body).chart.error
        text = f"{error.code}: {error.description}" if error is not None else ""
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        text = body[:80].decode("utf-8", "replace")
    text = text.strip() or f"HTTP {status}"
    if status == 429:
        return SlowDown(text, _WAIT_S)
    if status in (401, 403):
        return KeyRefused(text)
    return NotServed(text) if status in (400, 404, 422) else Unusable(f"HTTP {status}: {text}")


def _ends_s(start_s: int, interval_s: int, hours: Hours) -> int:
    """When a bar changes no more. That of the present day ends with its regular hours."""
    if interval_s == DAY_S and hours.end and hours.start <= start_s < hours.end:
        return hours.end
    return start_s + interval_s
