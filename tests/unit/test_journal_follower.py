"""Following a journal that is being written: each record once, in order, whatever happens to its files."""

from __future__ import annotations

import os
import random
from pathlib import Path

import numpy as np
import pytest

from tests.journals import HOUR, NOW, STREAM, symbols, trades
from workers.journal import Journal
from workers.journal_follower import Batch, JournalFollower, Place
from workers.journal_reader import list_segments

HERE = Place(2, STREAM)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    made = Journal(tmp_path / "journal", fsync="none", segment_bytes=1 << 15)
    made.follow_symbols(symbols())
    made.open_ring(*HERE)
    return made


def follow(journal: Journal, cursor: int = 0) -> JournalFollower:
    follower = JournalFollower(journal.folder)
    follower.resume({HERE: cursor} if cursor else {})
    return follower


def drain(follower: JournalFollower, max_records: int = 1000) -> list[Batch]:
    found = []
    while batches := follower.read(max_records):
        found += batches
    return found


def numbers(batches: list[Batch]) -> list[int]:
    return [int(sequence) for batch in batches for sequence in batch.records["sequence"]]


def test_what_is_appended_meanwhile_comes_once_over_segments_of_any_length(journal: Journal) -> None:
    chance = random.Random(5)
    follower = follow(journal)
    following, got = 1, []
    for _ in range(200):
        count = chance.randint(1, 90)
        journal.append(*HERE, 1, trades(following, count), NOW + chance.choice([0, HOUR, -HOUR]))
        following += count
        if chance.random() < 0.4:
            got += drain(follower, chance.choice([1, 50, 500]))
    got += drain(follower)
    assert len(list_segments(journal.folder)) > 20
    assert numbers(got) == list(range(1, following))
    assert [batch.from_sequence for batch in got[1:]] == [batch.next_sequence for batch in got[:-1]]
    assert got[0].from_sequence == 0
    assert follower.unread() == {HERE: 0}
    assert follower.oldest_unread_ns() == 0


@pytest.mark.parametrize("cursor", [1, 2, 100, 101, 150, 250, 400])
def test_it_goes_on_at_any_cursor(journal: Journal, cursor: int) -> None:
    for first in range(1, 400, 100):
        journal.append(*HERE, 1, trades(first, 100), NOW)
    assert numbers(drain(follow(journal, cursor))) == list(range(cursor, 401))


def test_a_block_that_is_not_whole_is_waited_for(journal: Journal) -> None:
    journal.append(*HERE, 1, trades(1, 10), NOW)
    follower = follow(journal)
    drain(follower)
    journal.append(*HERE, 1, trades(11, 10), NOW)
    (segment,) = list_segments(journal.folder)
    whole = segment.path.read_bytes()
    for length in (len(whole) - 1, len(whole) - 10 * 128 - 1, len(whole) - 10 * 128):
        os.truncate(segment.path, length)
        assert follower.read(100) == []
    segment.path.write_bytes(whole[:-1] + b"x")  # all there but for its last byte: its CRC tells
    assert follower.read(100) == []
    segment.path.write_bytes(whole)
    assert numbers(follower.read(100)) == list(range(11, 21))


def test_a_torn_tail_ends_where_the_next_recorder_begins_its_segment(journal: Journal) -> None:
    journal.append(*HERE, 1, trades(1, 10), NOW)
    journal.append(*HERE, 1, trades(11, 10), NOW)
    (segment,) = list_segments(journal.folder)
    os.truncate(segment.path, segment.path.stat().st_size - 5)
    follower = follow(journal)
    assert numbers(drain(follower)) == list(range(1, 11))
    journal.close()
    again = Journal(journal.folder, fsync="none")
    again.follow_symbols(symbols())
    assert again.open_ring(*HERE) == 11
    again.append(*HERE, 2, trades(11, 30), NOW)
    again.close()
    assert numbers(drain(follower)) == list(range(11, 41))


