"""The ingest worker: hosts feeds, turns what they deliver into records, and publishes them into its ring.

    receive -> decode      the source (workers/sources/)
    quality -> priority    workers/quality.py, in place on the batch
    group                  workers/feed_group.py: of several feeds of one thing one publishes
    publish                one RingWriter.publish_batch for what one feed had due

Started by the control process as `python -m workers.ingest` (workers/runtime.py); one worker writes one ring. The loop
serves each feed that is due, then sleeps until the next one is: it never spins, so a worker whose feeds are silent
costs ten wake-ups a second. A paced feed is served at most every `min_wait_us`; a feed at full speed fills whole
batches.

Never reads a ring, except once at start: a killed worker's successor looks up what it had published
(workers/resume.py).
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from shm.errors import ShmFull
from shm.instruments import InstrumentTable
from shm.layout import empty
from shm.ring import RingWriter
from shm.status import Counter, ProcessStatus
from workers.captures import Captures
from workers.errors import SettingsError
from workers.feed import Feed, Publisher
from workers.feed_group import FeedGroup, restore_from_ring
from workers.plugin_limits import bound_memory, read_limits
from workers.resume import FeedPosition, feed_records, find_newest
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.source import SOURCES, Source, SourceContext, check_source, open_source
from workers.spec import (
    AddFeed,
    AnyCommand,
    Done,
    FeedSpec,
    IngestSettings,
    PauseFeed,
    Refused,
    RemoveFeed,
    Reply,
    ResumeFeed,
)
from workers.symbol_tiers import SymbolTiers

log = logging.getLogger("ingest")


class Ingest:
    """The feeds of one worker and the ring they share."""

    def __init__(self, runtime: Runtime[IngestSettings]) -> None:
        """Attach to the engine's segments and take over the ring.

        Raises:
            SettingsError: a feed that can't work.
            ShmError: a segment that can't be used; WriterBusy if the ring has a living writer.
        """
        settings = runtime.settings
        _check_feeds(settings.feeds, isolated=settings.isolated)
        self._runtime = runtime
        self._min_wait_ns = round(settings.min_wait_us * 1000)
        self._instruments = InstrumentTable.attach(settings.engine, write=True)
        self._tiers = SymbolTiers(settings.priorities, self._instruments.intern)
        self._writer = RingWriter.open(settings.engine, settings.ring_id)
        if self._writer.restarted:
            log.warning("the writer before this one was killed; going on at %d", self._writer.recovered_sequence)
        # A batch that was being published when its writer was killed must still be in the ring (workers/resume.py).
        self._batch = empty(min(settings.batch_slots, self._writer.depth_slots // 4))
        self._publisher = Publisher(self._writer, runtime.status)
        self._captures = Captures(settings.capture, runtime.status)
        self._readable: list[int] = []  # descriptors of live feeds that have something
        self._groups: dict[str, FeedGroup] = {}
        try:
            self._feeds = [self._make_feed(spec) for spec in settings.feeds]
            if self._groups:
                restore_from_ring([*self._groups.values()], settings.engine, settings.ring_id, time.time_ns())
            for feed in self._feeds:
                if not feed.spec.added:  # of those that were, `serve` finds and says what can't work
                    feed.prepare()
        except BaseException:
            self._captures.close()
            self._writer.close()
            raise

    def _make_feed(self, spec: FeedSpec, *, fresh: bool = False) -> Feed:
        runtime, settings = self._runtime, self._runtime.settings
        if settings.isolated and bound_memory(read_limits(spec).max_memory_mb):
            log.info("feed %s: memory is bounded", spec.name)
        position = FeedPosition(runtime.status, spec, runtime.block.started_ns)
        published_already = position.recover(
            self._publisher.resume_log, spec.feed_id, settings.engine, settings.ring_id
        )
        context = SourceContext(
            spec,
            self._tiers.intern,
            self._writer.epoch,
            _counters(runtime.status, fresh=fresh),
            settings.folder,
            lambda: feed_records(settings.engine, settings.ring_id, spec.feed_id),
            lambda published_ns, received_ns: find_newest(
                settings.engine, settings.ring_id, spec.feed_id, published_ns, received_ns
            ),
            self._captures.wire_of(spec, fresh=fresh),
        )
        seat = None
        if spec.group:
            group = self._groups.get(spec.group)
            if group is None:
                group = self._groups[spec.group] = FeedGroup(spec.group, settings.redundancy, runtime.status)
            seat = group.join(spec)
        return Feed(
            spec,
            _maker(context),
            quality=settings.quality,
            status=runtime.status,
            position=position,
            published_already=published_already,
            dice=random.Random(f"{settings.label} {spec.name}"),
            fresh=fresh,
            tell=runtime.reply,
            tiers=self._tiers,
            seat=seat,
        )

    def run(self) -> None:
        """Serve the feeds until the runtime says stop."""
        self._runtime.ready()
        self._delay()
        while not self._runtime.stopping:
            now_ns = time.time_ns()
            self._runtime.beat(now_ns)
            for command in self._runtime.commands():
                self._obey(command, now_ns)
            for feed in self._feeds:
                if feed.due_ns is not None and (feed.due_ns <= now_ns or feed.fd in self._readable):
                    feed.serve(self._batch, now_ns, self._publisher)
            for group in self._groups.values():
                report = group.step(now_ns, self._publisher, self._instruments.symbol)
                if report is not None:
                    self._runtime.reply(report)
            self._captures.count(now_ns)
            self._sleep(now_ns)

    def close(self) -> None:
        """Close the feeds, say that they are down, and leave the ring in order."""
        now_ns = time.time_ns()
        for feed in self._feeds:
            feed.stop(now_ns, self._publisher)
        self._captures.close()
        self._writer.close()

    def _delay(self) -> None:
        """Let subscribers connect first."""
        end_ns = time.time_ns() + round(self._runtime.settings.start_delay_s * 1e9)
        while not self._runtime.stopping and (left_ns := end_ns - time.time_ns()) > 0:
            self._runtime.wait(left_ns / 1e9)
            self._runtime.beat(time.time_ns())

    def _sleep(self, served_ns: int) -> None:
        """Until the next feed is due, but `min_wait_us` at least: records due within that time go together.

        Returns at once if a feed has more at this moment, and as soon as a live feed's sockets have something.
        """
        due_ns = min((feed.due_ns for feed in self._feeds if feed.due_ns is not None), default=None)
        for group in self._groups.values():
            if due_ns is not None and group.due_ns is not None:
                due_ns = min(due_ns, group.due_ns)
        fds = [feed.fd for feed in self._feeds if feed.fd is not None and feed.due_ns is not None]
        self._readable = []
        if due_ns is None:
            self._runtime.wait(MAX_WAIT_S)
            return
        if due_ns <= served_ns:
            if fds:  # one feed that always has more does not keep the others waiting
                self._readable = self._runtime.wait(0.0, fds)
            return
        wait_ns = max(due_ns, served_ns + self._min_wait_ns) - time.time_ns()
        if wait_ns > 0 or fds:
            self._readable = self._runtime.wait(max(0, wait_ns) / 1e9, fds)

    def _obey(self, command: AnyCommand, now_ns: int) -> None:
        """Carry out one command and answer it."""
        reply: Reply = Done(request_id=command.request_id)
        if isinstance(command, AddFeed):
            reply = self._add_feed(command)
        elif isinstance(command, PauseFeed | ResumeFeed | RemoveFeed):
            feed = self._feed(command.feed_id)
            if feed is None:
                if not isinstance(command, RemoveFeed):
                    reply = Refused(request_id=command.request_id, error=f"no feed {command.feed_id} here")
            elif isinstance(command, PauseFeed):
                feed.pause(now_ns)
            elif isinstance(command, ResumeFeed):
                feed.resume(now_ns)
            else:
                self._feeds.remove(feed)
                feed.stop(now_ns, self._publisher)
                self._captures.end(feed.spec)
                self._leave_group(feed.spec)
        else:
            reply = Refused(request_id=command.request_id, error="not a command for ingest")
        self._runtime.reply(reply)

    def _feed(self, feed_id: int) -> Feed | None:
        return next((feed for feed in self._feeds if feed.spec.feed_id == feed_id), None)

    def _add_feed(self, command: AddFeed) -> Reply:
        if self._feed(command.feed.feed_id) is not None:
            return Done(request_id=command.request_id)
        try:
            _check_feed(command.feed, isolated=self._runtime.settings.isolated)
            feed = self._make_feed(command.feed, fresh=command.fresh)
            feed.prepare()
        except SettingsError as error:
            self._leave_group(command.feed)
            return Refused(request_id=command.request_id, error=str(error), settings=True)
        except ShmFull as error:
            self._leave_group(command.feed)
            return Refused(request_id=command.request_id, error=f"this worker hosts too many feeds: {error}")
        self._feeds.append(feed)
        return Done(request_id=command.request_id)

    def _leave_group(self, spec: FeedSpec) -> None:
        group = self._groups.get(spec.group)
        if group is not None and group.leave(spec.feed_id, time.time_ns()):
            del self._groups[spec.group]


def run(runtime: Runtime[IngestSettings]) -> None:
    """The worker's life between settings and exit; what `workers.runtime.main` calls."""
    ingest = Ingest(runtime)
    try:
        ingest.run()
    finally:
        ingest.close()


