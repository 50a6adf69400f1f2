"""Cboe PITCH: what each message becomes, what a unit clears, where times come from, and that damage is counted."""

from __future__ import annotations

import math
import random
import struct
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType, Side, StatusCode
from tests.decoding import Names, drain
from workers.decoders._pitch import PitchDecoder, is_pitch
from workers.decoders.capture import describe_capture
from workers.decoders.detection import protocol_of
from workers.errors import SettingsError

SECOND = 1_000_000_000
# 2023-08-22 09:30:00 in New York, and 34200 seconds before it, its midnight.
OPEN = 1_692_711_000 * SECOND
MIDNIGHT = OPEN - 34_200 * SECOND
BUY, SELL = b"B", b"S"


def message(kind: int, layout: str, *values: Any, more: bytes = b"") -> bytes:
    body = struct.pack("<" + layout, *values) + more
    return bytes((len(body) + 2, kind)) + body


def packet(first: int, *messages: bytes, unit: int = 1, count: int | None = None) -> bytes:
    body = b"".join(messages)
    return struct.pack("<HBBI", 8 + len(body), len(messages) if count is None else count, unit, first) + body


def second(seconds: int = 34_200) -> bytes:
    return message(0x20, "I", seconds)


def add(reference: int, side: bytes = BUY, shares: int = 100, price: int = 105_000, symbol: bytes = b"AAPL") -> bytes:
    return message(0x21, "IQcI6sqB", 7, reference, side, shares, symbol.ljust(6), price, 1)


def read(decoder: PitchDecoder, *packets: bytes, at: int = OPEN + 5_000, size: int = 64) -> np.ndarray:
    return drain(decoder, list(packets), ts_receive=at, size=size)


def shown(records: np.ndarray) -> list[tuple[Any, ...]]:
    """(type, side, price, size, action or None, source sequence) of trades and levels."""
    found: list[tuple[Any, ...]] = []
    for record in records:
        kind = RecordType(record["record_type"])
        action = Action(record["action"]) if kind == RecordType.LEVEL2 else None
        numbers = float(record["price"]), float(record["size"])
        found.append((kind, Side(record["side"]), *numbers, action, int(record["source_sequence"])))
    return found


LEVEL, TRADE = RecordType.LEVEL2, RecordType.TRADE


def test_orders_are_followed_through_their_lives() -> None:
    names = Names()
    decoder = PitchDecoder(names)
    records = read(
        decoder,
        packet(
            1,
            second(),
            add(1, BUY, 1_000, 1_234_567),
            message(0x22, "IQcH6sHB", 8, 2, SELL, 300, b"AAPL  ", 12_350, 1),
            message(0x2F, "IQcI8sqB4sc", 9, 3, SELL, 50, b"ZVZZT   ", 99_999, 1, b"MPID", b"C"),
        ),
        packet(
            5,
            message(0x23, "IQIQ", 10, 1, 100, 71),
            message(0x24, "IQIIQq", 11, 2, 100, 150, 72, 1_234_900),
            message(0x25, "IQI", 12, 1, 100_000, more=b"grown"),
            message(0x26, "IQH", 13, 2, 50),
            message(0x27, "IQIqB", 14, 2, 70_000, 1_235_100, 3),
            message(0x28, "IQHHB", 15, 2, 500, 12_351, 1),
            message(0x29, "IQ", 16, 2),
        ),
    )
    assert shown(records) == [
        (LEVEL, Side.BUY, 123.4567, 1_000, Action.ADD, 1),
        (LEVEL, Side.SELL, 123.5, 300, Action.ADD, 2),
        (LEVEL, Side.SELL, 9.9999, 50, Action.ADD, 3),
        (LEVEL, Side.BUY, 123.4567, 900, Action.EXECUTE, 1),
        (TRADE, Side.SELL, 123.4567, 100, None, 71),
        (LEVEL, Side.SELL, 123.5, 150, Action.EXECUTE, 2),
        (TRADE, Side.BUY, 123.49, 100, None, 72),
        (LEVEL, Side.BUY, 123.4567, 0, Action.DELETE, 1),
        (LEVEL, Side.SELL, 123.5, 100, Action.MODIFY, 2),
        (LEVEL, Side.SELL, 123.5, 0, Action.DELETE, 2),
        (LEVEL, Side.SELL, 123.51, 70_000, Action.ADD, 2),
        (LEVEL, Side.SELL, 123.51, 500, Action.MODIFY, 2),
        (LEVEL, Side.SELL, 123.51, 0, Action.DELETE, 2),
    ]
    offsets = [7, 8, 9, 10, 10, 11, 11, 12, 13, 14, 14, 15, 16]
    assert (records["ts_event"] - OPEN).tolist() == offsets
    assert list(names.numbers) == ["AAPL", "ZVZZT"]
    assert records["instrument_id"].tolist() == [0, 0, 1, *([0] * 10)]
    ends = [i for i, record in enumerate(records) if record["flags"] & Flag.LAST_OF_BATCH]
    assert ends == [0, 1, 2, 4, 6, 7, 8, 10, 11, 12]
    assert set(records["venue"]) == {b"CBOE"}
    assert decoder.counters.malformed == {}
    assert decoder.live_orders == 1
    assert decoder.counters.messages == {
        "time": 1, "add order long": 1, "add order short": 1, "add order expanded": 1, "order executed": 1,
        "order executed at price": 1, "reduce size long": 1, "reduce size short": 1, "modify order long": 1,
        "modify order short": 1, "delete order": 1,
    }  # fmt: skip


