"""The cache process: rings in, latest values and history out, bars into a ring of their own.

Started as `python -m workers.cache` by the control process. It reads every data ring, applies what it reads to the
latest-value table (shm/latest.py), whose only writer it is, and publishes the bars it builds to the bar ring, whose
only writer it is too. It never touches records of other processes and sends nothing over a network.

One turn, and why its steps stand in this order:

    1 read      a batch of one ring
    2 apply     to private states; bars that are finished come out (workers/cache.h)
    3 publish   these bars to the bar ring
    4 feed back the bars, read from the bar ring like any other record: they enter the history of their instrument, and
                its state learns that the ring holds them
    5 commit    everything of 2 and 4, each instrument at once
    6 complete  "this ring is in the table up to here", for each ring concerned

Killed after 3 and before 5, the next process finds the bars in the ring (from complete[bar ring] + 1 on), feeds them
back first, then applies the records of 2 again and knows of each bar whether the ring holds it: nothing is lost and
nothing comes twice. Killed within 5, some instruments are ahead of `complete`: their `applied` sequences say which
records to leave out. Publishing after the commit would lose bars instead.

Bars close by the trades themselves, by their feed's stream clock, at the end of a replay, and at a stop (workers/bars.h
and workers/cache.h). Feeds that fell silent are looked after ten times a second. Losses: a ring that overran this
process is counted (`gaps`, `records_lost`); its bars under way are flagged INCOMPLETE and GAP_BEFORE.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from shm.latest import LatestTable
from shm.layout import empty
from shm.ring import RingReader, RingSet, RingWriter, Start, ring_info
from shm.status import ProcessStatus
from workers._cache import Applier
from workers.errors import SettingsError
from workers.ranking import Ranking
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import CacheSettings

TIMER_NS: Final = 100_000_000
DRAIN_NS: Final = 5_000_000_000  # a stop does not wait longer than this for writers that go on

log = logging.getLogger("cache")


class Cache:
    """The cache of one engine: attach with the constructor, then `turn` for ever, then `finish` and `close`.

    The time comes from the caller (ns since the Unix epoch); a cache can be driven by hand.
    """

    def __init__(self, settings: CacheSettings) -> None:
        """Take over the table and the bar ring, and go on where an earlier cache process left off.

        Raises:
            SettingsError: the settings do not fit the table.
            WriterBusy: another living process is the cache of this engine.
            SegmentMissing, NotAllowed, LayoutMismatch: see shm.errors.
        """
        self.settings = settings
        if settings.bar_ring_id in settings.rings:
            raise SettingsError(
                f"bar_ring_id is {settings.bar_ring_id}, which is among the rings to read: {settings.rings}"
            )
        self.readers = RingSet()
        self.gaps = 0
        self.records_read = 0
        self.records_lost = 0
        self.newest_latency_ns: int | None = None
        self._next_timer_ns = 0
        self._batch = empty(settings.batch_slots)
        self._sequences = self._batch["sequence"]
        self._published = self._batch["ts_publish"]
        self.table = LatestTable.attach(settings.engine, write=True)
        self._applier: Applier | None = None
        self._ranking: Ranking | None = None
        self._bar_writer: RingWriter | None = None
        self._bar_reader: RingReader | None = None
        try:
            if sorted(self.table.bar_intervals_s) != sorted(settings.bar_intervals_s):
                raise SettingsError(
                    f"bar_intervals_s is {settings.bar_intervals_s}, but {self.table.name} was made for "
                    f"{self.table.bar_intervals_s}"
                )
            self.table.lock_writer()
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self.settings
        self._bar_writer = RingWriter.open(settings.engine, settings.bar_ring_id)
        bars_capacity = max(64, min(4096, self._bar_writer.depth_slots // 4))
        self._bars = empty(bars_capacity)
        self._returned = empty(bars_capacity)
        self._applier = Applier(
            self.table.segment.buf,
            pid=os.getpid(),
            bar_ring_id=settings.bar_ring_id,
            grace_ns=int(settings.bar_close_delay_s * 1e9),
            bars_capacity=bars_capacity,
            exclude_outliers=settings.bar_exclude_outliers,
        )
        self._ranking = Ranking(settings.engine, self._applier, self.table.instruments_room, settings.ranked_symbols)
        start = self._resume(settings.bar_ring_id, "oldest")
        self._bar_reader = RingReader.attach(settings.engine, settings.bar_ring_id, start=start, register=False)
        self._feed_back()
        self._commit()
        for ring_id in settings.rings:
            start = self._resume(ring_id, settings.start)
            self.readers.append(
                RingReader.attach(
                    settings.engine, ring_id, start=start, label=settings.label, reliable=settings.reliable
                )
            )

    def _resume(self, ring_id: int, start: Start) -> Start:
        """Where to read on in a ring: after what the table has of it; `start` if that is nothing."""
        applier = self._applier
        assert applier is not None
        complete, published = applier.complete(ring_id), ring_info(self.settings.engine, ring_id).published
        if complete > published:
            log.warning("ring %d was made anew: %d records known, %d published", ring_id, complete, published)
            applier.forget_ring(ring_id)
            applier.commit()
            applier.set_complete(ring_id, 0)
            complete = 0
            start = "oldest"
        return complete + 1 if complete else start

    @property
    def counters(self) -> dict[str, int]:
        """What this cache counted; names as in the status block."""
        assert self._applier is not None
        counted = self._applier.counters
        counted.update(records_read=self.records_read, records_lost=self.records_lost, gaps=self.gaps)
        return counted

    def turn(self, now_ns: int) -> int:
        """Read every ring once and apply what is there; see to silent feeds when it is time. Returns records read."""
        total = 0
        drained = True
        for reader in self.readers:
            count = reader.read(self._batch)
            gap = reader.gap
            if gap is not None:
                self._lost(reader.ring_id, gap)
            if count:
                total += count
                drained = drained and count < len(self._batch)
                self.newest_latency_ns = max(0, now_ns - int(self._published[count - 1]))
                self._apply(reader.ring_id, count)
        self.records_read += total
        if now_ns >= self._next_timer_ns or self._next_timer_ns - now_ns > TIMER_NS:
            self._next_timer_ns = now_ns + TIMER_NS
            # Only with nothing left to read does the wall clock tell anything about trades that did not come.
            self._close_bars(now_ns if drained else 0, everything=False)
            if self._ranking is not None:
                self._ranking.look(now_ns)
        return total

    def wait(self, timeout_s: float = MAX_WAIT_S) -> bool:
        """Sleep until a ring has something to read, or `timeout_s` has passed."""
        return self.readers.wait(timeout_s)

    def finish(self, now_ns: int) -> None:
        """Before a clean stop: close every open bar, INCOMPLETE where its time is not over."""
        self._close_bars(now_ns, everything=True)

    def _lost(self, ring_id: int, gap: tuple[int, int]) -> None:
        assert self._applier is not None
        self.gaps += 1
        self.records_lost += gap[1] - gap[0]
        self._applier.gap(ring_id)
        log.warning("ring %d overran the cache: records %d to %d are lost", ring_id, gap[0], gap[1] - 1)

    def _apply(self, ring_id: int, count: int) -> None:
        applier = self._applier
        assert applier is not None
        at = 0
        while at < count:
            at = applier.apply(ring_id, self._batch, at, count)
            if applier.bar_count:
                self._publish()
            self._commit()
            if at:
                applier.set_complete(ring_id, int(self._sequences[at - 1]))

    def _close_bars(self, wall_ns: int, *, everything: bool) -> None:
        applier = self._applier
        assert applier is not None
        done = False
        while not done:
            done = applier.close_all(wall_ns) if everything else applier.close_due(wall_ns)
            if applier.bar_count:
                self._publish()
                self._commit()

    def _publish(self) -> None:
        assert self._applier is not None
        assert self._bar_writer is not None
        count = self._applier.take_bars(self._bars)
        self._bar_writer.publish_batch(self._bars, count)
        self._feed_back()

    def _feed_back(self) -> None:
        """Apply what the bar ring holds beyond what was applied of it; not committed yet."""
        applier, reader = self._applier, self._bar_reader
        assert applier is not None
        assert reader is not None
        while count := reader.read(self._returned):
            at = 0
            while at < count:
                at = applier.apply(reader.ring_id, self._returned, at, count)
                if at < count:
                    applier.commit()  # these bars are published: the states that they come from may be seen

    def _commit(self) -> None:
        assert self._applier is not None
        assert self._bar_reader is not None
        self._applier.commit()
        self._applier.set_complete(self._bar_reader.ring_id, self._bar_reader.sequence - 1)

    def close(self) -> None:
        """Let go of everything, with whatever was not committed. Safe to call twice."""
        self.readers.close()
        self.readers.clear()
        if self._bar_reader is not None:
            self._bar_reader.close()
        if self._bar_writer is not None:
            self._bar_writer.close()
        if self._ranking is not None:
            self._ranking.close()
        if self._applier is not None:
            self._applier.close()
        self.table.close()


class _Numbers:
    """The cache's counters in the status block: looked up once, set a few times a second."""

    def __init__(self, status: ProcessStatus, cache: Cache) -> None:
        self._cache = cache
        self._counters = {name: status.counter(name) for name in cache.counters}
        self._latency = status.histogram("ring_latency")
        self._next_ns = 0

    def latency(self) -> None:
        """One sample a turn that read something: age of the newest record of the last batch."""
        if self._cache.newest_latency_ns is not None:
            self._latency.record(self._cache.newest_latency_ns)
            self._cache.newest_latency_ns = None

    def show(self, now_ns: int) -> None:
        """Bring the status block up to date, unless that was less than a timer period ago."""
        if now_ns >= self._next_ns or self._next_ns - now_ns > TIMER_NS:
            self._next_ns = now_ns + TIMER_NS
            for name, value in self._cache.counters.items():
                self._counters[name].set(value)


def run(runtime: Runtime[CacheSettings]) -> None:
    """Be the cache until asked to stop; then take in what the rings hold, close the bars, and return."""
    cache = Cache(runtime.settings)
    try:
        numbers = _Numbers(runtime.status, cache)
        runtime.ready()
        while not runtime.stopping:
            now_ns = time.time_ns()
            if cache.turn(now_ns):
                numbers.latency()
            else:
                cache.wait()
            numbers.show(now_ns)
            runtime.beat(now_ns)
        deadline_ns = time.time_ns() + DRAIN_NS
        while cache.turn(now_ns := time.time_ns()) and now_ns < deadline_ns:
            runtime.beat(now_ns)
        cache.finish(time.time_ns())
        numbers.show(time.time_ns() + TIMER_NS)
    finally:
        cache.close()


if __name__ == "__main__":
    main("cache", CacheSettings, run)