def test_what_was_removed_is_counted_and_what_is_open_is_read_to_its_end(journal: Journal) -> None:
    for first in range(1, 1001, 100):
        journal.append(*HERE, 1, trades(first, 100), NOW)
    follower = follow(journal)
    first = follower.read(1)
    segments = list_segments(journal.folder)
    assert len(segments) > 3
    for segment in segments[:-1]:
        segment.path.unlink()
    rest = drain(follower)
    opened = segments[1].name.first_sequence  # the rest of the segment that was open
    last = segments[-1].name.first_sequence
    assert numbers(first + rest) == [*range(1, opened), *range(last, 1001)]
    assert sum(batch.lost for batch in first + rest) == last - opened


def test_a_ring_that_went_with_all_its_segments_is_counted_as_far_as_it_was_known(journal: Journal) -> None:
    for first in range(1, 1001, 100):
        journal.append(*HERE, 1, trades(first, 100), NOW)
    follower = follow(journal)
    follower.unread()
    known = list_segments(journal.folder)[-1].name.first_sequence
    follower.resume({HERE: 101})
    follower.close()
    for segment in list_segments(journal.folder):
        segment.path.unlink()
    assert follower.read(100) == []
    assert follower.vanished == known - 101


def test_gaps_move_the_cursor_and_are_counted(journal: Journal) -> None:
    journal.append(*HERE, 1, trades(1, 10), NOW)
    journal.append_gap(*HERE, 1, (11, 500), NOW)
    (batch,) = follow(journal).read(100)
    assert (batch.next_sequence, batch.gaps, batch.lost) == (500, 1, 0)
    (only_gap,) = follow(journal, 11).read(100)
    assert (len(only_gap.records), only_gap.next_sequence, only_gap.gaps) == (0, 500, 1)


def test_rings_and_streams_are_followed_apart_and_symbols_belong_to_their_table(journal: Journal) -> None:
    journal.append(*HERE, 1, trades(1, 10), NOW)
    journal.open_ring(3, STREAM + 5)
    journal.append(3, STREAM + 5, 1, trades(1, 20), NOW)
    journal.follow_symbols(["other", "names"])  # ids were given anew
    journal.open_ring(2, STREAM + 9)
    journal.append(2, STREAM + 9, 1, trades(1, 30), NOW)
    follower = follow(journal)
    batches = drain(follower)
    assert [(tuple(batch.place), len(batch.records)) for batch in batches] == [
        ((2, STREAM), 10),
        ((2, STREAM + 9), 30),
        ((3, STREAM + 5), 20),
    ]
    assert [batch.symbols[0] for batch in batches] == ["S0", "other", "S0"]
    assert follower.positions() == {2: (Place(2, STREAM + 9), 30), 3: (Place(3, STREAM + 5), 20)}


def test_symbols_that_come_later_are_seen(journal: Journal) -> None:
    follower = follow(journal)
    journal.append(*HERE, 1, trades(1, 7), NOW)
    assert len(follower.read(10)[0].symbols) == 7
    journal.follow_symbols([*symbols(), "NEW"])
    records = trades(8, 1)
    records["instrument_id"] = 7
    journal.append(*HERE, 1, records, NOW)
    assert follower.read(10)[0].symbols[7] == "NEW"


def test_only_rings_that_were_made_anew_are_outlived(journal: Journal, tmp_path: Path) -> None:
    journal.append(*HERE, 1, trades(1, 7), NOW)
    older, other = Place(2, STREAM - 1), Place(9, STREAM - 1)
    follower = JournalFollower(journal.folder)
    follower.resume({older: 50, other: 60, HERE: 3})
    assert follower.outlived([older, other, HERE]) == [older]
    unseen = JournalFollower(tmp_path / "not mounted")
    unseen.resume({older: 50, HERE: 3})
    assert unseen.outlived([older, HERE]) == []


def test_before_there_is_a_journal_there_is_nothing(tmp_path: Path) -> None:
    follower = JournalFollower(tmp_path / "none")
    follower.resume({HERE: 5})
    assert follower.read(10) == []
    assert follower.vanished == 0
    assert np.array_equal(list(follower.unread()), [])
