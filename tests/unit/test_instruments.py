"""The instrument table: one number per symbol, everywhere, for good."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest

from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentExists, SegmentMissing, ShmFull
from shm.instruments import InstrumentTable
from shm.segment import Segment, segment_name


@pytest.fixture
def table(engine_name: str) -> Iterator[InstrumentTable]:
    made = InstrumentTable.create(engine_name, capacity=1000)
    yield made
    made.close()
    made.unlink()


def test_numbers_count_from_zero_and_stay(table: InstrumentTable) -> None:
    assert [table.intern(symbol) for symbol in ("AAPL", "MSFT", "AAPL", "BTC-USD")] == [0, 1, 0, 2]
    assert table.symbols() == ["AAPL", "MSFT", "BTC-USD"]
    assert (len(table), table.symbol(2), table.find("MSFT"), table.find("NONE")) == (3, "BTC-USD", 1, None)


def test_what_one_interns_the_other_finds(table: InstrumentTable, engine_name: str) -> None:
    reader = InstrumentTable.attach(engine_name)
    assert len(reader) == 0
    table.intern("AAPL")
    assert reader.find("AAPL") == 0
    table.intern("MSFT")
    assert reader.symbol(1) == "MSFT"
    table.intern("TSLA")
    assert (reader.refresh(), reader.refresh()) == (1, 0)


def test_two_writers_agree(table: InstrumentTable, engine_name: str) -> None:
    other = InstrumentTable.attach(engine_name, write=True)
    assert table.intern("A") == 0
    assert other.intern("B") == 1
    assert table.intern("B") == 1
    assert other.intern("A") == 0
    assert table.intern("C") == 2


def test_a_read_only_table_finds_but_does_not_add(table: InstrumentTable, engine_name: str) -> None:
    reader = InstrumentTable.attach(engine_name)
    table.intern("AAPL")
    assert reader.intern("AAPL") == 0
    with pytest.raises(NotAllowed, match="read-only"):
        reader.intern("MSFT")


def test_symbols_of_32_bytes_and_of_any_script_come_back_whole(table: InstrumentTable, engine_name: str) -> None:
    symbols = ["X" * 32, "ü" * 16, "トヨタ", "ES.FUT/2026-03", "a"]
    for symbol in symbols:
        table.intern(symbol)
    assert InstrumentTable.attach(engine_name).symbols() == symbols


@pytest.mark.parametrize("symbol", ["", "X" * 33, "ü" * 17, "A B", "A\tB", "A\n", "A\0", "\x1b[2J", "\u00a0", "\ud800"])
def test_unusable_symbols_are_refused_and_leave_nothing(table: InstrumentTable, symbol: str) -> None:
    with pytest.raises(BadArgument, match="symbol"):
        table.intern(symbol)
    assert len(table) == 0


def test_unknown_numbers_are_refused(table: InstrumentTable) -> None:
    table.intern("AAPL")
    for number in (-1, 1, 65536):
        with pytest.raises(BadArgument, match="not in the table of 1"):
            table.symbol(number)


def test_a_full_table_is_a_clear_error_and_still_finds(engine_name: str) -> None:
    table = InstrumentTable.create(engine_name, capacity=3)
    for symbol in "ABC":
        table.intern(symbol)
    with pytest.raises(ShmFull, match="holds 3 already"):
        table.intern("D")
    assert table.intern("B") == 1
    assert table.symbols() == ["A", "B", "C"]


def test_the_default_holds_65536_symbols(engine_name: str) -> None:
    assert InstrumentTable.create(engine_name).capacity == 65536


def test_what_a_killed_interner_left_unpublished_is_overwritten(table: InstrumentTable, engine_name: str) -> None:
    table.intern("A")
    table.segment.buf[4096 + 64 : 4096 + 64 + 32] = b"HALF WRITTEN BY A KILLED PROCESS"
    assert InstrumentTable.attach(engine_name).symbols() == ["A"]
    assert table.intern("B") == 1
    assert InstrumentTable.attach(engine_name).symbols() == ["A", "B"]


def test_threads_of_one_process_agree(table: InstrumentTable) -> None:
    symbols = [f"S{index}" for index in range(200)]
    seen: list[dict[str, int]] = [{} for _ in range(4)]

    def intern_all(mine: dict[str, int], order: int) -> None:
        for symbol in symbols[::order]:
            mine[symbol] = table.intern(symbol)

    threads = [threading.Thread(target=intern_all, args=(seen[i], 1 if i % 2 else -1)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen[0] == seen[1] == seen[2] == seen[3]
    assert sorted(seen[0].values()) == list(range(200))


def test_a_closed_table_still_answers_what_it_knew(engine_name: str) -> None:
    table = InstrumentTable.create(engine_name)
    table.intern("A")
    table.close()
    table.unlink()
    assert (table.symbol(0), table.find("A"), table.find("B")) == ("A", 0, None)


def test_create_or_attach_keeps_the_numbers(engine_name: str) -> None:
    InstrumentTable.create_or_attach(engine_name).intern("A")
    with pytest.raises(SegmentExists):
        InstrumentTable.create(engine_name)
    again = InstrumentTable.create_or_attach(engine_name)
    assert (again.intern("B"), again.intern("A")) == (1, 0)


def test_attach_says_what_is_wrong(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        InstrumentTable.attach(engine_name)
    segment = Segment.create(segment_name(engine_name, "inst"), 8192)
    struct.pack_into("<QIII", segment.buf, 0, int.from_bytes(b"TKGINST1", "little"), 9, 10, 64)
    with pytest.raises(LayoutMismatch, match=r"version 9 .*this build has .*version 1"):
        InstrumentTable.attach(engine_name)
    struct.pack_into("<QIII", segment.buf, 0, int.from_bytes(b"TKGINST1", "little"), 1, 65536, 64)
    with pytest.raises(LayoutMismatch, match="can not hold 65536"):
        InstrumentTable.attach(engine_name)
