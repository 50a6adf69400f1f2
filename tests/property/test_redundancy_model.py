"""Two feeds that lose, stall, reorder and die, against a slow model: nothing doubled, nothing out of order, no hole.

The venue makes numbered events of a few instruments; each feed carries them with a delay of its own. One of the two is
in trouble at a time, so everything must come out once: a feed's own losses and late events as it told them, no more.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import RecordType, empty
from workers.redundancy import Limits, Redundancy

MS = 1_000_000
START = 1_700_000_000_000_000_000
LIMITS = Limits(stale_ns=200 * MS, hold_ns=1000 * MS, margin=0.5, per_minute=1000, backlog_records=4096)
RUN_MS = 12_000
STEP_MS = 10


@dataclass
class Carrier:
    """One feed: what it will deliver when."""

    delay_ms: int
    queue: list[tuple[int, int, int]] = field(default_factory=list)  # due ms, instrument, event
    up: bool = True
    stalled: bool = False

    def due(self, now_ms: int) -> list[tuple[int, int]]:
        if not self.up or self.stalled:
            return []
        ready = [(instrument, event) for due_ms, instrument, event in self.queue if due_ms <= now_ms]
        self.queue = [entry for entry in self.queue if entry[0] > now_ms]
        return ready


def records_of(events: list[tuple[int, int]], ids: bool) -> np.ndarray:
    records = empty(len(events))
    for record, (instrument, event) in zip(records, events, strict=True):
        record["record_type"] = RecordType.TRADE
        record["instrument_id"] = instrument
        record["ts_event"] = START + event * MS
        record["venue"] = b"XTST"
        record["trade_id"] = event if ids else 0
    return records


def told(records: np.ndarray) -> list[tuple[int, int]]:
    return [
        (int(number), (int(ts) - START) // MS)
        for number, ts in zip(records["instrument_id"], records["ts_event"], strict=True)
    ]


@st.composite
def troubles(draw: st.DrawFn) -> list[tuple[int, int, str]]:
    """(when, which feed, what): never both feeds in trouble, and time to notice and to catch up in between."""
    found, now = [], draw(st.integers(1500, 2500))
    while now < RUN_MS - 3000:
        which, what = draw(st.integers(0, 1)), draw(st.sampled_from(("cut", "stall")))
        lasts = draw(st.integers(100, 1500))
        found += [(now, which, what), (now + lasts, which, "end")]
        now += lasts + draw(st.integers(1200, 2500))
    return found


@given(
    plan=troubles(),
    delays=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    instruments=st.integers(1, 3),
    ids=st.booleans(),
    seed=st.integers(0, 1 << 30),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_doubled_or_lost_whatever_happens_to_one_of_two_feeds(
    plan: list[tuple[int, int, str]],
    delays: tuple[int, int],
    instruments: int,
    ids: bool,
    seed: int,
) -> None:
    dice = random.Random(seed)
    group = Redundancy("g", LIMITS)
    members = [group.join(1, "a", 0), group.join(2, "b", 1)]
    carriers = [Carrier(delays[0]), Carrier(delays[1])]
    for member in members:
        group.up(member, START)
    published: list[tuple[int, int]] = []
    made: list[tuple[int, int]] = []
    pending = list(plan)
    for now_ms in range(0, RUN_MS, STEP_MS):
        now_ns = START + now_ms * MS
        while pending and pending[0][0] <= now_ms:
            _, which, what = pending.pop(0)
            carrier, member = carriers[which], members[which]
            if what == "cut":
                carrier.up = False
                carrier.queue.clear()
                group.down(member, now_ns, "cut")
            elif what == "stall":
                carrier.stalled = True
            elif carrier.stalled:
                carrier.stalled = False
            else:
                carrier.up = True
                group.up(member, now_ns)
        if now_ms < RUN_MS - 1500:
            event = (now_ms // STEP_MS % instruments, now_ms + 1)
            made.append(event)
            for carrier in carriers:
                if carrier.up:
                    carrier.queue.append((now_ms + carrier.delay_ms, *event))
        order = [0, 1] if dice.random() < 0.5 else [1, 0]
        for which in order:
            events = carriers[which].due(now_ms)
            if events:
                batch = records_of(events, ids)
                kept = group.filter(batch, len(batch), members[which], now_ns)
                published += told(batch[:kept])
        for takeover in group.step(now_ns):
            assert takeover.lost == 0
            published += told(takeover.records)
    assert len(published) == len(set(published)), "told twice"
    for instrument in range(instruments):
        events_there = [event for number, event in published if number == instrument]
        assert events_there == sorted(events_there), "out of order"
    assert set(made) == set(published), "lost"


@given(
    lost=st.lists(st.tuples(st.integers(0, 399), st.integers(0, 1)), max_size=60),
    late=st.lists(st.tuples(st.integers(0, 398), st.integers(0, 1)), max_size=30),
    cut_at=st.integers(50, 350),
    ids=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_losses_and_late_events_around_a_switch(
    lost: list[tuple[int, int]], late: list[tuple[int, int]], cut_at: int, ids: bool
) -> None:
    """Before the switch what the first carried comes out, as it came; after it what the second has beyond the mark."""
    group = Redundancy("g", LIMITS)
    members = [group.join(1, "a", 0), group.join(2, "b", 1)]
    for member in members:
        group.up(member, START)
    streams = []
    for which in (0, 1):
        stream = [event for event in range(1, 401) if (event - 1, which) not in lost]
        for place, whose in late:
            if whose == which and place + 1 < len(stream):
                stream[place], stream[place + 1] = stream[place + 1], stream[place]
        streams.append(stream)
    published: list[int] = []
    first, second = streams[0][:cut_at], streams[1]
    done = 0
    for event in first:  # both deliver each event at once, the second only as far as the first has come
        batch = records_of([(0, event)], ids)
        kept = group.filter(batch, 1, members[0], START + event * MS)
        published += [number for _, number in told(batch[:kept])]
        upto = next((at for at in range(done, len(second)) if second[at] > event), len(second))
        if upto > done:
            batch = records_of([(0, other) for other in second[done:upto]], ids)
            assert group.filter(batch, len(batch), members[1], START + event * MS) == 0
            done = upto
    now_ns = START + 401 * MS
    group.down(members[0], now_ns, "cut")
    for takeover in group.step(now_ns):
        published += [number for _, number in told(takeover.records)]
    batch = records_of([(0, other) for other in second[done:]], ids)
    kept = group.filter(batch, len(batch), members[1], now_ns)
    published += [number for _, number in told(batch[:kept])]
    mark = max(first, default=0)
    assert published == first + [event for event in second if event > mark]
    assert len(published) == len(set(published))
