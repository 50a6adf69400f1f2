"""A redundancy group in its ingest worker: what workers/redundancy.py decides is published, counted and reported here.

    Feed (workers/feed.py) --batch, after quality--> Seat.filter --what it may publish--> ring
                           --session up, lost, health--> Seat
    Ingest, each turn, after all feeds --> FeedGroup.step --FEED_SWITCHED, backlog, books--> ring

Books may be many: they go out a few thousand records at a time, so that a switch does not lap who reads the ring; what
changes in one meanwhile goes out with it.

A feed without a group has no seat, and costs nothing. Made and stepped by workers/ingest.py; it opens no source, and
reads the ring only once, when the worker starts: what a killed worker had published is not published again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

import numpy as np

from shm.errors import ShmError
from shm.layout import NO_INSTRUMENT, RECORD_SIZE_BYTES, StatusCode, empty
from shm.ring import RingReader, status_record
from shm.status import Counter, ProcessStatus
from workers.feed import DELIVERING, Publisher
from workers.group_member import Member
from workers.redundancy import Limits, Redundancy, Takeover
from workers.source import Source
from workers.spec import FeedReport, FeedSpec, GroupMember, GroupReport, RedundancySettings

REPORT_EVERY_NS: Final = 1_000_000_000
MAX_NAMED: Final = 16
PICTURE_RECORDS: Final = 4096  # of books that follow a switch, in one turn; a longer book goes out alone ...
PICTURE_EVERY_NS: Final = 5_000_000  # ... and the next of them no sooner than this
_READ_SLOTS: Final = 8192

log = logging.getLogger("group")


class Seat:
    """A feed's place in its group: what workers/feed.py sees of it."""

    def __init__(self, group: FeedGroup, member: Member, spec: FeedSpec) -> None:
        """Made by `FeedGroup.join`."""
        self._group = group.redundancy
        self._member = member
        self._types = spec.data_types
        self._connected = False  # as far as its reports tell

    def take(self, source: Source) -> None:
        """The feed has a new source."""
        self._group.introduce(
            self._member,
            asks=getattr(source, "asks", False),
            orders=getattr(source, "orders", False),
            types=self._types,
        )

    def filter(self, records: np.ndarray, count: int, now_ns: int) -> int:
        """How many of records[:count] are to be published; they are moved to its start."""
        return self._group.filter(records, count, self._member, now_ns)

    def note(self, report: FeedReport, now_ns: int) -> None:
        """A live feed has said how it is."""
        self._group.rate(self._member, report.health_score)
        if report.state == "live":
            self._group.up(self._member, now_ns)
        else:
            self._group.down(self._member, now_ns, report.why)
        # One that is silent is connected still, and goes on with its books; one that connects may be telling them.
        connected = report.state in DELIVERING
        if self._connected and not connected:
            self._group.void(self._member)
        self._connected = connected

    def up(self, now_ns: int) -> None:
        """A source that judges itself by nothing else has been opened."""
        self._group.up(self._member, now_ns)

    def down(self, now_ns: int, why: str) -> None:
        """The feed is paused, has failed or ended."""
        self._group.down(self._member, now_ns, why)
        self._group.void(self._member)
        self._connected = False


