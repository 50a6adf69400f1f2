"""A redundancy group in its ingest worker: what workers/redundancy.py decides is published, counted and reported here.

    Feed (workers/feed.py) --batch, after quality--> Seat.filter --what it may publish--> ring
                           --session up, lost, health--> Seat
    Ingest, each turn, after all feeds --> FeedGroup.step --FEED_SWITCHED, backlog--> ring

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
from shm.status import ProcessStatus
from workers.feed import Publisher
from workers.redundancy import Limits, Member, Redundancy, Takeover
from workers.spec import FeedReport, FeedSpec, GroupMember, GroupReport, RedundancySettings

REPORT_EVERY_NS: Final = 1_000_000_000
MAX_NAMED: Final = 16
_READ_SLOTS: Final = 8192

log = logging.getLogger("group")


class Seat:
    """A feed's place in its group: what workers/feed.py sees of it."""

    def __init__(self, group: FeedGroup, member: Member) -> None:
        """Made by `FeedGroup.join`."""
        self._group = group.redundancy
        self._member = member

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

    def up(self, now_ns: int) -> None:
        """A source that judges itself by nothing else has been opened."""
        self._group.up(self._member, now_ns)

    def down(self, now_ns: int, why: str) -> None:
        """The feed is paused, has failed or ended."""
        self._group.down(self._member, now_ns, why)


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
            ),
        )
        self._seats: dict[int, Member] = {}  # by feed id
        self._standby = status.counter("standby_records")
        self._duplicates = status.counter("standby_duplicates")
        self._lost = status.counter("standby_lost")
        self._backfilled = status.counter("standby_backfilled")
        self._switches = status.counter("feed_switches")
        self._seen = (0, 0, 0)
        self._next_report_ns = 0

    @property
    def due_ns(self) -> int | None:
        """When to call `step` at the latest, ns; None = a group of one has nothing to decide."""
        return self.redundancy.due_ns if len(self._seats) > 1 else None

    def join(self, spec: FeedSpec) -> Seat:
        """A place for a feed. SettingsError if there is none left."""
        member = self.redundancy.join(spec.feed_id, spec.name, spec.rank)
        self._seats[spec.feed_id] = member
        return Seat(self, member)

    def leave(self, feed_id: int) -> bool:
        """The feed is removed; True if it was the last."""
        member = self._seats.pop(feed_id, None)
        if member is not None:
            self.redundancy.leave(member)
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
        if not group.changed and now_ns < self._next_report_ns:
            return None
        group.changed, self._next_report_ns = False, now_ns + REPORT_EVERY_NS
        board = group.board
        seen = (board.standby, board.duplicates, board.lost)
        for counter, now, before in zip((self._standby, self._duplicates, self._lost), seen, self._seen, strict=True):
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
        records = takeover.records
        most = publisher.max_batch
        for begin in range(0, len(records), most):
            publisher.writer.publish_batch(records[begin : begin + most])
            publisher.batches.add()
        publisher.records_published.add(len(records))
        self._backfilled.add(len(records))

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
