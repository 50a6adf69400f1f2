"""What messages of ITCH and IEX become: orders resolved, gaps found, duplicates dropped; the shell of all decoders."""

from __future__ import annotations

import struct
from datetime import date

import numpy as np
import pytest

from shm.errors import BadArgument
from shm.layout import NO_INSTRUMENT, RECORD, Action, Flag, RecordType, Side, StatusCode, empty
from tests.decoding import Names, drain, shown
from workers.decoders._binance import BinanceDecoder
from workers.decoders._coinbase import CoinbaseDecoder
from workers.decoders._dbn import DbnDecoder
from workers.decoders._iex import IexDecoder
from workers.decoders._itch import ItchDecoder, midnight_ns
from workers.decoders.protocol import FRAME, one_frame

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
