"""Messages have exactly the fields of the public interface, and what a record leaves undefined is null."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, Source, StatusCode, empty
from shm.message import data_fields, flag_names, iso_time, news_fields, news_pieces, payload, source_name

EVENT_NS = 1_709_303_400_000_123_456
EVENT = "2024-03-01T14:30:00.000123Z"


def record(kind: RecordType, **fields: Any) -> np.void:
    one = empty(1)
    one["record_type"], one["ts_event"], one["venue"] = kind, EVENT_NS, b"XNAS"
    for name, value in fields.items():
        one[name] = value
    return one[0]


@pytest.mark.parametrize("kind", [RecordType.TICK, RecordType.TRADE])
def test_tick_and_trade_have_the_fields_of_the_interface(kind: RecordType) -> None:
    one = record(kind, price=187.25, size=100.0, trade_id=77, side=Side.SELL)

    assert data_fields(one) == {
        "timestamp": EVENT,
        "price": 187.25,
        "size": 100.0,
        "exchange": "XNAS",
        "trade_id": 77,
        "side": "sell",
    }


def test_quote_has_the_fields_of_the_interface() -> None:
    one = record(RecordType.QUOTE, bid=1.0, ask=1.5, bid_size=10.0, ask_size=20.0, mid=1.25, spread=0.5)

    assert data_fields(one) == {
        "timestamp": EVENT,
        "bid": 1.0,
        "ask": 1.5,
        "bid_size": 10.0,
        "ask_size": 20.0,
        "mid": 1.25,
        "spread": 0.5,
    }


def test_bar_has_the_fields_of_the_interface() -> None:
    one = record(
        RecordType.BAR, open=1.0, high=4.0, low=0.5, close=2.0, volume=9.0, vwap=1.75, interval_s=60, trade_count=3
    )

    assert data_fields(one) == {
        "timestamp": EVENT,
        "open": 1.0,
        "high": 4.0,
        "low": 0.5,
        "close": 2.0,
        "volume": 9.0,
        "vwap": 1.75,
        "trade_count": 3,
        "interval": 60,
    }


def test_level2_has_the_fields_of_the_interface() -> None:
    one = record(RecordType.LEVEL2, price=1.0, size=5.0, level=2, action=Action.MODIFY, side=Side.BUY)

    assert data_fields(one) == {
        "timestamp": EVENT,
        "side": "buy",
        "price": 1.0,
        "size": 5.0,
        "level": 2,
        "action": "modify",
    }


def test_status_names_its_code_and_range() -> None:
    one = record(RecordType.STATUS, code=StatusCode.GAP, from_sequence=5, to_sequence=9, text=b"ring 2", feed_id=3)

    assert data_fields(one) == {
        "timestamp": EVENT,
        "code": "gap",
        "feed_id": 3,
        "from": 5,
        "to": 9,
        "text": "ring 2",
    }


def test_undefined_values_are_null() -> None:
    one = record(RecordType.TICK, price=float("nan"), size=float("inf"), venue=b"")

    fields = data_fields(one)

    assert {name for name, value in fields.items() if value is None} == {
        "price",
        "size",
        "exchange",
        "trade_id",
        "side",
    }
    assert msgspec.json.decode(msgspec.json.encode(fields)) == fields


def test_payload_has_the_fields_of_the_interface() -> None:
    one = record(
        RecordType.TICK,
        price=1.0,
        ts_receive=EVENT_NS + 1_500_000,
        source=Source.YAHOO,
        sequence=42,
        flags=Flag.LATE | Flag.OUTLIER,
    )

    found = payload(one, "AAPL", 7)

    assert found.pop("data") == data_fields(one)
    assert msgspec.json.decode(msgspec.json.encode(found)) == {
        "symbol": "AAPL",
        "data_type": "tick",
        "latency_ms": 1.5,
        "source": "yahoo",
        "sequence": 42,
        "flags": ["OUTLIER", "LATE"],
        "topic_sequence": 7,
    }
    assert "topic_sequence" not in payload(one, "AAPL")


@pytest.mark.parametrize("missing", ["ts_event", "ts_receive"])
def test_latency_is_null_where_a_time_is_unknown(missing: str) -> None:
    one = record(RecordType.TICK, ts_receive=EVENT_NS)
    assert payload(one, "A")["latency_ms"] == 0.0
    one[missing] = 0
    assert payload(one, "A")["latency_ms"] is None


def test_a_record_reads_the_same_from_every_kind_of_buffer() -> None:
    one = record(RecordType.TICK, price=3.5)
    expected = payload(one, "A")

    for same in (one.tobytes(), memoryview(one.tobytes()), np.frombuffer(one.tobytes(), np.uint8)):
        assert payload(same, "A") == expected


@pytest.mark.parametrize("kind", [0, 8, 255])
def test_unknown_record_type_is_refused(kind: int) -> None:
    with pytest.raises(ValueError, match=f"record_type is {kind}"):
        payload(bytes(36) + bytes([kind]) + bytes(91), "A")


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000Z"),
        (999, "1970-01-01T00:00:00.000000Z"),
        (1_000, "1970-01-01T00:00:00.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (EVENT_NS, EVENT),
    ],
)
def test_times_are_iso_8601_utc_with_microseconds(time_ns: int, text: str) -> None:
    assert iso_time(time_ns) == text


def test_flags_and_sources_have_names() -> None:
    assert flag_names(0) == []
    assert flag_names(0xFFFF) == [flag.name for flag in Flag]
    assert source_name(Source.ALPHA_VANTAGE) == "alpha_vantage"
    assert source_name(66) == "plugin_2"
    assert source_name(66, {66: "kraken"}) == "kraken"


@pytest.mark.parametrize(
    ("headline", "body", "url"),
    [
        ("Short", "", ""),
        ("With link", "", "https://example.org/a"),
        (
            "Über die Maßen lange Überschrift — " * 5,
            "Erster Absatz.\n\nZweiter: 価格は上昇した。" * 9,
            "https://example.org",
        ),
    ],
)
def test_news_of_any_length_comes_back_whole(headline: str, body: str, url: str) -> None:
    pieces = news_pieces(headline, body, url)
    records = [record(RecordType.NEWS, headline=piece) for piece in pieces]

    found = news_fields(records)

    assert all(1 <= len(piece) <= 64 for piece in pieces)
    assert found == {"timestamp": EVENT, "headline": headline, "body": body or None, "url": url or None}
    if len(pieces) == 1:
        assert data_fields(records[0]) == found
