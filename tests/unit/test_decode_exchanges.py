"""What messages of Binance and Coinbase become: times, gaps of ids and sequences, refusals counted."""

from __future__ import annotations

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side
from tests.decoding import Names, drain, shown
from workers.decoders._binance import BinanceDecoder
from workers.decoders._coinbase import CoinbaseDecoder, parse_time

# ---- Binance ------------------------------------------------------------------------------------------------------


AGG_TRADE = (
    b'{"stream":"ethusdt@aggTrade","data":{"e":"aggTrade","E":1700000000001000,"s":"ETHUSDT","a":9,"p":"2000.2","q":"1",'
    b'"f":1,"l":2,"T":1700000000000123,"m":false,"nq":"1"}}'
)


@pytest.mark.parametrize("native", [True, False])
def test_binance_messages_of_spot_and_futures(native: bool) -> None:
    decoder = BinanceDecoder(Names(), native=native)
    records = drain(
        decoder,
        [
            b'{"e":"trade","E":1700000000001,"T":1700000000000,"s":"ETHUSDT","t":5,"p":"2000.10","q":"0.5","X":"MARKET","m":true}',
            AGG_TRADE,
            b'{"e":"bookTicker","u":7,"s":"ETHUSDT","b":"1","B":"2","a":"3","A":"4","T":1700000000002,"E":1700000000003}',
            b'{"u":8,"s":"ETHUSDT","b":"1","B":"2","a":"3","A":"4"}',
            b'{"e":"depthUpdate","E":1700000000005,"T":1700000000004,"s":"ETHUSDT","U":1,"u":2,"pu":0,"b":[["1","0"]],"a":[["2","3"]]}',
            b'{"e":"depthUpdate","E":1700000000006,"T":1700000000006,"s":"ETHUSDT","U":9,"u":9,"pu":2,"b":[],"a":[]}',
            b'{"e":"depthUpdate","E":1700000000007,"s":"ETHUSDT","U":12,"u":13,"pu":11,"b":[["5","1"]],"a":[]}',
            b'{"e":"depthUpdate","E":1700000000007,"s":"ETHUSDT","U":12,"u":13,"pu":11,"b":[["5","1"]],"a":[]}',
            b'{"result":null,"id":1}',
            b'{"stream":"x","data":{"e":"24hrTicker"}}',
        ],
        ts_receive=99,
    )  # fmt: skip
    assert shown(records)[:2] == [
        (RecordType.TRADE, Side.SELL, 2000.1, 0.5, None),
        (RecordType.TRADE, Side.BUY, 2000.2, 1.0, None),
    ]
    start = 1700000000000_000000
    assert records["ts_event"].tolist()[:3] == [start, start + 123_000, start + 2_000_000]
    assert records["ts_event"].tolist()[3:6] == [99, start + 4_000_000, start + 4_000_000]
    assert records["record_type"].tolist()[6:] == [RecordType.STATUS, RecordType.LEVEL2]
    assert (records["from_sequence"][6], records["to_sequence"][6]) == (10, 12)
    assert records["flags"][7] & Flag.GAP_BEFORE
    counters = decoder.counters
    assert (counters.duplicates, counters.gaps) == (1, 1)
    assert counters.messages == {
        "trade": 1, "aggTrade": 1, "bookTicker": 2, "depthUpdate": 4, "reply": 1, "other": 1,
    }  # fmt: skip


def test_binance_trade_ids_that_jump_are_gaps_of_their_symbol() -> None:
    text = b'{"e":"trade","E":1,"s":"%s","t":%d,"p":"1","q":"1","T":1,"m":true}'
    decoder = BinanceDecoder(Names())
    records = drain(
        decoder, [text % (b"A", 5), text % (b"B", 50), text % (b"A", 8), text % (b"B", 51), text % (b"A", 8)]
    )
    status = records[records["record_type"] == RecordType.STATUS]
    assert (status["instrument_id"][0], status["from_sequence"][0], status["to_sequence"][0]) == (0, 6, 8)
    assert (len(status), decoder.counters.duplicates) == (1, 1)


