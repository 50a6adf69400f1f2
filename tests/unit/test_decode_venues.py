"""What each venue's messages become: order references resolved, gaps found, duplicates dropped, refusals counted."""

from __future__ import annotations

import struct
from datetime import date
from typing import Any

import numpy as np
import pytest

from shm.errors import BadArgument
from shm.layout import NO_INSTRUMENT, RECORD, Action, Flag, RecordType, Side, StatusCode, concatenate, empty
from workers.decoders._binance import BinanceDecoder
from workers.decoders._coinbase import CoinbaseDecoder, parse_time
from workers.decoders._dbn import DbnDecoder, DbnReader, DbnSymbols
from workers.decoders._decoder import NativeDecoder
from workers.decoders._iex import IexDecoder
from workers.decoders._itch import ItchDecoder, midnight_ns
from workers.decoders.protocol import FRAME, many_frames, one_frame


class Names:
    """An intern() that keeps what it was asked for, and refuses some names."""

    def __init__(self, refused: tuple[str, ...] = ()) -> None:
        self.numbers: dict[str, int] = {}
        self.calls: list[str] = []
        self._refused = refused

    def __call__(self, name: str) -> int:
        self.calls.append(name)
        if name in self._refused:
            raise BadArgument(name)
        return self.numbers.setdefault(name, len(self.numbers))


def drain(decoder: NativeDecoder, messages: list[bytes], *, ts_receive: int = 10, size: int = 64) -> np.ndarray:
    decoder.feed(*many_frames(messages, [ts_receive] * len(messages)))
    batches = [empty(0)]
    while True:
        out = empty(size)
        count = decoder.decode(out)
        if not count:
            return concatenate(batches)
        batches.append(out[:count])


def shown(records: np.ndarray) -> list[tuple[Any, ...]]:
    """(type, side, price, size, action or None) of trades and levels."""
    found: list[tuple[Any, ...]] = []
    for record in records:
        kind = RecordType(record["record_type"])
        action = Action(record["action"]) if kind == RecordType.LEVEL2 else None
        found.append((kind, Side(record["side"]), float(record["price"]), float(record["size"]), action))
    return found


# ---- ITCH ---------------------------------------------------------------------------------------------------------

STOCK = b"AAPL    "


def itch(kind: bytes, body: bytes, ns: int = 5, locate: int = 1) -> bytes:
    return kind + struct.pack(">HH", locate, 0) + ns.to_bytes(6, "big") + body


def blocks(*messages: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(message)) + message for message in messages)


def add(reference: int, side: bytes = b"B", shares: int = 100, price: int = 1_500_000, kind: bytes = b"A") -> bytes:
    tail = b"MPID" if kind == b"F" else b""
    return itch(kind, struct.pack(">QcI8sI", reference, side, shares, STOCK, price) + tail)


def packet(first: int, *messages: bytes, session: bytes = b"SESSION001") -> bytes:
    return session + struct.pack(">QH", first, len(messages)) + blocks(*messages)


def test_itch_orders_are_followed_through_their_lives() -> None:
    decoder = ItchDecoder(Names(), packets=False)
    records = drain(
        decoder,
        [
            blocks(
                add(1),
                add(2, b"S", 50, 1_510_000, b"F"),
                itch(b"E", struct.pack(">QIQ", 1, 30, 901)),
                itch(b"C", struct.pack(">QIQcI", 2, 10, 902, b"Y", 1_505_000)),
                itch(b"C", struct.pack(">QIQcI", 2, 10, 903, b"N", 1_505_000)),
                itch(b"X", struct.pack(">QI", 1, 20)),
                itch(b"U", struct.pack(">QQII", 1, 3, 70, 1_490_000)),
                itch(b"D", struct.pack(">Q", 3)),
                itch(b"E", struct.pack(">QIQ", 2, 30, 904)),
            )
        ],
    )
    level, trade = RecordType.LEVEL2, RecordType.TRADE
    assert shown(records) == [
        (level, Side.BUY, 150.0, 100.0, Action.ADD),
        (level, Side.SELL, 151.0, 50.0, Action.ADD),
        (level, Side.BUY, 150.0, 70.0, Action.EXECUTE),
        (trade, Side.SELL, 150.0, 30.0, None),
        (level, Side.SELL, 151.0, 40.0, Action.EXECUTE),
        (trade, Side.BUY, 150.5, 10.0, None),
        (level, Side.SELL, 151.0, 30.0, Action.EXECUTE),
        (level, Side.BUY, 150.0, 50.0, Action.MODIFY),
        (level, Side.BUY, 150.0, 0.0, Action.DELETE),
        (level, Side.BUY, 149.0, 70.0, Action.ADD),
        (level, Side.BUY, 149.0, 0.0, Action.DELETE),
        (level, Side.SELL, 151.0, 0.0, Action.EXECUTE),
        (trade, Side.BUY, 151.0, 30.0, None),
    ]
    assert records["source_sequence"].tolist() == [1, 2, 1, 901, 2, 902, 2, 1, 1, 3, 3, 2, 904]
    last = (records["flags"] & Flag.LAST_OF_BATCH != 0).tolist()
    assert last == [True, True, False, True, False, True, True, True, False, True, True, False, True]
    assert decoder.live_orders == 0
    assert decoder.counters.malformed == {}


