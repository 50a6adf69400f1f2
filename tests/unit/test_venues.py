"""Bitstamp, Kraken and described venues against a local server; checksums against what the venue documents."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import Action, Flag, RecordType, Side, StatusCode
from tests.unit.test_websocket_source import Feed, assert_same, books, feeds, of, replayed
from tests.venue_server import Act, VenueServer, after, bitstamp_answer, jsonl, kraken_answer, kraken_v1_answer
from workers.decoders.checked_book import Book, digits_of
from workers.decoders.described import Shape, parse_path, pick
from workers.errors import SettingsError

__all__ = ["feeds"]  # the fixture

Make = Callable[..., Feed]
PAIRS = ("ethusd", "batbtc", "usdteur")


def bitstamp_messages(samples: Path) -> list[bytes]:
    lines = [line for line in jsonl(samples / "websocket/BITSTAMP.jsonl.zst") if line["t"] == "recv"]
    messages = [line["data"].encode() for line in lines if '"bts:' not in line["data"]]
    return [message for message in messages if json.loads(message)["channel"].endswith(PAIRS)]


def expected_trades(messages: list[bytes]) -> list[tuple[str, float, float, int, int, int]]:
    """Trades of Bitstamp's messages by an independent reading."""
    found = []
    for message in messages:
        told = json.loads(message)
        if told["event"] == "trade":
            data = told["data"]
            side = 1 if data["type"] == 0 else 2
            micros = int(data["microtimestamp"])
            pair = told["channel"].rpartition("_")[2]
            found.append((pair, float(data["price_str"]), float(data["amount_str"]), data["id"], side, micros * 1000))
    return found


def had_trades(feed: Feed) -> list[tuple[str, float, float, int, int, int]]:
    names = {number: name for name, number in feed.names.items()}
    return [
        (names[row["instrument_id"]], row["price"], row["size"], row["trade_id"], row["side"], row["ts_event"])
        for row in of(feed.records, feed.records["record_type"] == RecordType.TRADE)
    ]


def test_bitstamp_trades_and_books(samples: Path, feeds: Make) -> None:
    messages = bitstamp_messages(samples)
    changes: dict[str, list[dict[str, Any]]] = {pair: [] for pair in PAIRS}
    for message in messages:
        told = json.loads(message)
        if told["channel"].startswith("diff"):
            changes[told["channel"].rpartition("_")[2]].append(told["data"])
    pictures, expected = {}, {}
    for pair, listed in changes.items():
        # A picture as of the fifth change: what it holds is made up, what follows must be applied to it.
        stamp = listed[4]["microtimestamp"]
        pictures[pair] = json.dumps({"microtimestamp": stamp, "bids": [["1.5", "2"]], "asks": [["9e3", "1"]]}).encode()
        pictures[pair] = pictures[pair].replace(b"9e3", b"9000")
        book = {(1, 1.5): 2.0, (2, 9000.0): 1.0}
        for change in listed:
            if int(change["microtimestamp"]) > int(stamp):
                for side, key in ((1, "bids"), (2, "asks")):
                    for price, size in change[key]:
                        book[side, float(price)] = float(size)
        expected[pair] = {key: size for key, size in book.items() if size}
    with VenueServer([Act(messages)], answer=bitstamp_answer, ready=after(6), pictures=pictures) as venue:
        feed = feeds(PAIRS, ("trade", "level2"), venue="bitstamp", url=venue.url, rest_url=venue.rest_url)
        feed.until(
            lambda: books(feed.records) == {feed.names.get(pair, -1): book for pair, book in expected.items()}, "books"
        )
        assert had_trades(feed) == expected_trades(messages)
        assert len(had_trades(feed)) >= 10
        assert feed.source.errors == 0
        assert (feed.source.report.state, feed.source.report.health_score) == ("live", 1.0)


