"""Polled vendors against a local server that speaks their protocol over a real socket, and misbehaves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RECORD, Flag, RecordType, Source, StatusCode, concatenate, empty
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
from workers.errors import SettingsError
from workers.rate_budget import Limit, RateBudget
from workers.source import SourceContext, open_source
from workers.sources.fred import Fred
from workers.sources.polled import PolledSource
from workers.spec import FeedSpec
from workers.wire_log import WireLog

DEADLINE_S = 60
KEY = "SECRETKEY4711"
FAST = {"poll_s": 0.05, "per_second": 0, "per_minute": 0, "per_day": 0, "session": "always"}
TODAY_NS = time.time_ns()


class Feed:
    """A source and all that it has delivered; `ring` is what a restarted worker would find."""

    def __init__(
        self,
        folder: Path,
        source: str,
        symbols: tuple[str, ...],
        types: tuple[str, ...],
        *,
        log_of: Callable[[FeedSpec], WireLog] | None = None,
        **options: Any,
    ) -> None:
        self.names: dict[str, int] = {}
        self.ring: list[np.ndarray] = []
        self._folder = folder
        self._spec = FeedSpec(
            feed_id=3, name="polled", source=source, symbols=symbols, data_types=types, options=options
        )
        self.log_of = log_of
        self._out = empty(128)
        self._all = [empty(0)]
        self.open()

    def open(self) -> None:
        """As a worker does at its start."""
        context = SourceContext(
            self._spec,
            lambda name: self.names.setdefault(name, len(self.names)),
            folder=str(self._folder / "engine"),
            published=lambda: iter(list(self.ring)),
            wire=self.log_of(self._spec) if self.log_of is not None else None,
        )
        source = open_source(context)
        assert isinstance(source, PolledSource)
        self.source = source

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll as the ingest worker does, until it is so."""
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            count = self.source.poll(self._out, time.time_ns())
            if count:
                self._all.append(self._out[:count].copy())
                self.ring.append(self._all[-1])
            if found := condition():
                return found
            if not count:
                time.sleep(0.001)
        raise AssertionError(f"not within {DEADLINE_S} s: {what}; {self.source.report}; said {self.said}")

    def settle(self) -> None:
        """Until what was handed out is written down: the next request goes out only then."""
        self.until(lambda: not self.source._working and self.source._batch is None, "settled")

    @property
    def records(self) -> np.ndarray:
        self._all = [concatenate(self._all)]
        return self._all[0]

    @property
    def market(self) -> np.ndarray:
        records = self.records
        raw = records.view(np.uint8).reshape(-1, RECORD.itemsize)[records["record_type"] != RecordType.STATUS]
        return raw.reshape(-1).view(RECORD)

    @property
    def said(self) -> list[tuple[StatusCode, str]]:
        rows = self.records[self.records["record_type"] == RecordType.STATUS]
        return [(StatusCode(row["code"]), row["text"].decode()) for row in rows]

    def codes(self) -> list[StatusCode]:
        return [code for code, _ in self.said]


@pytest.fixture
def feeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Feed]]:
    monkeypatch.setenv("FRED_API_KEY", KEY)
    monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", KEY)
    made: list[Feed] = []

    def make(source: str, symbols: tuple[str, ...], types: tuple[str, ...] = (), **options: Any) -> Feed:
        made.append(Feed(tmp_path, source, symbols, types, **{**FAST, **options}))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def test_fred_publishes_each_observation_once_and_then_what_is_new_or_corrected(
    samples: Path, feeds: Callable[..., Feed]
) -> None:
    rows = fred_rows(samples)
    later = [*rows[:-1], fred_row(rows[-1]["date"], "0.06", "2020-06-01"), fred_row("2020-05-01", ".", "2020-06-01")]
    more = [*later[:-1], fred_row("2020-05-01", "-0.05", "2020-06-02")]
    script = [Reply(fred_body(rows)), Reply(fred_body(rows)), Reply(fred_body(later)), Reply(fred_body(more))]
    with VendorServer({"FEDFUNDS": script}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base)
        feed.until(lambda: vendor.counts["FEDFUNDS"] >= 6, "six requests")
        feed.settle()
    found = feed.market
    assert len(found) == 790 + 2
    assert found["price"][:790].tolist() == [float(row["value"]) for row in rows]
    assert (np.diff(found["ts_event"][:790]) > 0).all()
    assert found["ts_event"][0] == np.datetime64("1954-07-01", "ns").astype(np.int64)
    assert (found["source"] == Source.FRED).all()
    assert (found["source_sequence"][:790] == 20200520).all()
    assert (found["flags"][:790] == Flag.BACKFILLED).all()
    assert found["price"][790:].tolist() == [0.06, -0.05]
    assert found["flags"][790:].tolist() == [Flag.CORRECTED, 0]
    assert found["source_sequence"][790:].tolist() == [20200601, 20200602]
    assert not np.isnan(found["price"]).any()
    assert vendor.asked[0]["api_key"] == KEY
    assert feed.codes() == [StatusCode.FEED_UP]
    assert (feed.source.report.state, feed.source.report.health_score) == ("live", 1.0)