def test_itch_trades_without_an_order_crosses_and_breaks() -> None:
    decoder = ItchDecoder(Names(), packets=False)
    records = drain(
        decoder,
        [
            blocks(
                itch(b"P", struct.pack(">QcI8sIQ", 0, b"B", 25, STOCK, 1_234_500, 77)),
                itch(b"Q", struct.pack(">Q8sIQc", 5_000_000_000, STOCK, 1_200_000, 78, b"O")),
                itch(b"Q", struct.pack(">Q8sIQc", 0, STOCK, 0, 79, b"C")),
                itch(b"B", struct.pack(">Q", 77)),
                itch(b"B", struct.pack(">Q", 77), locate=9),
            )
        ],
    )
    assert records["trade_id"].tolist() == [77, 78, 77]
    assert records["size"].tolist() == [25, 5e9, 0]
    assert records["condition"].tolist() == [b"", b"O", b""]
    assert records["flags"][2] & Flag.CORRECTED
    assert np.isnan(records["price"][2])
    assert decoder.counters.malformed == {"no symbol": 1}


def test_itch_orders_that_were_never_added_are_counted_and_make_no_record() -> None:
    decoder = ItchDecoder(Names(), packets=False)
    messages = [itch(b"D", struct.pack(">Q", 1)), itch(b"U", struct.pack(">QQII", 1, 2, 3, 4))]
    assert len(drain(decoder, [blocks(*messages)])) == 0
    assert decoder.counters.malformed == {"unknown order": 2}


def test_itch_locate_codes_are_learned_once_and_taught_anew_by_the_directory() -> None:
    names = Names()
    directory = struct.pack(">8s", b"MSFT    ") + bytes(20)
    records = drain(
        ItchDecoder(names, packets=False), [blocks(add(1), add(2), itch(b"R", directory), itch(b"A", add(3)[11:]))]
    )
    assert names.calls == ["AAPL", "MSFT"]
    assert records["instrument_id"].tolist() == [0, 0, 1]


def test_moldudp64_gaps_are_records_and_duplicates_are_dropped() -> None:
    names = Names()
    decoder = ItchDecoder(names)
    records = drain(
        decoder,
        [
            packet(100, add(1), add(2)),
            packet(100, add(1), add(2)),  # the other line of an A/B pair
            packet(101, add(2), add(3)),  # overlaps
            packet(105, add(4)),
            packet(106),  # heartbeat
            packet(1, add(5), session=b"SESSION002"),
            packet(108),  # a heartbeat reveals a gap as well
            packet(108, add(6)),
        ],
    )
    kinds = records["record_type"].tolist()
    level, status = int(RecordType.LEVEL2), int(RecordType.STATUS)
    assert kinds == [level, level, level, status, level, level, status, level]
    gaps = records[records["record_type"] == status]
    assert set(gaps["code"]) == {StatusCode.GAP}
    assert set(gaps["instrument_id"]) == {NO_INSTRUMENT}
    assert list(zip(gaps["from_sequence"].tolist(), gaps["to_sequence"].tolist(), strict=True)) == [
        (103, 105),
        (106, 108),
    ]
    assert (records["flags"] & Flag.GAP_BEFORE != 0).tolist() == [False] * 4 + [True, False, False, True]
    counters = decoder.counters
    assert (counters.duplicates, counters.gaps, counters.missing, counters.heartbeats) == (3, 2, 4, 2)


def test_itch_times_are_those_of_the_session_day_in_new_york() -> None:
    ns = 9 * 3600 * 10**9 + 7
    message = itch(b"A", add(1)[11:], ns)
    winter = midnight_ns(date(2019, 1, 30))
    assert winter == int(np.datetime64("2019-01-30T05:00", "ns").astype(np.int64))
    assert midnight_ns(date(2019, 7, 1)) == int(np.datetime64("2019-07-01T04:00", "ns").astype(np.int64))
    given = drain(ItchDecoder(Names(), packets=False, session_date=date(2019, 1, 30)), [blocks(message)])
    assert given["ts_event"][0] == winter + ns
    received = winter + ns + 1000
    followed = drain(ItchDecoder(Names()), [packet(1, message)], ts_receive=received)
    assert followed["ts_event"][0] == winter + ns
    clockless = drain(ItchDecoder(Names()), [packet(1, message)], ts_receive=0)
    assert clockless["ts_event"][0] == ns


