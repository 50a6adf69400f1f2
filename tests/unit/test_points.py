"""Points of HTTP ingest become the records that the same fields come out of again, and nothing unusable gets in."""

from __future__ import annotations

import calendar
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.errors import ShmFull
from shm.instruments import check_symbol
from shm.layout import Flag, Priority, RecordType
from shm.message import news_fields, payload
from workers.points import SOURCES, Composer, Rejection, decode_body, decode_lines
from workers.spec import QualitySettings

NOW_NS = 1_800_000_000_000_000_000

USABLE: dict[str, dict[str, Any]] = {
    "tick": {"price": 10.5, "size": 3.0, "exchange": "XNAS", "trade_id": 77, "side": "buy"},
    "trade": {"price": 0.1, "size": 2.5, "exchange": "XNYS", "trade_id": 2**64 - 1, "side": "sell"},
    "quote": {"bid": 10.0, "ask": 10.5, "bid_size": 1.0, "ask_size": 2.0, "mid": 10.25, "spread": 0.5},
    "bar": {"open": 1.0, "high": 4.0, "low": 0.5, "close": 2.0, "volume": 9.0, "vwap": 1.5}
    | {"trade_count": 7, "interval": 60},
    "level2": {"side": "buy", "price": 9.75, "size": 0.0, "level": 3, "action": "delete"},
}


class Book:
    """Symbols and their numbers, as the instrument table gives them."""

    def __init__(self, room: int = 1000) -> None:
        self.symbols: list[str] = []
        self._room = room

    def intern(self, symbol: str) -> int:
        check_symbol(symbol)
        if len(self.symbols) == self._room:
            raise ShmFull(f"symbol {symbol!r}: no room")
        self.symbols.append(symbol)
        return len(self.symbols) - 1


def point(data_type: str = "trade", data: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    return {"symbol": "AAPL", "data_type": data_type, "data": USABLE[data_type] if data is None else data, **fields}


def compose(*points: Any, form: Any = "json", book: Book | None = None) -> tuple[np.ndarray, list[Rejection]]:
    encode = msgspec.json.encode if form == "json" else msgspec.msgpack.encode
    decoded, rejected = decode_body(encode({"data": points}), form)
    records, more = Composer((book or Book()).intern, QualitySettings()).compose(decoded, NOW_NS)
    return records, sorted(rejected + more)


@pytest.mark.parametrize("form", ["json", "msgpack"])
@pytest.mark.parametrize("data_type", list(USABLE))
def test_the_fields_of_a_point_come_out_as_they_went_in(data_type: str, form: str) -> None:
    sent = point(data_type, source="fix", timestamp="2027-01-15T08:00:00.000123Z", latency_ms=1.5)
    records, rejected = compose(sent, form=form)
    assert rejected == []
    found = payload(records[0], "AAPL")
    assert found["data"].pop("timestamp") == sent["timestamp"]
    assert {name: value for name, value in found["data"].items() if value is not None} == sent["data"]
    assert (found["data_type"], found["source"], found["latency_ms"]) == (data_type, "fix", 1.5)


def test_what_is_left_out_is_null_now_and_internal() -> None:
    (record,), rejected = compose(point(data={"price": 1, "size": None}))
    assert rejected == []
    found = payload(record, "AAPL")
    assert found["data"]["size"] is None
    assert found["data"]["trade_id"] is None
    assert found["source"] == "internal"
    assert found["latency_ms"] == 0.0
    assert record["ts_event"] == record["ts_receive"] == NOW_NS


def test_without_a_latency_the_age_on_arrival_is_told() -> None:
    (record,), _ = compose(point(timestamp=NOW_NS - 2_000_000))
    assert payload(record, "AAPL")["latency_ms"] == 2.0


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001  a wall time, its zone is drawn below
        max_value=datetime(2261, 12, 30),  # noqa: DTZ001
    ),
    st.sampled_from(["Z", "+00:00", "-05:00", "+05:30", ""]),
)
def test_times_of_every_zone_are_exact_nanoseconds(moment: datetime, zone: str) -> None:
    records, rejected = compose(point(timestamp=moment.isoformat(timespec="microseconds") + zone))
    assert rejected == []
    sign, minutes = {"-05:00": (-1, 300), "+05:30": (1, 330)}.get(zone, (1, 0))
    seconds = calendar.timegm(moment.timetuple()) - sign * minutes * 60
    assert records["ts_event"][0] == seconds * 10**9 + moment.microsecond * 1000