def test_bitstamp_live_is_what_its_replay_is(samples: Path, feeds: Make) -> None:
    path = samples / "websocket/BITSTAMP.jsonl.zst"
    messages = [line["data"].encode() for line in jsonl(path) if line["t"] == "recv"]
    with VenueServer([Act(messages)], answer=bitstamp_answer, ready=after(1)) as venue:
        feed = feeds(("ethusd",), ("trade",), venue="bitstamp", url=venue.url)
        replay = replayed(path, feed.names, {RecordType.TRADE})
        feed.until(lambda: len(had_trades(feed)) == len(replay), "every trade")
        assert_same(of(feed.records, feed.records["record_type"] == RecordType.TRADE), replay)


def test_a_venue_that_asks_to_connect_again_is_obeyed(samples: Path, feeds: Make) -> None:
    messages = bitstamp_messages(samples)
    half = len(messages) // 2
    again = b'{"event":"bts:request_reconnect","channel":"","data":""}'
    with VenueServer(
        [Act([*messages[:half], again]), Act(messages[half:])], answer=bitstamp_answer, ready=after(1)
    ) as venue:
        feed = feeds(("ethusd",), ("trade",), venue="bitstamp", url=venue.url)
        feed.until(lambda: len(venue.requests) == 2 and feed.source.report.state == "live", "the second connection")
        assert (StatusCode.FEED_DOWN, "the venue asks to connect again") in feed.said


DESCRIBED: dict[str, Any] = {
    "venue": "generic",
    "code": "BSTP",
    "channels": {"trade": "live_trades_{symbol}", "level2": "diff_order_book_{symbol}"},
    "subscribe": ['{"event":"bts:subscribe","data":{"channel":"{channel}"}}'],
    "acknowledged": {"event": "bts:subscription_succeeded"},
    "refused": {"event": "bts:error"},
    "reason": "data.message",
    "request_gap_s": 0,
    "messages": {
        "trade": {
            "when": {"event": "trade"}, "items": "data", "symbol": "/channel", "symbol_after": "_",
            "price": "price_str", "size": "amount_str", "id": "id", "side": "type", "buy": ["0"],
            "time": "microtimestamp", "time_unit": "us",
        },
        "level2": {
            "when": {"event": "data"}, "items": "data", "symbol": "/channel", "symbol_after": "_", "bids": "bids",
            "asks": "asks", "price": "0", "size": "1", "time": "microtimestamp", "time_unit": "us",
        },
    },
}  # fmt: skip


def test_a_described_venue_gives_what_a_built_in_one_gives(samples: Path, feeds: Make) -> None:
    messages = bitstamp_messages(samples)
    with VenueServer([Act(messages)], answer=bitstamp_answer, ready=after(6)) as venue:
        feed = feeds(PAIRS, ("trade", "level2"), url=venue.url, **DESCRIBED)
        levels = sum(
            len(data["bids"]) + len(data["asks"])
            for message in messages
            if "bids" in (data := json.loads(message)["data"])
        )
        feed.until(lambda: (feed.records["record_type"] == RecordType.LEVEL2).sum() == levels, "every level")
        feed.until(lambda: len(had_trades(feed)) == len(expected_trades(messages)), "every trade")
        assert had_trades(feed) == expected_trades(messages)
        assert set(feed.market["venue"].tolist()) == {b"BSTP"}
        assert venue.requests[0][0] == {"event": "bts:subscribe", "data": {"channel": "live_trades_ethusd"}}