def test_trades_without_a_shown_order() -> None:
    decoder = PitchDecoder(Names())
    records = read(
        decoder,
        packet(
            1,
            message(0x2A, "IQcI6sqQ", 1, 9, BUY, 100_000, b"AAPL  ", 1_500_050, 501),
            message(0x2B, "IQcH6sHQ", 2, 9, BUY, 200, b"AAPL  ", 15_001, 502),
            message(0x30, "IQcI8sqQ", 3, 9, BUY, 300, b"ZVZZT   ", 10_000, 503),
        ),
    )
    assert shown(records) == [
        (TRADE, Side.NONE, 150.005, 100_000, None, 501),
        (TRADE, Side.NONE, 150.01, 200, None, 502),
        (TRADE, Side.NONE, 1.0, 300, None, 503),
    ]
    assert records["trade_id"].tolist() == [501, 502, 503]
    assert all(records["flags"] & Flag.LAST_OF_BATCH)


def test_messages_that_have_no_record_are_counted_by_their_names() -> None:
    decoder = PitchDecoder(Names())
    head = struct.pack("<I8s", 1, b"AAPL    ")
    others = [
        message(0x2C, "IQ", 1, 501), message(0x2D, "I", 1),
        bytes((47, 0x95)) + head + bytes(33), bytes((27, 0x96)) + head + bytes(13), bytes((15, 0x98)) + head + b"B",
    ]  # fmt: skip
    assert len(read(decoder, packet(1, *others))) == 0
    assert decoder.counters.messages == {
        "trade break": 1, "end of session": 1, "auction update": 1, "auction summary": 1,
        "retail price improvement": 1,
    }  # fmt: skip
    assert decoder.counters.malformed == {}


def test_options_have_the_name_that_a_mapping_gives_their_feed_symbol() -> None:
    names = Names()
    decoder = PitchDecoder(names)

    def mapping(osi: bytes) -> bytes:
        return message(0x2E, "6s21sc8s", b"010GaZ", osi.ljust(21), b"N", b"SPY     ")

    records = read(
        decoder,
        packet(1, add(1, symbol=b"010GaZ"), mapping(b"SPY   230915C00450000"), add(2, symbol=b"010GaZ")),
        packet(4, mapping(b"SPY   230915C00450000"), add(3, symbol=b"010GaZ"), message(0x29, "IQ", 1, 1)),
        packet(7, mapping(b"SPY   230915P00450000"), add(4, symbol=b"010GaZ")),
    )
    known = ["010GaZ", "SPY_230915C00450000", "SPY_230915P00450000"]
    assert list(names.numbers) == known
    assert [known[i] for i in records["instrument_id"]] == [known[0], known[1], known[1], known[0], known[2]]
    assert decoder.counters.messages["symbol mapping"] == 3