def test_a_restarted_worker_publishes_nothing_again(samples: Path, feeds: Callable[..., Feed]) -> None:
    """Also if it was killed after the ring had the records and before it was written down that it has."""
    rows = fred_rows(samples)
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows[:400])), Reply(fred_body(rows))]}) as vendor:
        feed = feeds("fred", ("FEDFUNDS",), url=vendor.base, poll_s=3600.0)
        feed.until(lambda: len(feed.market) == 400, "the first answer")
        feed.settle()
        feed.source.close()
        feed.open()
        killed = feed.source
        feed.until(lambda: len(feed.market) > 500, "a part of the second answer")
        feed.open()  # nobody has closed the one before
        feed.until(lambda: vendor.counts["FEDFUNDS"] == 3 and len(feed.market) == 790, "the rest")
        feed.settle()
        feed.source.close()
        feed.ring.clear()
        feed.open()
        feed.until(lambda: vendor.counts["FEDFUNDS"] == 4 and feed.source.report.state == "live", "asked again")
        feed.settle()
        killed._observed.close()
    assert feed.market["price"].tolist() == [float(row["value"]) for row in rows]


def test_fred_keeps_vintages_and_reads_long_lists_in_parts(feeds: Callable[..., Feed]) -> None:
    first = [fred_row("2020-01-01", "1.0", "2020-02-01"), fred_row("2020-01-01", "1.1", "2020-03-01")]
    second = [fred_row("2020-02-01", "2.0", "2020-03-01"), fred_row("2020-03-01", ".", "2020-04-01")]
    script = [Reply(fred_body(first, count=4)), Reply(fred_body(second, count=4))]
    with VendorServer({"GDP": [*script, *script]}) as vendor:
        feed = feeds("fred", ("GDP",), url=vendor.base, vintages=True, page=2)
        feed.until(lambda: vendor.counts["GDP"] >= 4, "all parts, twice")
        feed.settle()
    found = feed.market
    assert [one["offset"] for one in vendor.asked[:4]] == ["0", "2", "0", "2"]
    assert vendor.asked[0]["realtime_end"] == "9999-12-31"
    assert found["price"].tolist() == [1.0, 1.1, 2.0]
    assert found["source_sequence"].tolist() == [20200201, 20200301, 20200301]
    back = Flag.BACKFILLED
    assert found["flags"].tolist() == [back, back | Flag.CORRECTED, back]