def test_a_described_login_with_a_secret_of_the_environment(feeds: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TK_TEST_KEY", "s3cret")
    options = {
        "venue": "generic",
        "channels": {"quote": "bbo"},
        "login": ['{"op":"login","key":"${TK_TEST_KEY}"}'],
        "logged_in": {"event": "login", "code": 0},
        "refused": {"event": "error"},
        "reason": "msg",
        "subscribe": ['{"op":"subscribe","channel":"{channel}","symbol":"{symbol}"}'],
        "messages": {"quote": {"when": {"ch": ["bbo"]}, "items": "d", "bid_size": "-", "sequence": "n", "time": "t"}},
    }

    def answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
        right = asked.get("key") == "s3cret"
        reply = {"event": "login", "code": 0} if right else {"event": "error", "msg": "bad key"}
        return [reply] if asked["op"] == "login" else []

    def quote(number: int, bid: Any) -> bytes:
        item = {"symbol": "X", "bid": bid, "ask": 2, "ask_size": "3.5", "n": number, "t": 1700000000000 + number}
        return json.dumps({"ch": "bbo", "d": [item]}).encode()

    messages = [quote(7, 1.25), quote(8, "1.5"), quote(8, 9), quote(11, None), quote(12, True)]
    with VenueServer([Act(messages)], answer=answer, ready=after(2)) as venue:
        feed = feeds(("X",), (), url=venue.url, **options)
        feed.until(lambda: feed.source.errors == 1, "all of it")
        market = feed.market
        assert market["bid"][:2].tolist() == [1.25, 1.5]
        assert market["bid"][2] != market["bid"][2]
        assert market["ask_size"].tolist() == [3.5] * 3
        assert market["source_sequence"].tolist() == [7, 8, 11]
        assert market["ts_event"][0] == 1700000000007 * 10**6
        assert feed.codes().count(StatusCode.GAP) == 1
        assert "s3cret" not in repr(feed.source.report)
        monkeypatch.setenv("TK_TEST_KEY", "wrong")
        other = feeds(("X",), (), url=venue.url, **options)
        other.until(lambda: other.source.report.state == "failed", "the refusal")
        assert other.source.report.why == "refused by the venue: bad key"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"url": ""}, "options.url: a described venue needs one"),
        ({"channels": {}}, "options.channels: name"),
        ({"messages": {}}, "options.messages.trade: missing"),
        ({"login": ["x"]}, "options.logged_in: missing"),
        ({"login": ["${TK_NOT_THERE}"], "logged_in": {"a": 1}}, "the environment has no TK_NOT_THERE"),
        ({"messages": {"trade": {"prize": "p"}}}, "prize"),
    ],
)
def test_a_description_that_can_not_work_is_refused_by_name(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=r".") as error:
        Feed(("x",), (), **{"url": "ws://127.0.0.1:1/", **DESCRIBED, **change})
    assert words in str(error.value)


def test_paths() -> None:
    value = {"a": [{"b": 3}]}
    assert pick(value, parse_path("a.0.b") or ()) == 3
    assert pick(value, parse_path("") or ()) is value
    assert parse_path("-") is None
    assert Shape().buy == ("buy", "b", "bid")


# -- Kraken

ASKS = ("0.05005", "0.05010", "0.05015", "0.05020", "0.05025", "0.05030", "0.05035", "0.05040", "0.05045", "0.05050")
BIDS = ("0.05000", "0.04995", "0.04990", "0.04980", "0.04975", "0.04970", "0.04965", "0.04960", "0.04955", "0.04950")
SIZE = "0.00000500"
DOCUMENTED_CHECKSUM = 974947235  # Kraken, guide "Book checksum", for the book above


def test_the_checksum_is_the_one_that_the_venue_documents() -> None:
    book = Book(10)
    for side, prices in ((Side.BUY, BIDS), (Side.SELL, ASKS)):
        for price in prices:
            book.change(side, float(price), float(SIZE), digits_of(price.encode()) + digits_of(SIZE.encode()))
    assert book.checksum() == DOCUMENTED_CHECKSUM


def kraken_book(kind: str, bids: list[tuple[str, str]], asks: list[tuple[str, str]], checksum: int) -> bytes:
    def levels(listed: list[tuple[str, str]]) -> str:
        return ",".join(f'{{"price":{price},"qty":{qty}}}' for price, qty in listed)

    return (
        f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"A/B","bids":[{levels(bids)}],"asks":[{levels(asks)}],'
        f'"checksum":{checksum},"timestamp":"2023-10-06T17:35:55.440295Z"}}]}}'
    ).encode()


