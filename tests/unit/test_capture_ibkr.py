"""What `capture` writes of an IBKR feed, replayed: the same records bit for bit, whatever TWS and the connection do."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from shm.layout import Flag, RecordType, StatusCode
from tests.ibkr_capture import (
    Make,
    assert_replays_alike,
    both,
    captured_feeds,  # noqa: F401 -- a fixture
    gap_before,
    ibkr_recording,  # noqa: F401 -- a fixture
)
from tests.ibkr_feed import AAPL, BOTH, NOW_S, Feed, prices, quote, rows, trade
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
from workers.capture_log import Recording


@pytest.mark.parametrize("slots", [1, 500])
def test_prints_and_quotes_tick_by_tick(samples: Path, feeds: Make, recording: Recording, slots: int) -> None:
    last, _, bid_ask, _ = rows(samples, "99")
    answers = {"Last": last, "BidAsk": bid_ask}

    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind == BY_TICK:
            return [captured(answers[asked.fields[-3]], asked.number), trade(asked, 5.0), quote(asked, 1.0, 2.0)]
        return []

    with TwsServer([Act(answer)], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("trade", "quote"), rename={"MSFT": "MICROSOFT"})
        feed.until(lambda: len(feed.market) == 6, "what was asked for at once")
        feed.source._requests._pace._by_tick.clear()  # 15 s are over
        for stream in feed.source._requests.waiting():
            stream.due_ns = feed.source._requests.due_ns = 0
        feed.until(lambda: len(feed.market) == 12, "the quotes' turn")
        assert_replays_alike(feed, recording, slots=slots)


def test_aggregates_as_their_quotes_were_put_together(feeds: Make, recording: Recording) -> None:
    """One side alone, both, in one packet and in several, held until the other came or the time was over."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    with TwsServer([Act()], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote", "trade"), tick_by_tick="never")
        asked = [feed.asked(server, MKT_DATA, name) for name in ("AAPL", "MSFT")]
        for turn in range(150):
            packet = b""
            for _ in range(dice.randrange(1, 6)):
                one = dice.choice(asked)
                price, size = dice.randrange(90, 110) / 10, dice.randrange(3)
                packet += dice.choice(
                    (
                        prices(one, dice.choice((1, 2)), price, size),
                        packed(2, 6, one.number, dice.choice((0, 3)), size),
                        prices(one, 2, -1, 0),
                        packed(46, 6, one.number, 77, f"{price};{size};{NOW_S * 1000 + turn};{turn};{price};true"),
                    )
                )
            at = dice.randrange(len(packet))
            server.push(*((packet[:at], packet[at:]) if dice.random() < 0.3 else (packet,)))
            if dice.random() < 0.7:
                before = feed.source.bytes_received
                feed.until(lambda before=before: feed.source.bytes_received > before, "the packet")  # type: ignore[misc]
            if dice.random() < 0.3:
                feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        server.push(prices(asked[0], 1, 55.0, 1), prices(asked[0], 2, 56.0, 1))
        feed.until(lambda: 55.0 in feed.market["bid"] and 56.0 in feed.market["ask"], "the last quote")
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        replay = assert_replays_alike(feed, recording)
    assert (replay["record_type"] == RecordType.QUOTE).sum() > 100


def test_bars_of_5_seconds_and_doubles(samples: Path, feeds: Make, recording: Recording) -> None:
    (bar,) = rows(samples, "50")
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("bar",))
        asked = feed.asked(server, BARS)
        server.push(captured(bar, asked.number), captured(bar, asked.number))
        feed.until(lambda: feed.source._records.duplicates, "the same bar again")
        assert len(assert_replays_alike(feed, recording)) == 1


