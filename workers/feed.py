"""One feed of an ingest worker: its source, its quality checks, its counters, and what happens when it fails.

    CLOSED --open--> UP --source finished--> ENDED
       ^              |
       '-- back-off --'  the source raised: FEED_DOWN with the reason, tried again later

A failing feed harms no other: whatever its source raises is caught here, counted, and answered with a capped, jittered
back-off. Used by workers/ingest.py, which passes time in and owns the ring; a feed never sleeps.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from shm.layout import StatusCode
from shm.ring import RingWriter, status_record
from shm.status import Counter, ProcessStatus
from workers.backoff import Backoff
from workers.errors import SettingsError, WorkerError
from workers.quality import Quality
from workers.resume import Entry, FeedPosition, ResumeLog
from workers.source import Source
from workers.spec import FeedReport, FeedSpec, QualitySettings
from workers.symbol_tiers import SymbolTiers

if TYPE_CHECKING:
    from workers.feed_group import Seat

REPORT_EVERY_NS: Final = 10_000_000_000
PROGRESS_EVERY_NS: Final = 10_000_000_000
_BAR_CELLS: Final = 30
DELIVERING: Final = ("live", "stale")  # states of a live feed in which it is not down (workers.session.State)

log = logging.getLogger("feed")


class Publisher:
    """Where all feeds of a worker publish: the ring, the worker's counters, the log that makes replays resumable."""

    def __init__(self, writer: RingWriter, status: ProcessStatus) -> None:
        """Find the counters in the worker's slot of the status block, or make them."""
        self.writer = writer
        self.resume_log = ResumeLog(status)
        self.records_published = status.counter("records_published")
        self.batches = status.counter("batches")
        self.decode_errors = status.counter("decode_errors")
        self.records_rejected = status.counter("records_rejected")
        self.bytes_received = status.counter("bytes_received")
        self.feed_latency = status.histogram("feed_latency")
        self.max_batch = writer.depth_slots // 4  # records of one publish_batch, at most

    def say(self, code: StatusCode, spec: FeedSpec, text: str, now_ns: int, *, count: int = 0) -> None:
        """Publish one status record about a feed; `text` is cut at 40 bytes."""
        self.publish_status(status_record(code, text=text, feed_id=spec.feed_id, ts_event=now_ns, to_sequence=count))

    def publish_status(self, record: bytes) -> None:
        """Publish one record of 128 bytes and count it."""
        self.writer.publish(record)
        self.records_published.add()


@dataclass(frozen=True)
class Progress:
    """What a source had counted when it was last looked at."""

    errors: int = 0
    gaps: int = 0
    bytes_received: int = 0


