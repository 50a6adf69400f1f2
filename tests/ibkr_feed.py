"""An IBKR feed for tests: a source over a socket to a TwsServer, and messages that answer its requests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RecordType, empty
from tests.tws_server import (
    BY_TICK,
    Asked,
    TwsServer,
    contract_row,
    packed,
)
from tests.unit.test_websocket_source import Feed as LiveFeed
from tests.unit.test_websocket_source import of
from workers.source import SourceContext, open_source
from workers.sources.ibkr import IbkrSource
from workers.spec import FeedSpec
from workers.wire_log import WireLog

ROWS = "vendor/ibkr/wire-fields.txt"
AAPL = {"AAPL": [contract_row("AAPL", 265598)]}
BOTH = {**AAPL, "MSFT": [contract_row("MSFT", 272093)]}
NOW_S = 1_700_000_000


class Feed(LiveFeed):
    """A source and all that it has delivered."""

    def __init__(
        self,
        symbols: tuple[str, ...],
        types: tuple[str, ...],
        *,
        log_of: Callable[[FeedSpec], WireLog] | None = None,
        **options: Any,
    ) -> None:
        self.names: dict[str, int] = {}
        options.setdefault("session", "always")
        spec = FeedSpec(feed_id=3, name="ib", source="ibkr", symbols=symbols, data_types=types, options=options)
        wire = log_of(spec) if log_of is not None else None
        source = open_source(SourceContext(spec, lambda name: self.names.setdefault(name, len(self.names)), wire=wire))
        assert isinstance(source, IbkrSource)
        self.source = source  # type: ignore[assignment]
        self._batches = [empty(0)]
        self.out = empty(512)

    def kind(self, kind: RecordType) -> np.ndarray:
        records = self.records
        return of(records, records["record_type"] == kind)

    @property
    def state(self) -> str:
        return self.source.report.state

    def asked(self, server: TwsServer, kind: int, name: str = "", connection: int = -1) -> Asked:
        found = self.until(lambda: server.find(kind, name, connection), f"a request of kind {kind} {name}")
        assert isinstance(found, Asked)
        return found


@pytest.fixture(name="feeds")
def ibkr_feeds() -> Iterator[Callable[..., Feed]]:
    made: list[Feed] = []

    def make(server: TwsServer | int, *args: Any, **options: Any) -> Feed:
        port = server if isinstance(server, int) else server.port
        made.append(Feed(*args, port=port, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def rows(samples: Path, kind: str) -> list[str]:
    """Captured rows of a kind of message."""
    return [row for row in (samples / ROWS).read_text().splitlines() if row.startswith(f"{kind}|")]


def trade(asked: Asked, price: float, time_s: int = NOW_S, size: float = 100) -> bytes:
    return packed(99, asked.number, 1, time_s, price, size, 0, "NASDAQ", "T I")


def quote(asked: Asked, bid: float, ask: float, time_s: int = NOW_S) -> bytes:
    return packed(99, asked.number, 3, time_s, bid, ask, 3, 4, 0)


def prices(asked: Asked, tick_type: int, price: float, size: float) -> bytes:
    return packed(1, 6, asked.number, tick_type, price, size, 0)


def trades_for(*values: float) -> Callable[[Asked], Iterable[bytes]]:
    """Trades as the answer to each tick-by-tick request for them."""

    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind == BY_TICK and asked.fields[-3] == "Last":
            return [trade(asked, value) for value in values]
        return []

    return answer


def lost_and_found(feeds: Callable[..., Feed], server: TwsServer, **options: Any) -> Feed:
    feed = feeds(server, ("AAPL",), ("trade",), **options)
    feed.until(lambda: feed.state == "live", "live")
    return feed
