"""Dialects and their decoders take whatever a connection brings: counted, never raised, nothing good lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import empty
from tests.unit.test_venues import DESCRIBED
from workers.source import SourceContext
from workers.sources.websocket import open_dialect
from workers.spec import FeedSpec

GOOD: dict[str, bytes] = {
    "binance": b'{"stream":"x@trade","data":{"e":"trade","E":1,"s":"X","t":%d,"p":"1.5","q":"2","T":1,"m":true}}',
    "coinbase": b'{"channel":"market_trades","timestamp":"2026-08-09T21:05:48Z","sequence_num":%d,"events":['
    b'{"type":"update",'
    b'"trades":[{"product_id":"X","trade_id":"7%d","price":"1.5","size":"2","time":"2026-08-09T21:05:48Z","side":"BUY"}]}]}',
    "kraken": b'{"channel":"trade","type":"update","data":[{"symbol":"X","side":"buy","price":1.5,"qty":4,'
    b'"trade_id":%d,"timestamp":"2023-09-25T07:49:37.708706Z"}]}',
    "kraken-v1": b'[%d,[["1.5","4","1534614057.321597","b","l",""]],"trade","X"]',
    "bitstamp": b'{"data":{"id":%d,"amount_str":"1","price_str":"1.5","type":0,"microtimestamp":"1641343699596000"},'
    b'"channel":"live_trades_x","event":"trade"}',
    "generic": b'{"data":{"id":%d,"amount_str":"1","price_str":"1.5","type":0,"microtimestamp":"1641343699596000"},'
    b'"channel":"live_trades_x","event":"trade"}',
}
WORDS = [
    "event",
    "channel",
    "data",
    "e",
    "s",
    "trade",
    "book",
    "symbol",
    "bids",
    "result",
    "id",
    "error",
    "success",
    "method",
]
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(WORDS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=4),
    max_leaves=10,
)


@pytest.mark.parametrize("venue", sorted(GOOD))
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_anything_between_good_messages_is_survived(venue: str, data: st.DataObject) -> None:
    options = {**DESCRIBED, "url": "ws://x"} if venue == "generic" else {"venue": venue}
    names: dict[str, int] = {}
    spec = FeedSpec(feed_id=1, name="f", source="websocket", symbols=("X",), data_types=("trade",), options=options)
    dialect = open_dialect(SourceContext(spec, lambda name: names.setdefault(name, len(names))))
    out = empty(64)

    def take(message: bytes) -> int:
        dialect.control(message)
        if dialect.hold(message, 1, 0):
            return 0
        dialect.decoder.feed_message(message, 10**18, 0)
        count = 0
        while got := dialect.decoder.decode(out):
            count += got
        return count

    good = GOOD[venue]
    sample = good.replace(b"%d", b"1")
    for number in range(1, 4):
        assert take(good.replace(b"%d", str(number).encode())) == 1
        for _ in range(3):
            kind = data.draw(st.integers(0, 4))
            if kind == 0:
                bad = data.draw(st.binary(max_size=60))
            elif kind == 1:
                bad = json.dumps(data.draw(VALUES)).encode()
            elif kind == 2:
                bad = sample[: data.draw(st.integers(0, len(sample) - 1))]
            elif kind == 3:
                name = data.draw(st.sampled_from(["events", "data", "x", "stream"]))
                bad = b'{"channel":"market_trades","%s":' % name.encode() + b"[" * 100_000
            else:
                bad = b"[" * 100_000 + data.draw(st.binary(max_size=2))
            take(bad)