def _check_feed(spec: FeedSpec, *, isolated: bool) -> None:
    """SettingsError: there is no such source, or it is not for this worker."""
    check_source(spec)
    if isolated != (spec.source not in SOURCES):
        what = "hosts plug-ins only" if isolated else "is shared, and a plug-in needs one of its own"
        raise SettingsError(f"feed {spec.name}: source is {spec.source!r}, but this ingest worker {what}")


def _check_feeds(feeds: tuple[FeedSpec, ...], *, isolated: bool) -> None:
    seen: dict[int, str] = {}
    for spec in feeds:
        if not spec.added:
            _check_feed(spec, isolated=isolated)
        if spec.feed_id in seen:
            raise SettingsError(f"feeds {seen[spec.feed_id]} and {spec.name} both have feed_id {spec.feed_id}")
        seen[spec.feed_id] = spec.name


def _counters(status: ProcessStatus, *, fresh: bool) -> Callable[[str], Counter]:
    """Counters by name for a source; `fresh`: they were another feed's, and begin at 0 when first asked for."""
    known: set[str] = set()

    def counter(name: str) -> Counter:
        found = status.counter(name)
        if fresh and name not in known:
            found.set(0)
        known.add(name)
        return found

    return counter


def _maker(context: SourceContext) -> Callable[[], Source]:
    return lambda: open_source(context)


if __name__ == "__main__":
    main("ingest", IngestSettings, run)
