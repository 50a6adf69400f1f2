"""Binance's messages as msgspec structs: the slow path of `_binance`, and the shapes that both paths agree on.

Layouts: Binance "WebSocket Streams" and "General API Information" (spot), "Websocket Market Streams" (USD-M futures).
Keys that are not named here are ignored, as the venue asks of its clients. No logic but `interval_seconds`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

# Identifiers and times: what both the kernel and msgspec can hold; a longer number is refused.
Whole = Annotated[int, msgspec.Meta(ge=0, lt=10**18)]
_ABSENT: Final = msgspec.Raw(b"")


class Envelope(msgspec.Struct):
    """Enough of any message to tell what it is; a key that is absent is an empty Raw."""

    stream: str | None = None
    data: msgspec.Raw = _ABSENT
    e: str | None = None
    B: msgspec.Raw = _ABSENT
    lastUpdateId: msgspec.Raw = _ABSENT  # noqa: N815 -- the venue's name
    id: msgspec.Raw = _ABSENT


class Trade(msgspec.Struct):
    """`trade`: one match."""

    s: str
    t: Whole
    p: str
    q: str
    T: Whole
    m: bool
    E: Whole | None = None


class AggTrade(msgspec.Struct):
    """`aggTrade`: the matches of one taker order at one price."""

    s: str
    a: Whole
    p: str
    q: str
    T: Whole
    m: bool
    E: Whole | None = None


class Ticker(msgspec.Struct):
    """`bookTicker`: best bid and ask; spot has neither `e` nor times."""

    u: Whole
    s: str
    b: str
    B: str
    a: str
    A: str
    E: Whole | None = None
    T: Whole | None = None


class DepthEvent(msgspec.Struct):
    """`depthUpdate`: changed prices since the event before it."""

    E: Whole
    s: str
    U: Whole
    u: Whole
    b: list[tuple[str, str]]
    a: list[tuple[str, str]]
    T: Whole | None = None
    pu: Whole | None = None


class Depth(msgspec.Struct):
    """A whole book: REST /depth, and the partial-depth streams."""

    lastUpdateId: Whole  # noqa: N815 -- the venue's name
    bids: list[tuple[str, str]]
    asks: list[tuple[str, str]]
    s: str = ""
    T: Whole | None = None


class Kline(msgspec.Struct):
    """One candle of `kline`."""

    t: Whole
    i: str
    o: str
    c: str
    h: str
    l: str  # noqa: E741 -- the venue's name
    v: str
    x: bool
    n: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]


class KlineEvent(msgspec.Struct):
    """`kline`: a candle, sent while it changes and when it closes."""

    s: str
    k: Kline
    E: Whole | None = None


_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800, "M": 2_592_000}  # a month counts as 30 days


def interval_seconds(text: str) -> int:
    """Seconds of an interval such as `1m`; ValueError for one that the venue does not have."""
    if not text[:-1].isdecimal() or text[-1] not in _UNITS:
        raise ValueError(f"no interval: {text!r}")
    return int(text[:-1]) * _UNITS[text[-1]]
