"""Yahoo's stream against a local server: repeated subscriptions, duplicates, loss."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import Flag, Source, StatusCode
from tests.unit.test_websocket_source import Feed, feeds  # noqa: F401 -- a fixture
from tests.vendor_server import yahoo_frames
from tests.venue_server import Act, VenueServer, always_ready, no_answer
from workers.source import SourceContext, open_source
from workers.sources.websocket import WebSocketSource
from workers.spec import FeedSpec
from workers.venues.yahoo import YahooDialect
from workers.wire_log import WireLog

SYMBOLS = ("EURUSD=X", "JPY=X", "BTC-USD")


class YahooFeed(Feed):
    """A feed of source "yahoo"."""

    def __init__(
        self, types: tuple[str, ...], *, log_of: Callable[[FeedSpec], WireLog] | None = None, **options: Any
    ) -> None:
        super().__init__(SYMBOLS, ("tick",), venue="yahoo", **options)
        self.source.close()
        spec = FeedSpec(feed_id=3, name="live", source="yahoo", symbols=SYMBOLS, data_types=types, options=options)
        wire = log_of(spec) if log_of is not None else None
        source = open_source(SourceContext(spec, lambda name: self.names.setdefault(name, len(self.names)), wire=wire))
        assert isinstance(source, WebSocketSource)
        self.source = source


def test_ticks_come_and_the_subscription_is_repeated(samples: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(YahooDialect, "REPEAT_S", 0.05)
    frames = yahoo_frames(samples)
    with VenueServer([Act([*frames, *frames])], answer=no_answer, ready=always_ready) as venue:
        feed = YahooFeed((), url=venue.url)
        try:
            feed.until(lambda: len(venue.requests[0]) >= 4 if venue.requests else False, "four subscriptions")
            feed.until(lambda: len(feed.market) == 3, "the ticks")
        finally:
            feed.source.close()
    assert all(request == {"subscribe": list(SYMBOLS)} for request in venue.requests[0])
    assert feed.market["price"].tolist() == [1.15327, 159.355, 63391.56]
    assert (feed.market["source"] == Source.YAHOO).all()
    assert set(feed.market["venue"].tolist()) == {b"CCY", b"CCC"}
    assert feed.source.report.reconnects == 0
    assert feed.said == [(StatusCode.FEED_UP, "yahoo delivers")]


def test_garbage_half_messages_and_a_broken_connection(samples: Path, feeds: Callable[..., Feed]) -> None:  # noqa: F811
    frames = yahoo_frames(samples)
    acts = [Act([frames[0], frames[1][:30], b"@@@", b"{"], end="abort"), Act([*frames, *frames])]
    with VenueServer(acts, answer=no_answer, ready=always_ready) as venue:
        feed = feeds(SYMBOLS, ("tick", "quote"), venue="yahoo", url=venue.url)
        feed.until(lambda: len(feed.market) == 4, "the ticks")
        feed.until(lambda: feed.codes().count(StatusCode.FEED_UP) == 2, "up again")
    assert feed.source.errors == 3
    assert feed.market["price"].tolist() == [1.15327, 1.15327, 159.355, 63391.56]
    assert feed.market["flags"].tolist() == [0, Flag.GAP_BEFORE | Flag.SNAPSHOT, 0, 0]
