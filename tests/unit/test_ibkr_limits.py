"""IBKR's limits: who is asked for tick by tick, how often, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest

from shm.layout import StatusCode
from tests.ibkr_feed import (
    AAPL,
    BOTH,
    Feed,
    ibkr_feeds,  # noqa: F401 -- a fixture
    prices,
    trades_for,
)
from tests.tws_server import (
    BARS,
    BY_TICK,
    MKT_DATA,
    Act,
    Asked,
    TwsServer,
    contract_row,
    error,
)


def test_tick_by_tick_goes_to_the_first_and_aggregates_to_the_rest(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("trade", "quote"), tick_by_tick_lines=1)
        assert feed.asked(server, BY_TICK, "AAPL").fields[-3] == "Last"
        assert feed.asked(server, MKT_DATA, "AAPL").fields[-4] == ""
        assert feed.asked(server, MKT_DATA, "MSFT").fields[-4] == "375"


def test_two_tick_by_tick_requests_for_one_instrument_keep_their_distance(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0))], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("trade", "quote"))
        feed.until(lambda: feed.state == "live", "live")
        feed.asked(server, BY_TICK, "MSFT")
        assert [one.fields[-3] for one in server.asked[0] if one.kind == BY_TICK] == ["Last", "Last"]
        waiting = list(feed.source._requests.waiting())
        assert [str(stream) for stream in waiting] == ["quote of AAPL", "quote of MSFT"]
        assert all(14e9 < stream.due_ns - time.time_ns() <= 15e9 for stream in waiting)


@pytest.mark.parametrize("code", [10189, 10190])
def test_no_tick_by_tick_line_left_is_made_good_by_an_aggregate(feeds: Callable[..., Feed], code: int) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind == BY_TICK:
            return [error(asked.number, code, "Failed to request tick-by-tick data")]
        return [prices(asked, 1, 10.0, 1) + prices(asked, 2, 11.0, 1)]

    with TwsServer([Act(answer)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",))
        feed.until(lambda: len(feed.market), "the quote")
        assert StatusCode.FEED_DEGRADED in feed.codes()
        refused = feeds(server, ("AAPL",), ("quote",), tick_by_tick="always")
        refused.until(lambda: refused.state == "failed", "no aggregate, as asked")
        assert f"({code})" in refused.source.report.why


def test_no_more_messages_a_second_than_allowed(feeds: Callable[..., Feed]) -> None:
    symbols = tuple(f"S{number}" for number in range(30))
    contracts = {name: [contract_row(name, number + 1)] for number, name in enumerate(symbols)}
    with TwsServer([Act()], contracts) as server:
        feed = feeds(server, symbols, ("bar",), requests_per_s=20)
        began = time.monotonic()
        feed.until(
            lambda: len([one for one in server.asked[-1:][0] if one.kind == BARS]) == 30 if server.asked else 0, "all"
        )
        assert time.monotonic() - began >= 2.0  # 30 look-ups and 30 requests, 20 in any second
        assert feed.source.report.state in ("subscribing", "live")