class FeedGroup:
    """One group of one worker."""

    def __init__(self, name: str, settings: RedundancySettings, status: ProcessStatus) -> None:
        """No member yet. Finds the worker's counters, or makes them."""
        self.redundancy = Redundancy(
            name,
            Limits(
                stale_ns=round(settings.stale_ms * 1e6),
                hold_ns=round(settings.hold_s * 1e9),
                margin=settings.margin,
                per_minute=settings.switches_per_minute,
                backlog_records=settings.backlog_records,
                book_bytes=settings.book_mb << 20,
            ),
        )
        self._seats: dict[int, Member] = {}  # by feed id
        self._standby = status.counter("standby_records")
        self._duplicates = status.counter("standby_duplicates")
        self._lost = status.counter("standby_lost")
        self._backfilled = status.counter("standby_backfilled")
        self._books = status.counter("standby_books")
        self._levels_lost = status.counter("standby_levels_lost")
        self._switches = status.counter("feed_switches")
        self._seen = (0, 0, 0, 0)
        self._next_report_ns = 0
        self._next_pictures_ns = 0

    @property
    def due_ns(self) -> int | None:
        """When to call `step` at the latest, ns; None = a group of one has nothing to decide."""
        due_ns = self.redundancy.due_ns if len(self._seats) > 1 else None
        if self.redundancy.board.due:
            return self._next_pictures_ns if due_ns is None else min(due_ns, self._next_pictures_ns)
        return due_ns

    def join(self, spec: FeedSpec) -> Seat:
        """A place for a feed. SettingsError if there is none left."""
        member = self.redundancy.join(spec.feed_id, spec.name, spec.rank)
        self._seats[spec.feed_id] = member
        return Seat(self, member, spec)

    def leave(self, feed_id: int, now_ns: int) -> bool:
        """The feed is removed; True if it was the last."""
        member = self._seats.pop(feed_id, None)
        if member is not None:
            self.redundancy.leave(member, now_ns)
        return not self._seats

    def restore(self, records: np.ndarray, now_ns: int) -> None:
        """Records of the ring, of any feed: those of the group had been published before this worker began."""
        mine = np.isin(records["feed_id"], list(self._seats))
        if mine.any():
            chosen = np.ascontiguousarray(records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[mine])
            self.redundancy.restore(chosen.reshape(-1).view(records.dtype), now_ns)

    def step(self, now_ns: int, publisher: Publisher, name_of: Callable[[int], str]) -> GroupReport | None:
        """Carry out what is due; returns a report when there is something new to tell, and every second."""
        group = self.redundancy
        for takeover in group.step(now_ns):
            self._carry_out(takeover, now_ns, publisher)
        if group.board.due and not now_ns < self._next_pictures_ns <= now_ns + PICTURE_EVERY_NS:
            self._publish(group.pictures(PICTURE_RECORDS, now_ns), publisher, self._books)
            self._next_pictures_ns = now_ns + PICTURE_EVERY_NS
        if not group.changed and now_ns < self._next_report_ns:
            return None
        group.changed, self._next_report_ns = False, now_ns + REPORT_EVERY_NS
        board = group.board
        seen = (board.standby, board.duplicates, board.lost, board.levels_lost)
        counters = (self._standby, self._duplicates, self._lost, self._levels_lost)
        for counter, now, before in zip(counters, seen, self._seen, strict=True):
            if now != before:
                counter.add(now - before)
        self._seen = seen
        return self._report(now_ns, name_of)

    def _carry_out(self, takeover: Takeover, now_ns: int, publisher: Publisher) -> None:
        self._switches.add()
        log.warning(
            "group %s: feed %d takes over from %d%s: %s; %d records from its backlog",
            self.redundancy.name,
            takeover.to_feed,
            takeover.from_feed,
            "" if takeover.instrument_id == NO_INSTRUMENT else f" for instrument {takeover.instrument_id}",
            takeover.reason,
            len(takeover.records),
        )
        told = status_record(
            StatusCode.FEED_SWITCHED,
            text=takeover.reason,
            feed_id=takeover.to_feed,
            from_sequence=takeover.from_feed,
            to_sequence=takeover.to_feed,
            instrument_id=takeover.instrument_id,
            ts_event=now_ns,
        )
        publisher.publish_status(told)
        if takeover.lost:
            text = f"backlog too short: {takeover.lost} instruments lack"
            gap = status_record(
                StatusCode.GAP,
                text=text,
                feed_id=takeover.to_feed,
                instrument_id=takeover.instrument_id,
                ts_event=now_ns,
            )
            publisher.publish_status(gap)
        self._publish(takeover.records, publisher, self._backfilled)

    def _publish(self, records: np.ndarray, publisher: Publisher, counter: Counter) -> None:
        most = publisher.max_batch
        for begin in range(0, len(records), most):
            publisher.writer.publish_batch(records[begin : begin + most])
            publisher.batches.add()
        publisher.records_published.add(len(records))
        counter.add(len(records))

    def _report(self, now_ns: int, name_of: Callable[[int], str]) -> GroupReport:
        group = self.redundancy
        members = []
        for member in sorted(group.members.values(), key=lambda one: (one.rank, one.feed_id)):
            own, others = group.exceptions(member)
            members.append(
                GroupMember(
                    feed_id=member.feed_id,
                    role="active" if member is group.active else "standby",
                    condition=member.condition.value,
                    why=member.why,
                    withheld=group.board.withheld(member.slot),
                    symbols=tuple(name_of(number) for number in own[:MAX_NAMED]),
                    without=tuple(name_of(number) for number in others[:MAX_NAMED]),
                )
            )
        return GroupReport(
            group=group.name,
            members=tuple(members),
            switches=group.switches,
            last_switch=group.last_reason,
            last_switch_ns=group.last_switch_ns,
            held_back=group.held_back,
            at_ns=now_ns,
        )


def restore_from_ring(groups: list[FeedGroup], engine: str, ring_id: int, now_ns: int) -> None:
    """Take over from the ring what a killed worker had published; call before anything else is published."""
    out = empty(_READ_SLOTS)
    try:
        with RingReader.attach(engine, ring_id, start="oldest", label="groups", register=False) as reader:
            while count := reader.read(out):
                for group in groups:
                    group.restore(out[:count], now_ns)
    except ShmError as error:
        log.warning("what was published before can't be read, and may come again: %s", error)
