"""What people read in a terminal: records as lines, numbers with units, colour only where it is wanted."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest

from shm.instruments import InstrumentTable
from shm.layout import NO_INSTRUMENT, Flag, RecordType, Side, StatusCode, empty
from tools.console import Paint, bytes_text, count_text, duration_text
from tools.record_line import RecordLines

SECOND_NS = 1_000_000_000
NOON_NS = 1_719_835_200 * SECOND_NS  # 2024-07-01 12:00:00


def lines_of(*records: dict[str, object], symbols: object = None) -> list[str]:
    """Lines of records of ring 2, from their fields; everything undefined is NaN or 0."""
    made = empty(len(records))
    for number, fields in enumerate(records):
        made["ts_event"][number] = NOON_NS
        made["sequence"][number] = number + 1
        for name, value in fields.items():
            made[name][number] = value
    table = symbols if symbols is not None else ["AAPL", "BTC-USD"].__getitem__
    return list(RecordLines(table, Paint(False)).lines(made, 2))  # type: ignore[arg-type]


def test_each_type_shows_its_own_fields() -> None:
    lines = lines_of(
        {
            "record_type": RecordType.TRADE,
            "price": 187.25,
            "size": 100,
            "side": Side.SELL,
            "venue": b"XNAS",
            "trade_id": 7,
        },
        {"record_type": RecordType.QUOTE, "bid": 187.2, "ask": 187.3, "bid_size": 5, "ask_size": 6},
        {"record_type": RecordType.BAR, "open": 1, "high": 4, "low": 0.5, "close": 2, "volume": 9, "interval_s": 60},
        {"record_type": RecordType.LEVEL2, "price": 10.5, "size": 3, "side": Side.BUY, "action": 2, "level": 4},
        {"record_type": RecordType.NEWS, "headline": b"Fed holds rates"},
        {
            "record_type": RecordType.STATUS,
            "code": StatusCode.GAP,
            "from_sequence": 3,
            "to_sequence": 9,
            "text": b"lost",
            "instrument_id": NO_INSTRUMENT,
        },
    )
    assert lines[0] == "-- 2024-07-01 UTC"
    words = [line.split() for line in lines[1:]]
    assert words[0] == ["12:00:00.000000", "r2:1", "trade", "AAPL", "187.25", "100", "sell", "XNAS", "id", "7"]
    assert words[1][2:] == ["quote", "AAPL", "187.2", "5", "|", "187.3", "6"]
    assert words[2][2:] == [
        "bar",
        "AAPL",
        "60",
        "s",
        "O",
        "1",
        "H",
        "4",
        "L",
        "0.5",
        "C",
        "2",
        "volume",
        "9",
        "trades",
        "0",
    ]
    assert words[3][2:] == ["level2", "AAPL", "10.5", "3", "buy", "modify", "level", "4"]
    assert words[4][2:] == ["news", "AAPL", "Fed", "holds", "rates"]
    assert words[5][2:] == ["status", "-", "gap", "[3,", "9)", "lost"]


def test_the_date_is_said_again_only_when_it_changes() -> None:
    day_ns = 86_400 * SECOND_NS
    fields = [{"record_type": RecordType.TICK, "ts_event": NOON_NS + days * day_ns} for days in (0, 0, 1)]
    assert [line[:13] for line in lines_of(*fields) if line.startswith("--")] == ["-- 2024-07-01", "-- 2024-07-02"]


def test_prices_stand_in_one_column_whatever_the_symbol() -> None:
    lines = lines_of(
        *({"record_type": RecordType.TRADE, "instrument_id": i, "price": 1.5, "size": 2} for i in (1, 0, 1))
    )
    assert len({line.index("1.5") for line in lines[1:]}) == 1


def test_undefined_numbers_are_a_dash_and_prices_are_exact() -> None:
    [_, line] = lines_of({"record_type": RecordType.TRADE, "price": np.nan, "size": 0.1 + 0.2})
    assert line.split()[4:6] == ["-", "0.30000000000000004"]


def test_flags_that_say_something_are_named_and_the_usual_ones_are_not() -> None:
    flags = Flag.OUTLIER | Flag.LATE | Flag.REPLAYED | Flag.LAST_OF_BATCH
    [_, line] = lines_of({"record_type": RecordType.TICK, "price": 1, "size": 1, "flags": flags})
    assert line.endswith(" OUTLIER,LATE")


def test_an_unknown_type_is_said_and_does_not_stop_the_printing() -> None:
    lines = lines_of({"record_type": 99}, {"record_type": RecordType.TRADE, "price": 5, "size": 1})
    assert "record_type is 99" in lines[1]
    assert " trade " in lines[2]


def test_a_number_without_symbol_is_shown_as_number(engine_name: str) -> None:
    table = InstrumentTable.create(engine_name, capacity=8)
    fields = {"record_type": RecordType.TRADE, "instrument_id": 7, "price": 1, "size": 1}
    assert " #7 " in lines_of(fields, symbols=table)[1]
    for symbol in "ABCDEFGH":
        table.intern(symbol)
    assert " H " in lines_of(fields, symbols=table)[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.5, "0.5"),
        (9, "9"),
        (950, "950"),
        (12_345, "12.3k"),
        (4_560_000, "4.56M"),
        (-7, "-7"),
        (2e12, "2.0T"),
    ],
)
def test_counts_are_short(value: float, text: str) -> None:
    assert count_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(512, "512 B"), (8 << 20, "8.0 MiB"), (150 << 20, "150 MiB"), (3 << 40, "3.0 TiB")]
)
def test_sizes_have_binary_units(value: int, text: str) -> None:
    assert bytes_text(value) == text


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (240, "240ns"),
        (3_100, "3.1us"),
        (12e6, "12ms"),
        (4.2e9, "4.2s"),
        (185e9, "3m05s"),
        (7_800e9, "2h10m"),
        (273_600e9, "3d04h"),
    ],
)
def test_durations_have_the_unit_that_fits(ns: float, text: str) -> None:
    assert duration_text(ns) == text


def test_texts_never_grow_wider_than_their_columns() -> None:
    for exponent, factor in itertools.product(range(13), (1, 9.4, 9.94, 9.996, 9.9996)):
        value = factor * 10**exponent
        assert len(count_text(value)) <= 6, value
        assert len(duration_text(value)) <= 6, value


def test_colour_goes_to_terminals_only_and_never_under_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert Paint.for_stream(Terminal())("x", "red") == "\x1b[31mx\x1b[0m"
    assert Paint.for_stream(io.StringIO())("x", "red") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Paint.for_stream(Terminal())("x", "red") == "x"
