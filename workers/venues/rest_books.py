"""Venues whose books are changes over the WebSocket and a first picture over HTTP: what they do alike about it.

Which change follows which picture is decided in depth_sync.py; a venue says where the picture is had, as of which
update it is, and in which words its decoder takes it. Base of workers/venues/binance.py and bitstamp.py.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from workers.spec import FeedSpec
from workers.venues.depth_sync import DepthSync
from workers.venues.dialect import Dialect, VenueOptions


class RestBooksDialect(Dialect):
    """See the module. A venue defines `hold`, `picture_url` and `picture`."""

    def __init__(self, spec: FeedSpec, options: VenueOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self.books = DepthSync()

    @property
    def dropped(self) -> int:
        """See `Dialect.dropped`."""
        return self.books.dropped

    @property
    def fetches(self) -> bool:
        """See `Dialect.fetches`."""
        return "level2" in self.types

    def picture_url(self, symbol: str) -> str:
        """Where a book's picture is had."""
        raise NotImplementedError

    def picture(self, symbol: str, body: bytes) -> tuple[int, bytes]:
        """(update that it is as of, the picture in the words of the stream); MsgspecError or ValueError: it is none."""
        raise NotImplementedError

    def wanted_snapshot(self, now_ns: int) -> tuple[str, str] | None:
        """See `Dialect.wanted_snapshot`."""
        symbol = self.books.wanted(now_ns)
        return None if symbol is None else (symbol, self.picture_url(symbol))

    def snapshot_asked(self, symbol: str) -> None:
        """See `Dialect.snapshot_asked`."""
        self.books.ask(symbol)

    def snapshot(self, symbol: str, body: bytes, now_ns: int) -> list[tuple[bytes, int, int]]:
        """The picture, and the changes after it."""
        try:
            update, picture = self.picture(symbol, body)
        except (msgspec.MsgspecError, ValueError):
            self.books.failed(symbol, now_ns)
            return []
        changes = self.books.picture(symbol, update, now_ns)
        if changes is None:
            return []
        first = changes[0].connection if changes else 0
        return [(picture, now_ns, first), *((c.message, c.ts_receive, c.connection) for c in changes)]

    def snapshot_failed(self, symbol: str, now_ns: int, retry_after_s: float) -> None:
        """See `Dialect.snapshot_failed`."""
        self.books.failed(symbol, now_ns, retry_after_s)