def test_bars_of_a_minute_of_the_past_and_over_a_loss(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        feed = feeds(server, ("AAPL",), ("bar",), bar_s=60)
        asked = feed.asked(server, HISTORICAL)
        server.push(update(asked, 2, 1, 20), update(asked, 2, 2, 21), update(asked, 3, 1, 23))
        feed.until(lambda: len(feed.market) == 3, "the bar that is over")
        server.abort()
        again = feed.asked(server, HISTORICAL, connection=1)
        server.push(update(again, 4, 3, 24), update(again, 5, 1, 20))
        feed.until(lambda: len(feed.market) == 4, "one more")
        replay = assert_replays_alike(feed, recording)
    assert StatusCode.GAP in replay["code"][replay["record_type"] == RecordType.STATUS]
    bars = of(replay, replay["record_type"] == RecordType.BAR)
    assert [bool(flags & Flag.BACKFILLED) for flags in bars["flags"]] == [True, True, False, False]


def test_market_depth_that_is_reset_halted_and_asked_for_again(
    feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.sources.ibkr.AGAIN_WAIT_S", 0.1)

    def row(asked: Asked, *values: float) -> bytes:
        position, *rest = values
        return packed(13, 1, asked.number, position, "ARCA", *rest, 1)

    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("level2",), depth_rows=5)
        asked = feed.asked(server, DEPTH)
        server.push(row(asked, 0, 0, 1, 100.0, 5), row(asked, 1, 0, 1, 99.9, 6), row(asked, 4, 2, 0, 0, 0))
        server.push(error(asked.number, 317, "Market depth data has been RESET"), row(asked, 0, 0, 1, 98.0, 1))
        server.push(packed(12, 1, asked.number, 0, 0, 0, 100.2, 9))
        feed.until(lambda: len(feed.market) == 5, "both books")
        server.push(error(asked.number, 316, "Market depth data has been HALTED"))
        feed.until(lambda: (one := server.find(DEPTH)) is not None and one.number != asked.number, "asked again")
        again = feed.asked(server, DEPTH)
        server.push(row(asked, 0, 0, 1, 1.0, 1), row(again, 0, 0, 1, 97.0, 1))
        feed.until(lambda: 97.0 in feed.market["price"], "the new book")
        replay = assert_replays_alike(feed, recording, malformed=1)
    assert gap_before(replay) == [False] * 5 + [False, True]  # CLEAR, and the first row after it


def test_headlines_and_bulletins(samples: Path, feeds: Make, recording: Recording) -> None:
    (row,) = rows(samples, "86")
    headline = row.split("|")[-2]
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("news",), bulletins=True)
        asked = feed.asked(server, MKT_DATA)
        feed.asked(server, BULLETINS)
        server.push(packed(81, asked.number, 0.01, "9c0001", 3))
        server.push(packed(84, asked.number, NOW_S * 1000, "DJ-N", "DJ-N$19985fef", headline, ""))
        server.push(packed(14, 1, 7, 1, "The exchange is closed \N{SNOWMAN}", "NYSE"))
        feed.until(lambda: b"The exchange" in b"".join(feed.market["headline"].tolist()), "both")
        assert_replays_alike(feed, recording)


def test_an_index_by_its_last_price(feeds: Make, recording: Recording) -> None:
    contracts = {"SPX": [contract_row("SPX", 416904, secType="IND", exchange="CBOE")]}
    with TwsServer([Act()], contracts) as server:
        table = {"symbol": "SPX", "sec_type": "IND", "exchange": "CBOE", "currency": "USD"}
        feed = feeds(server, ("SPX",), ("tick",), contracts={"SPX": table})
        server.push(prices(feed.asked(server, MKT_DATA), 4, 5000.5, 0))
        feed.until(lambda: len(feed.market), "the print")
        assert_replays_alike(feed, recording)


# -- what goes wrong


