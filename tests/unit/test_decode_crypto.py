"""Bitfinex and Hyperliquid: the captures against books and sums made from their text, and each message's meaning."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType, Side, StatusCode, concatenate, empty
from tests.unit.test_decode_samples import of_type, read
from tests.venue_server import jsonl
from workers.decoders.bitfinex import BitfinexDecoder
from workers.decoders.hyperliquid import HyperliquidDecoder

Decoder = BitfinexDecoder | HyperliquidDecoder
Book = dict[tuple[str, int], dict[float, tuple[float, int]]]  # (symbol, side) -> price -> (size, orders)


def drain(decoder: Decoder, *messages: Any, at: int = 1_000_000_000, connection: int = 0) -> np.ndarray:
    batches = [empty(0)]
    for message in messages:
        decoder.feed_message(json.dumps(message).encode(), at, connection)
        while True:
            out = empty(5)
            count = decoder.decode(out)
            if not count:
                break
            batches.append(out[:count])
    return concatenate(batches)


def applied(levels: np.ndarray, symbols: dict[int, str]) -> Book:
    """The books that level2 records lead to."""
    books: Book = {}
    for level in levels:
        name = symbols[int(level["instrument_id"])]
        if level["action"] == Action.CLEAR:
            books[name, Side.BUY], books[name, Side.SELL] = {}, {}
        elif level["action"] == Action.DELETE:
            books[name, int(level["side"])].pop(float(level["price"]), None)
        else:
            book = books[name, int(level["side"])]
            book[float(level["price"])] = (float(level["size"]), int(level["order_count"]))
    return books


# ---- Bitfinex -----------------------------------------------------------------------------------------------------


def test_bitfinex_capture_is_whole_and_contiguous(samples: Path) -> None:
    records, summary, symbols = read(samples / "websocket/BITFINEX.jsonl.zst")
    assert summary["frames"] == 1693
    assert summary["messages"] == {
        "book": 1600, "trades": 7, "ticker": 21, "heartbeat": 42, "control": 23,
    }  # fmt: skip
    assert (summary["gaps"], summary["malformed"], summary["duplicates"]) == (0, {}, 0)
    assert set(symbols.values()) == {"BFTUSD", "IOTETH", "DOGUSD", "MNABTC", "ODEUSD", "TESTBTC:TESTUSD", "SNGUSD"}
    assert len(of_type(records, RecordType.QUOTE)) == 21
    assert set(records["venue"]) == {b"BITFINEX"}


def test_bitfinex_books_and_trades_are_those_of_the_text(samples: Path) -> None:
    path = samples / "websocket/BITFINEX.jsonl.zst"
    channels: dict[int, tuple[str, str]] = {}
    books: Book = {}
    trades: dict[int, tuple[float, float]] = {}
    for line in jsonl(path):
        message = json.loads(line["data"]) if line["t"] == "recv" else None
        if isinstance(message, dict) and message["event"] == "subscribed":
            channels[message["chanId"]] = message["channel"], message["pair"]
        elif isinstance(message, list) and message[1] != "hb":
            channel, name = channels[message[0]]
            entries = message[1] if isinstance(message[1][0], list) else [message[1]]
            if channel == "trades":
                trades |= {number: (price, abs(amount)) for number, _, amount, price in entries}
            elif channel == "book":
                if entries is message[1]:
                    books[name, Side.BUY], books[name, Side.SELL] = {}, {}
                for price, count, amount in entries:
                    book = books[name, Side.BUY if amount > 0 else Side.SELL]
                    if count:
                        book[price] = (abs(amount), count)
                    else:
                        book.pop(price, None)
    records, _, symbols = read(path)
    assert applied(of_type(records, RecordType.LEVEL2), symbols) == books
    struck = of_type(records, RecordType.TRADE)
    assert len(struck) == len(trades) == 210
    assert {int(one["trade_id"]): (float(one["price"]), float(one["size"])) for one in struck} == trades
    assert np.all(struck["flags"] & Flag.SNAPSHOT)


SUBSCRIBED = [
    {"event": "info", "version": 2},
    {"event": "conf", "status": "OK", "flags": 65536},
    {"event": "subscribed", "channel": "trades", "chanId": 5, "symbol": "tBTCUSD", "pair": "BTCUSD"},
    {"event": "subscribed", "channel": "book", "chanId": 6, "symbol": "tBTCUSD", "prec": "R0", "pair": "BTCUSD"},
]


def bitfinex(*events: dict[str, Any]) -> BitfinexDecoder:
    numbers: dict[str, int] = {}
    decoder = BitfinexDecoder(lambda name: numbers.setdefault(name, len(numbers)))
    drain(decoder, *(events or SUBSCRIBED))
    return decoder


def test_bitfinex_trades_come_when_struck_and_not_again_when_settled() -> None:
    decoder = bitfinex()
    struck = drain(
        decoder,
        [5, [[11, 2000, 0.5, 100], [10, 1000, -2, 99.5]], 1],  # newest first
        [5, "te", [12, 3000, 0.25, 101], 2],
        [5, "te", [13, 3001, -1, 100.5], 3],
        [5, "tu", [12, 3000, 0.25, 101], 4],
        [5, "tu", [14, 3002, 4, 102], 5],  # its te was never seen
        [5, "te", [14, 3002, 4, 102], 6],
    )
    assert struck["trade_id"].tolist() == [10, 11, 12, 13, 14]
    assert struck["side"].tolist() == [Side.SELL, Side.BUY, Side.BUY, Side.SELL, Side.BUY]
    assert struck["size"].tolist() == [2, 0.5, 0.25, 1, 4]
    assert struck["ts_event"].tolist() == [10**9, 2 * 10**9, 3 * 10**9, 3_001_000_000, 3_002_000_000]
    assert [bool(flags & Flag.SNAPSHOT) for flags in struck["flags"]] == [True, True, False, False, False]
    assert decoder.counters.duplicates == 1


def test_bitfinex_raw_books_are_orders() -> None:
    levels = drain(
        bitfinex(),
        [6, [[1, 100, 2], [2, 101, -3]], 1],
        [6, [3, 99, 1], 2],
        [6, [1, 100, 1.5], 3],
        [6, [1, 100.5, 1.5], 4],  # moved
        [6, [2, 0, -1], 5],
        [6, [7, 0, 1], 6],  # below what the snapshot showed
    )
    buy, sell, none = Side.BUY, Side.SELL, Side.NONE
    found = [
        (Action(one["action"]), one["side"], float(one["price"]), float(one["size"]), int(one["source_sequence"]))
        for one in levels[1:]
    ]
    assert (levels["action"][0], levels["side"][0]) == (Action.CLEAR, none)
    assert found == [
        (Action.ADD, buy, 100, 2, 1),
        (Action.ADD, sell, 101, 3, 2),
        (Action.ADD, buy, 99, 1, 3),
        (Action.MODIFY, buy, 100, 1.5, 1),
        (Action.DELETE, buy, 100, 0, 1),
        (Action.ADD, buy, 100.5, 1.5, 1),
        (Action.DELETE, sell, 101, 0, 2),
    ]
    ends = [bool(flags & Flag.LAST_OF_BATCH) for flags in levels["flags"]]
    assert ends == [False, False, True, True, True, False, True, True]


def test_bitfinex_numbers_show_gaps_on_each_connection_and_begin_anew_with_it() -> None:
    decoder = bitfinex()
    records = drain(decoder, [5, "hb", 7], [5, "te", [1, 1000, 1, 1], 8], [6, "hb", 8], [5, "te", [2, 1000, 1, 1], 12])
    assert records["record_type"].tolist() == [RecordType.TRADE, RecordType.STATUS, RecordType.TRADE]
    gap = records[1]
    assert (gap["code"], gap["from_sequence"], gap["to_sequence"]) == (StatusCode.GAP, 9, 12)
    assert gap["instrument_id"] == NO_INSTRUMENT
    assert records["flags"][2] & Flag.GAP_BEFORE
    assert (decoder.counters.gaps, decoder.counters.missing, decoder.counters.duplicates) == (1, 3, 1)
    drain(decoder, *SUBSCRIBED, connection=1)
    assert len(drain(decoder, [5, "te", [3, 1000, 1, 1], 1], connection=1)) == 1
    drain(decoder, *SUBSCRIBED)
    assert len(drain(decoder, [5, "te", [4, 1000, 1, 1], 1])) == 1
    assert decoder.counters.gaps == 1


def test_bitfinex_states_its_time_where_it_was_asked_to() -> None:
    decoder = bitfinex(
        {"event": "conf", "status": "OK", "flags": 65536 | 32768},
        {"event": "subscribed", "channel": "ticker", "chanId": 9, "symbol": "tETHUSD", "pair": "ETHUSD"},
    )
    (quote,) = drain(decoder, [9, [10, 55, 11, 66, 0, 0, 10, 1, 1, 1], 4, 7000])
    assert (quote["bid"], quote["ask"], quote["ts_event"]) == (10, 11, 7 * 10**9)
    assert np.isnan(quote["bid_size"])


def test_bitfinex_funding_and_unknown_channels_make_no_records() -> None:
    decoder = bitfinex({"event": "subscribed", "channel": "trades", "chanId": 3, "symbol": "fUSD", "currency": "USD"})
    assert len(drain(decoder, [3, "fte", [1, 1000, 5, 0.001, 2]], [77, [1, 2, 3]])) == 0
    assert decoder.counters.messages == {"control": 1, "other": 2}
    assert decoder.counters.malformed == {}


@pytest.mark.parametrize(
    "message",
    [[], [6], [6, [1], 1], [6, [1, "x", 1], 1], [6, [1, 100, True], 1], [5, "te", 1], [[], [], 1], 7, "x", None],
)
def test_bitfinex_messages_that_mean_nothing_are_counted(message: Any) -> None:
    decoder = bitfinex()
    assert len(drain(decoder, message)) == 0
    assert sum(decoder.counters.malformed.values()) == 1
    assert of_type(drain(decoder, [5, "te", [12, 3000, 0.25, 101], 7]), RecordType.TRADE)["trade_id"].tolist() == [12]


# ---- Hyperliquid --------------------------------------------------------------------------------------------------

HYPERLIQUID = "websocket/hyperliquid_btcusd_20250126.gz"


def test_hyperliquid_capture_is_what_its_text_says(samples: Path) -> None:
    records, summary, symbols = read(samples / HYPERLIQUID)
    assert (summary["messages"], summary["malformed"]) == ({"l2Book": 46, "trades": 9}, {})
    assert symbols == {0: "BTC"}
    lines = [
        json.loads(line.partition(" ")[2])
        for line in gzip.decompress((samples / HYPERLIQUID).read_bytes()).decode().splitlines()
    ]
    trades = [trade for line in lines if line["channel"] == "trades" for trade in line["data"]]
    struck = of_type(records, RecordType.TRADE)
    assert struck["trade_id"].tolist() == [trade["tid"] for trade in trades]
    assert struck["price"].tolist() == [float(trade["px"]) for trade in trades]
    assert struck["size"].tolist() == [float(trade["sz"]) for trade in trades]
    assert struck["side"].tolist() == [Side.BUY if trade["side"] == "B" else Side.SELL for trade in trades]
    books = [line["data"] for line in lines if line["channel"] == "l2Book"]
    levels = of_type(records, RecordType.LEVEL2)
    assert len(levels) == 46 * 41
    for book, part in zip(books, np.split(levels, 46), strict=True):
        wanted = {
            ("BTC", side): {float(one["px"]): (float(one["sz"]), one["n"]) for one in listed}
            for side, listed in zip((Side.BUY, Side.SELL), book["levels"], strict=True)
        }
        assert applied(part, symbols) == wanted
        assert set(part["ts_event"]) == {book["time"] * 1_000_000}
        assert part["flags"][-1] & Flag.LAST_OF_BATCH
    best = [tuple(float(side[0][key]) for side in book["levels"] for key in ("px", "sz")) for book in books]
    changes = [one for before, one in zip([None, *best], best, strict=False) if one != before]
    quotes = of_type(records, RecordType.QUOTE)
    assert [tuple(map(float, (q["bid"], q["bid_size"], q["ask"], q["ask_size"]))) for q in quotes] == changes


def test_hyperliquid_repeats_of_trades_are_dropped_and_empty_sides_are_undefined() -> None:
    numbers: dict[str, int] = {}
    decoder = HyperliquidDecoder(lambda name: numbers.setdefault(name, len(numbers)))
    trade = {"coin": "ETH", "side": "A", "px": "3000.5", "sz": "0.1", "time": 1000, "tid": 77}
    best = {"px": "1.5", "sz": "2", "n": 1}
    records = drain(
        decoder,
        {"channel": "subscriptionResponse", "data": {}},
        {"channel": "trades", "data": [trade]},
        {"channel": "trades", "data": [trade, {**trade, "tid": 78}]},
        {"channel": "bbo", "data": {"coin": "ETH", "time": 5, "bbo": [best, None]}},
        {"channel": "bbo", "data": {"coin": "ETH", "time": 6, "bbo": [best, None]}},
        {"channel": "trades", "data": [{**trade, "tid": 79, "side": "?"}]},
        {"channel": "l2Book", "data": {"coin": "ETH", "time": 5, "levels": [[]]}},
    )
    assert records["trade_id"][:2].tolist() == [77, 78]
    quotes = of_type(records, RecordType.QUOTE)
    assert len(quotes) == 1
    assert (quotes["bid"][0], quotes["ask_size"][0]) == (1.5, 0)
    assert np.isnan(quotes["ask"][0])
    assert decoder.counters.duplicates == 1
    assert decoder.counters.malformed == {"bad value": 1, "bad json": 1}