def test_a_symbol_that_is_refused_is_told_and_the_others_go_on(feeds: Callable[..., Feed]) -> None:
    bad = Reply(fred_error("Bad Request. The series does not exist."), status=400)
    good = Reply(fred_body([fred_row("2020-01-01", "3.5")]))
    with VendorServer({"NOPE": [bad], "UNRATE": [good]}) as vendor:
        feed = feeds("fred", ("NOPE", "UNRATE"), url=vendor.base)
        feed.until(lambda: vendor.counts["UNRATE"] >= 3, "the good one, several times")
        report = feed.until(lambda: (one := feed.source.report).state == "live" and one, "live")
        assert vendor.counts["NOPE"] == 1
    assert "NOPE tick: Bad Request. The series does not exist." in report.why
    assert report.degraded
    assert 0.0 < report.health_score < 1.0


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply(b'{"count": 1, "observations": [{"date": "20'), "no observations in the answer"),
        (Reply(b"\xff\xfe garbage"), "no observations in the answer"),
        (Reply(fred_body([fred_row("2020-13-45", "1.0")])), "none of 1 observations can be read"),
        (Reply(fred_body([fred_row("2020-01-01", "NaN")])), "none of 1 observations can be read"),
        (Reply(b"oops", status=500), "HTTP 500"),
        (Reply(status=302, headers={"Location": "http://127.0.0.1:1/"}), "points elsewhere"),
        (Reply(fred_body([fred_row("2020-01-01", "1.0")]), cut=40), ""),
        (Reply(stall=True), "no answer within 0.5 s"),
    ],
    ids=["half", "garbage", "days", "nan", "500", "redirect", "cut", "stall"],
)
def test_what_goes_wrong_is_said_and_tried_again(feeds: Callable[..., Feed], reply: Reply, words: str) -> None:
    good = Reply(fred_body([fred_row("2020-01-01", "3.5")]))
    with VendorServer({"UNRATE": [good, reply, reply, good]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base, timeout_s=0.5)
        feed.until(lambda: StatusCode.FEED_DOWN in feed.codes(), "down")
        why = feed.source._session.why
        assert words in why
        feed.until(lambda: feed.codes()[-1] is StatusCode.FEED_UP and len(feed.codes()) == 3, "up again")
        feed.settle()
    assert feed.source.errors == 2
    assert feed.market["price"].tolist() == [3.5]


def test_a_vendor_that_wants_us_slower_is_obeyed_by_all_who_use_the_key(
    feeds: Callable[..., Feed], tmp_path: Path
) -> None:
    slow = Reply(b"{}", status=429, headers={"Retry-After": "2"})
    good = Reply(fred_body([fred_row("2020-01-01", "3.5")]))
    with VendorServer({"UNRATE": [slow, good]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base)
        feed.until(lambda: "wait for the key's budget" in feed.source.report.why, "it says that it waits")
        assert "the vendor wants none" in feed.source.report.why
        other = RateBudget(tmp_path / ".budgets", "fred", KEY, [Limit(1000, 1.0)])
        blocked_ns = other.blocked_until_ns()
        assert other.try_take(blocked_ns - 1_000_000_000) == 1_000_000_000
        assert vendor.counts["UNRATE"] == 1
        feed.until(lambda: len(feed.market), "data")
        assert time.time_ns() >= blocked_ns
        feed.until(lambda: feed.source.report.why == "delivers", "no more of it")
    assert StatusCode.FEED_DOWN not in feed.codes()


def test_a_wait_beyond_a_day_is_not_believed(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    slow = Reply(b"{}", status=503, headers={"Retry-After": "999999999"})
    with VendorServer({"UNRATE": [slow]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base)
        feed.until(lambda: "waits 86400 s" in feed.source.report.why, "it says so")
        blocked_ns = RateBudget(tmp_path / ".budgets", "fred", KEY, []).blocked_until_ns()
    assert 0 < blocked_ns - time.time_ns() <= 86_400 * 10**9


def test_two_feeds_of_one_key_share_its_budget(feeds: Callable[..., Feed]) -> None:
    good = [Reply(fred_body([fred_row("2020-01-01", "3.5")]))]
    with VendorServer({"A": good, "B": good}) as vendor:
        one, other = (feeds("fred", (name,), url=vendor.base, per_day=3) for name in "AB")

        def both() -> bool:
            one.source.poll(one._out, time.time_ns())
            return len(vendor.asked) == 3 and bool(one.source._requests.waiting and other.source._requests.waiting)

        other.until(both, "three requests, and both wait")
        other.until(lambda: "3 of 3 requests used in 86400 s" in other.source.report.why, "said")
        assert len(vendor.asked) == 3


def test_a_refused_key_ends_the_tries_for_long_and_is_never_shown(
    feeds: Callable[..., Feed], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bad = Reply(fred_error(f"Bad Request. The value for variable api_key ({KEY}) is not registered."), status=400)
    with VendorServer({"UNRATE": [bad]}) as vendor:
        feed = feeds("fred", ("UNRATE",), url=vendor.base)
        report = feed.until(lambda: (one := feed.source.report).state == "failed" and one, "failed")
        assert vendor.counts["UNRATE"] == 1
    assert "the key in FRED_API_KEY is refused" in report.why
    assert report.breaker == "open"
    assert "***" in report.why
    logged = "".join(
        record.getMessage() for record in caplog.records if record.name != "aiohttp.access"
    )  # the vendor's
    assert "is refused" in logged
    assert KEY not in report.why + repr(feed.source.__dict__) + logged + str(feed.said)


def test_a_vendor_that_is_not_there_costs_no_budget(feeds: Callable[..., Feed], tmp_path: Path) -> None:
    with VendorServer({}) as vendor:
        gone = vendor.base
    feed = feeds("fred", ("UNRATE",), url=gone, per_day=5)
    feed.until(lambda: feed.source.errors >= 2, "two tries")
    assert feed.source.report.state in ("recovering", "connecting")
    budget = RateBudget(tmp_path / ".budgets", "fred", KEY, [Limit(5, 86_400.0)])
    feed.until(lambda: budget.used(budget.limits[0], time.time_ns()) == 0, "given back")


def test_alpha_vantage_bars_ticks_and_quotes(samples: Path, feeds: Callable[..., Feed]) -> None:
    captured = (samples / "vendor/alphavantage/mock_time_series").read_bytes()
    quote = (samples / "vendor/alphavantage/global_quote").read_bytes()
    rate = (
        b'{"Realtime Currency Exchange Rate": {"6. Last Refreshed": "2024-05-01 10:00:01", "7. Time Zone": "UTC", '
        b'"8. Bid Price": "1.06710", "9. Ask Price": "1.06720"}}'
    )
    with VendorServer({"MSFT": [Reply(captured)], "IBM": [Reply(quote)], "EUR/USD": [Reply(rate)]}) as vendor:
        for source, types, count in (("MSFT", ("bar",), 100), ("IBM", ("tick",), 1), ("EUR/USD", ("quote",), 1)):
            feed = feeds("alpha_vantage", (source,), types, url=vendor.base, interval="1min")
            feed.until(lambda symbol=source: vendor.counts[symbol] >= 3, "three requests")
            feed.settle()
            assert len(feed.market) == count
            last = feed.market[-1]
            assert last["source"] == Source.ALPHA_VANTAGE
            if types == ("bar",):
                assert last["ts_event"] == np.datetime64("2017-12-18T19:56:00", "ns").astype(np.int64)
                assert (last["close"], last["volume"], last["interval_s"]) == (86.5, 10494.0, 60)
            elif types == ("tick",):
                assert (last["price"], last["volume"], last["source_sequence"]) == (112.13, 29062853.0, 20181005)
                assert last["ts_event"] == np.datetime64("2018-10-05T20:00:00", "ns").astype(np.int64)
            else:
                assert (last["bid"], last["ask"]) == (1.0671, 1.0672)
            feed.source.close()
    asked = {one["symbol"]: one["function"] for one in vendor.asked}
    assert asked == {"MSFT": "TIME_SERIES_INTRADAY", "IBM": "GLOBAL_QUOTE", "EUR/USD": "CURRENCY_EXCHANGE_RATE"}


def test_alpha_vantage_corrections_and_new_bars(feeds: Callable[..., Feed]) -> None:
    script = [
        Reply(av_series({"2024-05-01 10:01:00": 5.0, "2024-05-01 10:00:00": 4.0})),
        Reply(av_series({"2024-05-01 10:02:00": 6.0, "2024-05-01 10:01:00": 5.5, "2024-05-01 10:00:00": 4.0})),
    ]
    with VendorServer({"MSFT": script}) as vendor:
        feed = feeds("alpha_vantage", ("MSFT",), ("bar",), url=vendor.base, interval="1min")
        feed.until(lambda: vendor.counts["MSFT"] >= 4, "four requests")
        feed.settle()
    found = feed.market
    assert found["close"].tolist() == [4.0, 5.0, 5.5, 6.0]
    assert found["flags"].tolist() == [Flag.BACKFILLED, Flag.BACKFILLED, Flag.CORRECTED, 0]


def test_a_last_price_is_published_when_it_changes(feeds: Callable[..., Feed]) -> None:
    day = str(np.datetime64(TODAY_NS, "ns") + np.timedelta64(2, "D"))[:10]  # not over anywhere
    script = [Reply(av_quote("MSFT", day, price)) for price in ("10.5", "10.5", "10.6", "10.5")]
    with VendorServer({"MSFT": script}) as vendor:
        feed = feeds("alpha_vantage", ("MSFT",), ("tick",), url=vendor.base)
        feed.until(lambda: vendor.counts["MSFT"] >= 6, "six requests")
        feed.settle()
    found = feed.market
    assert found["price"].tolist() == [10.5, 10.6, 10.5]
    assert not (found["flags"] & Flag.CORRECTED).any()
    assert (np.diff(found["ts_event"]) > 0).all()


@pytest.mark.parametrize(
    ("body", "state", "words"),
    [
        (
            b'{"Error Message": "Invalid API call. Please retry or visit the documentation"}',
            "failed",
            "Invalid API call",
        ),
        (b'{"Error Message": "the parameter apikey is invalid or missing."}', "failed", "the key in ALPHA_VANTAGE"),
        (
            b'{"Information": "Thank you for using Alpha Vantage! This is a premium endpoint. You may subscribe"}',
            "failed",
            "needs a premium plan",
        ),
        (
            b'{"Note": "Thank you! Our standard API call frequency is 5 calls per minute and 500 calls per day."}',
            "connecting",
            "waits 60 s",
        ),
        (
            (
                b'{"Information": "We have detected your API key as SECRETKEY4711, its rate limit is 25 requests '
                b'per day. Please subscribe to any of the premium plans to instantly remove all daily limits."}'
            ),
            "connecting",
            "waits 3600 s",
        ),
        (
            (
                b'{"Information": "Please consider spreading out your free API requests more sparingly. You may '
                b'subscribe to lift the free key rate limit (25 requests per day), unlock all premium endpoints"}'
            ),
            "connecting",
            "waits 2 s",
        ),
        (b'{"Global Quote": {}}', "failed", "no such symbol"),
    ],
    ids=["symbol", "key", "premium", "minute", "day", "burst", "unknown"],
)
def test_alpha_vantage_ways_of_saying_no(feeds: Callable[..., Feed], body: bytes, state: str, words: str) -> None:
    with VendorServer({"MSFT": [Reply(body)]}) as vendor:
        feed = feeds("alpha_vantage", ("MSFT",), ("tick",), url=vendor.base)
        report = feed.until(lambda: words in (one := feed.source.report).why and one, words)
        assert report.state == state
        assert KEY not in report.why
        assert vendor.counts["MSFT"] == 1


def test_yahoo_charts_are_polled(samples: Path, feeds: Callable[..., Feed]) -> None:
    import json

    chart = yahoo_chart(samples)
    missing = {"chart": {"result": None, "error": {"code": "Not Found", "description": "No data found, delisted"}}}
    script = {"AAPL": [Reply(json.dumps(chart).encode())], "GONE": [Reply(json.dumps(missing).encode(), status=404)]}
    with VendorServer(script) as vendor:
        feed = feeds("yahoo", ("GONE", "AAPL"), ("bar",), url=vendor.base, interval="1d", range="5d")
        feed.until(lambda: vendor.counts["AAPL"] >= 2 and feed.source.report.state == "live", "live")
        feed.settle()
        assert "No data found, delisted" in feed.source.report.why
    (bar,) = feed.market
    assert (bar["open"], bar["high"], bar["low"], bar["close"]) == (164.98, 166.69, 162.15, 164.32)
    assert (bar["volume"], bar["interval_s"], bar["source"]) == (91162800.0, 86_400, Source.YAHOO)
    assert bar["ts_event"] == 1645540200 * 10**9


def test_answers_that_bring_nothing_new_while_the_market_is_open_are_stale(feeds: Callable[..., Feed]) -> None:
    bars = {f"2024-05-01 10:0{minute}:00": float(minute) for minute in range(6)}
    script = [Reply(av_series(dict(list(bars.items())[: n + 1]))) for n in range(5)]
    script += [script[-1]] * 200 + [Reply(av_series(bars))]
    with VendorServer({"MSFT": script}) as vendor:
        options = {"interval": "1min", "poll_s": 0.01, "stale_factor": 4.0, "timeout_s": 5.0}
        feed = feeds("alpha_vantage", ("MSFT",), ("bar",), url=vendor.base, **options)
        feed.source._vendor.jobs[0].moves = True  # as it is for polls that are further apart than bars
        report = feed.until(lambda: (one := feed.source.report).state == "stale" and one, "stale")
        assert "silent for" in report.why
        assert report.health_score == 0.0
        feed.until(lambda: len(feed.market) == 6, "a new bar")
        feed.until(lambda: feed.source.report.state == "live", "live again")
    assert feed.codes() == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.FEED_UP]


def test_settings_that_can_not_work_say_what_to_do(monkeypatch: pytest.MonkeyPatch, feeds: Callable[..., Feed]) -> None:
    monkeypatch.delenv("FRED_API_KEY")
    with pytest.raises(SettingsError, match="set FRED_API_KEY in the environment of the engine"):
        feeds("fred", ("UNRATE",))
    with pytest.raises(SettingsError, match=r"options\.api_key: keys are not written in options"):
        feeds("fred", ("UNRATE",), api_key=KEY)
    with pytest.raises(SettingsError, match="set MY_API_KEY"):
        feeds("fred", ("UNRATE",), key_variable="MY_API_KEY")
    with pytest.raises(SettingsError, match="key_variable"):
        feeds("fred", ("UNRATE",), key_variable="TICKENGINE_HTTP_TOKEN")
    monkeypatch.setenv("FRED_API_KEY", KEY)
    with pytest.raises(SettingsError, match="begins with https://"):
        feeds("fred", ("UNRATE",), url="http://example.com/fred")
    with pytest.raises(SettingsError, match="symbols: name those"):
        feeds("fred", ())
    with pytest.raises(SettingsError, match="'bar' is not to be had from fred"):
        feeds("fred", ("UNRATE",), ("bar",))
    with pytest.raises(SettingsError, match="ask for tick"):
        feeds("alpha_vantage", ("MSFT",), ("quote",))
    with pytest.raises(SettingsError, match="did you mean 'us-equities'"):
        feeds("fred", ("UNRATE",), session="us-equity")
    with pytest.raises(SettingsError, match="make a feed of each"):
        feeds("yahoo", ("AAPL",), ("tick", "bar"))


def test_a_closed_market_is_asked_once_for_what_its_close_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FRED_API_KEY", KEY)
    now = [0]
    out = empty(16)

    def polls(source: PolledSource, text: str) -> int:
        """At this time, until nothing more happens; returns how often the vendor was asked so far."""
        now[0] = int(np.datetime64(text, "ns").astype(np.int64))
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            source.poll(out, now[0])
            if not source._working and source._batch is None:
                return len(vendor.asked)
            time.sleep(0.001)
        raise AssertionError(f"still busy at {text}: {source.report}")

    with VendorServer({"DGS10": [Reply(fred_body([fred_row("2024-05-01", "4.63")]))]}) as vendor:
        options = {"session": "us-equities", "url": vendor.base, "poll_s": 3600}
        spec = FeedSpec(feed_id=3, name="closed", source="fred", symbols=("DGS10",), options=options)
        context = SourceContext(spec, lambda _: 0, folder=str(tmp_path / "engine"))
        source = PolledSource(context, Fred(context), clock=lambda: now[0])
        assert polls(source, "2024-05-04T12:00") <= 1  # Saturday: it has remembered what there was
        assert polls(source, "2024-05-04T12:00") == 1  # never had
        assert polls(source, "2024-05-04T18:00") == 1
        assert polls(source, "2024-05-06T14:00") == 2  # Monday
        assert polls(source, "2024-05-06T14:30") == 2
        assert polls(source, "2024-05-06T15:00") == 3
        assert polls(source, "2024-05-07T01:00") == 4  # closed again: what the close left
        assert polls(source, "2024-05-07T05:00") == 4
        assert polls(source, "2024-05-07T09:00") == 5
        source.close()
