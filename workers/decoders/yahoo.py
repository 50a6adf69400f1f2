"""Yahoo Finance's streamer: base64 frames of protobuf PricingData -> ticks, and quotes where it has any.

    "CghFVVJ..."  or  {"type":"pricing","message":"CghFVVJ..."}  ->  PricingData  ->  tick, quote

Layout: message PricingData as yfinance ships it (pricing.proto). Prices are floats of 32 bits, so 1.15327 comes as
1.1532700061798096: `snap` gives back the decimal that was meant. The same price at the same time, sent again with every
subscription, counts as a duplicate. No I/O; called through workers/venues/yahoo.py.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any, Final

import msgspec
import numpy as np

from shm.layout import Flag
from workers.decoders import protobuf
from workers.decoders._messages import MessageDecoder

_KINDS: Final = ("other", "pricing")
REGULAR: Final = 1  # of MarketHours; 0 before, 2 after, 3 overnight
MAX_HINT: Final = 12

# Numbers of the fields that are read.
_STRINGS: Final = {1: "id", 5: "exchange"}
_FLOATS: Final = {2: "price", 23: "bid", 25: "ask"}
_ENUMS: Final = {7: "market_hours"}
_SIGNED: Final = {
    3: "time",
    9: "day_volume",
    22: "last_size",
    24: "bid_size",
    26: "ask_size",
    27: "price_hint",
    28: "vol_24hr",
}


class PricingData(msgspec.Struct):
    """What is read of one message. Fields that the wire leaves out are 0, as protobuf has it; `time` is in ms."""

    id: str = ""
    exchange: str = ""
    price: float = 0.0
    time: int = 0
    market_hours: int = 0
    day_volume: int = 0
    last_size: int = 0
    bid: float = 0.0
    bid_size: int = 0
    ask: float = 0.0
    ask_size: int = 0
    price_hint: int = -1  # -1: not said
    vol_24hr: int = 0


class Pushed(msgspec.Struct):
    """The newer dress of a message."""

    type: str = ""
    message: str = ""


_pushed = msgspec.json.Decoder(Pushed)


def read_pricing(message: bytes) -> PricingData:
    """PricingData from its bytes; ValueError for what is none. Of a field that comes twice the last counts."""
    data = PricingData()
    for number, kind, value in protobuf.fields(message):
        if number in _FLOATS:
            if kind != protobuf.FIXED32 or not isinstance(value, bytes):
                raise ValueError(f"PricingData: field {number} is no float")
            setattr(data, _FLOATS[number], protobuf.single(value))
        elif number in _STRINGS:
            if not isinstance(value, bytes) or kind != protobuf.BYTES:
                raise ValueError(f"PricingData: field {number} is no text")
            setattr(data, _STRINGS[number], value.decode())
        elif number in _SIGNED or number in _ENUMS:
            if not isinstance(value, int):
                raise ValueError(f"PricingData: field {number} is no number")
            if number in _SIGNED:
                setattr(data, _SIGNED[number], protobuf.signed(value))
            else:
                setattr(data, _ENUMS[number], value)
    return data


def snap(price: float, hint: int) -> float:
    """The decimal that a float of 32 bits was made from.

    With `hint` decimals, if that is the same float; else the shortest decimal that is. So no digit is lost where the
    hint is too short, as it is for currencies (1.15327 with a hint of 4).
    """
    single = np.float32(price)
    if 0 <= hint <= MAX_HINT:
        hinted = round(float(single), hint)
        if np.float32(hinted) == single:
            return hinted
    return float(str(single))


class YahooDecoder(MessageDecoder):
    """Frames are the WebSocket's text messages. `ticks`, `quotes`: which records are wanted."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"YAHOO"

    def __init__(self, intern: Callable[[str], int], *, ticks: bool = True, quotes: bool = True, **stamp: Any) -> None:
        """See `MessageDecoder` for `stamp`."""
        super().__init__(intern, **stamp)
        self._ticks = ticks
        self._quotes = quotes
        self._last: dict[str, tuple[Any, ...]] = {}  # symbol -> what its last tick said
        self._last_quote: dict[str, tuple[Any, ...]] = {}
        self._restated: set[str] = set()  # symbols that have spoken since the connection was made

    def opened(self) -> None:
        """The connection was made anew: what is said again first is a picture of how things stand (SNAPSHOT)."""
        self._restated.clear()
        self._last_quote.clear()

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        """See `MessageDecoder.message`."""
        encoded: bytes | str = text
        if text[:1] == b"{":
            pushed = _pushed.decode(text)
            if pushed.type != "pricing":
                self.seen(0)
                return
            encoded = pushed.message
        data = read_pricing(base64.b64decode(encoded, validate=True))
        if not data.id or data.time <= 0:
            raise ValueError("PricingData without symbol or time")
        if not math.isfinite(data.price):
            raise ValueError("PricingData whose price is no number")
        self.seen(1)
        ts_event = data.time * 1_000_000
        if ts_event >= 1 << 63:
            raise ValueError("PricingData of a time that is none")
        flags = 0 if data.market_hours == REGULAR else int(Flag.OUT_OF_SESSION)
        if self._ticks and data.price:
            self._take_tick(data, ts_event, ts_receive, flags)
        if self._quotes and data.bid > 0 and data.ask > 0:
            self._take_quote(data, ts_event, ts_receive, flags)

    def _take_tick(self, data: PricingData, ts_event: int, ts_receive: int, flags: int) -> None:
        said = (data.time, data.price, data.day_volume)
        if self._last.get(data.id) == said:
            if data.id in self._restated:
                self.duplicate()
                return
            flags |= int(Flag.SNAPSHOT)
        self._restated.add(data.id)
        self._last[data.id] = said
        # Of crypto currencies the last size is the day's volume: then there is none.
        size = 0 if data.last_size in (data.day_volume, data.vol_24hr) else data.last_size
        volume = float(data.day_volume) if data.day_volume > 0 else math.nan
        venue = data.exchange.encode()
        price = snap(data.price, data.price_hint)
        self.tick(data.id, ts_event, ts_receive, price, float(max(0, size)), volume, flags, venue)

    def _take_quote(self, data: PricingData, ts_event: int, ts_receive: int, flags: int) -> None:
        said = (data.bid, data.ask, data.bid_size, data.ask_size)
        if self._last_quote.get(data.id) == said:
            return
        self._last_quote[data.id] = said
        hint = data.price_hint
        bid, ask = snap(data.bid, hint), snap(data.ask, hint)
        sizes = (float(max(0, data.bid_size)), float(max(0, data.ask_size)))
        self.quote(data.id, ts_event, ts_receive, bid, sizes[0], ask, sizes[1], 0, flags)
