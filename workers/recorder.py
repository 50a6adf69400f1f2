"""The recorder process: every record of every ring into the journal, and from there by the hour into Parquet.

Started as `python -m workers.recorder` by the control process. It reads all rings, appends what it reads to the journal
(workers/journal.py), whose only writer it is, and lets workers/keeper.py have sealed and removed what is old. It writes
no ring and sends nothing over a network.

    read      from each ring into a buffer of its own, until that is full or `flush_ms` old
    append    the buffer as one block; a hole that the ring left (overrun) as a gap block in its place
    report    `recorded.RING` = the sequence up to which the journal holds the ring ("always": the disk does)

Killed at any moment it goes on after the last whole block in the journal; what it had in its buffer is still in the
ring, unless the ring was lapped meanwhile: then that is a gap, counted and written down like any other.

When the journal can not be had (disk full, folder read-only, held by a recorder that is just dying), the recorder is
*stalled*: it keeps its position and its buffers, reads no further, says so (`journal_stalled`), and tries again every
second. Nothing else waits for it. What the rings lose meanwhile becomes gaps.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from shm.errors import ShmError
from shm.instruments import InstrumentTable
from shm.layout import empty
from shm.ring import RingReader, RingSet, ring_info
from shm.status import ProcessStatus
from workers.errors import WorkerError
from workers.journal import Journal
from workers.keeper import Keeper
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import RecorderSettings

RETRY_NS: Final = 1_000_000_000
SHOW_NS: Final = 100_000_000
DRAIN_NS: Final = 5_000_000_000  # a stop does not wait longer than this for writers that go on
_NAP_S: Final = 0.004  # between two looks at slow rings; in that time 65536 slots take in 16 M records/s
_BUSY_RECORDS: Final = 4096  # a turn that read more than this is followed by the next one at once

log = logging.getLogger("recorder")


class Tape:
    """One ring on its way into the journal: its reader, and what was read and not yet appended."""

    def __init__(self, reader: RingReader, stream: int, slots: int) -> None:
        """`stream` is when the ring was made; `slots` the length of the buffer in records."""
        self.reader = reader
        self.stream = stream
        self.lost = 0
        self.gaps = 0
        self.stored = 0
        self.oldest_ns = 0  # when the first record of the buffer was read
        self._buffer = empty(slots)
        self._from = 0
        self._to = 0
        self._holes: list[tuple[int, tuple[int, int]]] = []  # (index in the buffer, the gap before it)

    @property
    def pending(self) -> int:
        """Records that were read and are not in the journal."""
        return self._to - self._from

    @property
    def full(self) -> bool:
        """Whether it is time to append, however young the records are."""
        return self._to * 4 >= len(self._buffer) * 3

    def read(self, now_ns: int) -> int:
        """Take what the ring has, as far as it fits; returns how many records."""
        if self._to == len(self._buffer):
            return 0
        count = self.reader.read(self._buffer[self._to :])
        gap = self.reader.gap
        if gap is not None:
            self._holes.append((self._to, gap))
        if (count or gap) and not self.oldest_ns:
            self.oldest_ns = now_ns
        self._to += count
        return count

    def newest_publish_ns(self) -> int:
        """`ts_publish` of the newest record in the buffer, which must not be empty."""
        return int(self._buffer["ts_publish"][self._to - 1])

    def append(self, journal: Journal, now_ns: int) -> None:
        """Bring everything pending into the journal. Where that fails, what is left can be tried again.

        Raises:
            JournalFull, OSError: see Journal.append.
        """
        ring_id, epoch = self.reader.ring_id, self.reader.epoch
        for index, gap in list(self._holes):
            self._append_records(journal, epoch, index, now_ns)
            journal.append_gap(ring_id, self.stream, epoch, gap, now_ns)
            self._holes.pop(0)
            self.gaps += 1
            self.lost += gap[1] - gap[0]
            log.warning("ring %d overran the recorder: records %d to %d are lost", ring_id, gap[0], gap[1] - 1)
        self._append_records(journal, epoch, self._to, now_ns)
        self._from = self._to = 0
        self.oldest_ns = 0

    def _append_records(self, journal: Journal, epoch: int, end: int, now_ns: int) -> None:
        if end > self._from:
            records = self._buffer[self._from : end]
            journal.append(self.reader.ring_id, self.stream, epoch, records, now_ns)
            self.stored += len(records)
            self._from = end


class Recorder:
    """The recorder of one engine: make it, then `turn` for ever, then `finish` and `close`.

    The time comes from the caller (ns since the Unix epoch); a recorder can be driven by hand.

    Attributes:
        recorded: ring -> the sequence up to which the journal holds it, by the fsync policy's measure.
        stalled: why nothing can be written now; empty = it can.
        latency_ns: age of the newest record of the last block when it was appended; None = nothing new.
    """

    def __init__(
        self,
        settings: RecorderSettings,
        *,
        on_synced: Callable[[int], None] = lambda _: None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """Attach to the instruments; journal and rings follow with the first turn.

        Args:
            on_synced: duration of each fsync in ns, called in another thread.
            beat: called while waiting for the disk.

        Raises:
            SegmentMissing, NotAllowed, LayoutMismatch: see shm.errors.
        """
        self.settings = settings
        self.tapes: list[Tape] = []
        self.readers = RingSet()
        self.journal: Journal | None = None
        self.recorded: dict[int, int] = {}
        self.stalled = ""
        self.store_errors = 0
        self.records_read = 0
        self.latency_ns: int | None = None
        self.keeper = Keeper(settings)
        self._on_synced = on_synced
        self._beat = beat
        self._retry_ns = 0
        self._symbols_known = -1
        self._flush_ns = int(settings.flush_ms * 1e6)
        self._instruments = InstrumentTable.attach(settings.engine)

    @property
    def counters(self) -> dict[str, int]:
        """What this recorder counted; names as in the status block."""
        return {
            "records_read": self.records_read,
            "records_lost": sum(tape.lost for tape in self.tapes),
            "gaps": sum(tape.gaps for tape in self.tapes),
            "records_stored": sum(tape.stored for tape in self.tapes),
            "journal_bytes": self.journal.bytes_written if self.journal is not None else 0,
            "store_errors": self.store_errors,
            "sync_errors": self.journal.sync_errors if self.journal is not None else 0,
            **self.keeper.counters,
        }

    def turn(self, now_ns: int) -> int:
        """Read every ring once, append what is due, look after old files. Returns records read."""
        if self.journal is None or self.stalled:
            if now_ns < self._retry_ns and self._retry_ns - now_ns <= RETRY_NS:
                return 0
            if not self._guard(self._resume, now_ns):
                return 0
        total = 0
        for tape in self.tapes:
            total += tape.read(now_ns)
            due = tape.oldest_ns and not 0 <= now_ns - tape.oldest_ns < self._flush_ns
            if (tape.full or due) and not self._guard(partial(self._append, tape), now_ns):
                break
        self.records_read += total
        if self.journal is not None:
            self.journal.sync(now_ns)
            self.keeper.turn(self.journal, now_ns)
        return total

    def rest(self, read: int) -> None:
        """After a turn that read `read` records: nothing, a nap, or a sleep until a ring has something."""
        if read >= _BUSY_RECORDS:
            return
        if self.stalled or not self.tapes:
            time.sleep(MAX_WAIT_S)
        elif read or any(tape.oldest_ns for tape in self.tapes):
            time.sleep(_NAP_S)
        else:
            self.readers.wait(MAX_WAIT_S)

    def finish(self, now_ns: int) -> None:
        """Before a clean stop: append everything that is pending."""
        for tape in self.tapes:
            if tape.oldest_ns and not self._guard(partial(self._append, tape), now_ns):
                break

    def close(self) -> None:
        """Let go of everything, with whatever is pending. Safe to call twice."""
        self.keeper.close()
        self.readers.close()
        self.readers.clear()
        if self.journal is not None:
            self.journal.close()
        self._instruments.close()

    def _guard(self, step: Callable[[int], None], now_ns: int) -> bool:
        """Do something with the journal; if the disk does not let us, be stalled. Returns whether it was done."""
        try:
            step(now_ns)
        except ShmError:  # some of them are OSErrors too; they end the process
            raise
        except (OSError, WorkerError) as error:
            self.store_errors += 1
            if not self.stalled:
                log.error("stalled, nothing can be recorded: %s; trying again every second", error)
            self.stalled = str(error)
            self._retry_ns = now_ns + RETRY_NS
            return False
        return True

    def _resume(self, now_ns: int) -> None:
        """Open what is not open, append what could not be appended."""
        if self.journal is None:
            settings = self.settings
            self.journal = Journal(
                Path(settings.folder) / "journal",
                fsync=settings.fsync,
                fsync_interval_s=settings.fsync_interval_s,
                segment_bytes=settings.segment_bytes,
                on_synced=self._on_synced,
            )
        for ring_id in self.settings.rings[len(self.tapes) :]:
            self._attach(self.journal, ring_id)
        if self.stalled:
            self.keeper.make_room(self.journal, now_ns)
        for tape in self.tapes:
            if tape.oldest_ns:
                self._append(tape, now_ns)
        if self.stalled:
            log.warning("recording again")
            self.stalled = ""

    def _attach(self, journal: Journal, ring_id: int) -> None:
        """Go on in a ring after what the journal has of it; at the oldest record if it has nothing."""
        stream = ring_info(self.settings.engine, ring_id).created_ns
        position = journal.open_ring(ring_id, stream)
        reader = RingReader.attach(
            self.settings.engine,
            ring_id,
            start=position or "oldest",
            label=self.settings.label,
            reliable=self.settings.reliable,
        )
        self.tapes.append(Tape(reader, stream, self.settings.batch_slots))
        self.readers.append(reader)
        if position:
            self.recorded[ring_id] = position - 1

    def _append(self, tape: Tape, now_ns: int) -> None:
        journal = self.journal
        assert journal is not None
        if len(self._instruments) != self._symbols_known:
            symbols = self._instruments.symbols()
            journal.follow_symbols(symbols)
            self._symbols_known = len(symbols)
        newest_ns = tape.newest_publish_ns() if tape.pending else None
        tape.append(journal, now_ns)
        if self.settings.fsync == "always":
            ticket = journal.sync(now_ns)
            while not journal.synced(ticket, 0.05):
                self._beat()
        self.recorded[tape.reader.ring_id] = journal.position(tape.reader.ring_id) - 1
        if newest_ns is not None:
            self.latency_ns = max(0, now_ns - newest_ns)


class _Numbers:
    """The recorder's figures in the status block."""

    def __init__(self, status: ProcessStatus) -> None:
        self._status = status
        self._latency = status.histogram("record_latency")
        self._fsync = status.histogram("fsync")
        self._shown: dict[str, int] = {}
        self._next_ns = 0

    def synced(self, duration_ns: int) -> None:
        """One fsync took this long. Called in the journal's thread, the only one that writes this histogram."""
        self._fsync.record(duration_ns)

    def show(self, recorder: Recorder, now_ns: int) -> None:
        """Positions at once, because others rely on them; counters and sizes a few times a second."""
        status = self._status
        for ring_id, sequence in recorder.recorded.items():
            status.counter(f"recorded.{ring_id}").set(sequence)
        if recorder.latency_ns is not None:
            self._latency.record(recorder.latency_ns)
            recorder.latency_ns = None
        if now_ns < self._next_ns and self._next_ns - now_ns <= SHOW_NS:
            return
        self._next_ns = now_ns + SHOW_NS
        for name, value in recorder.counters.items():  # added up over all recorders of this run of the engine
            status.counter(name).add(value - self._shown.get(name, 0))
            self._shown[name] = value
        status.gauge("journal_stalled").set(float(bool(recorder.stalled)))
        for name, level in recorder.keeper.gauges.items():
            status.gauge(name).set(level)


def run(runtime: Runtime[RecorderSettings]) -> None:
    """Be the recorder until asked to stop; then take in what the rings hold, append it, and return."""
    numbers = _Numbers(runtime.status)
    recorder = Recorder(runtime.settings, on_synced=numbers.synced, beat=lambda: runtime.beat(time.time_ns()))
    try:
        recorder.turn(time.time_ns())
        numbers.show(recorder, 0)
        runtime.ready()
        while not runtime.stopping:
            now_ns = time.time_ns()
            read = recorder.turn(now_ns)
            numbers.show(recorder, now_ns)
            runtime.beat(now_ns)
            recorder.rest(read)
        deadline_ns = time.time_ns() + DRAIN_NS
        while recorder.turn(now_ns := time.time_ns()) and now_ns < deadline_ns:
            runtime.beat(now_ns)
        recorder.finish(time.time_ns())
        numbers.show(recorder, time.time_ns() + SHOW_NS)
    finally:
        recorder.close()


if __name__ == "__main__":
    main("recorder", RecorderSettings, run)
