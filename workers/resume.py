"""Where a repeatable feed stands, so that an ingest worker killed at any moment goes on without a duplicate or a loss.

The facts are spread over two places that outlive the process: the ring holds the records, the status block counts what
was taken from the feed to make them. This module keeps the two in agreement, as a redo log of one entry, for feeds
that can be had again (`Source.position` is not None: replays). Used by workers/feed.py and workers/ingest.py; never
once a record.

For each batch of such a feed, in this order:

    1  log.begin(...)        valid := 0, then the entry, then valid := 1. The entry: these `count` records will stand in
                             the ring from `sequence` on; they are what `from` to `to` of the feed gave, after the first
                             `dropped` that had been published before
    2  writer.publish_batch  the ring stamps the records in order
    3  position := to        `feed.ID.position`

After a kill the next process finds, if the kill fell

    within 1   valid = 0: batch not begun, and step 3 of the one before is done: `feed.ID.position` is right
    within 2   the entry, and p < count of its records stamped: go back to `from`, drop what was published (dropped + p)
    after 2    the entry, and all its records stamped: go to `to`; whether step 3 was done makes no difference

p is counted in the ring itself: the records from `sequence` on, up to the first WRITER_RESTARTED, which the ring puts
exactly after the last stamped record. So the rule holds for a second kill before the next batch, too.

The stores of one process take effect in program order for everyone who looks after its death (a kill is a precise point
in its instruction stream), hence relaxed counters suffice. Dropping by number is right because what quality rejects
does not depend on its state, so the same input leaves the same records. Nothing survives the end of an engine's run or
a change of the feed's settings: `feed.ID.input` tells them apart, and the feed then starts from its beginning.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import crc32

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, Flag, RecordType, StatusCode, empty
from shm.ring import RingReader
from shm.status import ProcessStatus
from workers.spec import FeedSpec, encode_feed

_PIECE: Final = 8192  # records
LOOK_BACK_SLOTS: Final = 16384


class Entry(NamedTuple):
    """One batch that was about to be published; positions are in records of the feed."""

    feed_id: int
    sequence: int
    records: int
    from_position: int
    to_position: int
    dropped: int


class Newest(NamedTuple):
    """The venue's message that a feed's newest market records in the ring came from."""

    source_sequence: int
    records: int  # of it
    complete: bool  # the last one ends its message (LAST_OF_BATCH)


class ResumeLog:
    """The redo log of one ingest worker, in the counters `resume.*` of its slot in the status block."""

    def __init__(self, status: ProcessStatus) -> None:
        """Find the counters, or make them."""
        self._valid = status.counter("resume.valid")
        self._fields = [status.counter(f"resume.{name}") for name in Entry._fields]

    def begin(self, entry: Entry) -> None:
        """A batch is about to be published: step 1."""
        self._valid.set(0)
        for counter, value in zip(self._fields, entry, strict=True):
            counter.set(value)
        self._valid.set(1)

    def entry(self) -> Entry | None:
        """The batch that was about to be published last, if it was entered completely."""
        if not self._valid.value:
            return None
        return Entry._make(counter.value for counter in self._fields)

    def clear(self) -> None:
        """There is no such batch."""
        self._valid.set(0)


class FeedPosition:
    """Where one repeatable feed stands: `feed.ID.position`, and whose it is, `feed.ID.input`."""

    def __init__(self, status: ProcessStatus, spec: FeedSpec, run_started_ns: int) -> None:
        """`run_started_ns` is when this run of the engine began: positions of another run are void."""
        self._position = status.counter(f"feed.{spec.feed_id}.position")
        self._input = status.counter(f"feed.{spec.feed_id}.input")
        self._identity = run_started_ns ^ crc32(encode_feed(spec)) or 1

    @property
    def records(self) -> int:
        """Records of the feed that were taken and published, or rejected, for good."""
        return self._position.value

    @records.setter
    def records(self, records: int) -> None:
        self._position.set(records)

    def recover(self, log: ResumeLog, feed_id: int, engine: str, ring_id: int) -> int:
        """Set `records` to where the feed must go on; returns how many of what then comes were published already.

        Call once a process, after RingWriter.open and before anything else is published.
        """
        entry = log.entry()
        mine = entry is not None and entry.feed_id == feed_id
        if self._input.value != self._identity:
            if mine:
                log.clear()  # before the new identity makes it look current
            self.records = 0
            self._input.set(self._identity)
            return 0
        if entry is None or not mine:
            return 0
        published = count_published(entry, engine, ring_id)
        if published >= entry.records:
            self.records = entry.to_position
            return 0
        self.records = entry.from_position
        return entry.dropped + published


def count_published(entry: Entry, engine: str, ring_id: int) -> int:
    """How many records of the batch the ring holds, or held: an overrun batch was complete, since more followed it."""
    out = empty(entry.records)
    with RingReader.attach(engine, ring_id, start="oldest", label="resume", register=False) as reader:
        if not reader.sequence <= entry.sequence <= reader.published:
            # Overrun, or never begun: only the sequence after the end can be asked for and is not there.
            return entry.records if entry.sequence < reader.sequence else 0
        reader.seek(entry.sequence)
        count = 0
        while count < entry.records:
            got = reader.read(out[count:])
            if got == 0 or reader.gap is not None:
                break
            count += got
        if reader.gap is not None:
            return entry.records
    restarts = (out["record_type"][:count] == RecordType.STATUS) & (out["code"][:count] == StatusCode.WRITER_RESTARTED)
    return int(restarts.argmax()) if restarts.any() else count


def feed_records(engine: str, ring_id: int, feed_id: int) -> Iterator[np.ndarray]:
    """What the ring holds of one feed at the moment of the first piece, status records apart; oldest first.

    For sources that keep their own account of what they have published (workers/sources/polled.py).
    """
    out = empty(_PIECE)
    with RingReader.attach(engine, ring_id, start="oldest", label="resume", register=False) as reader:
        end = reader.published
        while reader.sequence <= end:
            got = reader.read(out)
            if got == 0:
                return
            mine = (out["feed_id"][:got] == feed_id) & (out["record_type"][:got] != RecordType.STATUS)
            if mine.any():
                rows = out[:got].view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[mine]
                yield rows.reshape(-1).view(out.dtype)


def find_newest(engine: str, ring_id: int, feed_id: int, published_ns: int, received_ns: int) -> Newest | None:
    """For live feeds whose records, trading status included, name the venue's message in `source_sequence`, ascending.

    Looks from the ring's newest record back. Passed over: what was published before `published_ns` (accounted for, or
    another feed's that had this number) or received before `received_ns` (of another numbering). None: there is no such
    record. The ring's writer must not publish meanwhile.
    """
    found = np.zeros(0, np.uint64)
    complete = False
    with RingReader.attach(engine, ring_id, start="oldest", label="resume", register=False) as reader:
        oldest, end = reader.sequence, reader.published + 1
        out = empty(LOOK_BACK_SLOTS)
        while end > oldest:
            begin = max(oldest, end - LOOK_BACK_SLOTS)
            reader.seek(begin)
            got = reader.read(out[: end - begin])
            rows = np.flatnonzero(
                (out["feed_id"][:got] == feed_id)
                & ((out["record_type"][:got] != RecordType.STATUS) | (out["code"][:got] == StatusCode.TRADING_STATUS))
                & (out["ts_receive"][:got] >= received_ns)
                & (out["ts_publish"][:got] >= published_ns)
            )
            if len(rows):
                if not len(found):
                    complete = bool(out["flags"][rows[-1]] & Flag.LAST_OF_BATCH)
                found = np.concatenate([out["source_sequence"][rows], found])
                if found[0] != found[-1]:
                    break
            end = begin
    if not len(found):
        return None
    different = np.flatnonzero(found != found[-1])
    return Newest(int(found[-1]), len(found) - (int(different[-1]) + 1 if len(different) else 0), complete)
