"""Several recordings as one, by time: which record is next, and which file must be open for that.

Used by the replay source; knows no capture format, no pace and no clock. A lane is one file. Its records keep their
order whatever their times: what counts is the newest time that its file has reached, so slight disorder within a file
stays as it was recorded. Records of different files that have equal times come in the order of the files.

    lane 0  |--------- batch --------|....................   the bound: no record beyond it may go out yet, because
    lane 1       |----- batch ----|.......................   - a batch ends there, and how its file goes on is unknown
    lane 2                             (begins: not open)    - or a file begins there that is not open
                                  ^
                                bound

The order is that of (time reached, number of the file, place in the file). It does not depend on how much is read at a
time, so a replay that is begun again gives the same records. Memory: one batch of LANE_SLOTS records for each open
file, and what goes out at once. A file is opened when its first record is next; at most MAX_OPEN are open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, empty
from workers.errors import SourceError
from workers.sources.replay_file import recorded_ns

LANE_SLOTS: Final = 2048
MAX_OPEN: Final = 256

_NOTHING: Final = empty(0)

Bound = tuple[int, int]  # records of lane i up to that time may go out, those of exactly that time if i <= the number


class Reader(Protocol):
    """An open file; `waiting` is set here: how many of the records read last have not gone out."""

    waiting: int
    ended: bool

    def read(self, into: np.ndarray) -> np.ndarray:
        """The next records, at the start of `into`; none = it has `ended`, or is to be asked again."""


class _Lane:
    """An open file, the batch in hand and the times it has reached."""

    def __init__(self, number: int, reader: Reader, first_ns: int) -> None:
        self.number = number
        self._reader = reader
        self._reached_ns = first_ns
        self._own = empty(0)
        self.batch = self._own
        self.keys = np.zeros(0, dtype=np.int64)  # never decreasing

    def fill(self, into: np.ndarray | None) -> bool:
        """The next batch, in `into` or else in an array of its own; False = the file has ended. It may be empty: to be
        filled later."""
        if into is None:
            if not len(self._own):
                self._own = empty(LANE_SLOTS)
            into = self._own
        self.batch = self._reader.read(into)
        if not len(self.batch):
            return not self._reader.ended
        self.keys = np.maximum(np.maximum.accumulate(recorded_ns(self.batch)), self._reached_ns)
        self._reached_ns = int(self.keys[-1])
        self._reader.waiting = len(self.batch)
        return True

    @property
    def next(self) -> Bound:
        """Time and lane of the record that is next; there is a batch in hand."""
        return int(self.keys[0]), self.number

    def up_to(self, bound: Bound) -> int:
        """How many records of the batch in hand may go out."""
        return int(np.searchsorted(self.keys, bound[0], side="right" if self.number <= bound[1] else "left"))

    def drop(self, count: int) -> None:
        """The first records have gone out."""
        self.batch, self.keys = self.batch[count:], self.keys[count:]
        self._reader.waiting = len(self.batch)

    def move_out(self) -> None:
        """Keep what is left of the batch although the array that it stands in is the caller's."""
        kept = empty(len(self.batch))
        kept.view(np.uint8)[:] = self.batch.view(np.uint8)
        self.batch = kept


def merge_by_time(
    first_ns: Sequence[int], open_file: Callable[[int], Reader], into: Callable[[], np.ndarray]
) -> Iterator[np.ndarray]:
    """Batches of all files in the order of time; each is valid until the next is asked for.

    An empty one lets the caller do other work: another file has been opened, many of which may begin together, or there
    is much in one that nobody wants.

    Args:
        first_ns: when the first record of each file was recorded.
        open_file: opens the file of that number, once.
        into: the array that a batch may stand at the start of, asked for anew with every batch.

    Raises:
        SourceError: more than MAX_OPEN files overlap.
    """
    waiting = sorted(((time_ns, number) for number, time_ns in enumerate(first_ns)), reverse=True)  # the next one last
    lanes: list[_Lane] = []  # open files, by number
    while True:
        # A file that is alone is read straight into the caller's array.
        given = into() if len(lanes) == 1 and not len(lanes[0].batch) else None
        lanes = [lane for lane in lanes if len(lane.batch) or lane.fill(given)]
        if not all(len(lane.batch) for lane in lanes):
            yield _NOTHING
            continue
        if waiting and (not lanes or waiting[-1] < min(lane.next for lane in lanes)):
            if len(lanes) == MAX_OPEN:
                raise SourceError(
                    f"more than {MAX_OPEN} files overlap in time; merge = false plays one after the other"
                )
            if lanes and given is not None:
                lanes[0].move_out()
            time_ns, number = waiting.pop()
            lanes.append(_Lane(number, open_file(number), time_ns))
            lanes.sort(key=lambda lane: lane.number)
            if len(lanes) > 1:
                yield _NOTHING
            continue
        if not lanes:
            return
        bound = min((int(lane.keys[-1]), lane.number) for lane in lanes)
        if waiting:
            bound = min(bound, (waiting[-1][0], waiting[-1][1] - 1))
        parts = [(lane, count) for lane in lanes if (count := lane.up_to(bound))]
        batch = _in_order(parts)
        for lane, count in parts:
            lane.drop(count)
        if given is not None and len(lanes[0].batch):
            lanes[0].move_out()
        yield batch


def _in_order(parts: list[tuple[_Lane, int]]) -> np.ndarray:
    """The first records of each lane, sorted by time and then by lane, each lane's in their order."""
    if len(parts) == 1:
        lane, count = parts[0]
        return lane.batch[:count]
    keys = np.concatenate([lane.keys[:count] for lane, count in parts])
    order = np.argsort(keys, kind="stable")  # lanes stand in the order of their numbers
    rows = np.concatenate([lane.batch[:count].view(np.uint8).reshape(-1, RECORD_SIZE_BYTES) for lane, count in parts])
    sorted_rows: np.ndarray = rows[order].reshape(-1).view(RECORD)
    return sorted_rows