def test_kraken_books_are_checked_and_a_wrong_one_is_asked_for_again(feeds: Make) -> None:
    whole = kraken_book("snapshot", [(p, SIZE) for p in BIDS], [(p, SIZE) for p in ASKS], DOCUMENTED_CHECKSUM)
    better = kraken_book("update", [("0.05001", "1.50000000")], [], 0)  # whose checksum is not 0
    later = kraken_book("update", [("0.05002", "1.50000000")], [], 0)
    trade = (
        b'{"channel":"trade","type":"update","data":[{"symbol":"A/B","side":"sell","price":0.5117,"qty":40.00000000,'
        b'"ord_type":"market","trade_id":4665906,"timestamp":"2023-09-25T07:49:37.708706Z"}]}'
    )
    ticker = (
        b'{"channel":"ticker","type":"snapshot","data":[{"symbol":"A/B","bid":0.10025,"bid_qty":740.0,"ask":0.10036,'
        b'"ask_qty":1361.44813783,"last":0.10035,"volume":997038.98383185}]}'
    )
    acts = [Act([trade, ticker, whole, better, later, b'{"channel":"heartbeat"}', whole])]
    with VenueServer(acts, answer=kraken_answer, ready=after(3)) as venue:
        feed = feeds(("A/B",), ("trade", "quote", "level2"), venue="kraken", url=venue.url)
        feed.until(lambda: (feed.market["action"] == Action.CLEAR).sum() == 2, "the second snapshot")
        feed.until(lambda: len(venue.requests[0]) == 5, "the book asked for again")
        methods = [(asked["method"], asked["params"]["channel"]) for asked in venue.requests[0]]
        assert methods == [
            ("subscribe", "trade"), ("subscribe", "ticker"), ("subscribe", "book"),
            ("unsubscribe", "book"), ("subscribe", "book"),
        ]  # fmt: skip
        assert venue.requests[0][1]["params"]["event_trigger"] == "bbo"
        assert feed.source.gaps == 1
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.GAP]
        market = feed.market
        first, quote = market[0], market[1]
        assert (first["price"], first["size"], first["trade_id"], first["side"]) == (0.5117, 40.0, 4665906, Side.SELL)
        assert first["ts_event"] == 1695628177708706000
        assert (quote["bid"], quote["ask_size"], bool(quote["flags"] & Flag.SNAPSHOT)) == (0.10025, 1361.44813783, True)
        levels = of(market, market["record_type"] == RecordType.LEVEL2)
        assert 0.05001 in levels["price"]
        assert 0.05002 not in levels["price"], "a change of a book that is wrong was handed out"
        # With 11 bids the worst one leaves the ten that are subscribed to.
        gone = of(levels, (levels["price"] == 0.0495) & (levels["action"] == Action.DELETE))
        assert len(gone) == 1


def test_one_symbol_refused_leaves_the_others(feeds: Make) -> None:
    trade = (
        b'{"channel":"trade","type":"update","data":[{"symbol":"A/B","side":"buy","price":1.5,"qty":4,'
        b'"trade_id":1,"timestamp":"2023-09-25T07:49:37.708706Z"}]}'
    )
    with VenueServer([Act([trade])], answer=kraken_answer, ready=after(1)) as venue:
        feed = feeds(("A/B", "NO/PE"), ("trade",), venue="kraken", url=venue.url)
        feed.until(lambda: feed.source.report.state == "live", "data of the other")
        feed.until(lambda: "refused: trade:NO/PE" in feed.source.report.why, "the reason")
        assert feed.source.report.degraded


# -- Kraken, WebSocket v1


def levels_v1(prices: tuple[str, ...], size: str = SIZE) -> str:
    return ",".join(f'["{price}","{size}","1582905486.493008"]' for price in prices)


