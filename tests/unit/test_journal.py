"""The journal: what was appended is read back, a torn tail is cut, no room changes nothing, the clock may go back."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from shm.layout import RecordType
from tests.journals import HOUR, NOW, STREAM, sequences, symbols, trades, write
from workers import journal as journal_module
from workers.journal import Journal, JournalBusy, JournalFull
from workers.journal_format import HEADER_BYTES, KIND_GAP, parse_name, unpack_header
from workers.journal_reader import JournalReader, list_segments, read_segment
from workers.journal_symbols import SymbolFile, read_symbols, symbols_path, tables


def test_records_come_back_bit_by_bit_with_their_symbols(tmp_path: Path) -> None:
    first, second = trades(1, 10), trades(11, 5)
    write(tmp_path, first, second)
    reader = JournalReader(tmp_path)
    blocks = list(reader.blocks())
    assert [bytes(block.records.tobytes()) for block in blocks] == [first.tobytes(), second.tobytes()]
    header = blocks[1].header
    assert (header.ring_id, header.stream, header.epoch, header.first_sequence, header.next_sequence) == (
        2,
        STREAM,
        1,
        11,
        16,
    )
    assert [reader.symbol(header.table, i) for i in range(8)] == [*symbols(), ""]


def test_a_gap_is_written_in_its_place(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(2, STREAM, 1, trades(1, 3), NOW)
    journal.append_gap(2, STREAM, 1, (4, 100), NOW)
    journal.append(2, STREAM, 1, trades(100, 2), NOW)
    journal.close()
    blocks = list(JournalReader(tmp_path).blocks())
    assert [(block.is_gap, block.header.first_sequence, block.header.next_sequence) for block in blocks] == [
        (False, 1, 4),
        (True, 4, 100),
        (False, 100, 102),
    ]
    assert blocks[1].header.kind == KIND_GAP


def test_a_block_that_does_not_follow_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.append(2, STREAM, 1, trades(1, 3), NOW)
    with pytest.raises(ValueError, match="expected 4"):
        journal.append(2, STREAM, 1, trades(3, 3), NOW)
    journal.close()


def test_a_ring_made_anew_is_told_from_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, trades(1, 5))
    journal = Journal(tmp_path)
    assert journal.open_ring(2, STREAM + 1) is None
    journal.append(2, STREAM + 1, 1, trades(1, 3), NOW)
    assert journal.open_ring(2, STREAM) == 6
    journal.close()
    assert sequences(tmp_path, stream=STREAM) == [1, 2, 3, 4, 5]
    assert sequences(tmp_path, stream=STREAM + 1) == [1, 2, 3]


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_whatever_byte_of_the_last_block_is_damaged_recovery_keeps_all_before_it(tmp_path: Path, damage: str) -> None:
    write(tmp_path, trades(1, 4), trades(5, 3))
    (segment,) = list_segments(tmp_path)
    whole = segment.path.read_bytes()
    start = HEADER_BYTES + 4 * 128
    assert len(whole) == start + HEADER_BYTES + 3 * 128
    for offset in range(start, len(whole)):
        flipped = whole[:offset] + bytes([whole[offset] ^ 0x10]) + whole[offset + 1 :]
        segment.path.write_bytes(flipped if damage == "flip" else whole[:offset])
        assert sequences(tmp_path) == [1, 2, 3, 4], offset
        journal = Journal(tmp_path, fsync="none")
        assert journal.open_ring(2, STREAM) == 5, offset
        assert journal.bytes_cut == (len(whole) if damage == "flip" else offset) - start
        journal.append(2, STREAM, 1, trades(5, 2), NOW)
        journal.close()
        assert sequences(tmp_path) == [1, 2, 3, 4, 5, 6], offset
        for other in list_segments(tmp_path):
            other.path.unlink()


def test_a_segment_without_one_whole_block_is_begun_again(tmp_path: Path) -> None:
    write(tmp_path, trades(1, 4))
    (segment,) = list_segments(tmp_path)
    os.truncate(segment.path, 100)
    journal = Journal(tmp_path)
    assert journal.open_ring(2, STREAM) is None
    journal.append(2, STREAM, 1, trades(1, 2), NOW)
    journal.close()
    assert sequences(tmp_path) == [1, 2]


def test_segments_are_left_when_full_and_when_the_hour_has_passed(tmp_path: Path) -> None:
    journal = Journal(tmp_path, segment_bytes=4096)
    journal.append(2, STREAM, 1, trades(1, 40), NOW)
    journal.append(2, STREAM, 1, trades(41, 1), NOW)
    journal.append(2, STREAM, 1, trades(42, 1), NOW + HOUR)
    names = [segment.name for segment in list_segments(tmp_path)]
    assert [name.first_sequence for name in names] == [1, 41, 42]
    assert [name.hour - NOW // HOUR for name in names] == [0, 0, 1]
    assert journal.open_names() == {names[2].file_name}
    journal.leave_old_hours(NOW + 2 * HOUR)
    assert journal.open_names() == set()
    journal.close()


def test_a_clock_set_back_neither_reorders_nor_refuses(tmp_path: Path) -> None:
    journal = Journal(tmp_path, fsync="interval", segment_bytes=4096)
    journal.append(2, STREAM, 1, trades(1, 40), NOW)
    assert journal.sync(NOW) > 0
    journal.append(2, STREAM, 1, trades(41, 2), NOW - 5 * HOUR)
    assert journal.sync(NOW - 5 * HOUR) > 0  # the next sync is not put off by five hours
    journal.append(2, STREAM, 1, trades(43, 2), NOW - 5 * HOUR)
    journal.close()
    names = [segment.name for segment in list_segments(tmp_path)]
    assert {name.hour for name in names} == {NOW // HOUR}
    assert sequences(tmp_path) == list(range(1, 45))


def test_fsync_policies_ask_when_they_say(tmp_path: Path) -> None:
    asked = {}
    for policy in ("none", "interval", "always"):
        synced: list[int] = []
        journal = Journal(tmp_path / policy, fsync=policy, fsync_interval_s=1.0, on_synced=synced.append)  # type: ignore[arg-type]
        asked[policy] = []
        for step in range(4):
            journal.append(2, STREAM, 1, trades(1 + step, 1), NOW)
            ticket = journal.sync(NOW + step * HOUR // 7200)  # every half second
            assert ticket == 0 or journal.synced(ticket, 60.0)
            asked[policy].append(bool(ticket))
        files = len(synced)
        journal.close()
        assert files == sum(asked[policy])
    assert asked == {"none": [False] * 4, "interval": [True, False, True, False], "always": [True] * 4}


def test_no_room_changes_nothing_and_the_block_can_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(2, STREAM, 1, trades(1, 3), NOW)

    def half(fd: int, header: bytes, records: np.ndarray, offset: int) -> None:
        os.pwrite(fd, header[: len(records)], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module, "_write_at", half)
    with pytest.raises(JournalFull):
        journal.append(2, STREAM, 1, trades(4, 3), NOW)
    assert journal.position(2) == 4
    assert sequences(tmp_path) == [1, 2, 3]
    (segment,) = list_segments(tmp_path)
    assert segment.path.stat().st_size == HEADER_BYTES + 3 * 128
    monkeypatch.undo()
    journal.append(2, STREAM, 1, trades(4, 3), NOW)
    journal.close()
    assert sequences(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    with pytest.raises(JournalBusy):
        Journal(tmp_path)
    journal.close()
    Journal(tmp_path).close()


def test_readers_choose_by_sequence_and_time(tmp_path: Path) -> None:
    write(tmp_path, trades(1, 10), trades(11, 10), trades(21, 10))
    assert sequences(tmp_path, from_sequence=8, to_sequence=13) == [8, 9, 10, 11, 12]
    assert sequences(tmp_path, from_sequence=28) == [28, 29, 30]
    assert sequences(tmp_path, from_ns=NOW + 11_000, to_ns=NOW + 21_000) == list(range(11, 21))
    assert sequences(tmp_path, ring_id=3) == []
    assert sequences(tmp_path / "nowhere") == []


def test_a_reader_sees_what_is_appended_meanwhile_up_to_the_last_whole_block(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for first in range(1, 50, 7):
        journal.append(2, STREAM, 1, trades(first, 7), NOW)
        assert sequences(tmp_path) == list(range(1, first + 7))
    (segment,) = list_segments(tmp_path)
    with segment.path.open("ab") as file:
        file.write(b"TKJOURN1 and so on")
    assert sequences(tmp_path) == list(range(1, 50))
    journal.close()


def test_records_are_views_of_the_file_but_for_the_last_block(tmp_path: Path) -> None:
    write(tmp_path, trades(1, 3), trades(4, 3))
    (segment,) = list_segments(tmp_path)
    first, last = read_segment(segment.path)
    assert not first.records.flags.owndata
    assert not first.records.flags.writeable
    assert first.records["record_type"].tolist() == last.records["record_type"].tolist() == [RecordType.TRADE] * 3


def test_names_and_headers_of_something_else_are_no_blocks(tmp_path: Path) -> None:
    for name in ("r02.tkj", "lock", "r02-1-1-1.tkj", "symbols-0001.txt", f"r02-{1:019}-{1:020}-20259999T25.tkj"):
        assert parse_name(tmp_path / name) is None
    assert unpack_header(bytes(128)) is None
    assert unpack_header(b"TKJOURN1") is None


def test_symbols_outlive_the_engine_and_a_new_table_begins_a_new_file(tmp_path: Path) -> None:
    file = SymbolFile(tmp_path)
    assert file.follow(["A", "B"])
    assert file.follow(["A", "B", "Ü"])
    assert not file.follow(["A", "B", "Ü"])
    assert not file.follow(["A"])  # a new engine that has given the same numbers so far
    file.close()
    again = SymbolFile(tmp_path)
    assert again.follow(["A", "C"])
    again.close()
    assert tables(tmp_path) == [1, 2]
    assert (read_symbols(tmp_path, 1), read_symbols(tmp_path, 2)) == (["A", "B", "Ü"], ["A", "C"])


def test_a_symbol_file_cut_anywhere_keeps_its_whole_lines(tmp_path: Path) -> None:
    file = SymbolFile(tmp_path)
    file.follow(["AAPL", "MSFT"])
    file.close()
    path = symbols_path(tmp_path, 1)
    whole = path.read_bytes()
    line = len(whole) // 2
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert read_symbols(tmp_path, 1) == ["AAPL", "MSFT"][: length // line]
        file = SymbolFile(tmp_path)
        file.follow(["AAPL", "MSFT"])
        file.close()
        assert path.read_bytes() == whole


def test_a_longer_block_than_the_buffer_of_verification_is_checked_too(tmp_path: Path) -> None:
    write(tmp_path, trades(1, 2), trades(3, 3000))
    journal = Journal(tmp_path)
    assert journal.open_ring(2, STREAM) == 3003
    journal.close()
    assert np.array_equal(sequences(tmp_path), np.arange(1, 3003))


def test_a_journal_that_can_not_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    assert list_segments(tmp_path / "never made") == []
    folder = tmp_path / "journal"
    folder.write_text("no folder")  # as if permission were denied, which root never is
    with pytest.raises(OSError, match="journal"):
        list_segments(folder)