def test_binance_snapshot_without_a_symbol_is_that_of_the_option_or_of_the_last_message() -> None:
    snapshot = b'{"lastUpdateId":7,"bids":[["1","2"]],"asks":[["3","4"]]}'
    nameless = BinanceDecoder(Names())
    assert len(drain(nameless, [snapshot])) == 0
    assert nameless.counters.malformed == {"no symbol": 1}
    names = Names()
    records = drain(BinanceDecoder(names, symbol="btcusdt"), [snapshot])
    assert names.calls == ["BTCUSDT"]
    assert shown(records)[1:] == [
        (RecordType.LEVEL2, Side.BUY, 1.0, 2.0, Action.ADD),
        (RecordType.LEVEL2, Side.SELL, 3.0, 4.0, Action.ADD),
    ]
    followed = Names()
    ticker = b'{"u":8,"s":"ETHUSDT","b":"1","B":"2","a":"3","A":"4"}'
    assert len(drain(BinanceDecoder(followed, symbol=None), [ticker, snapshot])) == 4
    assert followed.calls == ["ETHUSDT"]


def test_binance_closed_candles_are_bars() -> None:
    text = (
        b'{"e":"kline","E":3,"s":"A","k":{"t":60000,"T":1,"s":"A","i":"5m","f":1,"L":2,"o":"1","c":"2","h":"3","l":"0.5",'
        b'"v":"9","n":4,"x":%s,"q":"1","V":"1","Q":"1","B":"0"}}'
    )
    records = drain(BinanceDecoder(Names()), [text % b"false", text % b"true"])
    assert records["record_type"].tolist() == [RecordType.BAR]
    assert [float(records[name][0]) for name in ("open", "high", "low", "close", "volume")] == [1, 3, 0.5, 2, 9]
    assert (records["interval_s"][0], records["trade_count"][0], records["ts_event"][0]) == (300, 4, 60 * 10**9)


# ---- Coinbase -----------------------------------------------------------------------------------------------------


def test_coinbase_sequence_jumps_are_gaps_and_a_new_connection_is_none() -> None:
    text = b'{"channel":"heartbeats","timestamp":"2026-08-09T21:05:48Z","sequence_num":%d,"events":[]}'
    decoder = CoinbaseDecoder(Names())
    records = drain(decoder, [text % number for number in (4, 5, 8, 7, 0, 1)])
    assert (records["from_sequence"].tolist(), records["to_sequence"].tolist()) == ([6], [8])
    assert decoder.counters.duplicates == 1


def test_coinbase_times_are_exact_and_checked() -> None:
    assert parse_time("2026-08-09T21:05:48.228568804Z") == int(
        np.datetime64("2026-08-09T21:05:48.228568804", "ns").astype(int)
    )
    assert parse_time("1970-01-01T00:00:00Z") == 0
    assert parse_time("2000-02-29T23:59:59.5Z") == int(np.datetime64("2000-02-29T23:59:59.5", "ns").astype(int))
    for text in (
        "",
        "2026-08-09",
        "2026-13-09T21:05:48Z",
        "2026-08-09T21:05:48.Z",
        "2026-08-09T21:05:4xZ",
        "2026-08-09 21:05:48Z",
    ):
        with pytest.raises(ValueError, match="not a time"):
            parse_time(text)


def test_coinbase_damage_is_counted_and_the_rest_is_read() -> None:
    trade = (
        b'{"channel":"market_trades","timestamp":"x","sequence_num":%d,"events":[{"type":"update","trades":[{"product_id":'
        b'"BTC-USD","trade_id":"%d","price":"%s","size":"1","time":"2026-08-09T21:05:48Z","side":"BUY"}]}]}'
    )
    decoder = CoinbaseDecoder(Names())
    records = drain(
        decoder, [trade % (0, 1, b"5"), b"{", trade % (1, 2, b"inf"), trade % (2, 3, b"6"), b"[]", b'{"channel":"zz"}']
    )
    trades = records[records["record_type"] == RecordType.TRADE]
    assert trades["price"].tolist() == [5.0, 6.0]
    assert set(trades["side"]) == {Side.SELL}
    counters = decoder.counters
    assert counters.malformed == {"bad json": 2, "bad value": 1}
    assert counters.gap_ranges == [(0, 2, 3)]  # the trade that could not be read is missing
