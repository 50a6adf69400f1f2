"""Contracts of an IBKR feed as TWS answers for them: refused, ambiguous, asked for as symbols say."""

from __future__ import annotations

from collections.abc import Callable

from shm.layout import StatusCode
from tests.ibkr_feed import (
    AAPL,
    Feed,
    ibkr_feeds,  # noqa: F401 -- a fixture
    trades_for,
)
from tests.tws_server import (
    CONTRACT,
    Act,
    TwsServer,
    contract_row,
)


def test_a_symbol_that_is_refused_leaves_the_others_alone(feeds: Callable[..., Feed]) -> None:
    futures = [
        contract_row("ES", number, secType="FUT", expiry=expiry, exchange="CME", local=f"ES{number}")
        for number, expiry in enumerate(("20240920", "20241220"), 1)
    ]
    with TwsServer([Act(trades_for(1.0))], {**AAPL, "ES": futures}) as server:
        feed = feeds(
            server, ("NOPE", "FUTURE", "AAPL"), ("trade",),
            contracts={"FUTURE": {"symbol": "ES", "sec_type": "FUT", "exchange": "CME"}},
        )  # fmt: skip
        feed.until(lambda: len(feed.market), "data of the one that exists")
        feed.until(lambda: feed.source.report.state == "live", "live")
        why = feed.source.report.why
        assert "NOPE: no such contract, or several (200): No security definition" in why
        assert "asked for symbol NOPE, sec_type STK, exchange SMART, currency USD" in why
        assert "FUTURE: 2 contracts have" in why
        assert "set expiry in options.contracts: 20240920, 20241220" in why
        assert feed.source.report.degraded
        assert feed.source.report.health_score < 0.5
        assert feed.codes().count(StatusCode.FEED_DEGRADED) >= 2


def test_no_symbol_left_opens_the_breaker(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], {}) as server:
        feed = feeds(server, ("NOPE",), ("trade",))
        feed.until(lambda: feed.state == "failed", "the breaker")
        assert feed.source.report.breaker == "open"
        assert "nothing is to be had: NOPE" in feed.source.report.why


def test_contracts_are_asked_for_as_symbols_say(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], {}) as server:
        symbols = ("AAPL@SMART/NASDAQ:USD", "EUR.USD@IDEALPRO", "ESU4@CME", "BTC.USD@PAXOS", "SAP@IBIS:EUR", "X")
        feed = feeds(server, symbols, ("bar",), contracts={"X": {"con_id": 7, "exchange": "CME"}})
        feed.until(lambda: len(server.asked) and len(server.asked[0]) >= 6, "look-ups")
        asked = [one.fields[3:15] for one in server.asked[0] if one.kind == CONTRACT][:6]
        assert [[one[at] for at in (1, 2, 7, 8, 9, 10)] for one in asked[:5]] == [
            ["AAPL", "STK", "SMART", "NASDAQ", "USD", ""],
            ["EUR", "CASH", "IDEALPRO", "", "USD", ""],
            ["", "FUT", "CME", "", "", "ESU4"],
            ["BTC", "CRYPTO", "PAXOS", "", "USD", ""],
            ["SAP", "STK", "IBIS", "", "EUR", ""],
        ]
        assert asked[5][0] == "7"