def test_itch_messages_of_wrong_length_or_type_are_counted_and_the_rest_is_read() -> None:
    decoder = ItchDecoder(Names())
    records = drain(decoder, [packet(1, add(1)[:-1], b"", b"~odd", add(2)) + b"xx", b"short", packet(5, add(3))[:-4]])
    assert records["source_sequence"].tolist() == [2]
    assert decoder.counters.malformed == {"truncated": 3, "bad length": 1, "unknown type": 1, "trailing bytes": 1}


# ---- IEX ----------------------------------------------------------------------------------------------------------


def segment(first: int, *messages: bytes, session: int = 1) -> bytes:
    payload = b"".join(struct.pack("<H", len(message)) + message for message in messages)
    return struct.pack("<BBHIIHHqqq", 1, 0, 0x8003, 1, session, len(payload), len(messages), 0, first, 5) + payload


def iex_trade(trade_id: int, kind: bytes = b"T", symbol: bytes = b"ZIEXT   ", flags: int = 0) -> bytes:
    return kind + struct.pack("<Bq8sIqq", flags, 123, symbol, 100, 990_500, trade_id)


def test_iex_gaps_and_duplicates_are_found_by_sequence() -> None:
    decoder = IexDecoder(Names())
    records = drain(
        decoder,
        [
            segment(1, iex_trade(1)),
            segment(1, iex_trade(1)),
            segment(4, iex_trade(4)),
            segment(1, iex_trade(9), session=2),
        ],
    )
    assert records["record_type"].tolist() == [RecordType.TRADE, RecordType.STATUS, RecordType.TRADE, RecordType.TRADE]
    assert (records["from_sequence"][1], records["to_sequence"][1]) == (2, 4)
    assert records["flags"][2] & Flag.GAP_BEFORE
    assert decoder.counters.duplicates == 1


def test_iex_sale_conditions_and_official_prices_keep_what_the_venue_says() -> None:
    official = b"X" + struct.pack("<cq8sq", b"M", 5, b"ZIEXT   ", 1_000_000)
    records = drain(IexDecoder(Names()), [segment(1, iex_trade(1, flags=0xA0), iex_trade(1, b"B"), official)])
    assert records["condition"].tolist() == [b"FI", b"", b"M"]
    assert records["conditions"][0] == 0xA0
    assert (records["flags"] & Flag.CORRECTED != 0).tolist() == [False, True, False]
    assert records["record_type"].tolist() == [RecordType.TRADE, RecordType.TRADE, RecordType.TICK]
    assert (records["price"][2], records["size"][2]) == (100.0, 0.0)


def test_refused_symbols_are_counted_with_every_message_and_asked_for_once() -> None:
    names = Names(refused=("BAD",))
    decoder = IexDecoder(names)
    bad, binary = iex_trade(1, symbol=b"BAD     "), iex_trade(2, symbol=b"\xff\0\1     ")
    records = drain(decoder, [segment(1, bad, bad, binary, iex_trade(3))])
    assert records["trade_id"].tolist() == [3]
    assert decoder.counters.malformed == {"bad symbol": 3}
    assert names.calls == ["BAD", "ZIEXT"]


# ---- the shell ----------------------------------------------------------------------------------------------------


def test_feed_before_the_last_batch_is_done_with_is_refused() -> None:
    decoder = IexDecoder(Names())
    batch = one_frame(segment(1, iex_trade(1), iex_trade(2)))
    decoder.feed(*batch)
    assert decoder.decode(empty(1)) == 1
    with pytest.raises(RuntimeError, match="before decode"):
        decoder.feed(*batch)
    assert decoder.decode(empty(1)) == 1
    decoder.feed(*batch)


def test_one_message_at_a_time_is_a_batch_of_one() -> None:
    messages = [segment(1, iex_trade(1), iex_trade(2)), b"", segment(3, iex_trade(3))]
    decoder, single = IexDecoder(Names()), IexDecoder(Names())
    whole = drain(decoder, messages)
    found = []
    for message in messages:
        single.feed_message(message, 10)
        out = empty(1)
        while single.decode(out):
            found.append(out.tobytes())
    assert b"".join(found) == whole.tobytes()
    assert single.counters == decoder.counters


