"""What was recorded comes back as tables: from the archive and the journal together, each record once."""

from __future__ import annotations

from pathlib import Path

import pytest

pa = pytest.importorskip("pyarrow")

from shm.layout import RecordType  # noqa: E402  # after the check that pyarrow is there
from tests.journals import HOUR, NOW, STREAM, symbols, trades  # noqa: E402
from workers.history import History  # noqa: E402
from workers.journal import Journal  # noqa: E402
from workers.journal_reader import list_segments  # noqa: E402
from workers.parquet import seal  # noqa: E402


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two hours that are sealed (their journal is still there) and one that is not; a gap in the first and the last."""
    journal = Journal(tmp_path / "journal", fsync="none")
    journal.follow_symbols(symbols())
    for hour in range(3):
        first = 1 + hour * 1000
        if hour != 1:
            journal.append_gap(2, STREAM, 1, (first, first + 10), NOW + hour * HOUR)
            first += 10
        last = 1001 + hour * 1000
        events = NOW + hour * HOUR
        journal.append(2, STREAM, 1, trades(first, last - first, event_ns=events), NOW + hour * HOUR)
    journal.close()
    for segment in list_segments(tmp_path / "journal")[:2]:
        assert seal(tmp_path, [segment.path.name]) is not None
    return tmp_path


def sequences(table: pa.Table) -> list[int]:
    return table["sequence"].to_pylist()  # type: ignore[no-any-return]


EVERYTHING = [*range(11, 2001), *range(2011, 3001)]


def test_every_record_is_there_once(folder: Path) -> None:
    table = History(folder).table(RecordType.TRADE)
    assert sorted(sequences(table)) == EVERYTHING
    keys = list(zip(table["symbol"].to_pylist(), table["ts_event"].cast(pa.int64()).to_pylist(), strict=True))
    assert keys == sorted(keys)
    assert History(folder).table(RecordType.QUOTE).num_rows == 0


def test_one_symbol_comes_in_order_of_time(folder: Path) -> None:
    symbol = symbols()[3]
    table = History(folder).table(RecordType.TRADE, symbol=symbol, columns=["sequence", "price"])
    assert sequences(table) == [sequence for sequence in EVERYTHING if sequence % 7 == 3]
    assert table["price"].to_pylist() == [float(sequence) for sequence in sequences(table)]
    assert table.column_names == ["sequence", "price"]
    assert History(folder).table(RecordType.TRADE, symbol="NONE").num_rows == 0


def test_a_range_of_time_is_exact_in_archive_and_journal(folder: Path) -> None:
    for hour in range(3):
        start = NOW + hour * HOUR
        lowest = 1 + hour * 1000
        table = History(folder).table(
            RecordType.TRADE, from_ns=start + (lowest + 99) * 1000, to_ns=start + (lowest + 199) * 1000
        )
        assert sorted(sequences(table)) == list(range(lowest + 99, lowest + 199))


def test_gaps_are_told_after_sealing_too(folder: Path) -> None:
    gaps = History(folder).gaps().to_pylist()
    assert [(gap["from_sequence"], gap["to_sequence"]) for gap in gaps] == [(1, 11), (2001, 2011)]


def test_the_archive_alone_is_enough_once_the_journal_has_gone(folder: Path) -> None:
    history = History(folder)
    before = sequences(history.table(RecordType.TRADE))
    for segment in list_segments(folder / "journal")[:2]:
        segment.path.unlink()
    assert sequences(history.table(RecordType.TRADE)) == before


def test_a_folder_without_anything_is_empty(tmp_path: Path) -> None:
    assert History(tmp_path).table(RecordType.TRADE).num_rows == 0
    assert History(tmp_path).gaps().num_rows == 0
