"""Kraken WebSocket v1 messages -> records, with the venue's checksum of the book verified at every change.

    trade -> trade (without ids: v1 has none)    spread -> quote    ticker -> quote, at the time of receipt
    book-N -> level2, CLEAR before a snapshot    ohlc: counted

Layout: Kraken "WebSocket API v1": data is an array [number, payload..., channel, pair]; numbers are text, times are
seconds with six decimals. Snapshots of books have no checksum; of an update with two payloads the last one has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from shm.layout import Side
from workers.decoders._decimal import parse_decimal
from workers.decoders.checked_book import Change, CheckedBooks, digits_of

_KINDS: Final = ("other", "trade", "spread", "ticker", "book", "ohlc", "heartbeat", "event")
_NUMBER: Final = {name: number for number, name in enumerate(_KINDS)}
_SIDES: Final = {"b": Side.BUY, "s": Side.SELL}


def seconds_to_ns(text: Any) -> int:
    """ns of "1534614057.321597". ValueError if it is no such time."""
    if not isinstance(text, str):
        raise ValueError("not a time")
    whole, _, part = text.partition(".")
    if not (whole.isdecimal() and len(whole) <= 10 and (not part or part.isdecimal())):
        raise ValueError("not a time")
    return int(whole) * 1_000_000_000 + int(part[:9].ljust(9, "0"))


class KrakenV1Decoder(CheckedBooks):
    """Frames are the WebSocket's text messages."""

    NAMES = dict(enumerate(_KINDS))  # noqa: RUF012
    VENUE = b"KRAKEN"

    def __init__(self, intern: Callable[[str], int], *, depth: int = 10, **stamp: Any) -> None:
        """`depth`: levels a side that books are subscribed to with."""
        super().__init__(intern, depth=depth, **stamp)
        self._decode = msgspec.json.Decoder().decode

    def message(self, text: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        """See `MessageDecoder.message`."""
        told = self._decode(text)
        if isinstance(told, dict):
            heartbeat = told.get("event") == "heartbeat"
            self.seen(_NUMBER["heartbeat" if heartbeat else "event"])
            if heartbeat:
                self.heartbeat()
            return
        if not isinstance(told, list) or len(told) < 4 or not isinstance(told[-2], str):
            raise ValueError("neither an event nor [number, payload, channel, pair]")
        channel, pair = told[-2].partition("-")[0], told[-1]
        self.seen(_NUMBER.get(channel, 0))
        if channel == "trade":
            self._trades(told[1], pair, ts_receive)
        elif channel == "spread":
            bid, ask, time, bid_size, ask_size = told[1][:5]
            self._quote(pair, seconds_to_ns(time), ts_receive, (bid, bid_size, ask, ask_size))
        elif channel == "ticker":
            ask, bid = told[1]["a"], told[1]["b"]  # price, whole lots, lots
            self._quote(pair, ts_receive, ts_receive, (bid[0], bid[2], ask[0], ask[2]))
        elif channel == "book":
            self._book(told[1:-2], pair, ts_receive)

    def _quote(self, pair: str, ts_event: int, ts_receive: int, numbers: tuple[str, str, str, str]) -> None:
        bid, bid_size, ask, ask_size = map(parse_decimal, numbers)
        self.quote(pair, ts_event, ts_receive, bid, bid_size, ask, ask_size)

    def _trades(self, trades: list[list[str]], pair: str, ts_receive: int) -> None:
        read = [
            (seconds_to_ns(time), parse_decimal(price), parse_decimal(size), int(_SIDES[side]))
            for price, size, time, side, *_ in trades
        ]
        for ts_event, price, size, side in read:
            self.trade(pair, ts_event, ts_receive, price, size, 0, side)

    def _book(self, payloads: list[dict[str, Any]], pair: str, ts_receive: int) -> None:
        changes: list[Change] = []
        ts_event = 0
        checksum: int | None = None
        whole = any("as" in payload or "bs" in payload for payload in payloads)
        for payload in payloads:
            if not isinstance(payload, dict):
                raise ValueError("the payload of a book is no object")
            for side, names in ((Side.BUY, ("bs", "b")), (Side.SELL, ("as", "a"))):
                for price, size, time, *_ in [level for name in names for level in payload.get(name, ())]:
                    at, of = parse_decimal(price), parse_decimal(size)
                    digits = digits_of(price.encode()) + digits_of(size.encode())
                    changes.append(Change(side, at, of, digits))
                    ts_event = max(ts_event, seconds_to_ns(time))
            if "c" in payload:
                checksum = int(payload["c"])
        if changes or whole:
            ts_event = ts_event or ts_receive
            self.take_book(pair, changes, checksum, whole=whole, ts_event=ts_event, ts_receive=ts_receive)
