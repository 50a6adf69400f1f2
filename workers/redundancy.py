"""Redundancy groups: several feeds of the same instruments, of which one publishes and the others stand by, decoded and
withheld, so that one of them goes on within a fraction of a second. The way back goes to members that are READY
(workers/group_member.py) only, a feed that is lost is left at once for any that delivers.

Left at once: a publisher whose session is lost. Left after `stale_ns`, or twice as long as it ever took lately,
whichever is more: one that owes an answer, which is to say that a standby has had two events that are newer than
anything published, and the publisher nothing since. So no time-out is needed that would suit all instruments: two feeds
of one venue differ by milliseconds, two venues by their usual pauses, and both are learned. The same is asked of each
record type of each instrument, and only those move that are silent (*exceptions*); they return by themselves.

Nobody publishes what has been published: after a switch a record counts if it lies beyond the last one published of its
instrument and type, by trade id where both have the same venue and ids, else by event time. What a standby had withheld
beyond that is published at the switch, flagged BACKFILLED. A book is another matter: what is published after a switch
is the new feed's, so its book goes out whole, as SNAPSHOT records (`pictures`), then its changes, whatever their time.

A feed that is polled (Source.asks) is never judged by its pauses: it answers when it is asked, and says itself when its
answers stay away.

Sans-I/O: `filter` and `step` take the time (ns, never decreasing); `step` returns what to tell and to publish. The part
that touches every record is native (workers/_redundancy.pyx). Used by workers/feed_group.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from shm.layout import NO_INSTRUMENT, TYPE_NAMES, RecordType
from workers._redundancy import FOLLOW, MAX_MEMBERS, Board
from workers.errors import SettingsError
from workers.group_member import TRANSITIONS, Condition, Event, Member, best_of, by_rank

START_NS: Final = 1_000_000_000  # how long a group that begins waits for its first choice
UNLEARNED_NS: Final = 2_000_000_000  # least patience with an instrument of which no answer is known yet
BETTER_NS: Final = 2_000_000_000  # how long another one must have been better, at most
RELAXED_NS: Final = 250_000_000  # between two looks while nobody owes an answer
MINUTE_NS: Final = 60_000_000_000
LEAST_PAUSE_NS: Final = 1_000_000_000  # of a standby, before it counts as silent


@dataclass(frozen=True)
class Limits:
    """When to switch. Times in ns; `margin` is of health scores, 0 to 1."""

    stale_ns: int = 250_000_000
    hold_ns: int = 30_000_000_000
    margin: float = 0.5
    per_minute: int = 6
    backlog_records: int = 16_384
    book_bytes: int = 32 << 20


class Takeover(NamedTuple):
    """A switch that has happened, and what is to be published for it, at once and in order; books follow (`pictures`).

    `instrument_id` is NO_INSTRUMENT if it concerns the whole group. `lost`: of so many instruments and types events are
    gone for good, because the backlog was too short.
    """

    from_feed: int
    to_feed: int
    instrument_id: int
    reason: str
    records: np.ndarray
    lost: int


@dataclass
class _Exception:
    """A key that another member publishes."""

    instrument_id: int
    kind: int
    interval_s: int  # of bars
    slot: int
    since_ns: int
    back_ns: int = 0  # since when the group's publisher has delivered it again; 0 = it does not

    def of(self, records: np.ndarray) -> np.ndarray:
        """Those of the key."""
        mine = (records["instrument_id"] == self.instrument_id) & (records["record_type"] == self.kind)
        if self.kind == RecordType.BAR:
            mine &= records["interval_s"] == self.interval_s
        chosen: np.ndarray = records[mine]
        return chosen


@dataclass
class Redundancy:
    """One group. `due_ns`: call `step` then, and whenever a member has delivered or changed."""

    name: str
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """No member yet."""
        self.board = Board(backlog_records=self.limits.backlog_records, book_bytes=self.limits.book_bytes)
        self.members: dict[int, Member] = {}  # by slot
        self.switches = 0
        self.last_reason = ""
        self.last_switch_ns = 0
        self.due_ns = 0
        self.changed = True  # something that a report should tell
        self.held_back = False  # a switch that was wanted would have been one too many in a minute
        self._begun = False  # somebody has published
        self._first_ns = 0
        self._recent: deque[int] = deque()  # times of switches in the last minute
        self._exceptions: dict[int, _Exception] = {}  # by key
        self._left: list[Takeover] = []  # of members that have left

    # -- members

    def join(self, feed_id: int, name: str, rank: int) -> Member:
        """A feed more. SettingsError if the group is full."""
        slot = next((number for number in range(MAX_MEMBERS) if number not in self.members), None)
        if slot is None:
            raise SettingsError(f"feed {name}: group {self.name!r} has {MAX_MEMBERS} feeds, the most there may be")
        member = self.members[slot] = Member(slot, feed_id, name, rank)
        self.introduce(member)
        if not self._begun:
            self.board.switch(min(self.members.values(), key=by_rank).slot)
        self.changed = True
        return member

    def introduce(self, member: Member, *, asks: bool = False, orders: bool = False, types: Iterable[str] = ()) -> None:
        """What its source is like: polled; of books told order by order; names of record types it has subscribed to,
        none = nobody knows."""
        member.asks = asks
        member.kinds = sum(1 << TYPE_NAMES.index(name) for name in set(types))
        self.board.introduce(member.slot, member.feed_id, asks, orders, member.kinds)

    def leave(self, member: Member, now_ns: int) -> None:
        """The feed is no more. Another one takes over at the next step."""
        if self.members.get(member.slot) is not member:
            return
        member.condition, member.why = Condition.OUT, "removed"
        if member.slot == self.board.active:
            self.board.refence()
        del self.members[member.slot]
        self.board.begin()
        lost = {key: self.board.assign(key, FOLLOW) for key in self.board.forget(member.slot)}
        active = self.active
        if active is not None and lost:
            records = self.board.release(active.slot, now_ns)
            for key, hole in lost.items():
                if (one := self._exceptions.get(key)) is not None:
                    self._left.append(
                        Takeover(member.feed_id, active.feed_id, one.instrument_id, "removed", one.of(records), hole)
                    )
        self._exceptions = {key: one for key, one in self._exceptions.items() if one.slot != member.slot}
        self.changed, self.due_ns = True, 0

    @property
    def active(self) -> Member | None:
        """The member that publishes; None if it has left and nobody has taken over."""
        return self.members.get(self.board.active)

    def up(self, member: Member, now_ns: int) -> None:
        """It delivers."""
        if member.condition is Condition.OUT:
            self._move(member, Event.UP, now_ns)
            member.why, self.due_ns = "delivers", 0
            if member.slot == self.board.active:
                self.board.refence()
                self._begun = True

    def down(self, member: Member, now_ns: int, why: str) -> None:
        """Its connection is lost, or it was paused, or has ended."""
        if member.condition is not Condition.OUT:
            self._move(member, Event.DOWN, now_ns)
            member.why = why
            self.due_ns = 0

    def void(self, member: Member) -> None:
        """Its connection is lost: what it knew of books is worth nothing until it tells them anew."""
        self.board.void(member.slot)

    def rate(self, member: Member, score: float) -> None:
        """Its health, 0 to 1."""
        member.score = score

    # -- records

    def filter(self, records: np.ndarray, count: int, member: Member, now_ns: int) -> int:
        """What of records[:count] is to be published: see `Board.filter`."""
        kept: int = self.board.filter(records, count, member.slot, now_ns)
        if member.slot != self.board.active:
            active = self.active
            if active is None or not active.delivers:
                self.due_ns = 0
            elif self.board.owed and self.due_ns > now_ns + self._look_ns:
                self.due_ns = now_ns + self._look_ns
        return kept

    def restore(self, records: np.ndarray, now_ns: int) -> None:
        """These had been published before this process began, and are not published again."""
        self.board.restore(records, len(records), now_ns)

    def pictures(self, most: int, now_ns: int) -> np.ndarray:
        """Books to be published now, after what `step` has returned: see `Board.pictures`. Call while `board.due`."""
        records: np.ndarray = self.board.pictures(most, now_ns)
        return records

    # -- decisions

    def step(self, now_ns: int) -> list[Takeover]:
        """Look whether anybody should publish in another one's place; does nothing before `due_ns`."""
        if now_ns < self.due_ns <= now_ns + RELAXED_NS or not self.members:  # the clock may have been set back
            return []
        self._first_ns = self._first_ns or now_ns
        self._prove(now_ns)
        takeovers = [self._note(one, now_ns) for one in self._left]
        self._left = []
        takeovers += self._replace_lost(now_ns)
        takeovers += self._replace_silent(now_ns)
        takeovers += self._way_back(now_ns)
        takeovers += self._by_instrument(now_ns)
        self.due_ns = now_ns + (self._look_ns if self.board.owed else RELAXED_NS)
        return takeovers

    @property
    def _look_ns(self) -> int:
        return max(1_000_000, self.limits.stale_ns // 8)

    def _replace_lost(self, now_ns: int) -> list[Takeover]:
        active = self.active
        if active is not None and active.condition is not Condition.OUT:
            return []
        if not self._begun and active is not None and now_ns - self._first_ns < START_NS:
            return []
        chosen = best_of((member for member in self.members.values() if member.delivers), self.limits.margin)
        if chosen is None:
            return []
        reason = "removed" if active is None else active.why
        return [self._switch(chosen, f"lost: {reason}" if self._begun else f"not up: {reason}", now_ns)]

    def _replace_silent(self, now_ns: int) -> list[Takeover]:
        active, limits = self.active, self.limits
        if active is None or not active.delivers:
            return []
        waited_ns = self.board.overdue_ns(now_ns, limits.stale_ns, 2 * limits.stale_ns)
        if not waited_ns:
            return []
        heard_ns = self.board.heard_ns(active.slot)
        speaking = (m for m in self.members.values() if m.delivers and self.board.heard_ns(m.slot) > heard_ns)
        chosen = best_of(speaking, limits.margin)
        if chosen is None:
            return []
        self._move(active, Event.SILENT, now_ns)
        active.why = f"silent while {chosen.name} delivers"
        return [self._switch(chosen, f"silent for {waited_ns / 1e9:.2f} s", now_ns)]

    def _prove(self, now_ns: int) -> None:
        """Standbys: who has been healthy for long enough, who says nothing although the others do."""
        active = self.active
        lead_ns = self.board.heard_ns(active.slot) if active is not None else 0
        for member in self.members.values():
            heard_ns = self.board.heard_ns(member.slot)
            if member.condition is Condition.MUTE:
                if heard_ns > member.since_ns:
                    self._move(member, Event.SPOKE, now_ns)
                    member.why = "delivers"
                continue
            if not member.delivers:
                continue
            allowed_ns = max(LEAST_PAUSE_NS, round(2 * self.board.pause_ns(member.slot)))
            silent = max(heard_ns, member.since_ns) + allowed_ns < lead_ns
            if silent and member is not active and not member.asks:
                self._move(member, Event.SILENT, now_ns)
                member.why = "silent while others deliver"
            elif member.condition is Condition.PROVING and now_ns - member.since_ns >= self.limits.hold_ns:
                self._move(member, Event.PROVEN, now_ns)

    def _way_back(self, now_ns: int) -> list[Takeover]:
        """To a member that is ready and has been better for a while: healthier by the margin, or preferred."""
        active, limits = self.active, self.limits
        if active is None or not active.delivers:
            return []
        ripe = []
        for member in self.members.values():
            if (
                member is active
                or member.condition is not Condition.READY
                or not member.better_than(active, limits.margin)
            ):
                member.better_ns = 0
                continue
            member.better_ns = member.better_ns or now_ns
            if now_ns - member.better_ns >= min(BETTER_NS, limits.hold_ns):
                ripe.append(member)
        chosen = best_of(ripe, limits.margin)
        while self._recent and now_ns - self._recent[0] >= MINUTE_NS:
            self._recent.popleft()
        self.held_back = chosen is not None and len(self._recent) >= limits.per_minute
        if chosen is None or self.held_back:
            return []
        if chosen.score >= active.score + limits.margin:
            reason = f"health {chosen.score:.2f} against {active.score:.2f}"
        else:
            reason = f"rank {chosen.rank} healthy for {(now_ns - chosen.since_ns + limits.hold_ns) / 1e9:.0f} s"
        return [self._switch(chosen, reason, now_ns)]

    def _switch(self, to: Member, reason: str, now_ns: int) -> Takeover:
        before = self.active
        from_feed = before.feed_id if before is not None else 0
        lost = self.board.switch(to.slot)
        self._exceptions = {key: one for key, one in self._exceptions.items() if one.slot != to.slot}
        self._begun = True
        for member in self.members.values():
            member.better_ns = 0
        records = self.board.release(to.slot, now_ns)
        return self._note(Takeover(from_feed, to.feed_id, NO_INSTRUMENT, reason, records, lost), now_ns)

    def _note(self, takeover: Takeover, now_ns: int) -> Takeover:
        self.switches += 1
        self.last_reason, self.last_switch_ns = takeover.reason, now_ns
        if takeover.instrument_id == NO_INSTRUMENT:
            self._recent.append(now_ns)
            if len(self._recent) > 1000:
                self._recent.popleft()
        self.changed = True
        return takeover

    # -- by instrument

    def _by_instrument(self, now_ns: int) -> list[Takeover]:
        active = self.active
        if active is None:
            return []
        moves: list[tuple[int, _Exception, Member, str]] = []
        limits, unlearned_ns = self.limits, max(UNLEARNED_NS, 2 * self.limits.stale_ns)
        for key, one in self._exceptions.items():
            publisher = self.members[one.slot]
            if publisher.condition is Condition.OUT and active.delivers:
                moves.append((key, one, active, f"lost: {publisher.why}"))
                continue
            heard_ns = self.board.key_heard_ns(key, active.slot)
            allowed_ns = self.board.key_allowed_ns(key, active.slot, limits.stale_ns, unlearned_ns)
            level = heard_ns > one.since_ns and (
                active.asks or heard_ns + allowed_ns >= self.board.key_heard_ns(key, one.slot)
            )
            if not (level and active.delivers):
                one.back_ns = 0
            elif not one.back_ns:
                one.back_ns = now_ns
            elif now_ns - one.back_ns >= limits.hold_ns:
                moves.append((key, one, active, f"{TYPE_NAMES[one.kind]} delivered again"))
        moving = {key for key, *_ in moves}
        for key, instrument_id, kind, interval_s, slot, who, waited_ns in self.board.late(
            now_ns, limits.stale_ns, unlearned_ns
        ):
            owner = self.members.get(slot)
            if key in moving or owner is None or not owner.delivers:
                continue  # of one that is out the whole group deals with
            having = (m for m in self.members.values() if who >> m.slot & 1 and m.delivers and m is not owner)
            chosen = best_of(having, limits.margin)
            if chosen is not None:
                reason = f"{TYPE_NAMES[kind]} silent for {waited_ns / 1e9:.2f} s"
                moves.append((key, _Exception(instrument_id, kind, interval_s, slot, now_ns), chosen, reason))
        if not moves:
            return []
        self.board.begin()
        lost: dict[int, int] = {}
        for key, one, to, _ in moves:
            hole = self.board.assign(key, to.slot)
            lost[key] = hole
            self._exceptions.pop(key, None)
            if to is not active:
                self._exceptions[key] = replace(one, slot=to.slot, since_ns=now_ns, back_ns=0)
        released = {slot: self.board.release(slot, now_ns) for slot in {to.slot for _, _, to, _ in moves}}
        takeovers = []
        for key, one, to, reason in moves:
            from_feed = self.members[one.slot].feed_id if one.slot in self.members else 0
            records = one.of(released[to.slot])
            takeover = Takeover(from_feed, to.feed_id, one.instrument_id, reason, records, lost[key])
            takeovers.append(self._note(takeover, now_ns))
        return takeovers

    def exceptions(self, member: Member) -> tuple[list[int], list[int]]:
        """Instruments that it publishes although another one publishes the rest; those that others do in its place.

        What a member does not carry at all nobody does in its place.
        """
        own = [one.instrument_id for one in self._exceptions.values() if one.slot == member.slot]
        others = []
        if member.slot == self.board.active:
            others = [one.instrument_id for one in self._exceptions.values() if member.carries(one.kind)]
        return list(dict.fromkeys(own)), list(dict.fromkeys(others))

    def _move(self, member: Member, event: Event, now_ns: int) -> None:
        member.condition = TRANSITIONS[member.condition, event]
        member.since_ns, member.better_ns, self.changed = now_ns, 0, True