def test_a_unit_clear_empties_the_books_of_that_unit_alone() -> None:
    names = Names()
    decoder = PitchDecoder(names, book=True)
    mine = [add(i, BUY if i % 2 else SELL, 100, 100_000 + i, b"AAPL" if i % 3 else b"MSFT") for i in range(1, 400)]
    other = [add(i, BUY, 100, 50_000, b"ZVZZT") for i in range(1_000, 1_400)]
    for i, one in enumerate(zip(mine, other[: len(mine)], strict=True)):
        read(decoder, packet(1 + i, one[0], unit=1), packet(1 + i, one[1], unit=2))
    assert decoder.live_orders == 399 * 2
    records = read(decoder, packet(400, message(0x97, "I", 5), unit=1))
    assert decoder.live_orders == 399
    levels = records[records["record_type"] == RecordType.LEVEL2]
    assert set(levels["action"]) == {Action.CLEAR}
    assert sorted(levels["instrument_id"]) == sorted((names.numbers["AAPL"], names.numbers["MSFT"]))
    quotes = records[records["record_type"] == RecordType.QUOTE]
    assert len(quotes) == 2
    assert np.isnan(quotes["bid"]).all()
    assert np.isnan(quotes["ask"]).all()
    # The other unit's orders are all still there, and a new one is the only one in its book.
    read(decoder, *[packet(400 + i, message(0x29, "IQ", 1, 1_000 + i), unit=2) for i in range(399)])
    assert decoder.live_orders == 0
    assert decoder.counters.malformed == {}
    again = read(decoder, packet(401, add(5), unit=1))[-1]
    assert again["record_type"] == RecordType.QUOTE
    assert (again["bid"], again["bid_size"], again["bid_count"]) == (10.5, 100, 1)


# ---- numbering ----------------------------------------------------------------------------------------------------


def test_each_unit_has_numbers_of_its_own_and_copies_are_dropped() -> None:
    decoder = PitchDecoder(Names())
    records = read(
        decoder,
        packet(5, add(1), add(2), unit=1),
        packet(100, add(3), unit=2),
        packet(5, add(1), add(2), unit=1),  # a copy
        packet(6, add(2), add(4), unit=1),  # half of it is
        packet(8, unit=1),  # a heartbeat: nothing is missing
        packet(0, unit=1),
        packet(10, unit=1),  # and this one says that 8 and 9 were sent
        packet(10, add(5), unit=1),
        packet(105, add(6), unit=2),
    )
    levels = records[records["record_type"] == RecordType.LEVEL2]
    assert levels["source_sequence"].tolist() == [1, 2, 3, 4, 5, 6]
    assert [bool(flags & Flag.GAP_BEFORE) for flags in levels["flags"]] == [False] * 4 + [True] * 2
    counters = decoder.counters
    assert (counters.duplicates, counters.heartbeats, counters.gaps, counters.missing) == (3, 3, 2, 6)
    assert [tuple(gap) for gap in counters.gap_ranges] == [(1, 8, 10), (2, 101, 105)]
    status = records[records["record_type"] == RecordType.STATUS]
    assert status["code"].tolist() == [StatusCode.GAP] * 2
    assert set(status["instrument_id"]) == {NO_INSTRUMENT}


def test_books_that_may_lack_orders_say_so_until_their_unit_is_cleared() -> None:
    decoder = PitchDecoder(Names(), book=True)

    def doubtful(*packets: bytes) -> list[bool]:
        records = read(decoder, *packets)
        quotes = records[records["record_type"] == RecordType.QUOTE]
        return [bool(flags & Flag.INCOMPLETE) for flags in quotes["flags"]]

    assert doubtful(packet(1, add(1))) == [False]
    assert doubtful(packet(9, add(2))) == [True]  # a gap before it
    assert doubtful(packet(1, add(3, symbol=b"IBM"), unit=2)) == [False]
    assert doubtful(packet(3, add(5, symbol=b"F"), unit=3)) == [True]  # joined late
    assert doubtful(packet(10, message(0x97, "I", 5)), packet(11, add(4))) == [False, False]


def test_a_unit_that_counts_from_below_after_silence_has_begun_a_new_day() -> None:
    decoder = PitchDecoder(Names())
    read(decoder, packet(1, second(), add(1), add(2)), at=OPEN)
    assert len(read(decoder, packet(1, second(), add(1), add(2)), at=OPEN + 3_000 * SECOND)) == 0
    records = read(decoder, packet(1, add(1, SELL)), at=OPEN + 86_400 * SECOND)
    assert [Action(one) for one in records["action"]] == [Action.CLEAR, Action.ADD]
    assert (records["ts_event"][1], decoder.live_orders) == (OPEN + 86_400 * SECOND + 7, 1)
    assert decoder.counters.gaps == 0


# ---- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hours_from_utc", [-5.0, -4.0, 0.0, 1.0, 5.75, 9.0, 11.0])
def test_seconds_count_from_the_midnight_that_the_receive_time_tells(hours_from_utc: float) -> None:
    midnight = MIDNIGHT - 4 * 3_600 * SECOND - round(hours_from_utc * 3_600) * SECOND
    event = midnight + 30_000 * SECOND + 7
    for late in (-300 * SECOND, 0, 5_000, 300 * SECOND):
        records = read(PitchDecoder(Names()), packet(1, second(30_000), add(1)), at=event + late)
        assert records["ts_event"].tolist() == [event]


