# ruff: noqa: PLR0917 -- the fields of one message, in its order
"""Market data of TWS on its way from a request's number to the stream that asked, and to its records.

Called by the link (workers/sources/ibkr_link.py) for each message, between `Events.received` and `Events.packet_over`.
What comes for a request that no longer runs is passed over and counted: TWS sends on for a while after a stream was
ended. Reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable

from workers.sources.ibkr_records import Records
from workers.sources.ibkr_streams import BULLETINS, Stream, Way


class Market:
    """See the module. `now_ns` is when the packet in hand arrived; `strays` counts messages for nobody."""

    def __init__(self, stream_of: Callable[[int], Stream | None], streams: list[Stream], records: Records) -> None:
        """`stream_of` gives the stream that a request brings, `streams` has all of them."""
        self.now_ns = 0
        self.strays = 0
        self._stream_of = stream_of
        self._streams = streams
        self._records = records

    def _find(self, request: int) -> Stream | None:
        stream = self._stream_of(request)
        if stream is None:
            self.strays += 1
        return stream

    def price(self, request: int, tick_type: int, price: float, size: float) -> None:
        """A price of an aggregate, with its size."""
        stream = self._find(request)
        if stream is not None:
            self._records.price(stream, tick_type, price, size, self.now_ns)

    def size(self, request: int, tick_type: int, size: float) -> None:
        """A size of an aggregate."""
        stream = self._find(request)
        if stream is not None:
            self._records.size(stream, tick_type, size, self.now_ns)

    def text(self, request: int, tick_type: int, value: str) -> None:
        """A text of an aggregate, prints among them."""
        stream = self._find(request)
        if stream is not None:
            self._records.volume_print(stream, tick_type, value, self.now_ns)

    def kind_of_data(self, request: int, kind: int) -> None:
        """1 live, 2 frozen, 3 delayed, 4 delayed and frozen."""
        stream = self._find(request)
        if stream is not None:
            stream.delayed = kind in (3, 4)

    def accepted(self, request: int) -> None:
        """TWS has taken a request for an aggregate. Of one for news alone that is all there may be for hours."""
        stream = self._find(request)
        if stream is not None and stream.types == ["news"]:
            self._records.speaks(stream)

    def by_tick_print(self, request: int, time_s: int, price: float, size: float, venue: str, condition: str) -> None:
        """Last or AllLast."""
        stream = self._find(request)
        if stream is not None:
            self._records.by_tick_print(stream, time_s, price, size, venue, condition, self.now_ns)

    def by_tick_quote(
        self, request: int, time_s: int, bid: float, ask: float, bid_size: float, ask_size: float
    ) -> None:
        """BidAsk."""
        stream = self._find(request)
        if stream is not None:
            self._records.by_tick_quote(stream, time_s, bid, ask, bid_size, ask_size, self.now_ns)

    def bar(self, request: int, time_s: int, values: tuple[float, ...]) -> None:
        """A bar of 5 s: open, high, low, close, volume, vwap, count."""
        stream = self._find(request)
        if stream is not None:
            self._records.bar(stream, time_s, values, self.now_ns)

    def kept_bar(self, request: int, date: str, values: tuple[float, ...], *, past: bool) -> None:
        """A bar of 60 s, the same."""
        stream = self._find(request)
        if stream is not None:
            self._records.kept_bar(stream, date, values, self.now_ns, past=past)

    def depth(
        self, request: int, position: int, operation: int, side: int, price: float, size: float, maker: str
    ) -> None:
        """A row of a book."""
        stream = self._find(request)
        if stream is not None:
            self._records.depth(stream, position, operation, side, price, size, maker, self.now_ns)

    def headline(self, request: int, time_ms: int, provider: str, text: str) -> None:
        """News of an instrument."""
        stream = self._find(request)
        if stream is not None:
            self._records.news(stream, time_ms, provider, text, self.now_ns)

    def bulletin(self, text: str, venue: str) -> None:
        """IBKR's own news, which name no request."""
        for stream in self._streams:
            if stream.way is Way.BULLETINS and stream.symbol == BULLETINS:
                self._records.news(stream, 0, venue, text, self.now_ns)
