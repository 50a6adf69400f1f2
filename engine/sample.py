"""One look at everything the engine says about itself, and the short history from which rates follow.

`take_sample` reads the status block and the rings' headers; `History` keeps the samples of the last WINDOW_S seconds,
one a second. Health, metrics, the page and the exposition are all made from these and never look at shared memory
themselves. Called by the control process about once a second and on requests; no hot path is touched or slowed by it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import psutil

from shm.errors import ShmError
from shm.histogram import HistogramView
from shm.ring import ReaderInfo, RingInfo, list_readers, ring_info
from shm.status import ProcessView, RingEntry, StatusBlock
from workers.spec import FeedReport, GroupReport

WINDOW_S: Final = 10.0
INTERVAL_S: Final = 1.0

# Histograms of the hops of a tick, by the name that the workers give them.
HOPS: Final = ("feed_latency", "ring_latency", "send_latency")


@dataclass(frozen=True)
class FeedCounts:
    """Counters of one feed, from the status block of the worker that hosts it."""

    label: str
    records: int
    errors: int
    gaps: int
    last_update_ns: int
    ended: bool
    down: bool
    paused: bool


@dataclass(frozen=True)
class Resources:
    """What the operating system says about a process. `own_bytes` is resident memory less the shared segments'."""

    resident_bytes: int
    own_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Sample:
    """The state at one moment. `monotonic_s` orders samples, `now_ns` compares with times in the status block."""

    now_ns: int
    monotonic_s: float
    processes: tuple[ProcessView, ...]
    rings: dict[int, RingInfo]
    entries: dict[int, RingEntry]
    readers: dict[int, tuple[ReaderInfo, ...]]
    feeds: dict[int, FeedCounts]
    symbols: int
    resources: dict[str, Resources] = field(default_factory=dict)
    reports: dict[int, FeedReport] = field(default_factory=dict)  # of live feeds, by feed id
    groups: dict[str, GroupReport] = field(default_factory=dict)  # redundancy groups, by name

    def process(self, label: str) -> ProcessView | None:
        """One process by its label."""
        return next((process for process in self.processes if process.label == label), None)

    def total(self, counter: str, role: str | None = None) -> int:
        """Sum of a counter over all processes (of a role)."""
        return sum(p.counters.get(counter, 0) for p in self.processes if role is None or p.role == role)

    def histogram(self, name: str, role: str | None = None) -> HistogramView:
        """A histogram over all processes (of a role) that have it."""
        joined = HistogramView.empty()
        for process in self.processes:
            if name in process.histograms and (role is None or process.role == role):
                joined = joined + process.histograms[name]
        return joined

    @property
    def published(self) -> int:
        """Records published by ingest and HTTP: every ring but the bars', which are made from the others."""
        return sum(info.published for ring_id, info in self.rings.items() if self.role(ring_id) != "bars")

    @property
    def stored(self) -> int:
        """Records that the journal has taken in; those of L1 where nothing is recorded."""
        recorded = any(process.role == "recorder" for process in self.processes)
        return self.total("records_stored", "recorder") if recorded else self.total("records_applied")

    def role(self, ring_id: int) -> str:
        """Role of the writer of a ring."""
        return self.entries[ring_id].role if ring_id in self.entries else ""


def take_sample(
    engine: str,
    status: StatusBlock,
    ring_ids: Iterable[int],
    *,
    symbols: int,
    now_ns: int,
    monotonic_s: float,
    reports: dict[int, FeedReport] | None = None,
    groups: dict[str, GroupReport] | None = None,
) -> Sample:
    """Read everything once. A ring that can't be read (removed under us, no descriptor left) is left out."""
    rings: dict[int, RingInfo] = {}
    readers: dict[int, tuple[ReaderInfo, ...]] = {}
    for ring_id in ring_ids:
        try:
            info, attached = ring_info(engine, ring_id), tuple(list_readers(engine, ring_id))
        except ShmError:
            continue
        rings[ring_id], readers[ring_id] = info, attached
    processes = tuple(status.processes())
    return Sample(
        now_ns=now_ns,
        monotonic_s=monotonic_s,
        processes=processes,
        rings=rings,
        entries=status.rings(),
        readers=readers,
        feeds=feed_counts(processes),
        symbols=symbols,
        resources={process.label: used for process in processes if (used := resources_of(process.pid)) is not None},
        reports=reports or {},
        groups=groups or {},
    )


def resources_of(pid: int) -> Resources | None:
    """Memory and CPU time of a process; None if it is gone or can't be asked."""
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            memory, times = process.memory_info(), process.cpu_times()
    except (psutil.Error, OSError):
        return None
    shared = int(getattr(memory, "shared", 0))
    return Resources(memory.rss, max(0, memory.rss - shared), times.user + times.system)


def feed_counts(processes: tuple[ProcessView, ...]) -> dict[int, FeedCounts]:
    """The counters `feed.ID.*` of every ingest worker, by feed id."""
    found: dict[int, FeedCounts] = {}
    for process in processes:
        ids = {
            int(parts[1]) for name in process.counters if (parts := name.split("."))[0] == "feed" and len(parts) == 3
        }
        for feed_id in ids:

            def value(what: str, feed_id: int = feed_id, process: ProcessView = process) -> int:
                return process.counters.get(f"feed.{feed_id}.{what}", 0)

            found[feed_id] = FeedCounts(
                label=process.label,
                records=value("records"),
                errors=value("errors"),
                gaps=value("gaps"),
                last_update_ns=value("last_update_ns"),
                ended=bool(value("ended")),
                down=bool(value("down")),
                paused=bool(value("paused")),
            )
    return found


@dataclass
class History:
    """Samples of the last WINDOW_S seconds, oldest first; `add` once a second."""

    samples: deque[Sample] = field(default_factory=deque)

    def add(self, sample: Sample) -> None:
        """Take in a sample, let go of what has left the window."""
        self.samples.append(sample)
        while len(self.samples) > 2 and sample.monotonic_s - self.samples[0].monotonic_s > WINDOW_S:
            self.samples.popleft()

    @property
    def newest(self) -> Sample | None:
        """The last sample taken."""
        return self.samples[-1] if self.samples else None

    @property
    def oldest(self) -> Sample | None:
        """The sample that rates are measured from."""
        return self.samples[0] if self.samples else None

    def window_s(self, current: Sample) -> float:
        """Seconds from the oldest sample to `current`; never 0."""
        oldest = self.oldest
        return max(current.monotonic_s - oldest.monotonic_s, 1e-3) if oldest is not None else 1e-3

    def rate(self, current: Sample, now: int, before: int) -> float:
        """Events per second from two totals; a total that went back (a new process) counts from 0."""
        return (now - before if now >= before else now) / self.window_s(current)
