"""Patterns of topics: what `tickengine tail` lets through, and how it refuses what can match nothing."""

from __future__ import annotations

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, RecordType, empty
from tools.tail import raw_endpoints, shard_endpoints
from tools.topic_filter import PatternError, TopicFilter

SYMBOLS = ["AAPL", "MSFT", "BRK.B", "BTC-USD"]


def records() -> np.ndarray:
    """A tick and a quote of each symbol, and a status record of none."""
    out = empty(2 * len(SYMBOLS) + 1)
    for number in range(len(SYMBOLS)):
        out[2 * number]["record_type"], out[2 * number]["instrument_id"] = RecordType.TICK, number
        out[2 * number + 1]["record_type"], out[2 * number + 1]["instrument_id"] = RecordType.QUOTE, number
    out[-1]["record_type"], out[-1]["instrument_id"] = RecordType.STATUS, NO_INSTRUMENT
    return out


def passed(*patterns: str) -> set[str]:
    """What passes, as "tick.AAPL"."""
    batch = records()
    chosen = TopicFilter(patterns).select(batch, SYMBOLS.__getitem__)
    names = [f"{kind}.{symbol}" for symbol in SYMBOLS for kind in ("tick", "quote")] + ["status"]
    return {name for name, take in zip(names, chosen, strict=True) if take}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["tick.AAPL"], {"tick.AAPL"}),
        (["marketdata.tick.AAPL"], {"tick.AAPL"}),
        (["tick.A"], set()),
        (["AAPL"], {"tick.AAPL", "quote.AAPL"}),
        (["*.B*"], {"tick.BRK.B", "quote.BRK.B", "tick.BTC-USD", "quote.BTC-USD"}),
        (["quote.BRK.B"], {"quote.BRK.B"}),
        (["tick"], {"tick.AAPL", "tick.MSFT", "tick.BRK.B", "tick.BTC-USD"}),
        (["status"], {"status"}),
        (["feed.status"], {"status"}),
        (["tick.AAPL", "quote.MSFT"], {"tick.AAPL", "quote.MSFT"}),
        (["trade.*"], set()),
    ],
)
def test_pattern_lets_through_what_it_names_and_nothing_else(patterns: list[str], expected: set[str]) -> None:
    assert passed(*patterns) == expected


def test_no_pattern_lets_everything_through() -> None:
    assert len(passed()) == 2 * len(SYMBOLS) + 1


def test_symbols_that_come_later_are_matched_too() -> None:
    wanted = TopicFilter(["tick.BTC*"])
    batch = records()
    assert not wanted.select(batch[:2], SYMBOLS.__getitem__).any()
    assert wanted.select(batch, SYMBOLS.__getitem__).tolist() == [False] * 6 + [True, False, False]


def test_the_wire_is_judged_as_the_rings_are() -> None:
    wanted = TopicFilter(["tick.BRK.B", "status"])
    assert wanted.matches("tick", "BRK.B")
    assert wanted.matches("status", "-")
    assert not wanted.matches("quote", "BRK.B")


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("quotes", "'quote'"),
        ("BRK.B", "'*.BRK.B'"),
        ("tick.", "TYPE.SYMBOL"),
        ("", "TYPE.SYMBOL"),
        (".A", "TYPE.SYMBOL"),
    ],
)
def test_pattern_that_can_match_nothing_is_refused_with_a_proposal(pattern: str, says: str) -> None:
    with pytest.raises(PatternError) as refused:
        TopicFilter([pattern])
    assert says in str(refused.value)


def test_topics_to_subscribe_to_cover_the_patterns() -> None:
    assert TopicFilter(["tick.AAPL", "quote.B*D", "status"]).topics() == [
        "marketdata.feed.status",
        "marketdata.quote.B*",
        "marketdata.tick.AAPL",
    ]


def test_endpoint_may_leave_out_tcp_and_a_pattern_is_no_endpoint() -> None:
    assert raw_endpoints("host:8801", "nobody") == ["tcp://host:8801"]
    assert raw_endpoints("ipc:///run/raw", "nobody") == ["ipc:///run/raw"]
    with pytest.raises(PatternError, match="before --zmq"):
        raw_endpoints("trade.AAPL", "nobody")


def test_every_shard_gets_an_endpoint_though_facts_name_two() -> None:
    known = ["tcp://127.0.0.1:8801", "tcp://127.0.0.1:8802"]
    assert shard_endpoints(known, 4) == [*known, "tcp://127.0.0.1:8803", "tcp://127.0.0.1:8804"]
    assert shard_endpoints(known[:1], 1) == known[:1]
