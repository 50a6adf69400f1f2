"""What is sealed and what goes: the rules, by themselves, and with real files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.children import wait_until
from tests.journals import HOUR, NOW, STREAM, sequences, symbols, trades
from workers.archive import Archive
from workers.journal import Journal
from workers.journal_format import SegmentName
from workers.journal_reader import list_segments
from workers.journal_symbols import tables
from workers.keeper import LOOK_NS, Held, Keeper, due_for_sealing, to_remove
from workers.spec import RecorderSettings

HOUR_NOW = NOW // HOUR


def settings(folder: Path, **changes: Any) -> RecorderSettings:
    return RecorderSettings(engine="t", label="recorder", rings=(2,), folder=str(folder), **changes)


def held(folder: Path, hour: int, first: int, size: int, *, sealed: bool = False, busy: bool = False) -> Held:
    name = SegmentName(2, STREAM, first, HOUR_NOW + hour)
    path = folder / name.file_name
    path.touch()
    return Held(name, path, size, sealed, busy)


def firsts(items: tuple[Held, ...] | list[Held]) -> list[int]:
    return [item.name.first_sequence for item in items]


def test_the_oldest_hour_that_is_over_is_sealed_first_and_not_more_than_fits(tmp_path: Path) -> None:
    items = [
        held(tmp_path, -2, 1, 100, sealed=True),
        held(tmp_path, -1, 2, 100),
        held(tmp_path, -1, 3, 100),
        held(tmp_path, -1, 4, 100),
        held(tmp_path, 0, 5, 100),
    ]
    assert due_for_sealing(items, HOUR_NOW, 250) == [items[1].path.name, items[2].path.name]
    assert due_for_sealing(items, HOUR_NOW, 10) == [items[1].path.name]
    assert due_for_sealing(items[4:], HOUR_NOW, 250) == []
    assert due_for_sealing(items[4:], HOUR_NOW, 100) == [items[4].path.name]
    assert due_for_sealing([items[1]._replace(busy=True)], HOUR_NOW, 250) == []


def test_nothing_goes_that_is_in_use_or_says_where_to_go_on(tmp_path: Path) -> None:
    items = [held(tmp_path, -50, 1, 100, busy=True), held(tmp_path, -50, 2, 100, sealed=True)]
    chosen = settings(tmp_path, retention_hours=1.0, max_journal_bytes=1)
    assert to_remove(items, {}, chosen, NOW, sealing=True).segments == ()


def test_a_ring_made_after_the_clock_was_set_back_keeps_its_newest_segment(tmp_path: Path) -> None:
    """The ring before it was made at a later time by the clock, so its segments sort behind."""
    journal = Journal(tmp_path / "journal")
    journal.follow_symbols(symbols())
    journal.append(2, STREAM, 1, trades(1, 10), NOW)
    journal.leave()
    journal.append(2, STREAM - HOUR, 1, trades(1, 20), NOW - HOUR)
    journal.leave()
    keeper = Keeper(settings(tmp_path, seal=False, retention_hours=2.0))
    keeper.turn(journal, NOW)
    keeper.turn(journal, NOW + 10 * HOUR)
    assert [segment.name.stream for segment in list_segments(journal.folder)] == [STREAM - HOUR]
    assert journal.open_ring(2, STREAM - HOUR) == 21
    keeper.close()
    journal.close()


def test_age_and_size_decide_and_what_was_not_sealed_goes_last_and_is_counted(tmp_path: Path) -> None:
    items = [
        held(tmp_path, -30, 1, 100),
        held(tmp_path, -9, 2, 100),
        held(tmp_path, -8, 3, 100, sealed=True),
        held(tmp_path, -7, 4, 100, sealed=True),
        held(tmp_path, 0, 5, 100),
    ]

    def gone(**changes: Any) -> tuple[list[int], int]:
        removal = to_remove(items, {2: STREAM}, settings(tmp_path, **changes), NOW, sealing=True)
        return firsts(removal.segments), removal.dropped

    assert gone(journal_hours=100.0) == ([1], 0)
    assert gone(journal_hours=7.0) == ([1, 3], 0)
    assert gone(journal_hours=100.0, retention_hours=0.0) == ([], 0)
    assert gone(journal_hours=100.0, retention_hours=0.0, max_journal_bytes=300) == ([3, 4], 0)
    assert gone(journal_hours=100.0, retention_hours=0.0, max_journal_bytes=200) == ([3, 4, 1], 1)


def test_an_hour_is_sealed_by_a_process_and_its_journal_goes_when_it_is_old(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    journal = Journal(tmp_path / "journal", segment_bytes=8192)
    journal.follow_symbols(symbols())
    # The test's clock runs far ahead while a slow machine seals; not so far as this.
    keeper = Keeper(settings(tmp_path, journal_hours=1000.0, retention_hours=2000.0))
    for first in range(1, 1001, 50):
        journal.append(2, STREAM, 1, trades(first, 50), NOW)
    now_ns = NOW + HOUR
    keeper.turn(journal, NOW)

    def sealed() -> bool:
        nonlocal now_ns
        now_ns += LOOK_NS
        keeper.turn(journal, now_ns)
        return keeper.counters["parts_sealed"] > 0

    wait_until(sealed, "the hour is sealed")
    (part,) = Archive(tmp_path / "parquet").parts()
    assert (part.manifest.hour, part.manifest.files["trade"].rows) == (HOUR_NOW, 1000)
    assert set(part.manifest.segments) == {segment.path.name for segment in list_segments(tmp_path / "journal")}
    keeper.turn(journal, now_ns + LOOK_NS)
    assert len(sequences(tmp_path / "journal")) == 1000
    keeper.turn(journal, NOW + 1002 * HOUR)
    assert len(list_segments(tmp_path / "journal")) == 1  # the newest, which says where to go on
    assert journal.open_ring(2, STREAM) == 1001
    keeper.turn(journal, NOW + 2002 * HOUR)
    assert Archive(tmp_path / "parquet").parts() == []
    keeper.close()
    journal.close()


def test_symbol_tables_go_with_the_last_block_that_means_them(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    keeper = Keeper(settings(tmp_path, seal=False, retention_hours=2.0))
    keeper.turn(journal, NOW)
    for number in range(3):
        journal.follow_symbols([f"A{number}"])
        journal.append(2, STREAM, 1, trades(1 + number, 1), NOW + number * HOUR)
    assert tables(tmp_path / "journal") == [1, 2, 3]
    keeper.turn(journal, NOW + 4 * HOUR)
    assert tables(tmp_path / "journal") == [3]
    journal.close()
