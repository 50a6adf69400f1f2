"""What `capture` writes of a polled feed, replayed: the same records bit for bit, whatever the vendor answers, wherever
the capture begins.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType
from tests.feed_captures import (
    assert_alike,
    comparable,
    compressed_recording,  # noqa: F401 -- a fixture
    lines_of,
    replayed,
)
from tests.polled_capture import (
    Make,
    assert_replays_alike,
    bytes_of,
    captured_feeds,  # noqa: F401 -- a fixture
    notes,
)
from tests.unit.test_polled_source import KEY, TODAY_NS
from tests.vendor_server import (
    Reply,
    VendorServer,
    av_quote,
    av_series,
    fred_body,
    fred_error,
    fred_row,
    fred_rows,
    yahoo_chart,
)
from workers.capture_log import Recording
from workers.decoders.capture import describe_capture
from workers.spec import CaptureSettings

BACK, CORRECTED = Flag.BACKFILLED, Flag.CORRECTED


@pytest.mark.parametrize("slots", [1, 500])
def test_fred_with_what_is_new_corrected_and_missing(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch, slots: int
) -> None:
    rows = fred_rows(samples)
    later = [*rows[:-1], fred_row(rows[-1]["date"], "0.06", "2020-06-01"), fred_row("2020-05-01", ".", "2020-06-01")]
    more = [*later[:-1], fred_row("2020-05-01", "-0.05", "2020-06-02")]
    script = [Reply(fred_body(rows)), Reply(fred_body(rows)), Reply(fred_body(later)), Reply(fred_body(more))]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 6, "six requests")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, slots=slots)
    assert len(replay) == 792
    assert (replay["flags"][-2:] & ~np.uint16(Flag.REPLAYED)).tolist() == [CORRECTED, 0]
    (path,) = recording.logs[0].paths
    kinds = [line["t"] for line in lines_of(path)]
    assert kinds.count("ask") >= kinds.count("http") >= 6
    said = notes(path)
    history = [row for note in said[:-2] for row in note["rows"]]  # poll by poll
    assert len(history) > 6
    assert [first for first, _, _ in history] == [0, *np.cumsum([count for _, count, _ in history])][:-1]
    assert {flags for _, _, flags in history} == {BACK}
    assert [note["rows"] for note in said[-2:]] == [[[789, 1, int(CORRECTED)]], [[790, 1, 0]]]
    described = describe_capture(path)
    assert described["format"].startswith("Fred answers over HTTP, jsonl capture")
    assert described["records"] == {"tick": 792}
    assert (described["malformed"], described["gaps"], described["symbols"]) == ({}, 0, ["FEDFUNDS"])
    assert described["first"] == "1954-07-01T00:00:00.000000000Z"


def test_vintages_in_parts_and_a_symbol_that_is_renamed(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = [fred_row("2020-01-01", "1.0", "2020-02-01"), fred_row("2020-01-01", "1.1", "2020-03-01")]
    second = [fred_row("2020-02-01", "2.0", "2020-03-01"), fred_row("2020-03-01", ".", "2020-04-01")]
    script = [Reply(fred_body(first, count=4)), Reply(fred_body(second, count=4))]
    with VendorServer({"GDP": [*script, *script]}) as vendor:
        rename = {"GDP": "US.GDP"}
        feed = feeds("fred", ("GDP",), url=vendor.base, vintages=True, page=2, rename=rename)
        feed.until(lambda: vendor.counts["GDP"] >= 4, "all parts, twice")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert replay["price"].tolist() == [1.0, 1.1, 2.0]
    assert (replay["flags"] & CORRECTED != 0).tolist() == [False, True, False]
    assert list(feed.names) == ["US.GDP"]


@pytest.mark.parametrize("memory", ["the file's", "the ring's"])
def test_a_capture_that_begins_when_much_was_published_has_what_came_since(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch, memory: str
) -> None:
    rows = fred_rows(samples)
    last = [fred_row(rows[5]["date"], "9.5", "2020-06-01"), *rows[6:], fred_row("2020-05-01", "0.07", "2020-06-01")]
    script = [Reply(fred_body(rows[:700])), Reply(fred_body([*rows[:5], *last]))]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, log_of=None, poll_s=3600.0)
        feed.until(lambda: len(feed.market) == 700, "what there was before")
        if memory == "the file's":
            feed.settle()
            feed.ring.clear()
        before = len(feed.market)
        feed.source.close()
        feed.log_of = recording.log_of
        feed.open()
        feed.until(lambda: len(feed.market) == 792, "what is new")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, before=before)
    assert len(replay) == 92
    assert (replay["flags"][0] & ~np.uint16(Flag.REPLAYED)) == CORRECTED | BACK


def test_a_feed_that_is_closed_amid_an_answer_and_opened_again(
    samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of the answers was published in part; the next has the rest."""
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, poll_s=3600.0)
        feed.until(lambda: len(feed.market) >= 256, "a part of the answer")
        assert len(feed.market) < 790
        feed.source.close()
        feed.open()
        feed.until(lambda: len(feed.market) == 790, "the rest")
        feed.settle()
        assert_replays_alike(feed, recording, monkeypatch)


