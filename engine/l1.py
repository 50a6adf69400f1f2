"""What L1 knows of a question, and whether it may answer alone. Called by engine/tiers.py; reads the table, no more.

L1 has the last records of an instrument in the order in which they came; the question is about the newest by their own
time, of this run and of all earlier ones. L1 answers alone only where nothing that it lacks could belong into the
answer. What it lacks was published before `unread`: before the oldest record that was looked at (or, where all of this
run is still in L1, before the table was made: earlier runs). Nothing is dated much later than it was published, so no
such record has a `ts_event` above the

    horizon = unread + twice the most that any record looked at is dated ahead of its publication, at least MARGIN_NS

    the newest `limit` in range all lie above the horizon      L1 answers alone
    the range begins above the horizon                         L1 answers alone, however few there are
    otherwise                                                  the historian is asked, and gets what L1 has

So live data is answered from L1; replayed data, whose own time is long past, costs a look into the archive's
statistics. The rule's one assumption: data dated further ahead of its publication than twice the most that is seen
may be missing from pages that L1 answered alone. Where the cache lost records or did not run, `unread` is the moment
of that, known within a second.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shm.latest import LatestTable
from shm.layout import RECORD, RECORD_SIZE_BYTES, RecordType

MARGIN_NS: Final = 10_000_000  # the cache reads rings by turns: records of two rings are applied this much out of order
_FOREVER: Final = (1 << 63) - 1

Key = tuple[int, int, int]  # ts_event, ts_publish, sequence: as workers.tier.Key


class Wanted(NamedTuple):
    """What is asked for: as workers.tier.Wanted, the symbol left out."""

    kind: RecordType | None
    from_ns: int | None
    to_ns: int | None
    before: Key | None
    limit: int


class View(NamedTuple):
    """What L1 says. `alone`: it is the answer. Records ascend by key, dtype RECORD, at most `limit`, the newest."""

    records: np.ndarray
    alone: bool
    unread_ns: int  # what L1 has not got of this run was published up to here; 0 = it has got everything


class L1:
    """The latest-value table, seen by the tiers."""

    def __init__(self, table: LatestTable) -> None:
        """Reads only."""
        self.table = table
        self._made_ns = int(table.shape["created_ns"])

    def look(self, instrument_id: int | None, wanted: Wanted, *, hole_ns: int = 0) -> View:
        """What there is of an instrument; None = it has no number in this run.

        Args:
            hole_ns: up to this moment the cache has lost records; 0 = none.

        Raises:
            ShmError: the table can't be read.
        """
        if instrument_id is None:
            return self._view([], 0, wanted, hole_ns)
        if instrument_id >= self.table.instruments_room:
            return View(np.empty(0, RECORD), False, _FOREVER)
        depth = self.table.depth_records
        sizes = [depth]
        if wanted.before is None and wanted.from_ns is None and wanted.to_ns is None and 4 * wanted.limit < depth:
            # Mostly the newest few will do. Of one type: as many as are likely to have enough of it.
            sizes.insert(0, (2 if wanted.kind is None else 6) * wanted.limit + 32)
        view = None
        for size in sizes:
            lanes = self.table.lanes(instrument_id, size)
            if lanes is None:
                return self._view([], 0, wanted, hole_ns)
            looked: list[np.ndarray] = []
            unread_ns = 0
            for records, applied, asked in (
                (lanes.events, lanes.events_applied, wanted.kind is not RecordType.BAR),
                (lanes.bars, lanes.bars_applied, wanted.kind in (None, RecordType.BAR)),
            ):
                if asked and len(records) < applied:
                    unread_ns = max(unread_ns, int(records["ts_publish"][0]) if len(records) else _FOREVER)
                if asked and len(records):
                    looked.append(records)
            view = self._view(looked, unread_ns, wanted, hole_ns)
            if view.alone:
                break
        assert view is not None
        return view

    def _view(self, looked: list[np.ndarray], unread_ns: int, wanted: Wanted, hole_ns: int) -> View:
        records = looked[0] if len(looked) == 1 else joined(looked)
        events, published = records["ts_event"], records["ts_publish"]
        ahead_ns = int((events - published).max()) if len(records) else 0
        horizon_ns = max(unread_ns, hole_ns, self._made_ns) + max(MARGIN_NS, 2 * ahead_ns)
        chosen = _chosen(records, wanted)
        enough = len(chosen) == wanted.limit and int(chosen["ts_event"][0]) > horizon_ns
        alone = enough or (wanted.from_ns is not None and wanted.from_ns > horizon_ns)
        return View(chosen, alone, max(unread_ns, hole_ns))


def key_of(record: np.ndarray) -> Key:
    """The key of one record."""
    return int(record["ts_event"]), int(record["ts_publish"]), int(record["sequence"])


def joined(pieces: list[np.ndarray]) -> np.ndarray:
    """Records of several arrays in one, dtype RECORD, which numpy can not join by itself: its bodies overlap."""
    if not pieces:
        return np.empty(0, RECORD)
    return np.concatenate([_words(piece) for piece in pieces]).reshape(-1).view(RECORD)


def _chosen(records: np.ndarray, wanted: Wanted) -> np.ndarray:
    """The newest `limit` by key of those that are wanted, ascending."""
    events = records["ts_event"]
    keep: np.ndarray | None = None
    if wanted.kind is not None and wanted.kind is not RecordType.BAR:
        keep = records["record_type"] == wanted.kind
    if wanted.from_ns is not None:
        keep = _and(keep, events >= wanted.from_ns)
    if wanted.to_ns is not None:
        keep = _and(keep, events < wanted.to_ns)
    if wanted.before is not None:
        event, publish, sequence = wanted.before
        published = records["ts_publish"]
        earlier = (published < publish) | ((published == publish) & (records["sequence"] < np.uint64(sequence)))
        keep = _and(keep, (events < event) | ((events == event) & earlier))
    places = None if keep is None else np.flatnonzero(keep)
    if places is not None:
        events = events[places]
    if len(events) > 1 and not bool(np.all(events[1:] > events[:-1])):
        published, sequences = records["ts_publish"], records["sequence"]
        if places is not None:
            published, sequences = published[places], sequences[places]
        order = np.lexsort((sequences, published, events))
        places = order if places is None else places[order]
    if places is None:
        return records[max(0, len(records) - wanted.limit) :]
    return _words(records).take(places[max(0, len(places) - wanted.limit) :], axis=0).reshape(-1).view(RECORD)


def _and(first: np.ndarray | None, second: np.ndarray) -> np.ndarray:
    return second if first is None else first & second


def _words(records: np.ndarray) -> np.ndarray:
    return records.view(np.uint64).reshape(len(records), RECORD_SIZE_BYTES // 8)
