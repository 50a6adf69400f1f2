"""What an IBKR feed does about the numbered messages of TWS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from shm.layout import Flag, StatusCode
from tests.ibkr_feed import (
    AAPL,
    BOTH,
    Feed,
    ibkr_feeds,  # noqa: F401 -- a fixture
    lost_and_found,
    prices,
    trade,
    trades_for,
)
from tests.tws_server import (
    BARS,
    BY_TICK,
    DEPTH,
    HISTORICAL,
    MARKET_DATA_TYPE,
    MKT_DATA,
    Act,
    Asked,
    TwsServer,
    contract_row,
    error,
    packed,
)


def test_connectivity_lost_and_restored_with_subscriptions_lost(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0))], AAPL) as server:
        feed = lost_and_found(feeds, server, stale_s=0.1)
        first = feed.asked(server, BY_TICK)
        server.push(error(-1, 1100, "Connectivity between IB and Trader Workstation has been lost."))
        feed.until(lambda: feed.state == "stale", "stale")
        assert "TWS has lost its connection to IBKR (1100)" in feed.source.report.why
        feed.source._requests._pace._by_tick.clear()
        server.push(error(-1, 1101, "Connectivity restored - data lost"))
        again = feed.until(
            lambda: (one := server.find(BY_TICK)) is not None and one.number != first.number and one, "asked again"
        )
        feed.until(lambda: feed.state == "live", "live by data")
        assert len(server.asked) == 1, "the connection stays, however long it takes"
        server.push(trade(first, 5.0), trade(again, 6.0))
        feed.until(lambda: 6.0 in feed.market["price"], "the new request's data")
        assert 5.0 not in feed.market["price"]
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.GAP, StatusCode.FEED_UP]
        assert [bool(flags & Flag.GAP_BEFORE) for flags in feed.market["flags"]] == [False, True, False]


@pytest.mark.parametrize("lost", [1100, 2110])
def test_connectivity_restored_with_subscriptions_kept(feeds: Callable[..., Feed], lost: int) -> None:
    with TwsServer([Act(trades_for(1.0))], AAPL) as server:
        feed = lost_and_found(feeds, server)
        asked = feed.asked(server, BY_TICK)
        server.push(error(-1, lost, "gone"), error(-1, lost, "gone"))
        feed.until(lambda: feed.state == "stale", "stale")
        server.push(error(-1, 1102, "Connectivity restored - data maintained"))
        feed.until(lambda: StatusCode.GAP in feed.codes(), "the gap")
        assert feed.state == "stale"  # until data comes
        server.push(trade(asked, 2.0))
        feed.until(lambda: feed.state == "live", "live")
        assert server.find(BY_TICK) == asked
        assert feed.codes().count(StatusCode.FEED_DOWN) == 1


def test_a_farm_that_is_down_degrades_the_feed(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0))], AAPL) as server:
        feed = lost_and_found(feeds, server)
        broken = error(-1, 2103, "Market data farm connection is broken:usfarm")
        server.push(broken, broken)
        feed.until(lambda: feed.source.report.degraded, "degraded")
        assert "down: usfarm" in feed.source.report.why
        assert (StatusCode.FEED_DEGRADED, "usfarm is down (2103)") in feed.said
        assert feed.codes().count(StatusCode.FEED_DEGRADED) == 1
        server.push(error(-1, 2104, "Market data farm connection is OK:usfarm"))
        feed.until(lambda: not feed.source.report.degraded, "well again")
        assert feed.state == "live"


def test_a_competing_session_stops_the_feed_which_asks_again(
    feeds: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch
) -> None:
    from workers.sources import ibkr_codes

    said = ibkr_codes.CODES[10197]
    monkeypatch.setitem(ibkr_codes.CODES, 10197, said._replace(wait_s=0.2))
    taken = [True]

    def answer(asked: Asked) -> Iterable[bytes]:
        if taken[0]:
            return [error(asked.number, 10197, "No market data during competing live session")]
        return [prices(asked, 1, 10.0, 1) + prices(asked, 2, 11.0, 1)]

    with TwsServer([Act(answer)], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote",), tick_by_tick="never", first_data_s=2.0, stale_s=0.1)
        feed.until(
            lambda: len([one for one in server.asked[0] if one.kind == MKT_DATA]) > 24 if server.asked else 0, "tries"
        )
        assert "a competing session has the market data (10197)" in feed.source.report.why
        assert len(server.asked) == 1, "another connection would not help"
        assert feed.codes() == [StatusCode.FEED_DEGRADED] * 2
        taken[0] = False
        feed.until(lambda: len(set(feed.market["instrument_id"].tolist())) == 2, "data of both")
        assert feed.state == "live"
        # And while it was live.
        asked = [feed.asked(server, MKT_DATA, name) for name in ("AAPL", "MSFT")]
        taken[0] = True
        server.push(*(error(one.number, 10197, "No market data during competing live session") for one in asked))
        feed.until(lambda: feed.state == "stale", "stale")
        taken[0] = False
        feed.until(lambda: feed.state == "live", "live again")


@pytest.mark.parametrize("code", [354, 10089, 10168, 10186, 321, 101, 99999])
def test_what_is_not_subscribed_is_told_and_the_rest_goes_on(feeds: Callable[..., Feed], code: int) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.con_id == "272093":
            return [error(asked.number, code, "Requested market data is not subscribed.")]
        return [prices(asked, 1, 10.0, 1) + prices(asked, 2, 11.0, 1)]

    with TwsServer([Act(answer)], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote",), tick_by_tick="never")
        feed.until(lambda: feed.state == "live" and "refused" in feed.source.report.why, "told")
        assert "refused: quote of MSFT: " in feed.source.report.why
        assert f"({code})" in feed.source.report.why
        assert feed.source.report.degraded
        assert feed.source.report.health_score == pytest.approx(0.5, abs=0.3)
        assert len([one for one in server.asked[0] if one.kind == MKT_DATA]) == 2


@pytest.mark.parametrize("code", [10090, 10167])
def test_a_part_of_what_was_asked_is_taken_and_told(feeds: Callable[..., Feed], code: int) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        delayed = [packed(58, 1, asked.number, 3), prices(asked, 66, 10.0, 1) + prices(asked, 67, 11.0, 1)]
        return [error(asked.number, code, "Displaying delayed market data"), *delayed]

    with TwsServer([Act(answer)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",), tick_by_tick="never", market_data="delayed")
        feed.until(lambda: feed.state == "live", "delayed data")
        feed.until(lambda: "delayed data: quote of AAPL" in feed.source.report.why, "told")
        assert feed.asked(server, MARKET_DATA_TYPE).fields == ["59", "1", "3"]
        assert feed.market[["bid", "ask"]].tolist() == [(10.0, 11.0)]


@pytest.mark.parametrize(
    ("code", "text"), [(162, "Historical data request pacing violation"), (420, "pacing violation")]
)
def test_pacing_violations_wait(feeds: Callable[..., Feed], code: int, text: str) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind in (BARS, HISTORICAL):
            return [error(asked.number, code, text)]
        return trades_for(1.0)(asked)

    with TwsServer([Act(answer)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade", "bar"))
        feed.until(lambda: feed.state == "live" and "waits: bar of AAPL" in feed.source.report.why, "told")
        (waiting,) = feed.source._requests.waiting()
        assert 500e9 < waiting.due_ns - time.time_ns() <= 600e9
        assert len([one for one in server.asked[0] if one.kind == BARS]) == 1


@pytest.mark.parametrize("code", [162, 420])
def test_other_historical_errors_refuse(feeds: Callable[..., Feed], code: int) -> None:
    with TwsServer([Act(lambda asked: [error(asked.number, code, "no market data permissions")])], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("bar",))
        feed.until(lambda: feed.state == "failed", "nothing left")
        assert "no market data permissions" in feed.source.report.why


@pytest.mark.parametrize(
    ("code", "kind", "data_type"), [(10225, BARS, "bar"), (10182, HISTORICAL, "bar"), (316, DEPTH, "level2")]
)
def test_streams_that_tws_ends_are_asked_for_again(
    feeds: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch, code: int, kind: int, data_type: str
) -> None:
    monkeypatch.setattr("workers.sources.ibkr.AGAIN_WAIT_S", 0.1)
    monkeypatch.setattr("workers.sources.ibkr_streams.HISTORICAL_SAME_NS", 1)
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), (data_type,), bar_s=60 if kind == HISTORICAL else 5)
        first = feed.asked(server, kind)
        if kind == DEPTH:
            assert first.fields[-2] == "1"  # of all exchanges, as the contract's is SMART
        server.push(error(first.number, code, "ended"))
        feed.until(lambda: (one := server.find(kind)) is not None and one.number != first.number, "asked again")
        assert len(server.asked) == 1


def test_1300_and_notes(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0)), Act()], AAPL) as server:
        feed = lost_and_found(feeds, server)
        server.push(*(error(-1, code, "a note") for code in (165, 2119, 2152, 100, 2199, 4711)))
        server.push(error(-1, 1300, "Please reconnect on the new port - 4002"))
        feed.until(lambda: StatusCode.GAP in feed.codes(), "another connection")
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.GAP]
        assert feed.said[1][1].startswith("TWS has moved to another port (1300)")


def test_tws_that_stays_cut_off_is_connected_to_anew(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0)), Act()], AAPL) as server:
        feed = lost_and_found(feeds, server, cut_s=0.5)
        server.push(error(-1, 1100, "Connectivity between IB and Trader Workstation has been lost."))
        feed.until(lambda: len(server.asked) == 2, "another connection")
        assert feed.source.report.reconnects <= 1


def test_symbols_are_looked_up_again_when_the_farm_of_definitions_is_back(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0))], dict(AAPL)) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("trade",))
        feed.until(lambda: feed.state == "live" and "refused: MSFT" in feed.source.report.why, "one of two")
        server.push(error(-1, 2157, "Sec-def data farm connection is broken:secdefil"))
        server.contracts["MSFT"] = BOTH["MSFT"]
        server.push(error(-1, 2158, "Sec-def data farm connection is OK:secdefil"))
        feed.until(lambda: len(set(feed.market["instrument_id"].tolist())) == 2, "data of both")
        feed.until(lambda: not feed.source.report.degraded, "well")
        assert "refused" not in feed.source.report.why


def test_an_index_is_had_from_an_aggregate(feeds: Callable[..., Feed]) -> None:
    contracts = {"SPX": [contract_row("SPX", 416904, secType="IND", exchange="CBOE")]}
    with TwsServer([Act()], contracts) as server:
        table = {"symbol": "SPX", "sec_type": "IND", "exchange": "CBOE", "currency": "USD"}
        feed = feeds(server, ("SPX",), ("tick",), contracts={"SPX": table})
        asked = feed.asked(server, MKT_DATA)
        server.push(prices(asked, 4, 5000.5, 0))
        feed.until(lambda: len(feed.market), "the print")
        assert feed.market["price"].tolist() == [5000.5]
        assert feed.state == "live"


def test_latency_is_from_the_times_of_prints(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        asked = feed.asked(server, BY_TICK)
        server.push(trade(asked, 1.0, int(time.time()) - 5))
        feed.until(lambda: feed.source.report.latency_ms, "a latency")
        assert feed.source.report.latency_ms >= 5000.0


def test_news_alone_are_live_when_tws_has_taken_the_request(feeds: Callable[..., Feed]) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        return [packed(81, asked.number, 0.01, "9c0001", 3)]

    with TwsServer([Act(answer)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("news",))
        feed.until(lambda: feed.state == "live", "live")
        quotes = feeds(server, ("AAPL",), ("news", "quote"), tick_by_tick="never")
        quotes.until(lambda: quotes.source._market._stream_of(1002), "asked")
        quotes.asked(server, MKT_DATA, connection=1)
        quotes.until(lambda: "waits for the first data" in quotes.source.report.why, "no quote yet")
        assert quotes.state == "subscribing"


@pytest.mark.parametrize("where", ["quotes", "by_tick_print"])
def test_a_fault_of_our_own_is_not_swallowed(feeds: Callable[..., Feed], where: str) -> None:
    with TwsServer([Act(trades_for(1.0))], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))

        def broken(*_: Any) -> None:
            raise AttributeError("a fault")

        setattr(feed.source._records, where, broken)
        with pytest.raises(AttributeError, match="a fault"):
            feed.until(lambda: False, "the fault")


def test_a_quote_that_waits_when_subscriptions_are_lost_does_not_pass_for_the_new_one(
    feeds: Callable[..., Feed],
) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",), tick_by_tick="never")
        first = feed.asked(server, MKT_DATA)
        server.push(prices(first, 1, 10.0, 1) + prices(first, 2, 11.0, 1))
        feed.until(lambda: feed.state == "live", "live")
        server.push(prices(first, 1, 10.5, 1) + error(-1, 1101, "Connectivity restored - data lost"))
        feed.until(lambda: (one := server.find(MKT_DATA)) is not None and one.number != first.number, "asked again")
        assert feed.state == "stale"