def test_a_worker_that_is_killed_amid_an_answer_leaves_what_the_ring_had(
    samples: Path, tmp_path: Path, feeds: Make
) -> None:
    """But for its last poll, of which it could not say any more that the ring has it: as what waited for the disk."""
    before, after = (Recording(CaptureSettings(folder=str(tmp_path / name))) for name in ("before", "after"))
    with VendorServer({"FEDFUNDS": [Reply(fred_body(fred_rows(samples)))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, poll_s=3600.0, log_of=before.log_of)
        feed.until(lambda: len(feed.market) >= 256, "a part of the answer")
        killed, reached, last = feed.source, len(feed.market), len(feed.ring[-1])
        before.close()
        feed.log_of = after.log_of
        feed.open()  # nobody has closed the one before
        feed.until(lambda: len(feed.market) == 790, "the rest")
        feed.settle()
        feed.source.close()
        after.close()
        killed._observed.close()
    live = comparable(feed.records)
    first, second = (comparable(replayed(made.logs[0].paths, feed.names)) for made in (before, after))
    assert len(first) == reached - last
    assert_alike(live[: len(first)], first)
    assert_alike(live[reached:], second)


def test_what_goes_wrong_brings_nothing_and_is_in_the_capture(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = Reply(fred_body([fred_row("2020-01-01", "3.5")]))
    odd = fred_body([fred_row("2020-01-01", "3.5"), fred_row("2020-02-31", "1"), fred_row("2020-03-01", "4.5")])
    script = [
        good,
        Reply(b'{"count": 1, "observations": [{"date": "20'),
        good,
        Reply(b"\xff\xfe garbage"),
        good,
        Reply(b"oops", status=500),
        good,
        Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}),
        good,
        Reply(fred_body([fred_row("2020-01-01", "1.0")]), cut=40),
        good,
        Reply(b"{}", status=429, headers={"Retry-After": "1"}),
        Reply(odd),
    ]
    with VendorServer({"UNRATE": script}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base)
        feed.until(lambda: len(feed.market) == 2, "what is new in the last one")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch, malformed=1)
    assert replay["price"].tolist() == [3.5, 4.5]
    (path,) = recording.logs[0].paths
    lines = lines_of(path)
    statuses = [line.get("status", 0) for line in lines if line["t"] == "http"][: len(script)]
    assert statuses == [200, 200, 200, 200, 200, 500, 200, 302, 200, 0, 200, 429, 200]
    why = [note["why"] for note in notes(path) if "why" in note]
    for word, text in zip(("no observ", "no observ", "HTTP 500", "points elsewhere", "waits 1 s"), why, strict=True):
        assert word in text
    garbage = next(line for line in lines if line.get("b64"))
    assert garbage["t"] == "http"
    described = describe_capture(path)
    assert (described["messages"]["refusal"], described["messages"]["no answer"]) == (5, 1)
    assert described["malformed"] == {"entry": 1}
    assert feed.source.gaps == described["gaps"] == 0