def test_lost_connections_have_other_request_numbers(feeds: Make, recording: Recording) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        both = prices(asked, 1, 10.0, asked.number) + prices(asked, 2, 11.0, 1)
        return [both, prices(asked, 1, 10.5, 3)]  # of which the last is held when the connection breaks off

    with TwsServer([Act(answer)], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote",), tick_by_tick="never")
        for connection in range(3):
            feed.asked(server, MKT_DATA, "MSFT", connection)
            feed.until(lambda: feed.state == "live", "live")
            first = next(one.number for one in server.asked[connection] if one.kind == MKT_DATA)
            feed.until(lambda first=first: first + 1 in feed.market["bid_size"], "data")  # type: ignore[misc]
            server.push(packed(1, 6, 1000, 1, 9.0, 1, 0))  # for nobody
            server.push(prices(feed.asked(server, MKT_DATA, "AAPL", connection), 2, 77.0 + connection, 1))
            server.abort()
            feed.until(lambda: feed.state != "live", "the loss")
        feed.until(lambda: feed.state == "live", "the last connection")
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        replay = assert_replays_alike(feed, recording)
    gaps = of(replay, replay["record_type"] == RecordType.STATUS)
    assert gaps["code"].tolist() == [StatusCode.GAP] * 3
    assert all(text.startswith(b"connected again after ") for text in gaps["text"].tolist())
    assert sum(gap_before(replay)) >= 4


def test_a_side_that_was_due_before_the_other_came_is_a_quote_of_its_own(feeds: Make, recording: Recording) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",), tick_by_tick="never")
        asked = feed.asked(server, MKT_DATA)
        server.push(both(asked, 10.0))
        feed.until(lambda: len(feed.market) == 1, "the first quote")
        server.push(prices(asked, 1, 10.5, 1))
        feed.until(lambda: feed.source._quote_due_ns is not None, "a side that is held")
        due_ns = feed.source._quote_due_ns
        assert due_ns is not None
        while time.time_ns() < due_ns:
            pass  # a worker that is busy elsewhere
        server.push(prices(asked, 2, 11.5, 1))
        received = feed.source.bytes_received
        while feed.source.bytes_received == received:
            feed._batches.append(feed.out[: feed.source.poll(feed.out, due_ns - 1)].copy())  # and has an old time
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        replay = assert_replays_alike(feed, recording)
    assert replay[["bid", "ask"]].tolist() == [(10.0, 11.0), (10.5, 11.0), (10.5, 11.5)]


def test_a_source_that_is_made_anew_knows_nothing_of_the_one_before_it(samples: Path, recording: Recording) -> None:
    """As when a feed is paused and resumed: numbers of requests, books and bars begin anew, in the same capture."""
    (bar,) = rows(samples, "50")
    with TwsServer([Act()], AAPL) as server:
        for connection in range(2):
            feed = Feed(("AAPL",), ("bar", "level2"), log_of=recording.log_of, port=server.port)
            book = feed.asked(server, DEPTH, "AAPL", connection)
            server.push(captured(bar, feed.asked(server, BARS, "AAPL", connection).number))
            server.push(packed(12, 1, book.number, 0, 0, 1, 50.0 + connection, 1))
            feed.until(lambda feed=feed: len(feed.market) == 2, "both")  # type: ignore[misc]
            if connection == 0:
                before = feed.records.copy()
                feed.source.close()
        feed._batches.insert(0, before)
        assert len(assert_replays_alike(feed, recording)) == 4


def test_what_a_packet_told_before_the_end_of_its_connection(feeds: Make, recording: Recording) -> None:
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",), tick_by_tick="never")
        for connection, end in enumerate((error(-1, 1300, "Please reconnect on another port"), b"GET / HTTP/1.1\r\n")):
            asked = feed.asked(server, MKT_DATA, "AAPL", connection)
            server.push(both(asked, 10.0 + connection) + end + both(asked, 99.0))
            feed.until(lambda: feed.state != "subscribing", "the end")
        server.push(both(feed.asked(server, MKT_DATA, "AAPL", 2), 12.0))
        feed.until(lambda: 12.0 in feed.market["bid"], "the third connection")
        replay = assert_replays_alike(feed, recording)
    quotes = of(replay, replay["record_type"] == RecordType.QUOTE)
    assert quotes["bid"].tolist() == [10.0, 11.0, 12.0]


@pytest.mark.parametrize("code", [1101, 1102])
def test_subscriptions_that_are_lost_or_kept(feeds: Make, recording: Recording, code: int) -> None:
    with TwsServer([Act()], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote",), tick_by_tick="never")
        one, two = (feed.asked(server, MKT_DATA, name) for name in ("AAPL", "MSFT"))
        server.push(both(one, 10.0) + both(two, 20.0))
        feed.until(lambda: len(feed.market) == 2, "quotes")
        server.push(error(-1, 1100, "Connectivity between IB and Trader Workstation has been lost."))
        feed.until(lambda: feed.state == "stale", "stale")
        # A side is held back when all is lost, and both sides of another stream stand in the same packet.
        packet = prices(one, 1, 10.5, 1) + both(two, 20.5)
        server.push(packet + error(-1, code, "Connectivity restored") + prices(one, 2, 11.5, 1))
        feed.until(lambda: StatusCode.GAP in feed.codes(), "the gap")
        if code == 1101:
            feed.until(lambda: server.find(MKT_DATA, "MSFT").number > two.number, "asked again")  # type: ignore[union-attr]
            one, two = (feed.asked(server, MKT_DATA, name) for name in ("AAPL", "MSFT"))
        server.push(both(one, 12.0) + both(two, 22.0))
        feed.until(lambda: 12.0 in feed.market["bid"] and 22.0 in feed.market["bid"], "new quotes")
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        replay = assert_replays_alike(feed, recording)
    assert sum(gap_before(replay)) == 2


def test_tick_by_tick_that_becomes_an_aggregate_and_what_is_refused(feeds: Make, recording: Recording) -> None:
    def answer(asked: Asked) -> Iterable[bytes]:
        if asked.kind == BY_TICK:
            return [error(asked.number, 10190, "Max number of tick-by-tick requests has been reached")]
        if asked.con_id == "272093":
            return [error(asked.number, 354, "Requested market data is not subscribed.")]
        return [prices(asked, 1, 10.0, 1) + prices(asked, 2, 11.0, 1) + prices(asked, 2, 11.0, 2)]

    with TwsServer([Act(answer)], BOTH) as server:
        feed = feeds(server, ("AAPL", "MSFT"), ("quote",))
        feed.until(lambda: len(feed.market) and "refused: quote of MSFT" in feed.source.report.why, "quote and refusal")
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        assert_replays_alike(feed, recording)


def test_a_competing_session_and_its_end(feeds: Make, recording: Recording, monkeypatch: pytest.MonkeyPatch) -> None:
    from workers.sources import ibkr_codes

    monkeypatch.setitem(ibkr_codes.CODES, 10197, ibkr_codes.CODES[10197]._replace(wait_s=0.1))
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), ("quote",), tick_by_tick="never")
        asked = feed.asked(server, MKT_DATA)
        server.push(prices(asked, 1, 10.0, 1) + prices(asked, 2, 11.0, 1))
        feed.until(lambda: feed.state == "live", "live")
        server.push(prices(asked, 1, 10.5, 1) + error(asked.number, 10197, "No market data during competing session"))
        feed.until(lambda: server.find(MKT_DATA).number > asked.number, "asked again")  # type: ignore[union-attr]
        server.push(prices(asked, 1, 9.0, 1))  # of the request that has ended
        again = feed.asked(server, MKT_DATA)
        server.push(prices(again, 1, 12.0, 1) + prices(again, 2, 13.0, 1))
        feed.until(lambda: 12.0 in feed.market["bid"], "data")
        replay = assert_replays_alike(feed, recording)
    assert sum(gap_before(replay)) >= 1


