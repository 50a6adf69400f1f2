"""What fan-out does when it can't send all that comes: what it keeps back, what waits, and what is counted.

Called by workers/fanout.py, turn by turn. Three things, all bounded:

    judge      says from backlog and time which tiers are kept back (workers/overload.py)
    held       of those the newest of each key, sent in passes at most every PASS_NS (workers/conflate.h)
    late       high tier that one turn may not encode at once: in order, up to LATE_RECORDS; beyond it the oldest are
               dropped and counted as `messages_dropped`, which a writer of trades alone can bring about and none else

It sends nothing itself: fan-out takes from it what is due. While all is well it holds nothing, and fan-out asks only
`busy`.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Final, NamedTuple

import numpy as np

from shm.layout import RECORD_SIZE_BYTES, Priority
from shm.status import ProcessStatus
from workers import topics
from workers._conflate import Conflator
from workers._route import Router
from workers.overload import Load, Overload, State

BUSY_RECORDS: Final = 256  # a turn of fewer records is no backlog worth judging
TURN_RECORDS: Final = 4096  # of a turn while overloaded: what a trade may wait for
ENCODE_RECORDS: Final = 2048  # of the high tier that a turn encodes at once, about 15 ms
CREDIT_NS: Final = 15_000_000  # a burst that takes so long to encode is no overload yet
MESSAGE_NS: Final = 7_000  # what a message costs, until that has been measured
MEMORY_MESSAGES: Final = 2048  # of the running mean of it
HELD_RECORDS: Final = 16384
LATE_RECORDS: Final = 65536
LATE_SLICE: Final = 64  # of them encoded at a time, some 0.4 ms
PASS_NS: Final = 20_000_000  # a conflated topic is sent 50 times a second at most: subscribers need time for trades too
SLICE_NS: Final = 100_000  # what a turn spends on what has waited: trades may wait for it
SLICE_RECORDS: Final = 16  # of it sent before looking at the clock
REST: Final = 4  # slices between two while overloaded: the others need cores too, above all who receives all this

Listed = list[tuple[int, int, int]]  # index of the record, topic index, topic number

_KINDS: Final = {
    State.NORMAL: topics.RELIEVED,
    State.CONFLATING: topics.CONFLATING,
    State.SHEDDING: topics.SHEDDING,
}


class Late(NamedTuple):
    """Records to be encoded as soon as there is time."""

    records: memoryview
    listed: Listed
    ring: int


class News(NamedTuple):
    """What subscribers are to be told: the kind (workers.topics.OVERLOADED), and since the overload began how many."""

    kind: int
    conflated: int
    shed: int


class Relief:
    """One fan-out's.

    Attributes:
        busy: whether anything is kept back, waits, or is being tried.
        turn_records: most records that a turn should take now.
        dropped: messages of the high tier that were given up.
    """

    def __init__(self, router: Router, status: ProcessStatus, *, patient: bool = False) -> None:
        """Nothing waits. `patient`: writers are held back instead, so nothing is conflated, shed or given up."""
        self._router, self._patient = router, patient
        self._overload = Overload()
        self._held = Conflator(router.marks, capacity=HELD_RECORDS, take_records=SLICE_RECORDS)
        self._held_view = memoryview(self._held.records.view(np.uint8).data)
        self._late: deque[Late] = deque()
        self._late_records = 0
        self.dropped = 0
        self.busy, self.turn_records = False, topics.MAX_TURN_RECORDS
        self._pass_began_ns = 0
        self._in_pass = False
        self._slice_at_ns = 0
        self._message_ns = float(MESSAGE_NS)
        self._credit_ns = float(CREDIT_NS)  # time that could have been spent on encoding, and was not needed for it
        self._judged_ns = 0
        self._told = State.NORMAL
        self._shed_before = 0  # records shed when the turn before was judged
        self._began = (0, 0)  # conflated and shed in all, when the overload began
        self._gauge = status.gauge("overload")
        self._waiting = status.gauge("records_waiting")
        self._gauge.set(0.0)
        self._waiting.set(0.0)
        names = ["records_conflated", "records_shed"]
        names += [f"{what}_{tier.name.lower()}" for what in ("conflated", "shed") for tier in Priority]
        self._counters = [status.counter(name) for name in names if not name.endswith("_high")]
        self._before = [counter.value for counter in self._counters]

    @property
    def ranked(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """By instrument id, 1 = ranks high; the owner's to change."""
        return self._held.ranked

    @property
    def state(self) -> State:
        """How it stands."""
        return self._overload.state

    def judge(self, lag: float, encoded: int, now_ns: int) -> int:
        """Take in a turn; returns the tiers that it keeps back, as bits (`Router.route`).

        Args:
            lag: records that were in the ring and not read, this turn's own included, as a fraction of its slots.
            encoded: records of the turn that somebody wants as messages.
            now_ns: monotonic.
        """
        if self._patient:
            return 0
        since_ns, shed = self._held.since_ns, sum(self._held.shed)
        full = shed > self._shed_before and self._overload.state is State.CONFLATING
        self._shed_before = shed
        needed_ns, passed_ns = encoded * self._message_ns, max(0, now_ns - self._judged_ns)
        self._judged_ns = now_ns
        self._credit_ns = max(-1.0, min(CREDIT_NS, self._credit_ns + passed_ns) - needed_ns)
        load = Load(lag, self._credit_ns < 0, now_ns - since_ns if since_ns else 0, full)
        was, state = self._overload.state, self._overload.judge(load, now_ns)
        if was is State.NORMAL and state is not was:
            self._began = self._totals()
        self.turn_records = TURN_RECORDS if state is not State.NORMAL else topics.MAX_TURN_RECORDS
        self.busy = state is not State.NORMAL or self.busy
        return self._overload.hold

    def spent(self, messages: int, elapsed_ns: int) -> None:
        """So many messages were encoded and sent: what the next ones will cost follows from it."""
        mean = self._message_ns + (elapsed_ns - messages * self._message_ns) / MEMORY_MESSAGES
        self._message_ns = min(max(mean, MESSAGE_NS / 10), MESSAGE_NS * 10)

    def keep(self, records: np.ndarray, ring: int, now_ns: int) -> None:
        """Let wait what the router has numbered and left out of this turn."""
        router, held = self._router, self._held
        held.hold(
            records,
            router.held_index,
            router.held_topic,
            router.held_number,
            router.held_count,
            ring,
            now_ns,
            self._overload.shed,
        )
        self.busy = True

    def put_off(self, listed: Listed, ring: int, records: np.ndarray) -> int:
        """Let wait what the turn may not encode at once; returns how many older messages were given up for it."""
        chosen = records[[index for index, _, _ in listed]]
        renumbered = [(at, topic, number) for at, (_, topic, number) in enumerate(listed)]
        self._late.append(Late(memoryview(chosen.tobytes()), renumbered, ring))
        self._late_records += len(listed)
        self.busy = True
        given_up = 0
        while self._late_records > LATE_RECORDS and len(self._late) > 1 and not self._patient:
            oldest = self._late.popleft()
            self._late_records -= len(oldest.listed)
            given_up += len(oldest.listed)
        self.dropped += given_up
        return given_up

    @property
    def has_late(self) -> bool:
        """Whether something waits to be encoded: what comes now has to wait behind it."""
        return bool(self._late)

    @property
    def late_is_full(self) -> bool:
        """Whether no more may be put off without giving something up."""
        return self._late_records > LATE_RECORDS

    def take_late(self) -> Late | None:
        """Some of what was put off, oldest first; None if there is none."""
        if not self._late:
            return None
        records, listed, ring = self._late.popleft()
        if len(listed) > LATE_SLICE:
            self._late.appendleft(
                Late(
                    records[LATE_SLICE * RECORD_SIZE_BYTES :],
                    [(at - LATE_SLICE, topic, number) for at, topic, number in listed[LATE_SLICE:]],
                    ring,
                )
            )
            listed = listed[:LATE_SLICE]
        self._late_records -= len(listed)
        return Late(records, listed, ring)

    def take_held(self, now_ns: int) -> Listed:
        """Some of what waits, if it is time for it; the records are `held_records`. Until `rest` is called."""
        if now_ns < self._slice_at_ns:
            return []
        if not self._held.waiting_topics:
            self._in_pass = False
            return []
        if not self._pass_due_ns(now_ns):
            self._pass_began_ns = now_ns
            self._held.begin_pass()
        listed: Listed = self._held.take()
        self._in_pass = bool(listed)
        return listed

    def rest(self, began_ns: int, now_ns: int) -> None:
        """What `take_held` gave has been sent, from `began_ns` to `now_ns`: leave the others as much time, and more."""
        if self._overload.state is not State.NORMAL:
            self._slice_at_ns = max(self._slice_at_ns, now_ns + REST * (now_ns - began_ns))

    @property
    def held_records(self) -> memoryview:
        """The records of the last `take_held`, as bytes."""
        return self._held_view

    def held_frame(self, index: int) -> Any:
        """One of them as a raw frame."""
        return self._held.frame(index)

    def pause_s(self, now_ns: int) -> float | None:
        """How long fan-out may sleep before something is due; None = nothing waits."""
        if self._late:
            return 0.0
        if not self._held.waiting_topics:
            return None
        due_ns = 0 if self._in_pass else self._pass_due_ns(now_ns)
        return max(due_ns, self._slice_at_ns - now_ns, 0) / 1e9

    def _pass_due_ns(self, now_ns: int) -> int:
        """Time until the next pass may begin."""
        if self._overload.state is State.NORMAL:
            return 0
        return max(0, self._pass_began_ns + PASS_NS - now_ns)

    def _totals(self) -> tuple[int, int]:
        return sum(self._held.conflated), sum(self._held.shed)

    def news(self) -> News | None:
        """What has changed for subscribers since the last call; None = nothing."""
        state = self._overload.state.told
        if state is self._told:
            return None
        conflated, shed = self._totals()
        news = News(_KINDS[state], conflated - self._began[0], shed - self._began[1])
        if self._told is State.NORMAL and not news.conflated and not news.shed:
            return None  # nobody has missed anything yet
        self._told = state
        return news

    def count(self) -> None:
        """After what was due has been taken: bring counters, gauges and `busy` up to date."""
        self.busy = (
            self._overload.state is not State.NORMAL
            or self._held.waiting_topics > 0
            or bool(self._late)
            or self._in_pass
        )
        (_, *conflated), (_, *shed) = self._held.conflated, self._held.shed
        values = [sum(conflated), sum(shed), *conflated, *shed]
        for counter, value, before in zip(self._counters, values, self._before, strict=True):
            counter.set(before + value)
        self._gauge.set(float(self._told))
        self._waiting.set(float(self._held.waiting + self._late_records))
