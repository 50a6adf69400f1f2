"""Feeds of Interactive Brokers: ib_async over a socket to a local server that speaks TWS's protocol, and misbehaves."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, StatusCode, empty
from shm.message import news_fields
from tests.tws_server import (
    BARS,
    BULLETINS,
    BY_TICK,
    CONTRACT,
    CURRENT_TIME,
    DEPTH,
    HISTORICAL,
    MARKET_DATA_TYPE,
    MKT_DATA,
    Act,
    Asked,
    TwsServer,
    captured,
    contract_row,
    error,
    packed,
)
from tests.unit.test_websocket_source import Feed as LiveFeed
from tests.unit.test_websocket_source import of
from workers.errors import SettingsError
from workers.source import SourceContext, open_source
from workers.sources.ibkr import IbkrSource
from workers.spec import FeedSpec

ROWS = "vendor/ibkr/wire-fields.txt"
AAPL = {"AAPL": [contract_row("AAPL", 265598)]}
BOTH = {**AAPL, "MSFT": [contract_row("MSFT", 272093)]}
NOW_S = 1_700_000_000


class Feed(LiveFeed):
    """A source and all that it has delivered."""

    def __init__(self, symbols: tuple[str, ...], types: tuple[str, ...], **options: Any) -> None:
        self.names: dict[str, int] = {}
        options.setdefault("session", "always")
        spec = FeedSpec(feed_id=3, name="ib", source="ibkr", symbols=symbols, data_types=types, options=options)
        source = open_source(SourceContext(spec, lambda name: self.names.setdefault(name, len(self.names))))
        assert isinstance(source, IbkrSource)
        self.source = source  # type: ignore[assignment]
        self._batches = [empty(0)]
        self.out = empty(512)

    def kind(self, kind: RecordType) -> np.ndarray:
        records = self.records
        return of(records, records["record_type"] == kind)

    @property
    def state(self) -> str:
        return self.source.report.state

    def asked(self, server: TwsServer, kind: int, name: str = "", connection: int = -1) -> Asked:
        found = self.until(lambda: server.find(kind, name, connection), f"a request of kind {kind} {name}")
        assert isinstance(found, Asked)
        return found


@pytest.fixture
def feeds() -> Iterator[Callable[..., Feed]]:
    made: list[Feed] = []

    def make(server: TwsServer | int, *args: Any, **options: Any) -> Feed:
        port = server if isinstance(server, int) else server.port
        made.append(Feed(*args, port=port, **options))
        return made[-1]

    yield make
    for feed in made:
        feed.source.close()


def rows(samples: Path, kind: str) -> list[str]:
    """Captured rows of a kind of message."""
    return [row for row in (samples / ROWS).read_text().splitlines() if row.startswith(f"{kind}|")]


def trade(asked: Asked, price: float, time_s: int = NOW_S, size: float = 100) -> bytes:
    return packed(99, asked.number, 1, time_s, price, size, 0, "NASDAQ", "T I")


def quote(asked: Asked, bid: float, ask: float, time_s: int = NOW_S) -> bytes:
    return packed(99, asked.number, 3, time_s, bid, ask, 3, 4, 0)


def prices(asked: Asked, tick_type: int, price: float, size: float) -> bytes:
    return packed(1, 6, asked.number, tick_type, price, size, 0)


def trades_for(*values: float) -> Callable[[Asked], Iterable[bytes]]:
    """Trades as the answer to each tick-by-tick request for them."""

    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind == BY_TICK and asked.fields[-3] == "Last":
            return [trade(asked, value) for value in values]
        return []

    return answer


# -- what the market says


def test_tick_by_tick_rows_become_trades_and_quotes(samples: Path, feeds: Callable[..., Feed]) -> None:
    last, all_last, bid_ask, _ = rows(samples, "99")
    future = contract_row("ES", 1, secType="FUT", expiry="20230317", exchange="CME", local="ESH3", multiplier="50")
    with TwsServer([Act()], {"ESH3": [future]}) as server:
        feed = feeds(server, ("ESH3@CME",), ("trade",))
        asked = feed.asked(server, BY_TICK)
        assert asked.fields[2:14] == [
            *("1", "ES", "FUT", "20230317", "0.0", "", "50", "CME", "NASDAQ", "USD", "ESH3", "ES"),
        ]
        assert asked.fields[-3:] == ["Last", "0", "0"]
        before_ns = time.time_ns()
        server.push(captured(last, asked.number))
        feed.until(lambda: len(feed.market), "the trade")
        row = feed.market[0]
        assert (row["price"], row["size"], row["venue"], row["condition"]) == (3895.25, 7.0, b"NASDAQ", b"Regular")
        assert row["ts_event"] == 1678740829 * 10**9
        assert before_ns <= row["ts_receive"] <= time.time_ns()
        assert (row["record_type"], row["source"], row["feed_id"]) == (RecordType.TRADE, 1, 3)
        assert feed.said == [(StatusCode.FEED_UP, "ibkr delivers")]
        assert feed.state == "live"

        ticks = feeds(server, ("ESH3@CME",), ("tick",))
        asked = ticks.asked(server, BY_TICK, connection=1)
        assert asked.fields[-3] == "AllLast"
        server.push(captured(all_last, asked.number))
        ticks.until(lambda: len(ticks.market), "the tick")
        assert ticks.market["record_type"].tolist() == [RecordType.TICK]

        quotes = feeds(server, ("ESH3@CME",), ("quote",))
        asked = quotes.asked(server, BY_TICK, connection=2)
        assert asked.fields[-3] == "BidAsk"
        server.push(captured(bid_ask, asked.number))
        quotes.until(lambda: len(quotes.market), "the quote")
        row = quotes.market[0]
        assert (row["bid"], row["ask"], row["bid_size"], row["ask_size"]) == (3895.5, 3896.0, 9.0, 11.0)
        assert (row["mid"], row["spread"], row["ts_event"]) == (3895.75, 0.5, 1678745793 * 10**9)


def test_captured_contract_details_and_bars(samples: Path, feeds: Callable[..., Feed]) -> None:
    details = [row.split("|")[2:-1] for row in rows(samples, "10")]
    (bar,) = rows(samples, "50")
    with TwsServer([Act()], {"TSLA": details}) as server:
        feed = feeds(server, ("TSLA",), ("bar",), session="contract")
        asked = feed.asked(server, BARS)
        assert asked.fields[3:15] == [
            "76792991",
            "TSLA",
            "STK",
            "",
            "0.0",
            "",
            "",
            "SMART",
            "NASDAQ",
            "USD",
            "TSLA",
            "NMS",
        ]
        assert asked.fields[15:] == ["5", "TRADES", "0", ""]
        server.push(captured(bar, asked.number), captured(bar, asked.number))
        feed.until(lambda: feed.source._records.duplicates, "the same bar again")
        row = feed.market[0]
        assert [row[name] for name in ("open", "high", "low", "close")] == [4028.75, 4029.0, 4028.25, 4028.5]
        assert (row["volume"], row["vwap"], row["trade_count"], row["interval_s"]) == (2.0, 4026.75, 1, 5)
        assert row["ts_event"] == 1678323335 * 10**9
        assert len(feed.market) == 1


def test_bars_of_a_minute_are_those_that_are_over(feeds: Callable[..., Feed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.sources.ibkr_streams.HISTORICAL_SAME_NS", 1)
    start = NOW_S // 60 * 60

    def answer(asked: Asked) -> Iterable[bytes]:
        bars: list[object] = []
        for number in range(3):
            bars += [start + 60 * number, 10 + number, 12, 9, 11, 100, 10.5, 7]
        return [packed(17, asked.number, "a", "b", 3, *bars)]

    def update(asked: Asked, minute: int, count: int, close: float) -> bytes:
        return packed(90, asked.number, count, start + 60 * minute, 20, close, 22, 19, 20.5, 50)

    with TwsServer([Act(answer)], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("bar",), bar_s=60, regular_hours=True)
        asked = feed.asked(server, HISTORICAL)
        assert asked.fields[14:] == ["0", "", "1 min", "300 S", "1", "TRADES", "2", "1", ""]
        feed.until(lambda: len(feed.market) == 2, "the past")
        assert feed.state == "subscribing"  # the past is no sign of life
        assert (feed.market["flags"] & Flag.BACKFILLED).all()
        server.push(update(asked, 2, 1, 20), update(asked, 2, 2, 21), update(asked, 3, 1, 23), update(asked, 2, 2, 21))
        feed.until(lambda: feed.source._records.duplicates, "an old one")
        assert feed.state == "live"
        assert feed.market["ts_event"].tolist() == [(start + 60 * n) * 10**9 for n in range(3)]
        row = feed.market[2]
        assert (row["open"], row["high"], row["low"], row["close"], row["volume"], row["trade_count"]) == (
            20.0, 22.0, 19.0, 21.0, 50.0, 2,
        )  # fmt: skip
        assert not row["flags"] & Flag.BACKFILLED
        # After a loss the bars of the pause are asked for, and those that were had do not come again.
        server.abort()
        again = feed.asked(server, HISTORICAL, connection=1)
        assert int(again.fields[17].split()[0]) > 300
        feed.until(lambda: StatusCode.GAP in feed.codes(), "the gap")
        assert len(feed.kind(RecordType.BAR)) == 3


def test_aggregate_quotes_are_never_half_of_one_moment(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote", "trade"), tick_by_tick="never")
        asked = feed.asked(server, MKT_DATA)
        assert asked.fields[-4:] == ["375", "0", "0", ""]
        server.push(prices(asked, 1, 100.0, 5) + prices(asked, 2, 100.1, 6) + packed(2, 6, asked.number, 0, 5))
        feed.until(lambda: len(feed.market) == 1, "the first quote")
        # Both sides move up: with the bid alone it would be crossed. They come in writes of their own.
        server.push(prices(asked, 1, 100.2, 7))
        server.push(packed(2, 6, asked.number, 0, 7), prices(asked, 2, 100.3, 8), packed(2, 6, asked.number, 3, 8))
        feed.until(lambda: 100.3 in feed.market["ask"], "the second one")
        # One side alone, and a size alone, are quotes too.
        server.push(packed(2, 6, asked.number, 3, 9))
        feed.until(lambda: 9.0 in feed.market["ask_size"], "the size")
        server.push(prices(asked, 2, -1, 0))
        feed.until(lambda: np.isnan(feed.market["ask"]).any(), "no more ask")
        quotes = [tuple(row) for row in feed.market[["bid", "bid_size", "ask", "ask_size"]].tolist()]
        assert quotes[:3] == [(100.0, 5.0, 100.1, 6.0), (100.2, 7.0, 100.3, 8.0), (100.2, 7.0, 100.3, 9.0)]
        assert len(quotes) == 4
        # Prints of the aggregate: price, size, ms, volume, vwap; an empty price says only that the volume has changed.
        text = f"100.25;3;{NOW_S * 1000 + 123};5000;100.11;true"
        server.push(packed(46, 6, asked.number, 77, text), packed(46, 6, asked.number, 77, ";0;0;5001;100.11;true"))
        feed.until(lambda: len(feed.kind(RecordType.TRADE)), "the print")
        row = feed.kind(RecordType.TRADE)[0]
        assert (row["price"], row["size"], row["volume"], row["vwap"]) == (100.25, 3.0, 5000.0, 100.11)
        assert row["ts_event"] == NOW_S * 10**9 + 123_000_000
        assert feed.source.errors == 0


def test_depth_rows_are_levels_by_position(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("level2",), depth_rows=5, smart_depth=True)
        asked = feed.asked(server, DEPTH)
        assert asked.fields[-3:] == ["5", "1", ""]

        def row(position: int, operation: int, side: int, price: float, size: float) -> bytes:
            return packed(13, 1, asked.number, position, "ARCA", operation, side, price, size, 1)

        server.push(row(0, 0, 1, 100.0, 5), row(1, 0, 1, 99.9, 6), row(0, 0, 0, 100.1, 7), row(0, 0, 1, 100.05, 1))
        server.push(row(1, 1, 1, 100.0, 2), row(0, 2, 1, 0, 0), row(4, 2, 0, 0, 0), row(9, 1, 0, 5, 5))
        server.push(packed(12, 1, asked.number, 0, 1, 0, 100.2, 9))  # of a book without market makers
        feed.until(lambda: len(feed.market) == 7, "every row")
        found = feed.market
        assert found["action"].tolist() == [Action.ADD] * 4 + [Action.MODIFY, Action.DELETE, Action.MODIFY]
        assert found["side"].tolist() == [Side.BUY, Side.BUY, Side.SELL, Side.BUY, Side.BUY, Side.BUY, Side.SELL]
        assert found["level"].tolist() == [0, 1, 0, 0, 1, 0, 0]
        assert found["price"].tolist() == [100.0, 99.9, 100.1, 100.05, 100.0, 100.05, 100.2]
        assert found["size"].tolist() == [5.0, 6.0, 7.0, 1.0, 2.0, 0.0, 9.0]
        assert found["best_bid"].tolist() == [100.0, 100.0, 100.0, 100.05, 100.05, 100.0, 100.0]
        assert found["best_ask"][2:].tolist() == [100.1, 100.1, 100.1, 100.1, 100.2]
        assert set(found["venue"].tolist()) == {b"ARCA", b""}
        assert feed.source.errors == 2  # the rows that can't be
        # TWS begins the book anew.
        server.push(error(asked.number, 317, "Market depth data has been RESET"), row(0, 0, 1, 98.0, 1))
        feed.until(lambda: len(feed.market) == 9, "the new book")
        assert feed.market["action"][-2:].tolist() == [Action.CLEAR, Action.ADD]
        assert feed.market["best_bid"][-1] == 98.0


def test_news_of_an_instrument_and_bulletins(samples: Path, feeds: Callable[..., Feed]) -> None:
    (row,) = rows(samples, "86")
    headline = row.split("|")[-2]
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("news",), news_providers=["DJ-N", "BRFG"], bulletins=True)
        asked = feed.asked(server, MKT_DATA)
        assert asked.fields[-4] == "mdoff,292:DJ-N+BRFG"
        assert feed.asked(server, BULLETINS).fields == ["12", "1", "0"]
        server.push(packed(84, asked.number, NOW_S * 1000, "DJ-N", "DJ-N$19985fef", headline, ""))
        server.push(packed(14, 1, 7, 1, "The exchange is closed", "NYSE"))
        feed.until(
            lambda: len(feed.names) == 2 and feed.names["IBKR.BULLETINS"] in feed.market["instrument_id"], "both"
        )
        news = feed.market
        mine = of(news, news["instrument_id"] == feed.names["AAPL"])
        fields = news_fields([bytes(one.tobytes()) for one in mine])  # type: ignore[misc]
        assert fields["headline"].startswith("These Stocks Are Moving the Most Today: Honda, Qualcomm")
        assert fields["headline"].endswith("Barrons.com")
        assert mine["ts_event"].tolist() == [NOW_S * 10**9] * len(mine)
        assert [bool(flags & Flag.CONTINUES) for flags in mine["flags"]] == [True] * (len(mine) - 1) + [False]
        assert news["headline"][-1] == b"The exchange is closed"


# -- contracts


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


# -- limits


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


# -- what goes wrong


def lost_and_found(feeds: Callable[..., Feed], server: TwsServer, **options: Any) -> Feed:
    feed = feeds(server, ("AAPL",), ("trade",), **options)
    feed.until(lambda: feed.state == "live", "live")
    return feed


def test_a_lost_connection_is_made_again_and_subscribed_to_and_told(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0, 2.0)), Act(trades_for(3.0))], AAPL) as server:
        feed = lost_and_found(feeds, server)
        feed.source._requests._pace._by_tick.clear()  # 15 s are over
        server.abort()
        feed.until(lambda: len(feed.market) == 3, "data of the second connection")
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.FEED_DOWN, StatusCode.GAP, StatusCode.FEED_UP]
        assert "the connection broke off" in feed.said[1][1]
        assert [bool(flags & Flag.GAP_BEFORE) for flags in feed.market["flags"]] == [False, False, True]
        assert (feed.source.report.reconnects, feed.source.gaps) == (1, 1)
        assert server.client_ids == ["103", "103"]
        assert server.find(CONTRACT, connection=1) is None  # it is known


def test_resubscribing_is_not_enough_without_data(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0)), Act()], AAPL) as server:
        feed = lost_and_found(feeds, server)
        feed.source._requests._pace._by_tick.clear()
        server.abort()
        asked = feed.asked(server, BY_TICK, connection=1)
        assert feed.state == "subscribing"
        server.push(packed(99, asked.number - 1, 1, NOW_S, 9.0, 1, 0, "X", ""))  # of an earlier request
        server.push(trade(asked, 2.0))
        feed.until(lambda: feed.state == "live", "live by data")
        assert feed.market["price"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (Act(refusal=error(-1, 326, "Unable to connect as the client id is already in use.")), "client id 103"),
        (Act(refusal=b""), "closed the connection before it was ready"),
        (Act(greeting=b"HTTP/1.1 400 Bad Request\r\n\r\n"), "that is not TWS's protocol"),
        (Act(greeting=packed("hello", "there")), "that is not TWS's protocol"),
        (Act(version=100), "that is not TWS's protocol"),
        (Act(hangs=True), "no connection within 0.3 s"),
        (Act(logs_in=False), "login not answered within 0.3 s"),
    ],
)
def test_a_login_that_fails_says_why_and_is_tried_again(feeds: Callable[..., Feed], act: Act, words: str) -> None:
    with TwsServer([act, act, Act(trades_for(1.0))], AAPL) as server:
        patience = {"connect_s": 0.3, "login_s": 0.3} if "within 0.3 s" in words else {}
        feed = feeds(server, ("AAPL",), ("trade",), **patience)
        whys = set()
        feed.until(lambda: whys.add(feed.source.report.why) or feed.state == "live", "live at the third try")
        assert any(words in why for why in whys), whys
        assert len(server.asked) >= 3


def test_nobody_listens(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act()], {}) as server:
        pass
    feed = feeds(server.port, ("AAPL",), ("trade",))
    feed.until(lambda: "nobody listens at 127.0.0.1:" in feed.source.report.why, "why")


def test_garbage_half_messages_and_doubles(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(), Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",), max_message_bytes=4096)
        asked = feed.asked(server, BY_TICK)
        bad = [
            packed(),
            packed("x"),
            packed(12345, 1),
            packed(99, asked.number, 1, "noon", 1, 1, 0, "", ""),
            packed(99, asked.number, 1),
            packed(99, asked.number, 1, 10**30, 1, 1, 0, "", ""),
            packed(99, asked.number, 1, -5, 1, 1, 0, "", ""),
            b"\0\0\0\5abcde",
            packed(10, asked.number, "AAPL"),
            packed(4, 2, "x", "y", "z"),
            packed(46, 6, asked.number, 48, "1;2"),
        ]
        good = [trade(asked, float(number)) for number in range(200)]
        whole = b"".join(good[:100]) + b"".join(bad) + b"".join(good[100:])
        for at in range(0, len(whole), 37):
            server.push(whole[at : at + 37])
        feed.until(lambda: len(feed.market) == 200, "every trade")
        assert feed.market["price"].tolist() == [float(number) for number in range(200)]
        assert feed.source.errors == len(bad) - 1  # RTVolume is not asked for
        assert feed.state == "live"
        # A length that no message has: the stream can't be read from there on.
        server.push(b"GET / HTTP/1.1\r\n")
        feed.until(lambda: len(server.asked) == 2, "another connection")
        assert "that is not TWS's protocol" in dict(feed.said)[StatusCode.FEED_DOWN] or "a message of" in str(feed.said)


def test_captured_messages_that_nobody_asked_for_are_passed_over(samples: Path, feeds: Callable[..., Feed]) -> None:
    every = (samples / ROWS).read_text().splitlines()
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        asked = feed.asked(server, BY_TICK)
        server.push(b"".join(packed(*row.split("|")[:-1]) for row in every), trade(asked, 5.0))
        feed.until(lambda: len(feed.market), "the one that was asked for")
        assert feed.market["price"].tolist() == [5.0]
        assert feed.source.errors == 0
        # Of those that a feed may ask for: two daily bars in one row, a bar of 5 s, prints and quotes tick by tick.
        kinds = [row.split("|")[0] for row in every]
        assert feed.source._market.strays == 2 * kinds.count("17") + kinds.count("50") + kinds.count("99") - 1


def test_no_message_whatever_it_says_harms_the_feed(feeds: Callable[..., Feed]) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    types = ("trade", "quote", "tick", "bar", "level2", "news")
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), types, tick_by_tick="never", bulletins=True)
        for kind in (MKT_DATA, BARS, DEPTH):
            feed.asked(server, kind)
        numbers = [one.number for one in server.asked[0] if one.number > 0]
        values = [
            "",
            "0",
            "-1",
            "1",
            "3",
            "1e400",
            "nan",
            "inf",
            "-5",
            "x",
            "9" * 40,
            "\N{SNOWMAN}",
            "1;2;3;4;5;true",
            "1.5",
        ]
        kinds = [*range(1, 22), *range(45, 60), 81, 84, 90, 99, 107, 108, -1]
        messages = []
        for _ in range(5000):
            fields = [dice.choice([*values, *map(str, numbers)]) for _ in range(dice.randrange(16))]
            kind = dice.choice(kinds)
            # Numbered messages change the state, as they should; they are tested by themselves.
            messages.append(packed(99 if kind == 4 else kind, *fields))
        server.push(b"".join(messages))
        asked = feed.asked(server, MKT_DATA)
        server.push(packed(46, 6, asked.number, 77, f"123.25;1;{NOW_S * 1000};1;1;true"))
        feed.until(lambda: 123.25 in feed.kind(RecordType.TRADE)["price"], "the record after them")
        assert len(server.asked) == 1
        assert feed.source.errors > 100


def test_a_tws_that_says_nothing_any_more_is_left(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0), clocks=False), Act(trades_for(2.0))], AAPL) as server:
        feed = lost_and_found(feeds, server, message_s=1.0, ping_s=0.2)
        feed.asked(server, CURRENT_TIME)
        feed.until(lambda: len(server.asked) == 2, "another connection")
        assert (StatusCode.FEED_DOWN, "no message of any kind for 1 s") in feed.said


def test_the_time_keeps_a_quiet_connection(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0, 1.0, 1.0))], AAPL) as server:
        feed = lost_and_found(feeds, server, message_s=2.0, ping_s=0.3, stale_floor_s=1.5, stale_factor=1, stale_s=600)
        feed.until(
            lambda: len([one for one in server.asked[0] if one.kind == CURRENT_TIME]) >= 9, "pings for longer than that"
        )
        assert len(server.asked) == 1


def test_a_symbol_that_falls_silent_is_stale_and_live_again_by_data(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0, 1.0))], AAPL) as server:
        feed = lost_and_found(feeds, server, stale_floor_s=1.0, stale_factor=1, stale_s=600)
        asked = feed.asked(server, BY_TICK)
        for number in range(3):  # so that it has a cadence
            server.push(trade(asked, 2.0 + number))
            feed.until(lambda number=number: 2.0 + number in feed.market["price"], "one more")  # type: ignore[misc]
        feed.until(lambda: feed.state == "stale", "stale")
        assert feed.source.report.why.startswith("AAPL silent for ")
        assert (feed.source.report.silent, feed.source.report.health_score) == (1, 0.0)
        server.push(trade(asked, 9.0))
        feed.until(lambda: feed.state == "live", "live again")
        assert len(server.asked) == 1


def test_silence_that_lasts_makes_the_connection_again(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0)), Act()], AAPL) as server:
        feed = lost_and_found(feeds, server, stale_floor_s=1.0, stale_factor=1, stale_s=0.1)
        asked = feed.asked(server, BY_TICK)
        for number in range(3):
            server.push(trade(asked, 2.0 + number))
            feed.until(lambda number=number: 2.0 + number in feed.market["price"], "one more")  # type: ignore[misc]
        feed.until(lambda: len(server.asked) == 2, "another connection")


def test_one_symbol_without_contract_details_does_not_hold_the_others_up(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(1.0), mute=("MSFT",))], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("trade",), acknowledge_s=0.5)
        feed.until(lambda: feed.state == "live", "live")
        assert "refused: MSFT: no contract details within" in feed.source.report.why
        assert len(server.asked) == 1


def test_contract_details_that_never_come(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(looks_up=False), Act(trades_for(1.0))], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",), acknowledge_s=0.3)
        feed.until(lambda: feed.state == "live", "the second connection")
        assert len(server.asked) >= 2


# -- the codes


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


# -- bounds and settings


def test_what_the_caller_has_no_room_for_waits(feeds: Callable[..., Feed]) -> None:
    with TwsServer([Act(trades_for(*range(2000)))], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("trade",))
        feed.out = empty(3)
        feed.until(lambda: len(feed.market) == 2000, "every record, three at a time")
        assert feed.market["price"].tolist() == [float(number) for number in range(2000)]


def test_silence_while_the_market_is_closed_means_nothing(feeds: Callable[..., Feed]) -> None:
    closed = ";".join(
        f"{day}:CLOSED" for day in (time.strftime("%Y%m%d", time.gmtime(time.time() + n * 86400)) for n in (-1, 0, 1))
    )
    rows_of = {"AAPL": [contract_row("AAPL", 265598, zone="UTC", hours=closed)]}
    with TwsServer([Act()], rows_of) as server:
        feed = feeds(server, ("AAPL",), ("trade",), session="contract", first_data_s=1.0)
        feed.asked(server, BY_TICK)
        end = time.monotonic() + 2.0
        feed.until(lambda: time.monotonic() > end, "a while")
        assert feed.state == "subscribing"
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("symbols", "types", "options", "words"),
    [
        ((), ("trade",), {}, "symbols: name those that are wanted"),
        (("A",), ("trades",), {}, "data type 'trades' is not to be had from ibkr; did you mean 'trade'?"),
        (("A",), (), {"prot": 1}, "no option 'prot' for source 'ibkr'; did you mean 'port'?"),
        (("A",), (), {"port": 70000}, "port"),
        (("A",), (), {"stale_floor_s": 0.5, "tick_by_tick": "never"}, "options.stale_floor_s is 0.5"),
        (("A", "B"), (), {"tick_by_tick": "always", "tick_by_tick_lines": 3}, "takes 4 tick-by-tick streams"),
        (("A",), ("news",), {"news_providers": []}, "options.news_providers"),
        (("EURUSD@IDEALPRO",), (), {}, "symbol 'EURUSD@IDEALPRO' is no pair"),
        (("ES@CME",), (), {}, "symbol 'ES@CME' is no local symbol of a future"),
        (("A B",), (), {}, "symbol 'A B' is not NAME"),
        (("A",), (), {"contracts": {"B": {"symbol": "B"}}}, "options.contracts has 'B'"),
        (("A",), (), {"contracts": {"A": {}}}, "options.contracts['A'] needs one of symbol"),
        (("A",), (), {"contracts": {"A": {"symbol": "A", "sec_typ": "FUT"}}}, "sec_typ"),
        (("A",), (), {"contracts": {"A": {"symbol": "A", "sec_type": "FUTURE"}}}, "sec_type"),
    ],
)
def test_settings_that_can_not_work_are_refused_by_name(
    symbols: tuple[str, ...], types: tuple[str, ...], options: dict[str, Any], words: str
) -> None:
    with pytest.raises(SettingsError) as failure:
        Feed(symbols, types, **options)
    assert words in str(failure.value)


def test_without_ib_async_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.sources.ibkr.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'tickengine\[ibkr\]'"):
        Feed(("A",), ())