def test_garbage_half_messages_and_doubles(feeds: Make, recording: Recording) -> None:
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
            b"\0\0\0\5abcde",
            b"\0\0\0\5\xff\xfe\0\xfd\0",
            b"\0\0\0\0",
            packed(10, asked.number, "AAPL"),
            packed(4, 2, "x", "y", "z"),
        ]
        good = [trade(asked, float(number)) for number in range(100)]
        accented = packed(99, asked.number, 1, NOW_S, 7.5, 1, 0, "N\xc4SD", "\N{SNOWMAN}")
        whole = b"".join(good[:50]) + b"".join(bad) + accented + b"".join(good[50:]) + good[-1]
        for at in range(0, len(whole), 37):
            server.push(whole[at : at + 37])
        feed.until(lambda: len(feed.market) == 102, "every trade")
        errors = feed.source.errors
        feed.source._requests._pace._by_tick.clear()
        server.push(b"GET / HTTP/1.1\r\n")
        feed.asked(server, BY_TICK, connection=1)
        assert_replays_alike(feed, recording, malformed=errors)
    assert errors >= len(bad) - 1


def test_no_message_whatever_it_says_is_replayed_otherwise(feeds: Make, recording: Recording) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    types = ("trade", "quote", "tick", "bar", "level2", "news")
    with TwsServer([Act()], AAPL) as server:
        feed = feeds(server, ("AAPL",), types, tick_by_tick="never", bulletins=True)
        numbers = [feed.asked(server, kind).number for kind in (MKT_DATA, BARS, DEPTH)]
        words = [*("", "0", "-1", "1", "3", "1e400", "nan", "-5", "x", "\N{SNOWMAN}", "1.5"), *map(str, numbers * 3)]
        kinds = [1, 1, 2, 10, 12, 13, 14, 17, 46, 49, 50, 52, 58, 81, 84, 90, 99, 3, 5, 6, 61, 107, -1]
        messages = [
            packed(dice.choice(kinds), *(dice.choice(words) for _ in range(dice.randrange(14)))) for _ in range(3000)
        ]
        messages += [prices(Asked(MKT_DATA, numbers[0], []), 1, 10.0 + dice.random(), 1) for _ in range(300)]
        dice.shuffle(messages)
        for at in range(0, len(messages), 50):
            server.push(b"".join(messages[at : at + 50]))
        server.push(packed(46, 6, numbers[0], 77, f"123.25;1;{NOW_S * 1000};1;1;true"))
        feed.until(lambda: 123.25 in feed.kind(RecordType.TRADE)["price"], "the record after them")
        feed.until(lambda: feed.source._quote_due_ns is None, "what was held back")
        replay = assert_replays_alike(feed, recording, malformed=feed.source.errors)
    assert len(replay) > 50