def test_symbols_that_are_refused_or_in_the_vendors_words_no(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = Reply(fred_error("Bad Request. The series does not exist."), status=400)
    with VendorServer({"NOPE": [bad], "UNRATE": [Reply(fred_body([fred_row("2020-01-01", "3.5")]))]}) as vendor:
        feed = feeds("fred", ("NOPE", "UNRATE"), url=vendor.base)
        feed.until(lambda: vendor.counts["UNRATE"] >= 3, "the good one, several times")
        feed.settle()
        assert_replays_alike(feed, recording, monkeypatch)
    (path,) = recording.logs[0].paths
    assert [note["why"] for note in notes(path) if "why" in note] == ["Bad Request. The series does not exist."]


def test_alpha_vantage_prices_quotes_and_bars(
    samples: Path, tmp_path: Path, feeds: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last price's time is that of its receipt."""
    day = str(np.datetime64(TODAY_NS, "ns") + np.timedelta64(2, "D"))[:10]  # not over anywhere
    rate = (
        b'{"Realtime Currency Exchange Rate": {"6. Last Refreshed": "2024-05-01 10:00:0%d", "7. Time Zone": "UTC", '
        b'"8. Bid Price": "1.06710", "9. Ask Price": "1.06720"}}'
    )
    bars = [
        Reply((samples / "vendor/alphavantage/mock_time_series").read_bytes()),
        Reply(av_series({"2024-05-01 10:01:00": 5.0, "2024-05-01 10:00:00": 4.0})),
        Reply(av_series({"2024-05-01 10:02:00": 6.0, "2024-05-01 10:01:00": 5.5, "2024-05-01 10:00:00": 4.0})),
    ]
    quotes = [Reply(av_quote("IBM", day, price)) for price in ("10.5", "10.5", "10.6", "10.5")]
    rates = [Reply(rate % second) for second in (1, 1, 2)]
    script = {"MSFT": bars, "IBM": quotes, "EUR/USD": rates}
    with VendorServer(script) as vendor:
        for symbol, types, count in (("MSFT", ("bar",), 104), ("IBM", ("tick",), 3), ("EUR/USD", ("quote",), 2)):
            made = Recording(CaptureSettings(folder=str(tmp_path / types[0])))
            monkeypatch.setenv("FRED_API_KEY", KEY)
            monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", KEY)
            feed = feeds("alpha_vantage", (symbol,), types, url=vendor.base, interval="1min", log_of=made.log_of)
            feed.until(lambda symbol=symbol: vendor.counts[symbol] >= 5, "five requests")
            feed.settle()
            replay = assert_replays_alike(feed, made, monkeypatch)
            assert len(replay) == count
            assert KEY.encode() not in bytes_of(made)


def test_several_symbols_and_types_of_one_feed(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Last prices and bars of two symbols, asked for in turn."""
    quote = [Reply(av_quote("A", "2018-10-05", price)) for price in ("1.5", "1.6")]
    bars = [Reply(av_series({"2024-05-01 10:00:00": price})) for price in (4.0, 4.5)]
    both = [reply for pair in zip(quote, bars, strict=True) for reply in pair]  # tick, bar, tick, bar
    with VendorServer({"A": both, "B": both}) as vendor:
        feed = feeds("alpha_vantage", ("A", "B"), ("tick", "bar"), url=vendor.base, interval="1min")
        feed.until(lambda: len(feed.market) == 8, "all of it")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert set(replay["instrument_id"].tolist()) == {0, 1}
    assert set(replay["record_type"].tolist()) == {RecordType.TICK, RecordType.BAR}


def test_yahoo_charts(samples: Path, feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = yahoo_chart(samples)
    missing = {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found, delisted"}}}
    other = json.loads(json.dumps(chart))
    other["chart"]["result"][0]["indicators"]["quote"][0]["volume"][0] += 1
    script = {
        "AAPL": [Reply(json.dumps(chart).encode()), Reply(json.dumps(other).encode())],
        "GONE": [Reply(json.dumps(missing).encode(), status=404)],
    }
    with VendorServer(script) as vendor:
        options = {"url": vendor.base, "interval": "1d", "range": "5d", "headers": {"X-Token": "h3ader-secret"}}
        feed = feeds("yahoo", ("GONE", "AAPL"), ("bar",), **options)
        feed.until(lambda: vendor.counts["AAPL"] >= 3, "three charts")
        feed.settle()
        replay = assert_replays_alike(feed, recording, monkeypatch)
    assert (replay["flags"] & CORRECTED != 0).tolist() == [False, True]
    assert b"h3ader" not in bytes_of(recording)
    assert describe_capture(recording.logs[0].paths[0])["format"].startswith("Yahoo answers over HTTP")