def test_arrays_that_hold_no_records_are_refused() -> None:
    decoder = IexDecoder(Names())
    with pytest.raises(BadArgument):
        decoder.decode(np.zeros(100, np.uint8))
    with pytest.raises(BadArgument):
        decoder.decode(np.zeros(0, RECORD))
    with pytest.raises(BadArgument):
        decoder.feed(b"", np.zeros(1, np.uint8))


def test_a_frame_that_lies_outside_its_buffer_is_counted() -> None:
    frames = np.zeros(2, FRAME)
    frames["offset"], frames["size"] = (2**63, 5), (10, 2**31)
    for decoder in (
        IexDecoder(Names()),
        ItchDecoder(Names()),
        DbnDecoder(Names()),
        BinanceDecoder(Names()),
        CoinbaseDecoder(Names()),
    ):
        decoder.feed(b"0123456789", frames)
        assert decoder.decode(empty(4)) == 0
        assert decoder.counters.malformed == {"truncated": 2}


# ---- DBN ----------------------------------------------------------------------------------------------------------


def dbn(rtype: int, body: bytes, number: int = 118, ts_event: int = 1000) -> bytes:
    return struct.pack("<BBHIQ", (16 + len(body)) // 4, rtype, 1, number, ts_event) + body


def mbo(reference: int, action: bytes, side: bytes = b"B", size: int = 10, flags: int = 128) -> bytes:
    return dbn(0xA0, struct.pack("<QqIBBccQiI", reference, 10**9, size, flags, 0, action, side, 2000, 0, 1))


def test_dbn_mbo_keeps_what_is_left_of_each_order() -> None:
    decoder = DbnDecoder(Names())
    records = drain(
        decoder,
        [
            mbo(5, b"A"),
            mbo(5, b"T", size=4, flags=0),
            mbo(5, b"F", size=4, flags=0),
            mbo(5, b"C", size=4),
            mbo(5, b"M", size=3),
            mbo(5, b"C", size=3),
            mbo(6, b"C"),
            mbo(0, b"R", b"N"),
        ],
    )
    level = RecordType.LEVEL2
    assert shown(records)[:5] == [
        (level, Side.BUY, 1.0, 10.0, Action.ADD),
        (RecordType.TRADE, Side.BUY, 1.0, 4.0, None),
        (level, Side.BUY, 1.0, 6.0, Action.MODIFY),
        (level, Side.BUY, 1.0, 3.0, Action.MODIFY),
        (level, Side.BUY, 1.0, 0.0, Action.DELETE),
    ]
    assert records["flags"][5] & Flag.INCOMPLETE  # of order 6 nothing is known but that it was there
    assert np.isnan(records["size"][5])
    assert records["action"][6] == Action.CLEAR
    assert set(records["venue"]) == {b"GLBX"}
    assert decoder.counters.messages == {"mbo": 8}


def test_dbn_instrument_ids_mean_the_symbol_of_their_day() -> None:
    symbols = DbnSymbols()
    day = 86_400 * 10**9
    symbols._intervals[118] = [(0, day - 1, "OLD"), (day, 2 * day, "NEW")]
    names = Names()
    trade = struct.pack("<qIccBBQiI", 10**9, 1, b"T", b"A", 0, 0, 0, 0, 1)
    bodies = [trade[:16] + struct.pack("<Q", ts) + trade[24:] for ts in (5, day + 5, day + 6, 7)]
    records = drain(DbnDecoder(names, symbols), [dbn(0, body) for body in bodies] + [dbn(0, bodies[0], number=3)])
    by_id = {number: name for name, number in names.numbers.items()}
    assert [by_id[int(number)] for number in records["instrument_id"]] == ["OLD", "NEW", "NEW", "OLD", "id-3"]


def test_dbn_symbols_that_the_engine_cannot_hold_get_names_that_it_can() -> None:
    names = Names(refused=("X" * 40,))
    symbols = DbnSymbols()
    symbols.set(1, "X" * 40)
    symbols.set(2, "SPX   240119C04800000")
    trade = struct.pack("<qIccBBQiI", 10**9, 1, b"T", b"A", 0, 0, 5, 0, 1)
    drain(DbnDecoder(names, symbols), [dbn(0, trade, number=1), dbn(0, trade, number=2)])
    assert sorted(names.numbers) == ["SPX_240119C04800000", "id-1"]


def test_dbn_damage_is_a_framing_error_and_a_wrong_header_too() -> None:
    good = mbo(1, b"A")
    reader = DbnReader(fragment=True)
    batch = reader.feed(good + good + b"\x01" + bytes(30))
    assert int(batch.frames["size"][0]) == 2 * len(good)
    assert reader.error is not None
    assert reader.error.offset == 2 * len(good)
    headed = DbnReader()
    headed.feed(b"DBN\x09" + bytes(10))
    assert headed.error is not None


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
