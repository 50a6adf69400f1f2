"""Merging recordings by time: whatever way one recording is split into files, they give it back, however it is read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import concatenate, empty
from workers.errors import SourceError
from workers.sources import merge
from workers.sources.merge import merge_by_time


class File:
    """Records of given times in memory, read at most `step` at a time; counts in `still_open` how many are open.

    `rests`: so many reads that give nothing go before each that gives something.
    """

    def __init__(self, number: int, times: list[int], step: int, still_open: set[int], rests: int = 0) -> None:
        self._number, self._step, self._open = number, step, still_open
        self._records = empty(len(times))
        self._records["ts_receive"] = times
        self._records["feed_id"] = number
        self._records["trade_id"] = np.arange(len(times))
        self._at = 0
        self._rests, self._reads = rests, 0
        self.waiting = 0
        self.ended = False
        still_open.add(number)

    def read(self, into: np.ndarray) -> np.ndarray:
        """See `Reader`."""
        self._reads += 1
        if self._reads % (self._rests + 1):
            return into[:0]
        count = min(len(into), self._step, len(self._records) - self._at)
        into[:count].view(np.uint8)[:] = self._records[self._at : self._at + count].view(np.uint8)
        self._at += count
        if not count:
            self.ended = True
            self._open.discard(self._number)
        return into[:count]


def play(
    files: list[list[int]], step: int, room: int, on_batch: Callable[[set[int]], None] = lambda _: None, rests: int = 0
) -> list[tuple[int, int, int]]:
    """(file, place in it, its time) of every record, in the order in which they come."""
    still_open: set[int] = set()
    into = empty(room)
    got = [empty(0)]
    for batch in merge_by_time(
        [times[0] if times else 0 for times in files],
        lambda number: File(number, files[number], step, still_open, rests * (number + 1)),
        lambda: into,
    ):
        got.append(batch.copy())
        on_batch(still_open)
    assert not still_open
    found = concatenate(got)
    return [(int(one["feed_id"]), int(one["trade_id"]), int(one["ts_receive"])) for one in found]


TIMES = st.lists(st.integers(1, 40), max_size=60)


@settings(deadline=None)
@given(TIMES, st.data(), st.integers(1, 9), st.integers(1, 9), st.integers(1, 5))
def test_any_split_of_a_recording_gives_it_back(
    times: list[int], data: st.DataObject, step: int, room: int, count: int
) -> None:
    owner = data.draw(st.lists(st.integers(0, count - 1), min_size=len(times), max_size=len(times)))
    files: list[list[int]] = [[] for _ in range(count)]
    for time, number in zip(sorted(times), owner, strict=True):
        files[number].append(time)
    wanted = sorted((time, number, place) for number, listed in enumerate(files) for place, time in enumerate(listed))
    assert play(files, step, room) == [(number, place, time) for time, number, place in wanted]


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=5), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2))
def test_disorder_within_a_file_stays_and_how_it_is_read_does_not_matter(
    files: list[list[int]], step: int, room: int, rests: int
) -> None:
    wanted = []
    for number, listed in enumerate(files):
        reached = np.maximum.accumulate(listed) if listed else []
        wanted += [(int(key), number, place, listed[place]) for place, key in enumerate(reached)]
    found = play(files, step, room, rests=rests)
    assert found == [(number, place, time) for _, number, place, time in sorted(wanted)]


def test_a_file_is_opened_when_its_first_record_is_next() -> None:
    files = [[hour * 100 + minute for minute in range(60)] for hour in range(1, 30)]
    most: list[int] = []
    play(files, 7, 16, lambda still_open: most.append(len(still_open)))
    assert max(most) <= 2


def test_more_overlapping_files_than_may_be_open_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "MAX_OPEN", 3)
    assert len(play([[1, 10]] * 3, 4, 4)) == 6
    with pytest.raises(SourceError, match="merge = false"):
        play([[1, 10]] * 4, 4, 4)