def test_before_its_first_second_a_unit_has_the_one_next_to_the_receive_time() -> None:
    late = message(0x21, "IQcI6sqB", 999_997_000, 1, BUY, 100, b"AAPL  ", 105_000, 1)
    records = read(PitchDecoder(Names()), packet(1, late, add(2)), at=OPEN + 105_815)
    assert (records["ts_event"] - OPEN).tolist() == [-3_000, 7]


def test_after_a_gap_the_second_is_told_anew() -> None:
    decoder = PitchDecoder(Names())
    read(decoder, packet(1, second(), add(1)))
    assert read(decoder, packet(3, add(2)), at=OPEN + 3 * SECOND)["ts_event"].tolist() == [OPEN + 7]
    lost = read(decoder, packet(9, add(3)), at=OPEN + 3 * SECOND)
    assert lost["ts_event"].tolist() == [OPEN + 3 * SECOND, OPEN + 3 * SECOND + 7]


def test_without_a_clock_seconds_count_from_option_date_or_1970() -> None:
    def times(decoder: PitchDecoder) -> list[int]:
        found: list[int] = read(decoder, packet(1, add(1), second(), add(2)), at=3)["ts_event"].tolist()
        return found

    assert times(PitchDecoder(Names())) == [3, 34_200 * SECOND + 7]
    assert times(PitchDecoder(Names(), session_date=date(2023, 8, 22))) == [3, OPEN + 7]


# ---- damage -------------------------------------------------------------------------------------------------------


def test_wrong_lengths_types_and_values_are_counted_and_the_rest_is_read() -> None:
    decoder = PitchDecoder(Names())
    records = read(
        decoder,
        b"",
        packet(1, add(1))[:7],
        packet(1, add(1))[:-1],
        struct.pack("<HBBI", 7, 0, 1, 1),
        packet(1, add(1), count=2),
        packet(3, b"\x01\x21", add(2)),
        packet(4, b"\x09\x21"),
        packet(5, b"\x06\x21" + bytes(4), b"\x06\xee" + bytes(4)),
        packet(7, add(3, b"X"), add(3, shares=0), add(3, symbol=b"\xff")),
        packet(10, add(4)) + b"more",
        packet(11, add(5), add(6), count=1),
        packet(12, message(0x29, "IQ", 1, 77)),
    )
    assert decoder.counters.malformed == {
        "truncated": 5, "bad length": 2, "unknown type": 1, "bad header": 1, "bad symbol": 1, "bad value": 2,
        "trailing bytes": 2, "unknown order": 1,
    }  # fmt: skip
    levels = records[records["record_type"] == RecordType.LEVEL2]
    assert levels["source_sequence"].tolist() == [1, 4, 5]
    assert decoder.counters.messages["0xee"] == 1


def test_more_orders_than_allowed_are_counted() -> None:
    decoder = PitchDecoder(Names(), max_orders=2)
    read(decoder, packet(1, add(1), add(2), add(3)))
    assert (decoder.live_orders, decoder.counters.malformed) == (2, {"no memory": 1})


def test_what_is_pitch_and_what_is_another_feed_of_the_same_framing() -> None:
    assert protocol_of(packet(1, second(), add(1))) == "pitch"
    assert protocol_of(packet(1, add(1))[:-1]) == ""
    assert not is_pitch(b"")
    assert not is_pitch(packet(1, second()))  # Cboe TOP begins its packets like that, too
    assert not is_pitch(packet(1, b"\x09\x21" + bytes(7)))
    assert not is_pitch(packet(1, add(1), count=2))
    assert not is_pitch(packet(1, add(1), add(2), count=1))


def test_seen_in_a_capture_and_refused_where_it_cannot_be(samples: Path) -> None:
    path = samples / "pcap/Cboe/Byx.Equities.DepthOfBook.Pitch.v2.41/AddOrderShortMessage.pcap"
    summary = describe_capture(path, options={"venue": "BATY"})
    assert summary["format"] == "Cboe PITCH in pcap"
    assert describe_capture(path, options={"protocol": "pitch", "port": 30215})["messages"]["add order short"] == 4
    with pytest.raises(SettingsError, match="arbitrate"):
        describe_capture(path, options={"arbitrate": True})


