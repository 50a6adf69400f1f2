"""Books of Kraken, both versions of its WebSocket: levels with the digits that the venue's checksum is made of.

    levels of a message ──▶ change ──▶ cut to depth ──▶ level2 records ──▶ checksum right? else GAP, and nothing more of
                                                                           this book until its next snapshot

Rule: Kraken, guides "Book checksum" of v1 and v2. Base of the decoders in kraken.py and kraken_v1.py.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from shm.layout import Action, Flag, Side
from workers.decoders._messages import MessageDecoder

CHECKED_LEVELS: Final = 10


class Change(NamedTuple):
    """One level of a message: size 0 = gone; `digits` are those of price and size for the checksum."""

    side: Side
    price: float
    size: float
    digits: bytes


class Book:
    """One book's levels as the wire has them: price -> (digits of price and size for the checksum)."""

    def __init__(self, depth: int) -> None:
        """`depth` levels a side are subscribed to; what falls behind them is let go of."""
        self.depth = depth
        self.bids: dict[float, bytes] = {}
        self.asks: dict[float, bytes] = {}

    def change(self, side: Side, price: float, size: float, digits: bytes) -> None:
        """One level."""
        levels = self.bids if side is Side.BUY else self.asks
        if size:
            levels[price] = digits
        else:
            levels.pop(price, None)

    def cut(self) -> list[tuple[Side, float]]:
        """Levels that are behind `depth` after all changes of a message: the venue speaks of them no more."""
        gone = []
        for side, levels in ((Side.BUY, self.bids), (Side.SELL, self.asks)):
            if len(levels) > self.depth:
                for price in sorted(levels, reverse=side is Side.BUY)[self.depth :]:
                    del levels[price]
                    gone.append((side, price))
        return gone

    def checksum(self) -> int:
        """CRC-32 of the ten best asks and the ten best bids, as the venue counts it."""
        asks = sorted(self.asks)[:CHECKED_LEVELS]
        bids = sorted(self.bids, reverse=True)[:CHECKED_LEVELS]
        return zlib.crc32(b"".join([self.asks[price] for price in asks] + [self.bids[price] for price in bids]))


def digits_of(number: bytes) -> bytes:
    """A number's digits without point and leading zeros."""
    return number.replace(b".", b"").lstrip(b"0")


class CheckedBooks(MessageDecoder):
    """A decoder that keeps such books. `bad_checksums` counts those that were wrong."""

    def __init__(self, intern: Callable[[str], int], *, depth: int = 10, **stamp: Any) -> None:
        """`depth`: levels a side that books are subscribed to with."""
        super().__init__(intern, **stamp)
        self.bad_checksums = 0
        self._depth = depth
        self._books: dict[str, Book] = {}

    def take_book(
        self, symbol: str, changes: list[Change], checksum: int | None, *, whole: bool, ts_event: int, ts_receive: int
    ) -> None:
        """The changes of one message, or with `whole` a snapshot; times in ns. `checksum` None: it has none."""
        if whole:
            self._books[symbol] = Book(self._depth)
            self.clear(symbol, ts_event, ts_receive)
        book = self._books.get(symbol)
        if book is None:
            return  # a change before its snapshot, or after a checksum that was wrong
        flags = int(Flag.SNAPSHOT) if whole else 0
        for side, price, size, digits in changes:
            book.change(side, price, size, digits)
            action = Action.DELETE if size == 0 else Action.ADD if whole else Action.MODIFY
            self.level(symbol, ts_event, ts_receive, int(side), price, size, int(action), 0, flags)
        for side, price in book.cut():
            self.level(symbol, ts_event, ts_receive, int(side), price, 0.0, int(Action.DELETE), 0, flags)
        if changes or whole:
            self.end_of_event()
        if checksum is not None and book.checksum() != checksum:
            self.bad_checksums += 1
            del self._books[symbol]
            self.gap(0, 0, 0, symbol, ts_receive)