@pytest.mark.parametrize(
    ("broken", "names"),
    [
        ({"symbol": "A B"}, "blanks"),
        ({"symbol": ""}, "symbol"),
        ({"symbol": "x" * 33}, "33 bytes"),
        ({"symbol": 5}, "symbol: expected `str`"),
        ({"data_type": "candle"}, "data_type"),
        ({"source": "bloomberg"}, "source: 'bloomberg'"),
        ({"timestamp": "yesterday"}, "timestamp"),
        ({"timestamp": 1_700_000_000}, "timestamp: 1700000000"),
        ({"timestamp": "2300-01-01T00:00:00Z"}, "timestamp: the year 2300"),
        ({"timestamp": "1969-12-31T23:00:00Z"}, "timestamp"),
        ({"timestamp": 2**63}, "timestamp"),
        ({"latency_ms": -1}, "latency_ms"),
        ({"data": {}}, "data.price: missing"),
        ({"data": {"price": "10"}}, "data.price: expected `float | null`, got `str`"),
        ({"data": {"price": 1, "trade_id": "x-1"}}, "data.trade_id: 'x-1'"),
        ({"data": {"price": 1, "trade_id": -1}}, "data.trade_id"),
        ({"data": {"price": 1, "exchange": "TOO LONG A NAME"}}, "data.exchange: 15 bytes"),
        ({"data": {"price": 1, "side": "both"}}, "data.side"),
        ({"data_type": "quote", "data": {"bid_size": 1}}, "data.bid, data.ask"),
        ({"data_type": "bar", "data": {"open": 1, "high": 2, "low": 1}}, "data.open, high, low, close"),
        ({"data_type": "bar", "data": USABLE["bar"] | {"high": 0.25}}, "data.high: 0.25 is below"),
        ({"data_type": "bar", "data": USABLE["bar"] | {"interval": None}}, "data.interval: missing"),
        ({"data_type": "bar", "data": USABLE["bar"] | {"interval": 0}}, "data.interval"),
        ({"data_type": "level2", "data": {"size": 1}}, "data.price"),
        ({"data_type": "news", "data": {"body": "x"}}, "data.headline: missing"),
    ],
)
def test_an_unusable_point_is_named_and_takes_no_other_along(broken: dict[str, Any], names: str) -> None:
    book = Book()
    records, rejected = compose(point(), point() | broken, point(symbol="MSFT"), book=book)
    assert [index for index, _ in rejected] == [1]
    assert names in rejected[0][1]
    assert [book.symbols[i] for i in records["instrument_id"]] == ["AAPL", "MSFT"]
    assert records["sequence"].tolist() == [0, 2]


def test_a_rejected_point_gives_no_number_to_its_symbol() -> None:
    book = Book()
    compose(point(symbol="NEW", data={"size": 1.0}), point(symbol="NEWER", source="nobody"), book=book)
    assert book.symbols == []


def test_a_symbol_without_room_is_rejected_and_known_ones_go_on() -> None:
    records, rejected = compose(point(), point(symbol="MSFT"), point(), book=Book(room=1))
    assert len(records) == 2
    assert rejected == [(1, "symbol 'MSFT': no room")]


def test_long_news_is_several_records_of_one_point() -> None:
    data = {"headline": "A headline " * 12, "body": "first\nsecond " * 30, "url": "https://example.org/x"}
    records, rejected = compose(point("news", data=data), point())
    assert rejected == []
    pieces = records[:-1]
    assert len(pieces) > 2
    assert [bool(flags & Flag.CONTINUES) for flags in pieces["flags"]] == [True] * (len(pieces) - 1) + [False]
    found = news_fields(pieces)
    assert (found["headline"], found["url"]) == (data["headline"], data["url"])
    assert found["body"] == data["body"].rstrip("\n")
    assert records["record_type"][-1] == RecordType.TRADE


def test_quality_is_judged_as_for_any_feed() -> None:
    composer = Composer(Book().intern, QualitySettings(warm_up_records=4))
    points = [point(data={"price": 100.0 + i % 2, "size": 1.0}) for i in range(20)]
    points += [point(data={"price": 900.0, "size": 1.0}), point("quote", data={"bid": 11.0, "ask": 10.0})]
    decoded, _ = decode_body(msgspec.json.encode({"data": points}), "json")
    records, rejected = composer.compose(decoded, NOW_NS)
    assert rejected == []
    assert records["flags"][-2] & Flag.OUTLIER
    assert records["flags"][-1] & Flag.CROSSED
    assert records["priority"][-2:].tolist() == [Priority.HIGH, Priority.NORMAL]


def test_what_quality_rejects_is_named_by_its_index() -> None:
    composer = Composer(Book().intern, QualitySettings(policy="reject"))
    decoded, _ = decode_body(
        msgspec.json.encode({"data": [point(), point(data={"price": 1.0, "size": -5.0}), point()]}), "json"
    )
    records, rejected = composer.compose(decoded, NOW_NS)
    assert len(records) == 2
    assert [index for index, _ in rejected] == [1]


def test_records_of_a_feed_carry_its_number() -> None:
    composer = Composer(Book().intern, QualitySettings())
    composer.feeds["MSFT"] = 7
    decoded, _ = decode_body(msgspec.json.encode({"data": [point(), point(symbol="MSFT")]}), "json")
    assert composer.compose(decoded, NOW_NS)[0]["feed_id"].tolist() == [0, 7]


def test_lines_are_points_and_a_broken_line_is_rejected_by_its_number() -> None:
    text = msgspec.json.encode(point()) + b"\n\n{broken\n" + msgspec.json.encode(point()) + b"\r\n"
    points, rejected = decode_lines(text)
    assert [item is None for item in points] == [False, True, False]
    assert [index for index, _ in rejected] == [1]
    assert decode_lines(b"\n \n") == ([], [])


@pytest.mark.parametrize("body", [b"[]", b"{}", b'{"data": 5}', b'{"data": {"a": 1}}'])
def test_a_body_of_another_shape_is_refused_as_a_whole(body: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_body(body, "json")


@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(junk: bytes) -> None:
    for form in ("json", "msgpack"):
        try:
            decode_body(junk, form)  # type: ignore[arg-type]
        except msgspec.DecodeError:
            pass
    points, rejected = decode_lines(junk)
    assert sum(item is None for item in points) == len(rejected)


def test_every_source_name_of_the_interface_is_taken() -> None:
    names = ["ibkr", "alpha_vantage", "fred", "yahoo", "internal", "mock", "websocket", "fix", "multicast", "replay"]
    assert set(names) < set(SOURCES)
    assert SOURCES["plugin_1"] == 65
    assert "unknown" not in SOURCES
