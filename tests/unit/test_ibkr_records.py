"""What a feed of IBKR asks for and when, what TWS's numbers mean, and how its messages become records."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RECORD, Action, Flag, Side
from workers.errors import SettingsError
from workers.sources.ibkr_codes import CODES, Effect, effect_of, farm_of
from workers.sources.ibkr_records import CROSSED_HOLD_NS, HOLD_NS, Records, Unfit
from workers.sources.ibkr_streams import (
    HISTORICAL_MOST,
    HISTORICAL_WINDOW_NS,
    TICK_BY_TICK_GAP_NS,
    Pace,
    Stream,
    Way,
    generic_ticks,
    plan,
)

ROOT = Path(__file__).resolve().parent.parent.parent
NOW = 1_700_000_000 * 10**9
MS = 1_000_000


class Sink:
    """Records, and which streams were said to speak."""

    def __init__(self) -> None:
        self.rows: list[bytes] = []
        self.spoke: list[Stream] = []
        self.records = Records(3, 10, put=self.rows.append, alive=self.spoke.append)

    @property
    def array(self) -> np.ndarray:
        return np.frombuffer(b"".join(self.rows), RECORD)


def aggregate(*types: str, volumeless: bool = False) -> Stream:
    return Stream("AAPL", Way.AGGREGATE, list(types), 7, volumeless=volumeless)


# -- aggregate quotes


def test_both_sides_make_a_quote_at_once_and_one_side_waits() -> None:
    sink, stream = Sink(), aggregate("quote")
    records = sink.records
    records.price(stream, 1, 10.0, 1, NOW)
    assert records.quotes(NOW) == NOW + CROSSED_HOLD_NS  # there is no ask at all
    records.price(stream, 2, 11.0, 2, NOW + MS)
    assert records.quotes(NOW + MS) is None
    records.price(stream, 1, 10.5, 3, NOW + 300 * MS)
    assert records.quotes(NOW + 300 * MS) == NOW + 300 * MS + HOLD_NS
    assert len(sink.rows) == 1
    assert records.quotes(NOW + 300 * MS + HOLD_NS) is None
    # Crossed with one side alone: it waits longer, for the other one.
    records.price(stream, 1, 12.0, 4, NOW + 600 * MS)
    assert records.quotes(NOW + 600 * MS + HOLD_NS) == NOW + 600 * MS + CROSSED_HOLD_NS
    records.price(stream, 2, 13.0, 5, NOW + 650 * MS)
    assert records.quotes(NOW + 650 * MS) is None
    # It never comes: what stands there is told.
    records.price(stream, 1, 14.0, 6, NOW + 900 * MS)
    assert records.quotes(NOW + 900 * MS + CROSSED_HOLD_NS) is None
    found = sink.array
    assert found[["bid", "bid_size", "ask", "ask_size"]].tolist() == [
        (10.0, 1.0, 11.0, 2.0),
        (10.5, 3.0, 11.0, 2.0),
        (12.0, 4.0, 13.0, 5.0),
        (14.0, 6.0, 13.0, 5.0),
    ]
    assert found["ts_receive"].tolist() == [NOW + MS, NOW + 300 * MS, NOW + 650 * MS, NOW + 900 * MS]
    assert (found["ts_event"] == found["ts_receive"]).all()


def test_what_does_not_change_is_no_quote_and_nothing_is_no_sign_of_life() -> None:
    sink, stream = Sink(), aggregate("quote")
    records = sink.records
    for side in (1, 2):
        records.price(stream, side, -1, 0, NOW)
    assert records.quotes(NOW) is None
    assert sink.rows == sink.spoke == []
    for side, price in ((1, 10.0), (2, 11.0)):
        records.price(stream, side, price, 1, NOW)
    records.quotes(NOW)
    records.price(stream, 1, 10.0, 1, NOW + MS)
    records.size(stream, 0, 1, NOW + MS)
    records.size(stream, 5, 99, NOW + MS)  # of the last trade
    records.price(stream, 9, 8.0, 0, NOW + MS)  # yesterday's close
    assert records.quotes(NOW + 10**9) is None
    assert len(sink.rows) == 1


def test_two_moments_in_one_packet_are_two_quotes() -> None:
    sink, stream = Sink(), aggregate("quote")
    for bid in (10.0, 12.0, 9.0):
        sink.records.price(stream, 1, bid, 1, NOW)
        sink.records.size(stream, 0, bid, NOW)  # the size of a price comes once more, and may have changed by then
        sink.records.price(stream, 2, bid + 1, 2, NOW)
    sink.records.price(stream, 1, 8.0, 1, NOW)
    sink.records.price(stream, 1, 7.0, 1, NOW)
    sink.records.quotes(NOW + CROSSED_HOLD_NS)
    assert sink.array[["bid", "bid_size", "ask"]].tolist() == [
        (10.0, 10.0, 11.0),
        (12.0, 12.0, 13.0),
        (9.0, 9.0, 10.0),
        (8.0, 1.0, 10.0),
        (7.0, 1.0, 10.0),
    ]


def test_no_order_of_arrival_mixes_two_moments() -> None:
    """Moments of 250 ms, each of which may change bid, ask or both; the network splits them anywhere."""
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    sink, stream = Sink(), aggregate("quote")
    bid, ask, told = 100.0, 100.1, set()
    for moment in range(500):
        at = NOW + moment * 250 * MS
        step = dice.choice((-1, 1)) * dice.uniform(0.2, 5.0)
        sides = dice.choice(([1, 2], [2, 1])) if moment else [1, 2]
        bid, ask = round(bid + step, 2), round(ask + step, 2)
        told.add((bid, ask))
        for side in sides:
            at += dice.choice((0, dice.randrange(HOLD_NS)))
            sink.records.price(stream, side, bid if side == 1 else ask, 1 + moment, at)
            sink.records.quotes(at)
        sink.records.quotes(at + 200 * MS)
    found = sink.array
    assert len(found) == 500
    assert {(float(row["bid"]), float(row["ask"])) for row in found} == told
    assert (found["bid_size"] == found["ask_size"]).all()


def test_an_index_has_prints_of_its_last_price() -> None:
    sink = Sink()
    sink.records.price(aggregate("trade", volumeless=True), 4, 5000.5, 0, NOW)
    sink.records.price(aggregate("trade"), 4, 5000.5, 0, NOW)
    (row,) = sink.array
    assert (row["price"], row["size"], row["ts_event"]) == (5000.5, 0.0, NOW)


# -- prints, bars, books


@pytest.mark.parametrize("text", ["", "1;2", "x;1;2;3;4;true", "1;2;soon;3;4;true", f"1;2;{10**30};3;4;true"])
def test_a_print_that_can_not_be_read_makes_no_record(text: str) -> None:
    sink = Sink()
    with pytest.raises((Unfit, ValueError)):
        sink.records.volume_print(aggregate("tick"), 48, text, NOW)
    assert sink.rows == []


def test_bars_without_volume_have_none() -> None:
    sink = Sink()
    stream = Stream("EUR.USD", Way.BARS_5, ["bar"], 7)
    sink.records.bar(stream, NOW // 10**9, (1.0, 2.0, 0.5, 1.5, -1, -1, -1), NOW)
    sink.records.bar(stream, NOW // 10**9 - 5, (1.0, 2.0, 0.5, 1.5, -1, -1, -1), NOW)
    (row,) = sink.array
    assert math.isnan(row["volume"])
    assert math.isnan(row["vwap"])
    assert (row["trade_count"], sink.records.duplicates) == (0, 1)
    with pytest.raises(Unfit, match="no number of seconds"):
        sink.records.kept_bar(Stream("A", Way.BARS_60, ["bar"], 1), "20230413", (1, 1, 1, 1, 1, 1, 1), NOW, past=True)


def test_books_by_position_equal_a_plain_list() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    sink, stream = Sink(), Stream("AAPL", Way.DEPTH, ["level2"], 7)
    plain: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    expected = []
    for _ in range(2000):
        side = dice.randrange(2)
        rows = plain[side]
        operation = dice.choice((0, 1, 2)) if rows else 0
        position = dice.randrange(len(rows) + (operation == 0))
        price, size = round(dice.uniform(90, 110), 2), float(dice.randrange(1, 100))
        if operation == 0 and len(rows) >= 20:
            operation, position = 2, dice.randrange(len(rows))
        told = price
        if operation == 0:
            rows.insert(position, (price, size))
        elif operation == 1:
            rows[position] = price, size
        else:
            told = rows.pop(position)[0]
        sink.records.depth(stream, position, operation, side, price, size, "", NOW)
        best = [rows[0][0] if rows else math.nan for rows in (plain[1], plain[0])]
        expected.append((told, position, Action((1, 2, 3)[operation]), Side.BUY if side else Side.SELL, *best))
    found = sink.array[["price", "level", "action", "side", "best_bid", "best_ask"]].tolist()
    assert str(found) == str(_plain(expected))


def _plain(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [(float(p), int(n), int(a), int(s), float(b), float(c)) for p, n, a, s, b, c in rows]


@pytest.mark.parametrize(
    ("position", "operation", "side"), [(0, 3, 0), (0, 0, 2), (-1, 0, 0), (300, 0, 0), (0, 2, 0), (3, 0, 1), (1, 1, 1)]
)
def test_a_row_that_can_not_be_is_refused(position: int, operation: int, side: int) -> None:
    sink = Sink()
    with pytest.raises(Unfit):
        sink.records.depth(Stream("A", Way.DEPTH, ["level2"], 1), position, operation, side, 1.0, 1.0, "", NOW)
    assert sink.rows == []


def test_headlines_lose_their_metadata_and_keep_their_text() -> None:
    sink, stream = Sink(), aggregate("news")
    for text in ("{A:800015:L:en:K:n/a:C:0.98}Markets rise", "Markets {rise}", "{A:1}", "Märkte " * 30):
        sink.records.news(stream, 0, "DJ-N", text, NOW)
    found = sink.array
    assert [bytes(one) for one in found["headline"][:3]] == [b"Markets rise", b"Markets {rise}", b"{A:1}"]
    long = found[3:]
    assert b"".join(bytes(one) for one in long["headline"]).decode().split() == ["Märkte"] * 30
    assert [bool(flags & Flag.CONTINUES) for flags in long["flags"]] == [True] * (len(long) - 1) + [False]


def test_a_gap_is_on_the_next_record_of_its_stream() -> None:
    sink = Sink()
    streams = [aggregate("tick"), aggregate("tick")]
    streams[0].gap_before = True
    for stream in (streams[1], streams[0], streams[0]):
        sink.records.volume_print(stream, 48, "1;1;1700000000000;1;1;true", NOW)
    assert [bool(flags & Flag.GAP_BEFORE) for flags in sink.array["flags"]] == [False, True, False]


# -- streams and pacing


def ways(streams: list[Stream]) -> list[tuple[str, Way, tuple[str, ...]]]:
    return [(stream.symbol, stream.way, tuple(stream.types)) for stream in streams]


def test_a_plan_costs_no_more_lines_than_there_are() -> None:
    symbols = [("A", 1, False), ("B", 2, False), ("X", 3, True)]
    types = ("quote", "trade", "tick", "news", "bar", "level2")
    found = plan("ib", symbols, types, by_tick="auto", by_tick_lines=4, bar_s=5)
    assert ways(found) == [
        ("A", Way.BID_ASK, ("quote",)),
        ("A", Way.LAST, ("trade",)),
        ("A", Way.ALL_LAST, ("tick",)),
        ("A", Way.AGGREGATE, ("news",)),
        ("A", Way.BARS_5, ("bar",)),
        ("A", Way.DEPTH, ("level2",)),
        ("B", Way.BID_ASK, ("quote",)),
        ("B", Way.AGGREGATE, ("trade", "tick", "news")),
        ("B", Way.BARS_5, ("bar",)),
        ("B", Way.DEPTH, ("level2",)),
        ("X", Way.AGGREGATE, ("quote", "trade", "tick", "news")),
        ("X", Way.BARS_5, ("bar",)),
        ("X", Way.DEPTH, ("level2",)),
    ]
    never = plan("ib", symbols[:1], ("quote", "trade"), by_tick="never", by_tick_lines=4, bar_s=60)
    assert ways(never) == [("A", Way.AGGREGATE, ("quote", "trade"))]
    with pytest.raises(SettingsError, match=r"takes 3 tick-by-tick streams, and options\.tick_by_tick_lines is 2"):
        plan("ib", symbols[:1], ("quote", "trade", "tick"), by_tick="always", by_tick_lines=2, bar_s=5)


def test_generic_ticks() -> None:
    assert generic_ticks(["quote"], ()) == ""
    assert generic_ticks(["tick", "trade", "quote"], ()) == "233,375"
    assert generic_ticks(["news"], ("A", "B")) == "mdoff,292:A+B"
    assert generic_ticks(["news", "quote"], ("A",)) == "292:A"


def test_tick_by_tick_requests_for_one_instrument_are_15_s_apart() -> None:
    pace = Pace()
    last, quotes, other = Stream("A", Way.LAST, [], 1), Stream("A", Way.BID_ASK, [], 1), Stream("B", Way.LAST, [], 2)
    assert pace.free_at(last, NOW) == NOW
    pace.asked(last, NOW)
    assert pace.free_at(quotes, NOW + 1) == NOW + TICK_BY_TICK_GAP_NS
    assert pace.free_at(other, NOW + 1) == NOW + 1
    assert pace.free_at(Stream("A", Way.AGGREGATE, [], 1), NOW + 1) == NOW + 1


def test_no_more_than_60_historical_requests_in_any_ten_minutes() -> None:
    pace, now, asked = Pace(), NOW, []
    streams = [Stream(f"S{number}", Way.BARS_60, [], number) for number in range(40)]
    for _ in range(5):
        for stream in streams:
            now = max(now, pace.free_at(stream, now))
            pace.asked(stream, now)
            asked.append((now, stream.symbol))
    for at, symbol in asked:
        window = [(when, who) for when, who in asked if at <= when < at + HISTORICAL_WINDOW_NS]
        assert len(window) <= HISTORICAL_MOST
        assert len([who for when, who in window if who == symbol and when < at + 15 * 10**9]) == 1


# -- codes


def test_the_table_for_people_is_the_table() -> None:
    text = (ROOT / "workers/sources/IBKR.md").read_text().partition("What TWS says in numbers.")[2]
    written = set()
    for line in text.splitlines():
        if found := re.match(r"\| ([\d, ]+) \|", line):
            written |= {int(code) for code in found[1].split(",")}
    assert written == set(CODES)


@pytest.mark.parametrize(
    ("code", "text", "of_request", "effect"),
    [
        (162, "Historical Market Data Service error message:API historical data query cancelled", True, Effect.REFUSED),
        (162, "Historical data request pacing violation", True, Effect.LATER),
        (420, "Invalid Real-time Query: Historical data request PACING VIOLATION", True, Effect.LATER),
        (2150, "Invalid position trade derived value", True, Effect.NOTED),
        (12345, "?", True, Effect.REFUSED),
        (12345, "?", False, Effect.NOTED),
        (1100, "Connectivity lost", False, Effect.CUT),
    ],
)
def test_what_a_number_means(code: int, text: str, of_request: bool, effect: Effect) -> None:
    assert effect_of(code, text, of_request=of_request).effect is effect


def test_farms_are_named() -> None:
    assert farm_of("Market data farm connection is broken:usfarm") == "usfarm"
    assert farm_of("no name") == "no name"
    assert farm_of("") == "?"
