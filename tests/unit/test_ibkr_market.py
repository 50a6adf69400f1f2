"""What TWS says about the market as records of an IBKR feed: over a socket, from a local TWS."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, StatusCode
from shm.message import news_fields
from tests.ibkr_feed import (
    AAPL,
    NOW_S,
    Feed,
    ibkr_feeds,  # noqa: F401 -- a fixture
    prices,
    rows,
)
from tests.tws_server import (
    BARS,
    BULLETINS,
    BY_TICK,
    DEPTH,
    HISTORICAL,
    MKT_DATA,
    Act,
    Asked,
    TwsServer,
    captured,
    contract_row,
    error,
    packed,
)
from tests.unit.test_websocket_source import of


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
