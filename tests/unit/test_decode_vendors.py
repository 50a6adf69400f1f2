"""Answers of data vendors into observations, and Yahoo's frames into ticks: captured ones, and what is made of them."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import struct
import time
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shm.layout import Flag, RecordType, empty
from tests.vendor_server import (
    av_quote,
    av_series,
    fred_body,
    fred_row,
    fred_rows,
    yahoo_chart,
    yahoo_frames,
)
from workers.decoders import alpha_vantage, fred, protobuf
from workers.decoders import yahoo_chart as charts
from workers.decoders.observations import KeyRefused, NotServed, SlowDown, Unusable, VendorError
from workers.decoders.yahoo import YahooDecoder, read_pricing, snap

NOW = time.time_ns()


def at(text: str) -> int:
    return int(np.datetime64(text, "ns").astype(np.int64))


# -- FRED


def test_fred_observations_as_captured(samples: Path) -> None:
    rows = fred_rows(samples)
    found = fred.read_observations(fred_body(rows), vintages=False)
    assert len(found.records) == found.total == 790
    assert found.records["price"].sum() == pytest.approx(sum(float(row["value"]) for row in rows), abs=1e-9)
    assert (found.records["record_type"] == RecordType.TICK).all()
    days = found.records["ts_event"].view("<i8").astype("datetime64[ns]").astype("datetime64[D]").astype(str)
    assert days.tolist() == [row["date"] for row in rows]
    assert (found.keys < 0).sum() == 186  # before 1970
    annual = (samples / "vendor/fred/series_observations-f4ad59.json").read_bytes()
    part = fred.read_observations(annual, vintages=False)
    assert (len(part.records), part.total, part.records["price"][0]) == (10, 91, 1120.076)


def test_fred_missing_values_are_counted_and_negative_ones_kept() -> None:
    rows = [fred_row("2020-01-01", "."), fred_row("2020-01-02", "-0.25"), fred_row("2020-01-03", "0.0")]
    rows += [fred_row("2020-01-04", value) for value in ("nan", "inf", "1_0", "1e", "--1", "")]
    body = fred_body(rows)
    found = fred.read_observations(body, vintages=False)
    odd = fred.read_observations(body.replace(b'"observations": [', b'"observations": [{"date": 7}, '), vintages=False)
    assert (odd.records["price"].tolist(), odd.missing, odd.malformed) == ([-0.25, 0.0], 2, 6)
    assert found.records["price"].tolist() == [-0.25, 0.0]
    assert (found.missing, found.malformed) == (2, 5)


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "Bad Request. The series does not exist.", NotServed),
        (400, "Bad Request. The value for variable api_key is not registered.", KeyRefused),
        (429, "Too Many Requests. Exceeded Rate Limit", SlowDown),
        (500, "Internal Server Error", Unusable),
    ],
)
def test_fred_problems(status: int, text: str, kind: type[VendorError]) -> None:
    body = json.dumps({"error_code": status, "error_message": text}).encode()
    error = fred.read_problem(status, body)
    assert type(error) is kind
    assert text in str(error)
    assert isinstance(fred.read_problem(502, b"<html>"), Unusable)


# -- Alpha Vantage


def test_alpha_vantage_series_as_captured(samples: Path) -> None:
    body = (samples / "vendor/alphavantage/mock_time_series").read_bytes()
    wire = json.loads(body)["Time Series (1min)"]
    found = alpha_vantage.read_series(body, 60, NOW)
    records = found.records
    assert len(records) == len(wire) == 100
    assert records["volume"].sum() == sum(int(bar["5. volume"]) for bar in wire.values())
    for name in ("open", "high", "low", "close"):
        field = {"open": "1", "high": "2", "low": "3", "close": "4"}[name] + f". {name}"
        assert records[name].tolist() == [float(wire[key][field]) for key in sorted(wire)]
    assert (np.diff(records["ts_event"]) > 0).all()


def test_a_bar_that_still_changes_is_left_out() -> None:
    body = av_series({"2024-05-01 10:00:00": 1.0, "2024-05-01 10:01:00": 2.0})
    last = at("2024-05-01T14:01:00")
    assert len(alpha_vantage.read_series(body, 60, last + 59 * 10**9).records) == 1
    assert len(alpha_vantage.read_series(body, 60, last + 60 * 10**9).records) == 2
    daily = av_series({"2024-05-01": 1.0}, "Daily")
    assert len(alpha_vantage.read_series(daily, 86_400, at("2024-05-01T23:59:59")).records) == 0
    found = alpha_vantage.read_series(daily, 86_400, at("2024-05-02T00:00:00")).records  # 20:00 in New York
    assert found["ts_event"].tolist() == [at("2024-05-01T04:00:00")]


def test_a_global_quote_has_the_time_of_receipt_until_the_close() -> None:
    body = av_quote("MSFT", "2024-05-01", "10.5", "77")
    during = at("2024-05-01T19:59:59")
    found = alpha_vantage.read_quote(body, during)
    assert (found.records["ts_event"][0], found.live) == (during, True)
    later = alpha_vantage.read_quote(body, at("2024-05-03T12:00:00"))
    assert (later.records["ts_event"][0], later.live) == (at("2024-05-01T20:00:00"), False)
    assert found.keys == later.keys == alpha_vantage.key_of(later.records)
    assert (later.records["price"][0], later.records["volume"][0]) == (10.5, 77.0)


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"Meta Data": {}}', b'{"Global Quote": {"05. price": "1"}}', b"\xff", b"[" * 10_000],
)
def test_what_is_no_answer_is_unusable(body: bytes) -> None:
    with pytest.raises(Unusable):
        alpha_vantage.read_quote(body, NOW)
    with pytest.raises(Unusable):
        alpha_vantage.read_series(body, 60, NOW)
    with pytest.raises(Unusable):
        fred.read_observations(body, vintages=False)
    with pytest.raises(Unusable):
        charts.read_chart(body, 60, NOW)


# -- Yahoo


@lru_cache(maxsize=1)
def generated() -> ModuleType:
    """The class that yfinance ships, without importing yfinance."""
    pytest.importorskip("google.protobuf")
    package = importlib.util.find_spec("yfinance")
    if package is None or not package.submodule_search_locations:
        pytest.skip("yfinance is not installed")
    path = Path(package.submodule_search_locations[0]) / "pricing_pb2.py"
    spec = importlib.util.spec_from_file_location("pricing_pb2_of_yfinance", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=20),
        "exchange": st.text(max_size=9),
        "price": st.floats(width=32, allow_nan=False),
        "time": st.integers(-(2**63), 2**63 - 1),
        "market_hours": st.integers(0, 3),
        "day_volume": st.integers(-(2**63), 2**63 - 1),
        "last_size": st.integers(-(2**63), 2**63 - 1),
        "bid": st.floats(width=32, allow_nan=False),
        "ask": st.floats(width=32, allow_nan=False),
        "price_hint": st.integers(0, 20),
        "short_name": st.text(max_size=30),
        "market_cap": st.floats(allow_nan=False),
        "change_percent": st.floats(width=32, allow_nan=False),
    },
)


@given(FIELDS)
def test_pricing_data_is_read_as_the_generated_class_reads_it(values: dict[str, object]) -> None:
    wire = generated().PricingData(**values).SerializeToString()
    data = read_pricing(wire)
    for name in ("id", "exchange", "price", "time", "market_hours", "day_volume", "last_size", "bid", "ask"):
        assert getattr(data, name) == (values.get(name) or type(getattr(data, name))()), name


@given(st.binary(max_size=200))
def test_bytes_that_are_no_pricing_data_are_a_value_error_or_nothing(wire: bytes) -> None:
    try:
        read_pricing(wire)
    except ValueError:
        pass


def test_a_message_that_breaks_off_anywhere_is_never_read_beyond_its_end(samples: Path) -> None:
    for frame in yahoo_frames(samples):
        wire = base64.b64decode(frame)
        whole = list(protobuf.fields(wire))
        for end in range(len(wire)):
            try:
                assert list(protobuf.fields(wire[:end])) == whole[: len(list(protobuf.fields(wire[:end])))]
            except ValueError:
                pass


@given(st.integers(1, 10**7), st.integers(0, 6))
def test_snap_gives_back_the_decimal_that_was_meant(units: int, hint: int) -> None:
    meant = round(units / 10**hint, hint)
    single = struct.unpack("<f", struct.pack("<f", meant))[0]
    assert snap(single, hint) == meant
    assert np.float32(snap(single, 2)) == np.float32(single)  # a hint that is too short loses nothing
    assert np.float32(snap(single, -1)) == np.float32(single)


def ticks(decoder: YahooDecoder, messages: list[bytes]) -> np.ndarray:
    found, out = [], empty(16)
    for message in messages:
        decoder.feed_message(message, 7)
        while count := decoder.decode(out):
            found += [tuple(row) for row in out[:count][["instrument_id", "ts_event", "price", "volume", "flags"]]]
    return np.array(found, dtype=object)


def test_yahoo_frames_as_captured_bare_and_dressed(samples: Path) -> None:
    frames = yahoo_frames(samples)
    expected = [
        ("EURUSD=X", 1786622589000, 1.15327),
        ("JPY=X", 1786622590000, 159.355),
        ("BTC-USD", 1786622589000, 63391.56),
    ]
    dressed = [b'{"type":"pricing","message":"%s"}' % frame for frame in frames]
    for messages in (frames, dressed):
        names: dict[str, int] = {}
        decoder = YahooDecoder(lambda name, names=names: names.setdefault(name, len(names)), source=4, feed_id=1)
        found = ticks(decoder, [*messages, *messages])  # every subscription says them again
        assert [(list(names)[row[0]], row[1] // 10**6, row[2]) for row in found] == expected
        assert decoder.counters.duplicates == 3
        assert found[2][3] == 21288488960.0
        assert math.isnan(found[0][3])
        assert all(row[4] == 0 for row in found)


def test_yahoo_garbage_is_counted_and_what_follows_is_read(samples: Path) -> None:
    good = yahoo_frames(samples)[0]
    bad = [good[:-5], b"!!!", b"{", b"\xff\xfe", b'{"type":"pricing","message":"AAAA"}', good[:20], b"CghFVVJVU0Q9WA=="]
    decoder = YahooDecoder(lambda _: 0, source=4, feed_id=1)
    assert len(ticks(decoder, [*bad, b'{"type":"status"}', good])) == 1
    assert decoder.errors == len(bad)


def test_yahoo_outside_regular_hours_is_flagged_and_quotes_are_had_where_there_are_any() -> None:
    pricing = generated().PricingData
    wire = pricing(id="AAPL", price=10.5, time=1000, market_hours=2, bid=10.25, ask=10.75, bid_size=3, ask_size=4)
    decoder = YahooDecoder(lambda _: 0, source=4, feed_id=1)
    out = empty(4)
    decoder.feed_message(base64.b64encode(wire.SerializeToString()), 7)
    assert decoder.decode(out) == 2
    assert (out["flags"][:2] & Flag.OUT_OF_SESSION).all()
    assert out["record_type"][:2].tolist() == [RecordType.TICK, RecordType.QUOTE]
    assert (out["bid"][1], out["ask"][1], out["bid_size"][1], out["ask_size"][1]) == (10.25, 10.75, 3.0, 4.0)


def test_yahoo_charts(samples: Path) -> None:
    chart = yahoo_chart(samples)
    found = charts.read_chart(json.dumps(chart).encode(), 86_400, NOW)
    (bar,) = found.records
    assert [bar[name] for name in ("open", "high", "low", "close")] == [164.98, 166.69, 162.15, 164.32]
    assert bar["volume"] == 91162800
    result = chart["chart"]["result"][0]
    start = result["meta"]["currentTradingPeriod"]["regular"]["start"]
    result["timestamp"] = [start, start + 60, start + 120, start + 133]
    result["indicators"]["quote"][0] = {
        name: [1.0, None, 2.0, 3.0] for name in ("open", "high", "low", "close", "volume")
    }
    body = json.dumps(chart).encode()
    found = charts.read_chart(body, 60, (start + 500) * 10**9)
    assert found.records["close"].tolist() == [1.0, 2.0]  # the last one is a price, dressed as a bar
    assert found.missing == 1
    assert len(charts.read_chart(body, 60, (start + 179) * 10**9).records) == 1
    hours = result["meta"]["currentTradingPeriod"]["regular"]
    result["timestamp"] = [start - 86_400, start - 86_000, start - 80_000, start]
    body = json.dumps(chart).encode()
    assert len(charts.read_chart(body, 86_400, (hours["end"] - 1) * 10**9).records) == 2
    assert len(charts.read_chart(body, 86_400, hours["end"] * 10**9).records) == 3
    result["timestamp"].pop()
    with pytest.raises(Unusable, match="not of one length"):
        charts.read_chart(json.dumps(chart).encode(), 60, NOW)
    assert isinstance(charts.read_problem(429, b"Too Many Requests"), SlowDown)
    assert isinstance(charts.read_problem(401, b"Unauthorized"), KeyRefused)