# ---- books, cuts and noise ----------------------------------------------------------------------------------------


class Venue:
    """Says messages, and keeps the orders the slow way."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.orders: dict[int, tuple[bytes, int, int]] = {}  # reference -> side, price in cents, shares
        self.best: list[tuple[float, float, int, float, float, int]] = []
        self.messages: list[bytes] = []
        self.last = 0

    def side(self, side: bytes, best: Callable[[list[int]], int]) -> tuple[float, float, int]:
        prices = [price for one, price, _ in self.orders.values() if one == side]
        if not prices:
            return math.nan, 0.0, 0
        sizes = [shares for one, price, shares in self.orders.values() if (one, price) == (side, best(prices))]
        return best(prices) / 100, float(sum(sizes)), len(sizes)

    def step(self) -> None:
        dice = self.dice
        cents, shares = dice.randrange(1_000, 1_020), dice.randrange(1, 900)
        if not self.orders or dice.random() < 0.4:
            self.last += 1
            side = dice.choice((BUY, SELL))
            said = add(self.last, side, shares, cents * 100)
            if dice.random() < 0.5:
                said = message(0x22, "IQcH6sHB", 1, self.last, side, shares, b"AAPL  ", cents, 1)
            self.orders[self.last] = side, cents, shares
        else:
            reference = dice.choice(list(self.orders))
            side, price, had = self.orders.pop(reference)
            gone, kind = dice.randrange(1, had + 1), dice.randrange(0x23, 0x2A)
            now = (side, price, had - gone)
            if kind == 0x23:
                said = message(kind, "IQIQ", 1, reference, gone, 3)
            elif kind == 0x24:
                said = message(kind, "IQIIQq", 1, reference, gone, had - gone, 3, 1)
            elif kind in (0x25, 0x26):
                said = message(kind, "IQI" if kind == 0x25 else "IQH", 1, reference, gone)
            elif kind == 0x27:
                said, now = message(kind, "IQIqB", 1, reference, shares, cents * 100, 1), (side, cents, shares)
            elif kind == 0x28:
                said, now = message(kind, "IQHHB", 1, reference, shares, cents, 1), (side, cents, shares)
            else:
                said, now = message(kind, "IQ", 1, reference), (side, price, 0)
            if now[2]:
                self.orders[reference] = now
        self.messages.append(said)
        self.best.append((*self.side(BUY, max), *self.side(SELL, min)))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), room=st.integers(1, 5), per_packet=st.integers(1, 4))
def test_quotes_are_those_of_the_orders(seed: int, room: int, per_packet: int) -> None:
    venue = Venue(random.Random(seed))
    for _ in range(150):
        venue.step()
    decoder = PitchDecoder(Names(), book=True)
    starts = range(0, len(venue.messages), per_packet)
    records = read(decoder, *(packet(1 + at, *venue.messages[at : at + per_packet]) for at in starts), size=room)
    wanted = [(math.nan, 0.0, 0) * 2]
    for best in venue.best:
        if str(best) != str(wanted[-1]):
            wanted.append(best)
    quotes = records[records["record_type"] == RecordType.QUOTE]
    fields = ("bid", "bid_size", "bid_count", "ask", "ask_size", "ask_count")
    assert [str(tuple(quote[name].item() for name in fields)) for quote in quotes] == [str(one) for one in wanted[1:]]
    assert decoder.errors == 0
    assert decoder.live_orders == len(venue.orders)
    assert sum(bool(flags & Flag.LAST_OF_BATCH) for flags in records["flags"]) == len(venue.messages)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_damage_is_counted_and_any_size_of_array_gives_the_same(seed: int) -> None:
    dice = random.Random(seed)
    venue = Venue(dice)
    packets = []
    for first in range(1, 60, 3):
        for _ in range(3):
            venue.step()
        whole = bytearray(packet(first, *venue.messages[-3:], unit=dice.randrange(1, 3)))
        for _ in range(dice.choice((0, 0, 1, 5))):
            whole[dice.randrange(len(whole))] = dice.choice((0, 1, 0x97, 0xFF, dice.randrange(256)))
        packets.append(bytes(whole[: dice.randrange(len(whole) + 1)] if dice.random() < 0.2 else whole))
    found = []
    for size in (1, 3, 4096):
        decoder = PitchDecoder(Names(), book=True)
        found.append((read(decoder, *packets, size=size).tobytes(), decoder.counters))
    assert found[0] == found[1] == found[2]
    counters = found[0][1]
    assert counters.frames == len(packets)
