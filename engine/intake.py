"""HTTP ingest behind its route: points become records of ring 0, as fast as the engine's own readers take them.

Made by the control process, called by engine/http_ingest.py. It publishes nothing that our readers would be overrun
by: before a chunk goes out it looks at their lag, waits a moment, and refuses with a reason what finds no room. A point
that was counted as stored is in the ring, and the recorder will have it: where one is configured, nothing goes out that
the ring could lose before it stands in the journal, whether the recorder is slow, stalled or just being started again.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec
import numpy as np

from engine.plan import CONTROL_RING, GATEWAY_LABEL, RECORDER_LABEL
from engine.segments import Segments
from engine.settings import Config
from shm.errors import ShmError
from shm.layout import Flag, StatusCode
from shm.ring import list_readers, status_record
from workers.points import Composer, Point, Rejection
from workers.spec import QualitySettings

if TYPE_CHECKING:
    from engine.supervisor import Supervisor

ROOM_WAIT_S: Final = 2.0
ROOM_POLL_S: Final = 0.001
REPORT_EVERY_S: Final = 10.0
NO_ROOM: Final = "not stored: the engine's readers are behind; send it again"
STOPPING: Final = "not stored: the engine is stopping; send it again"


@dataclass
class Taken:
    """What became of some points. `overload`: those at the end found no room in time, or the engine is stopping."""

    count: int = 0
    rejected: list[Rejection] = field(default_factory=list)
    overload: bool = False


class Intake:
    """Takes points; counts them in the control process's slot of the status block."""

    def __init__(self, config: Config, segments: Segments, supervisor: Supervisor) -> None:
        """Uses ring 0 of `segments`, of which the control process is the writer."""
        quality = QualitySettings(**msgspec.structs.asdict(config.quality))
        self.composer = Composer(segments.instruments.intern, quality, config.priority.symbols)
        self._engine = config.engine.name
        self._ring = segments.ring
        self._status = segments.status
        self._recording = config.storage.enabled
        self._closed = False
        self._supervisor = supervisor
        self._safe_until = 0  # sequence up to which may be published without looking at the readers again
        self._chunk = self._ring.depth_slots // 4
        self._own = supervisor.own
        self._stored = self._own.counter("points_stored")
        self._rejected = self._own.counter("points_rejected")
        self._unreported = 0
        self._report_at_s = 0.0

    @property
    def total_stored(self) -> int:
        """Points stored since the engine's start."""
        return self._stored.value

    def close(self) -> None:
        """Publish nothing from now on: the engine is stopping, and who reads the ring will not read it much longer."""
        self._closed = True

    async def take(self, points: list[Point | None], rejected: list[Rejection]) -> Taken:
        """Publish what is usable of `points`, in order.

        Args:
            points: as workers.points decodes them.
            rejected: what the decoding has found unusable.
        """
        records, more = self.composer.compose(points, time.time_ns())
        taken = Taken(rejected=sorted(rejected + more) if more else rejected)
        at = 0
        while at < len(records):
            chunk = records[at : self._end(records, at)]
            if not await self._room(len(chunk)):
                left = sorted(set(records["sequence"][at:].tolist()))
                why = STOPPING if self._closed else NO_ROOM
                taken.rejected = sorted(taken.rejected + [(index, why) for index in left])
                taken.overload = True
                break
            self._ring.publish_batch(chunk)
            if self.composer.feeds:
                self._count_feeds(chunk)
            taken.count += self._points_in(chunk)
            at += len(chunk)
        self._stored.add(taken.count)
        self._rejected.add(len(taken.rejected))
        if taken.rejected:
            self._report(taken.rejected)
        return taken

    def _report(self, rejected: list[Rejection]) -> None:
        """Tell `marketdata.error` what was not stored: at once, then at most every REPORT_EVERY_S."""
        self._unreported += len(rejected)
        if self._closed or time.monotonic() < self._report_at_s:
            return
        self._report_at_s = time.monotonic() + REPORT_EVERY_S
        text = f"{self._unreported} points rejected: {rejected[0][1]}"
        try:
            self._ring.publish(status_record(StatusCode.REJECTED, text=text, to_sequence=self._unreported))
        except ShmError:  # the ring is gone: the engine is stopping
            return
        self._unreported = 0

    def _end(self, records: np.ndarray, at: int) -> int:
        """Where the chunk from `at` ends: a news item of several records is not cut in two if that can be helped."""
        end = min(at + self._chunk, len(records))
        cut = end
        while cut > at and records["flags"][cut - 1] & Flag.CONTINUES:
            cut -= 1
        return cut if cut > at else end

    def _count_feeds(self, records: np.ndarray) -> None:
        """Keep the counters by which a feed of source "internal" is judged, as workers do for theirs."""
        numbers, counts = np.unique(records["feed_id"], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number:
                self._own.counter(f"feed.{number}.records").add(count)
                self._own.counter(f"feed.{number}.last_update_ns").set(time.time_ns())

    @staticmethod
    def _points_in(records: np.ndarray) -> int:
        return len(records) - int(np.count_nonzero(records["flags"] & Flag.CONTINUES))

    async def _room(self, count: int) -> bool:
        """Whether `count` records may be published without overrunning our readers; waits for it a while."""
        wanted = self._ring.next_sequence + count
        deadline_s = time.monotonic() + ROOM_WAIT_S
        while not self._closed and wanted > self._safe_until:
            self._safe_until = self._look()
            if wanted <= self._safe_until:
                break
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(ROOM_POLL_S)
        return not self._closed

    def _look(self) -> int:
        """Sequence up to which may be published now."""
        depth = self._ring.depth_slots
        pids = self._supervisor.reader_pids()
        gateway = self._status.process(GATEWAY_LABEL)
        if gateway is not None and not gateway.counters.get("subscriptions"):
            pids = pids - {gateway.pid}  # it does not read while nobody has asked it for anything
        cursors = [reader.cursor for reader in list_readers(self._engine, CONTROL_RING) if reader.pid in pids]
        limit = min(cursors, default=self._ring.next_sequence) + depth // 2
        if not self._recording:
            return limit
        # Not the recorder's cursor: one that is just being started again has none.
        recorder = self._status.process(RECORDER_LABEL)
        recorded = recorder.counters.get(f"recorded.{CONTROL_RING}", 0) if recorder is not None else 0
        return min(limit, recorded + depth - self._chunk)
