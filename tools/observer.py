"""A running engine as `top` sees it: samples, what they say about health, and rates between two looks.

The judgement is the engine's own (engine/health.py), made here from shared memory alone, so that it also works when the
control process hangs. Called by tools/top.py once an interval; it writes nothing and disturbs nobody.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final

from engine.health import Expected, FeedExpected, FeedWatch, Health, Limits, feed_state, judge
from engine.sample import Sample, take_sample
from shm.errors import SegmentMissing, ShmError
from shm.instruments import InstrumentTable
from shm.layout import MAX_RINGS
from shm.segment import Segment, segment_exists, segment_name
from shm.status import StatusBlock

_RECENT_S: Final = 10.0


@dataclass(frozen=True)
class Usage:
    """What the system gives a process: percent of one core since the last look, resident bytes."""

    cpu_percent: float
    resident_bytes: int


@dataclass(frozen=True)
class View:
    """Two samples, `window_s` seconds apart, and what follows from them.

    Attributes:
        engine: name of the engine.
        started_ns: when it began, 0 = not said.
        stopping: it has begun to stop.
        facts: what the control process wrote for tools: addresses.
        health: verdict and reasons.
        feeds: name and state ("active", "stale", ...) of each feed, by feed id.
        usage: CPU and memory of the living processes, by label.
        alive: a process of the engine lives.
    """

    engine: str
    started_ns: int
    stopping: bool
    facts: dict[str, object]
    now: Sample
    before: Sample
    window_s: float
    health: Health
    feeds: dict[int, tuple[str, str]]
    usage: dict[str, Usage]
    alive: bool

    def rate(self, now: int, before: int) -> float:
        """Events a second from two totals; a total that went back (a new process) counts from 0."""
        return (now - before if now >= before else now) / self.window_s


class Observer:
    """Looks at one engine again and again; follows it through a restart under the same name."""

    def __init__(self, engine: str) -> None:
        """Attach. Raises SegmentMissing if there is no such engine on this host."""
        self.engine = engine
        self._limits = Limits()
        self._attach()

    def _attach(self) -> None:
        self._status = StatusBlock.attach(self.engine)
        try:
            self._instruments: InstrumentTable | None = InstrumentTable.attach(self.engine)
        except ShmError:
            self._instruments = None
        self._watch = FeedWatch()
        self._before: Sample | None = None
        self._restarts: dict[str, tuple[int, float]] = {}

    def _follow(self) -> None:
        """The control process makes a new status block when it starts: take that one then."""
        try:
            current = Segment.attach(segment_name(self.engine, "stat"))
        except SegmentMissing:
            return  # stopped: what is mapped still tells how it ended
        replaced = os.fstat(current.fd).st_ino != os.fstat(self._status.segment.fd).st_ino
        current.close()
        if replaced:
            self.close()
            self._attach()

    def look(self, now_ns: int, monotonic_s: float) -> View:
        """Sample now; rates are since the last look, and 0 in the first."""
        self._follow()
        ring_ids = tuple(i for i in range(MAX_RINGS) if segment_exists(segment_name(self.engine, f"r{i}")))
        symbols = len(self._instruments) if self._instruments is not None else 0
        now = take_sample(self.engine, self._status, ring_ids, symbols=symbols, now_ns=now_ns, monotonic_s=monotonic_s)
        before = self._before if self._before is not None else now
        facts = self._status.facts
        feeds = _feeds(now, facts)
        self._watch.observe(now, feeds)
        health = judge(
            now,
            before,
            workers=tuple(self._expected(now)),
            feeds=feeds,
            watch=self._watch,
            limits=self._limits,
            stopping=self._status.shutdown,
        )
        self._before = now
        return View(
            engine=self.engine,
            started_ns=self._status.started_ns,
            stopping=self._status.shutdown,
            facts=facts,
            now=now,
            before=before,
            window_s=max(now.monotonic_s - before.monotonic_s, 1e-3),
            health=health,
            feeds={f.feed_id: (f.name, feed_state(now, f, self._watch, self._limits)) for f in feeds},
            usage=_usage(now, before),
            alive=any(process.alive for process in now.processes),
        )

    def _expected(self, now: Sample) -> list[Expected]:
        """What the supervisor would say of its workers, as far as the status block tells."""
        found = []
        for process in now.processes:
            count, changed_s = self._restarts.setdefault(process.label, (process.restarts, -math.inf))
            if process.restarts > count:
                changed_s = now.monotonic_s
                self._restarts[process.label] = process.restarts, changed_s
            found.append(
                Expected(
                    label=process.label,
                    phase="running" if process.alive else f"dead ({process.state.name.lower()})",
                    failed=False,
                    restarts=process.restarts,
                    last_end="",
                    recent=now.monotonic_s - changed_s < _RECENT_S,
                )
            )
        return found

    def close(self) -> None:
        """Let go of the segments."""
        self._status.close()
        if self._instruments is not None:
            self._instruments.close()


def _feeds(sample: Sample, facts: dict[str, object]) -> tuple[FeedExpected, ...]:
    names = facts.get("feeds")
    known: dict[str, object] = names if isinstance(names, dict) else {}
    return tuple(
        FeedExpected(feed_id=feed_id, name=str(known.get(str(feed_id), f"feed {feed_id}")), label=counts.label)
        for feed_id, counts in sorted(sample.feeds.items())
    )


def _usage(now: Sample, before: Sample) -> dict[str, Usage]:
    """Of the living processes; one that was not there in the earlier sample has used nothing yet."""
    window_s = max(now.monotonic_s - before.monotonic_s, 1e-3)
    found = {}
    for process in now.processes:
        used = now.resources.get(process.label)
        if not process.alive or used is None:
            continue
        earlier, same = before.resources.get(process.label), before.process(process.label)
        known = earlier is not None and same is not None and same.pid == process.pid
        cpu_s = used.cpu_s - earlier.cpu_s if known and earlier is not None else 0.0
        found[process.label] = Usage(100 * cpu_s / window_s, used.resident_bytes)
    return found
