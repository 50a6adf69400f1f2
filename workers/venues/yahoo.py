"""Yahoo Finance's streamer: one subscription for all symbols, said again every 15 s; nothing is acknowledged.

The server forgets subscriptions that are not repeated. Messages are base64 of protobuf, in a dress of JSON from newer
addresses (workers/decoders/yahoo.py). Used by source "yahoo" (workers/sources/yahoo.py), and as a venue of "websocket".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from shm.layout import Source
from workers.decoders.yahoo import YahooDecoder
from workers.spec import FeedSpec
from workers.venues.dialect import Control, Dialect, Request, VenueOptions


class YahooOptions(VenueOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of Yahoo's stream."""

    venue: str = "yahoo"


class YahooDialect(Dialect):
    """See the module. A stream is a symbol as Yahoo writes it: AAPL, EURUSD=X, BTC-USD."""

    OPTIONS = YahooOptions
    SOURCE = Source.YAHOO
    URL = "wss://streamer.finance.yahoo.com/?version=2"
    TYPES = {"tick": "pricing", "quote": "pricing"}  # noqa: RUF012
    DEFAULT_TYPES = ("tick",)
    ACKNOWLEDGES = False
    STREAMS_PER_CONNECTION = 500
    REPEAT_S = 15.0

    def __init__(self, spec: FeedSpec, options: YahooOptions, intern: Callable[[str], int]) -> None:
        """See `Dialect`."""
        super().__init__(spec, options, intern)
        self._yahoo = self.decoder = YahooDecoder(
            self.intern, ticks="tick" in self.types, quotes="quote" in self.types, **self.stamp
        )

    def streams(self) -> list[str]:
        """The symbols."""
        return list(dict.fromkeys(self.spec.symbols))

    def subscribe(self, streams: Iterable[str]) -> list[Request]:
        """One request, without an answer."""
        return [Request(msgspec.json.encode({"subscribe": list(streams)}))]

    def opened(self, connection: int) -> None:  # noqa: ARG002 -- a symbol of another connection may be restated, too
        """See `Dialect.opened`."""
        self._yahoo.opened()

    def control(self, message: bytes) -> Control | None:  # noqa: ARG002 -- every message is data
        """See `Dialect.control`."""
        return None
