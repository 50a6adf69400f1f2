"""The latest-value table (L1): per instrument its last trade, quote, day and bars, and its last records.

`LatestTable` makes tables and reads them; the one writer is the cache process (workers/cache.py), which holds the
table's writer lock. The layout, and why a reader never sees a torn entry, are in shm/latest.h. Readers map the segment
read-only and may be any number of processes and threads. What a snapshot holds is in shm/snapshot.py.

    table = LatestTable.attach("main")
    snapshot = table.snapshot(instrument_id)        # None for an instrument never seen
    records = table.history(instrument_id, 100)     # the newest 100, oldest first

Late join without gap or duplicate: take a snapshot, then read each ring from `snapshot.as_of.get(ring, 0) + 1` on and
keep this instrument's records. What has come before is in the snapshot, what comes after is not.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from shm import _latest
from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentExists, WriterBusy
from shm.layout import RECORD, RECORD_SIZE_BYTES, RecordType
from shm.locks import ByteLock
from shm.segment import Segment, segment_name
from shm.snapshot import DayStatistics, LastQuote, LastTrade, OpenBar, Snapshot, applied, snapshot_of

__all__ = [
    "DEFAULT_BAR_INTERVALS_S",
    "DEFAULT_DEPTH_RECORDS",
    "DEFAULT_INSTRUMENTS",
    "DEFAULT_POOL_RECORDS",
    "MAX_CHUNK_RECORDS",
    "DayStatistics",
    "Lanes",
    "LastQuote",
    "LastTrade",
    "LatestStats",
    "LatestTable",
    "OpenBar",
    "Snapshot",
]

DEFAULT_INSTRUMENTS: Final = 8192
DEFAULT_DEPTH_RECORDS: Final = 1000
DEFAULT_POOL_RECORDS: Final = 1 << 20
DEFAULT_BAR_INTERVALS_S: Final = (1, 60)
MAX_CHUNK_RECORDS: Final = 50

_WRITER_LOCK = 0


class Lanes(NamedTuple):
    """The newest records of one instrument in the order in which they were applied, oldest first, copies.

    `events` has everything but bars; `events_applied` and `bars_applied` are how many there ever were: equal to the
    length of the array if that is all of them.
    """

    events: np.ndarray
    bars: np.ndarray
    events_applied: int
    bars_applied: int


@dataclass(frozen=True, slots=True)
class LatestStats:
    """How full a table is. Bytes are of the whole segment; `bytes_per_record` is they, divided by the records held."""

    instruments: int
    instruments_room: int
    records_held: int
    records_room: int
    segment_bytes: int
    depth_records: int
    chunks_free: int
    chunks_total: int
    counters: dict[str, int]

    @property
    def bytes_per_record(self) -> float:
        """Segment bytes a record held; NaN for an empty table."""
        return self.segment_bytes / self.records_held if self.records_held else float("nan")


class LatestTable(_latest.Table):
    """One engine's latest-value table. Use `create`, `attach` or `create_or_attach`.

    Attributes:
        name: segment name.
        depth_records: history kept per lane (bars have a lane of their own), if the pool lets it.
        bar_intervals_s: lengths of the bars it has room for.
        instruments_room: entries; instruments with a higher id are not kept.
    """

    name: str
    segment: Segment
    depth_records: int
    bar_intervals_s: tuple[int, ...]
    instruments_room: int
    _lock: ByteLock

    @classmethod
    def create(
        cls,
        engine: str,
        *,
        instruments: int = DEFAULT_INSTRUMENTS,
        depth_records: int = DEFAULT_DEPTH_RECORDS,
        pool_records: int = DEFAULT_POOL_RECORDS,
        bar_intervals_s: tuple[int, ...] = DEFAULT_BAR_INTERVALS_S,
        mode: int = 0o600,
        group: str | int | None = None,
    ) -> LatestTable:
        """Make the table, empty, and attach to it for reading and writing.

        Args:
            engine: engine name, see `shm.segment.check_engine_name`.
            instruments: entries, 1 to 2**20; 1.7 kB each with two bar intervals.
            depth_records: history per instrument and lane, 1 to 2**20.
            pool_records: history of all instruments together, 128 bytes each; no more is taken than they can use.
                When the pool is full the lanes share it evenly and get shorter.
            bar_intervals_s: lengths of the bars, seconds, up to 8, ascending.
            mode, group: see `Segment.create`.

        Raises:
            SegmentExists, ShmFull, BadArgument.
        """
        shape = _shape(instruments, depth_records, pool_records, bar_intervals_s)
        segment = Segment.create(segment_name(engine, "last"), _latest.table_bytes(*shape), mode=mode, group=group)
        _latest.format_table(segment.buf, *shape, time.time_ns())
        return cls._over(segment)

    @classmethod
    def attach(cls, engine: str, *, write: bool = False) -> LatestTable:
        """Attach to the table, read-only unless `write` (the cache process).

        Raises:
            SegmentMissing, NotAllowed, LayoutMismatch.
        """
        return cls._over(Segment.attach(segment_name(engine, "last"), write=write))

    @classmethod
    def create_or_attach(cls, engine: str, **options: Any) -> LatestTable:
        """Attach for writing if the table is there with the sizes that `options` (as in `create`) give; else make it.

        Raises:
            LayoutMismatch: it is there with other sizes; the message names the first that differs.
        """
        try:
            return cls.create(engine, **options)
        except SegmentExists:
            table = cls.attach(engine, write=True)
        instruments, depth, chunk_records, chunks, intervals = _shape(
            options.get("instruments", DEFAULT_INSTRUMENTS),
            options.get("depth_records", DEFAULT_DEPTH_RECORDS),
            options.get("pool_records", DEFAULT_POOL_RECORDS),
            options.get("bar_intervals_s", DEFAULT_BAR_INTERVALS_S),
        )
        wanted = {
            "instruments": instruments,
            "depth_records": depth,
            "chunk_records": chunk_records,
            "chunks": chunks,
            "bar_intervals_s": intervals,
        }
        for what, value in wanted.items():
            if table.shape[what] != value:
                found = table.shape[what]
                table.close()
                raise LayoutMismatch(f"segment {table.name}: {what} is {found} there and {value} is asked for")
        return table

    @classmethod
    def _over(cls, segment: Segment) -> LatestTable:
        table = cls()
        table.name, table.segment, table._lock = segment.name, segment, ByteLock(segment.name, _WRITER_LOCK)
        try:
            _latest.check_table(segment.name, segment.buf)
            table._map(segment.buf)
        except BaseException:
            segment.close()
            raise
        shape = table.shape
        table.depth_records = shape["depth_records"]
        table.bar_intervals_s = shape["bar_intervals_s"]
        table.instruments_room = shape["instruments"]
        return table

    def lock_writer(self) -> None:
        """Become the one process that may write, until `close` or the end of the process.

        Raises:
            NotAllowed: attached without `write`.
            WriterBusy: another living process writes this table.
        """
        if not self.segment.writable:
            raise NotAllowed(f"{self.name} is attached read-only")
        if not self._lock.try_acquire():
            raise WriterBusy(f"latest table {self.name} has a writer already: process {self.counters['writer_pid']}")

    def as_of(self) -> dict[int, int]:
        """Per ring, the sequence up to which every record is in the table; rings of which none is are left out."""
        return {ring: sequence for ring, sequence in enumerate(self.complete()) if sequence}

    def snapshot(self, instrument_id: int) -> Snapshot | None:
        """What the table holds of an instrument; None if no record of it was ever applied (or it has no entry)."""
        complete = self.complete()  # before the entry: shm/latest.h, pair COMPLETE
        found = self.read(instrument_id)
        return None if found is None else snapshot_of(instrument_id, complete, self.bar_intervals_s, *found)

    def history(self, instrument_id: int, limit: int = 1000, record_type: RecordType | int | None = None) -> np.ndarray:
        """The newest records of an instrument, oldest first: shape (up to `limit`,), dtype RECORD, a copy.

        `record_type` picks one type, from the records that are kept (the last `depth_records` of everything but bars,
        and as many bars). None takes them all, in order of publication. Empty for an instrument never seen. Under a
        writer at full speed a few of the oldest may be missing.
        """
        if limit < 0:
            raise BadArgument(f"limit is {limit}, must be at least 0")
        return self._lanes(instrument_id, limit, record_type)[1]

    def lanes(self, instrument_id: int, limit: int) -> Lanes | None:
        """Up to `limit` of the newest records of each lane, all of one moment; None for an instrument never seen."""
        limit = min(limit, self.depth_records)
        events, bars = _raw(limit), _raw(limit)
        found = self.read_lanes(instrument_id, events, bars)
        if found is None:
            return None
        _, state, event_count, bar_count = found
        return Lanes(
            events[:event_count].reshape(-1).view(RECORD),
            bars[:bar_count].reshape(-1).view(RECORD),
            *applied(state),
        )

    def join(self, instrument_id: int, limit: int = 1000) -> tuple[Snapshot | None, np.ndarray]:
        """Snapshot and history of the same moment: for who shows the past and goes on from `as_of`."""
        complete = self.complete()
        found, records = self._lanes(instrument_id, limit, None)
        return (None if found is None else snapshot_of(instrument_id, complete, self.bar_intervals_s, *found)), records

    def stats(self) -> LatestStats:
        """How full the table is; looks at every entry (about a millisecond)."""
        shape, counters = self.shape, self.counters
        return LatestStats(
            instruments=counters["instruments_seen"],
            instruments_room=shape["instruments"],
            records_held=self.records_held(),
            records_room=shape["chunks"] * shape["chunk_records"],
            segment_bytes=self.segment.size_bytes,
            depth_records=shape["depth_records"],
            chunks_free=counters["chunks_free"],
            chunks_total=shape["chunks"],
            counters=counters,
        )

    def close(self) -> None:
        """Let go of the segment (and of the writer lock). Safe to call twice."""
        self._leave()
        self._lock.release()
        self.segment.close()

    def unlink(self) -> None:
        """Remove the segment's name. Safe to call twice."""
        self.segment.unlink()

    def __enter__(self) -> LatestTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _lanes(
        self, instrument_id: int, limit: int, record_type: RecordType | int | None
    ) -> tuple[tuple[int, bytes] | None, np.ndarray]:
        limit = min(limit, 2 * self.depth_records)
        kept = self.depth_records
        of_events = kept if record_type is not None else min(limit, kept)  # a type has to be looked for in all of them
        of_bars = min(limit, kept) if record_type is None else kept
        if record_type == RecordType.BAR:
            of_events = 0
        elif record_type is not None:
            of_bars = 0
        events, bars = _raw(of_events), _raw(of_bars)
        found = self.read_lanes(instrument_id, events, bars)
        if found is None:
            return None, _raw(0).view(RECORD).reshape(-1)
        version, state, event_count, bar_count = found
        raw = np.concatenate((events[:event_count], bars[:bar_count]))
        records = raw.view(RECORD).reshape(-1)
        chosen: np.ndarray | None = None
        if record_type is not None:
            chosen = np.flatnonzero(records["record_type"] == record_type)
        else:
            published = records["ts_publish"]
            if np.any(published[1:] < published[:-1]):
                chosen = np.argsort(published, kind="stable")
        if chosen is not None:
            raw = raw[chosen]
        raw = raw[len(raw) - min(limit, len(raw)) :]
        return (version, state), np.ascontiguousarray(raw).view(RECORD).reshape(-1)

    def __repr__(self) -> str:
        return f"<LatestTable {self.name} pid {os.getpid()} {'rw' if self.segment.writable else 'ro'}>"