class Feed:
    """See the module. `due_ns` is when it wants to be served next (ns; now or earlier = at once), None = never."""

    def __init__(
        self,
        spec: FeedSpec,
        make_source: Callable[[], Source],
        *,
        quality: QualitySettings,
        status: ProcessStatus,
        position: FeedPosition,
        published_already: int,
        dice: random.Random,
        fresh: bool = False,
        tell: Callable[[FeedReport], None] | None = None,
        tiers: SymbolTiers | None = None,
        seat: Seat | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            make_source: a new source for each attempt; may raise anything.
            position, published_already: where a repeatable feed goes on (workers.resume).
            dice: jitters the back-off.
            fresh: the counters of its number were another feed's and begin at 0.
            tell: takes the reports of a live feed.
            tiers: of symbols that have their own.
            seat: its place in a redundancy group; None = it is in none.
        """
        self.spec = spec
        self.due_ns: int | None = 0
        self._make_source = make_source
        self._quality = Quality(quality, tiers)
        self._position = position
        self._published_already = published_already  # of what follows `position`
        self._to_drop = published_already
        self._backoff = Backoff(dice)
        self._source: Source | None = None
        self._up_since_ns = 0  # 0 = not announced
        self._seen = Progress()
        self._rejected = 0
        self._next_report_ns = 0
        self._next_bar_ns = 0
        self._paused = False
        self._over = False
        self._tell = tell
        self._seat = seat
        self._report: FeedReport | None = None  # the last one told
        self.fd: int | None = None  # of a live feed: readable when it is to be served, due or not

        def counter(name: str) -> Counter:
            return status.counter(f"feed.{spec.feed_id}.{name}")

        self._records = counter("records")
        self._errors = counter("errors")
        self._gaps = counter("gaps")
        self._last_update_ns = counter("last_update_ns")
        self._ended_flag, self._down_flag, self._paused_flag = counter("ended"), counter("down"), counter("paused")
        for flag in (self._ended_flag, self._down_flag, self._paused_flag):
            flag.set(0)
        if fresh:
            for count in (self._records, self._errors, self._gaps, self._last_update_ns):
                count.set(0)
        if spec.paused:
            self.pause()

    def prepare(self) -> None:
        """Make the source before the worker is ready, so that settings which can't work end it at once.

        Raises SettingsError. Anything else that goes wrong goes wrong again when the feed is first served.
        """
        try:
            self._source = self._make()
        except SettingsError:
            raise
        except Exception as error:  # noqa: BLE001  the source's own fault; `serve` deals with it
            log.debug("feed %s: not yet: %s", self.spec.name, error)

    def serve(self, batch: np.ndarray, now_ns: int, publisher: Publisher) -> None:
        """Publish what is due now, at most one batch; sets `due_ns`. `batch` is scratch space, dtype RECORD."""
        try:
            if self._source is None:
                self._source = self._make()
            source = self._source
            if not self._up_since_ns:
                self._announce(source, now_ns, publisher)
            count = source.poll(batch, now_ns)
        except Exception as error:  # noqa: BLE001  a source's fault harms its own feed only, whatever it is; counted
            self._fail(error, now_ns, publisher)
            return
        if count:
            self._publish(source, batch, count, now_ns, publisher)
        self._note_progress(source, publisher)
        self._note_report(source, now_ns)
        if now_ns >= self._next_bar_ns:
            self._show_bar(source, now_ns)
        self.due_ns = source.next_due_ns
        if self.due_ns is None:
            self._finish(now_ns, publisher)

    def _show_bar(self, source: Source, now_ns: int) -> None:
        """Say how far a long replay is: every 10 s a line that the control process shows. A loop has no end to tell."""
        share: float | None = None if self.spec.options.get("loop") else getattr(source, "progress", None)
        if share is not None and self._next_bar_ns:
            done = round(_BAR_CELLS * share)
            bar = "#" * done + "-" * (_BAR_CELLS - done)
            text = f"{self.spec.name} [{bar}] {100 * share:.0f} %, {self._records.value:,} records"
            print(text, file=sys.stderr, flush=True)
        self._next_bar_ns = now_ns + PROGRESS_EVERY_NS

    def pause(self, now_ns: int = 0) -> None:
        """Take nothing from the source until `resume`."""
        if not self._over:
            if self._seat is not None:
                self._seat.down(now_ns, "paused")
            self._paused, self.due_ns = True, None
            self._paused_flag.set(1)
            if getattr(self._source, "tells", False):
                self._close()  # a connection that nobody reads is cut by the venue
                self._down_flag.set(0)

    def resume(self, now_ns: int) -> None:
        """Go on after `pause`, with what comes from now on."""
        if self._paused:
            self._paused, self.due_ns = False, now_ns
            self._paused_flag.set(0)
            if self._source is not None:
                self._source.resume(now_ns)
                if self._seat is not None:
                    self._seat.up(now_ns)

    def stop(self, now_ns: int, publisher: Publisher) -> None:
        """The worker ends: close the source and say so."""
        self._close()
        if self._up_since_ns:
            publisher.say(StatusCode.FEED_DOWN, self.spec, "stopped", now_ns)
            self._up_since_ns = 0

    def _make(self) -> Source:
        source = self._make_source()
        if self._seat is not None and source.position is not None:
            source.close()
            raise SettingsError(
                f"feed {self.spec.name}: group: a feed of source {self.spec.source!r} can't be in one, because it goes "
                "on after a restart by counting what it has published"
            )
        if self._seat is not None:
            self._seat.take(source)
        self.fd = getattr(source, "fd", None)
        self._seen = Progress()
        self._quality.forget()
        self._to_drop = self._published_already
        if source.position is not None and self._position.records:
            log.info("feed %s: goes on after %d records", self.spec.name, self._position.records)
            source.skip(self._position.records)
        return source

    def _announce(self, source: Source, now_ns: int, publisher: Publisher) -> None:
        self._up_since_ns = now_ns
        if getattr(source, "tells", False):
            return  # it is down until it says otherwise
        self._down_flag.set(0)
        if self._seat is not None:
            self._seat.up(now_ns)
        publisher.say(StatusCode.FEED_UP, self.spec, f"{self.spec.source} {self.spec.name}", now_ns)

    def _fail(self, error: Exception, now_ns: int, publisher: Publisher) -> None:
        """The source raised: say so and try again later, or never if it is the settings' fault."""
        retry_ns = self._backoff.failed(now_ns, self._up_since_ns)
        reason = str(error) or type(error).__name__
        # A source that fails in a way nobody thought of shows where; one that says what is wrong needs no traceback.
        expected = isinstance(error, (WorkerError, OSError))
        log.warning(
            "feed %s: %s; next try in %.1f s",
            self.spec.name,
            reason,
            (retry_ns - now_ns) / 1e9,
            exc_info=None if expected else error,
        )
        self._errors.add()
        self._down_flag.set(1)
        if self._seat is not None:
            self._seat.down(now_ns, reason)
        if self._source is not None:
            self._note_progress(self._source, publisher)
        self._close()
        if self._up_since_ns or self._backoff.failures == 1:
            publisher.say(StatusCode.FEED_DOWN, self.spec, reason, now_ns)
        self._up_since_ns = 0
        self.due_ns = retry_ns
        if isinstance(error, SettingsError):
            self.due_ns, self._over = None, True

    def _finish(self, now_ns: int, publisher: Publisher) -> None:
        log.info("feed %s: finished, %d records", self.spec.name, self._records.value)
        self._close()
        self._over = True
        if self._seat is not None:
            self._seat.down(now_ns, "finished")
        self._ended_flag.set(1)
        self._up_since_ns = 0
        publisher.say(StatusCode.FEED_DOWN, self.spec, "finished", now_ns)

    def _close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source, self.fd, self._report = None, None, None

    def _publish(self, source: Source, batch: np.ndarray, count: int, now_ns: int, publisher: Publisher) -> None:
        kept = self._quality.check(batch, count)
        if kept < count:
            self._note_rejected(now_ns, publisher)
        dropped = min(self._to_drop, kept)
        self._to_drop -= dropped
        if kept == dropped:
            return  # the position stays as well: it moves only with what stands in the ring
        records = batch[dropped:kept]
        if self._seat is not None:
            passed = self._seat.filter(records, len(records), now_ns)
            self._records.add(len(records) - passed)  # a standby's records are delivered, and counted, all the same
            self._last_update_ns.set(now_ns)
            if not passed:
                return
            records = records[:passed]
        writer = publisher.writer
        if source.position is None:
            writer.publish_batch(records)
        else:
            publisher.resume_log.begin(
                Entry(
                    feed_id=self.spec.feed_id,
                    sequence=writer.next_sequence,
                    records=len(records),
                    from_position=self._position.records,
                    to_position=source.position,
                    dropped=self._published_already,
                )
            )
            writer.publish_batch(records)
            self._position.records = source.position
            self._published_already = 0
        publisher.feed_latency.record(max(0, time.time_ns() - now_ns))
        publisher.records_published.add(len(records))
        publisher.batches.add()
        self._records.add(len(records))
        self._last_update_ns.set(now_ns)

    def _note_progress(self, source: Source, publisher: Publisher) -> None:
        seen = self._seen
        if source.errors != seen.errors:
            self._errors.add(source.errors - seen.errors)
            publisher.decode_errors.add(source.errors - seen.errors)
        elif source.gaps == seen.gaps and source.bytes_received == seen.bytes_received:
            return
        self._gaps.add(source.gaps - seen.gaps)
        publisher.bytes_received.add(source.bytes_received - seen.bytes_received)
        self._seen = Progress(source.errors, source.gaps, source.bytes_received)

    def _note_report(self, source: Source, now_ns: int) -> None:
        """Pass on how a live feed is, when it says something new."""
        report: FeedReport | None = getattr(source, "report", None)
        if report is None or report is self._report:
            return
        self._report = report
        self._down_flag.set(int(report.state not in DELIVERING))
        if self._seat is not None:
            self._seat.note(report, now_ns)
        if self._tell is not None:
            self._tell(report)

    def _note_rejected(self, now_ns: int, publisher: Publisher) -> None:
        """Count what quality rejected, and report it: at once, then at most every 10 s."""
        rejected = self._quality.rejected
        publisher.records_rejected.add(rejected - self._rejected)
        self._rejected = rejected
        last = self._quality.last_rejected
        if now_ns >= self._next_report_ns and last is not None:
            publisher.say(StatusCode.REJECTED, self.spec, f"{rejected} rejected: {last[0]}", now_ns, count=rejected)
            self._next_report_ns = now_ns + REPORT_EVERY_NS