def test_kraken_v1_trades_quotes_and_checked_books(feeds: Make) -> None:
    # The documented book is what two updates with its checksum leave of a snapshot that has other levels.
    others = ("0.04940", "0.04930")
    whole = f'[0,{{"as":[{levels_v1(ASKS)}],"bs":[{levels_v1(BIDS[2:] + others)}]}},"book-10","A/B"]'
    update = (
        f'[0,{{"a":[["{ASKS[0]}","{SIZE}","1582905487.000001","r"]]}},'
        f'{{"b":[{levels_v1(BIDS[:2])}],"c":"{DOCUMENTED_CHECKSUM}"}},"book-10","A/B"]'
    )
    wrong = '[0,{"b":[["0.05001","1.5","1582905488.5"]],"c":"5"},"book-10","A/B"]'
    late = '[0,{"b":[["0.05002","1.5","1582905488.6"]],"c":"6"},"book-10","A/B"]'
    trades = (
        '[9,[["5541.20000","0.15850568","1534614057.321597","s","l",""],'
        '["6060.00000","0.02455000","1534614057.324998","b","l",""]],"trade","A/B"]'
    )
    spread = '[9,["5698.40000","5700.00000","1542057299.545897","1.01234567","0.98765432"],"spread","A/B"]'
    messages = [trades, spread, whole, update, wrong, late, '{"event":"heartbeat"}', whole]
    acts = [Act([message.encode() for message in messages])]
    with VenueServer(acts, answer=kraken_v1_answer, ready=after(3)) as venue:
        feed = feeds(("A/B",), ("trade", "quote", "level2"), venue="kraken-v1", url=venue.url)
        feed.until(lambda: (feed.market["action"] == Action.CLEAR).sum() == 2, "the second snapshot")
        feed.until(lambda: len(venue.requests[0]) == 5, "the book asked for again")
        asked = [(one["event"], one["pair"], one["subscription"]) for one in venue.requests[0]]
        book = {"name": "book", "depth": 10}
        assert asked == [
            ("subscribe", ["A/B"], {"name": "trade"}), ("subscribe", ["A/B"], {"name": "spread"}),
            ("subscribe", ["A/B"], book), ("unsubscribe", ["A/B"], book), ("subscribe", ["A/B"], book),
        ]  # fmt: skip
        assert feed.codes() == [StatusCode.FEED_UP, StatusCode.GAP]
        assert feed.source.errors == 0
        market = feed.market
        sold, bought, quote = market[:3]
        assert (sold["price"], sold["size"], sold["side"]) == (5541.2, 0.15850568, Side.SELL)
        assert (sold["ts_event"], sold["trade_id"], bought["side"]) == (1534614057321597000, 0, Side.BUY)
        assert (quote["bid"], quote["ask"], quote["bid_size"]) == (5698.4, 5700.0, 1.01234567)
        assert (quote["ask_size"], quote["ts_event"]) == (0.98765432, 1542057299545897000)
        levels = of(market, market["record_type"] == RecordType.LEVEL2)
        behind = of(levels, (levels["action"] == Action.DELETE) & (levels["size"] == 0))
        assert sorted(set(behind["price"].tolist()) - {0.0495}) == [0.0493, 0.0494]
        assert 0.05002 not in levels["price"], "a change of a book that is wrong was handed out"


def test_kraken_v1_quotes_of_the_ticker_refusals_and_maintenance(feeds: Make) -> None:
    ticker = (
        '[9,{"a":["5525.40000",1,"1.5"],"b":["5525.10000",2,"2.5"],"c":["5525.1","0.00398963"],'
        '"v":["2634.11501494","3591.17907851"]},"ticker","A/B"]'
    )
    going = '{"event":"systemStatus","status":"maintenance"}'
    bad = ['[1,{"a":5},"book-10","A/B"]', '[1,[["x","1","2","b"]],"trade","A/B"]', '[1,2,"trade"]', "[1,[],5,6]", "7"]
    acts = [Act([message.encode() for message in (ticker, going, *bad, ticker)])]
    with VenueServer(acts, answer=kraken_v1_answer, ready=after(1)) as venue:
        feed = feeds(("A/B", "NO/PE"), ("quote",), venue="kraken-v1", url=venue.url, quotes="ticker")
        feed.until(lambda: len(feed.market) == 2, "both quotes")
        row = feed.market[0]
        assert (row["bid"], row["bid_size"], row["ask"], row["ask_size"]) == (5525.1, 2.5, 5525.4, 1.5)
        assert row["ts_event"] == row["ts_receive"]
        feed.until(lambda: "refused: ticker:NO/PE" in feed.source.report.why, "the reason")
        assert feed.source.errors >= len(bad)
        assert venue.requests[0][0]["subscription"] == {"name": "ticker"}