def _raw(records: int) -> np.ndarray:
    return np.empty((records, RECORD_SIZE_BYTES), dtype=np.uint8)


def _shape(
    instruments: int, depth_records: int, pool_records: int, bar_intervals_s: tuple[int, ...]
) -> tuple[int, int, int, int, tuple[int, ...]]:
    """Sizes as the header has them: instruments, depth, records a chunk, chunks, intervals. Raises BadArgument."""
    for what, value in (
        ("instruments", instruments),
        ("depth_records", depth_records),
    ):
        if not 1 <= value <= 1 << 20:
            raise BadArgument(f"{what} is {value}, must be 1 to {1 << 20}")
    intervals = tuple(bar_intervals_s)
    if len(intervals) > _latest.INTERVALS_MAX or any(not 1 <= seconds <= 86400 for seconds in intervals):
        raise BadArgument(
            f"bar_intervals_s is {intervals}, must be up to {_latest.INTERVALS_MAX} lengths of 1 to 86400 s"
        )
    if len(set(intervals)) != len(intervals):
        raise BadArgument(f"bar_intervals_s is {intervals}: each length once")
    chunk_records = min(MAX_CHUNK_RECORDS, depth_records)
    if pool_records < chunk_records:
        raise BadArgument(f"pool_records is {pool_records}, must be at least {chunk_records}")
    usable = 2 * instruments * (-(-depth_records // chunk_records) + 1)
    return instruments, depth_records, chunk_records, min(pool_records // chunk_records, usable), intervals
