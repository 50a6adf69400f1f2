"""Feeds of Interactive Brokers over a socket to a local TWS that misbehaves, and settings that can't work."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import Flag, RecordType, StatusCode, empty
from tests.ibkr_feed import (
    AAPL,
    BOTH,
    NOW_S,
    ROWS,
    Feed,
    ibkr_feeds,  # noqa: F401 -- a fixture
    lost_and_found,
    trade,
    trades_for,
)
from tests.tws_server import (
    BARS,
    BY_TICK,
    CONTRACT,
    CURRENT_TIME,
    DEPTH,
    MKT_DATA,
    Act,
    TwsServer,
    contract_row,
    error,
    packed,
)
from workers.errors import SettingsError

# -- what goes wrong


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
