"""Whether the engine does its work: healthy, degraded or unhealthy, and why.

Pure: a sample, what the plan expects and the time in; a verdict out. `FeedWatch` remembers how long each feed's pauses
usually are, so that staleness is judged against the feed's own cadence. Called by the control process once a second and
by its HTTP routes.

Health is never good because nothing happened: a process that runs is not enough, its feeds must deliver. A replay that
has come to its end is no fault, but it is said.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Final

from engine.plan import CONTROL_LABEL
from engine.sample import Sample
from shm.status import ProcessState, ProcessView
from workers.spec import FeedReport, GroupMember, GroupReport

CADENCE_HALF_LIFE_S: Final = 300.0


class Verdict(enum.IntEnum):
    """Worst wins."""

    HEALTHY = 0
    DEGRADED = 1
    UNHEALTHY = 2

    @property
    def word(self) -> str:
        """As it is written in /health."""
        return self.name.lower()


@dataclass(frozen=True)
class Check:
    """One judgement: about what, and why."""

    name: str  # "process:ingest-0", "feed:simulated", "ring:2", "latency"
    verdict: Verdict
    why: str


@dataclass(frozen=True)
class Limits:
    """Settings of section [health] and of the heartbeat."""

    heartbeat_timeout_s: float = 1.0
    stale_factor: float = 5.0
    stale_floor_s: float = 2.0
    first_data_s: float = 10.0
    latency_alert_ms: float = 100.0
    store_lag_s: float = 60.0


@dataclass(frozen=True)
class Expected:
    """A worker as the supervisor knows it."""

    label: str
    phase: str
    failed: bool
    restarts: int
    last_end: str
    recent: bool  # restarted within the window


@dataclass(frozen=True)
class FeedExpected:
    """A feed as the plan knows it."""

    feed_id: int
    name: str
    label: str


@dataclass
class _Cadence:
    records: int = 0
    changed_s: float = 0.0
    seen_s: float = 0.0  # when it was first expected
    longest_s: float = 0.0  # longest pause, fading
    ended: bool = False
    down: bool = False
    paused: bool = False


@dataclass
class FeedWatch:
    """Learns each feed's cadence from samples. A pause is known to the distance of two samples."""

    feeds: dict[int, _Cadence] = field(default_factory=dict)

    def observe(self, sample: Sample, expected: tuple[FeedExpected, ...]) -> None:
        """Take in one sample; call about once a second."""
        now_s = sample.monotonic_s
        for feed in expected:
            cadence = self.feeds.setdefault(feed.feed_id, _Cadence(seen_s=now_s, changed_s=now_s))
            counts = sample.feeds.get(feed.feed_id)
            if counts is None:
                continue
            cadence.ended, cadence.down, cadence.paused = counts.ended, counts.down, counts.paused
            if counts.paused:
                cadence.changed_s = now_s  # a pause by hand is none of its own
            if counts.records < cadence.records:
                cadence.records = 0  # its number was another feed's
            if counts.records != cadence.records:
                pause_s = now_s - cadence.changed_s if cadence.records else 0.0
                fade = math.exp2(-pause_s / CADENCE_HALF_LIFE_S)
                cadence.longest_s = max(cadence.longest_s * fade, pause_s)
                cadence.records, cadence.changed_s = counts.records, now_s

    def forget(self, feed_id: int) -> None:
        """That number is a new feed's."""
        self.feeds.pop(feed_id, None)

    def silent_s(self, feed_id: int, now_s: float) -> float:
        """Seconds since the feed's records grew, or since it was expected."""
        cadence = self.feeds.get(feed_id)
        return 0.0 if cadence is None else now_s - cadence.changed_s

    def allowed_s(self, feed_id: int, limits: Limits) -> float:
        """How long this feed may be silent before it is stale."""
        cadence = self.feeds.get(feed_id)
        if cadence is None or cadence.records == 0:
            return limits.first_data_s
        return max(limits.stale_floor_s, limits.stale_factor * cadence.longest_s)


@dataclass(frozen=True)
class Health:
    """The verdict on the engine, and the checks that it follows from."""

    verdict: Verdict
    checks: tuple[Check, ...]
    active_feeds: int


def judge(
    sample: Sample,
    before: Sample,
    *,
    workers: tuple[Expected, ...],
    feeds: tuple[FeedExpected, ...],
    watch: FeedWatch,
    limits: Limits,
    stopping: bool = False,
) -> Health:
    """The engine's health at `sample`; losses and latency are those since `before`, the start of the window."""
    checks = [_check_process(sample, before, worker, limits) for worker in workers]
    feed_checks = [_check_feed(sample, feed, watch, limits, started=_running(workers, feed)) for feed in feeds]
    active = sum(_is_active(sample, feed, watch, limits) for feed in feeds)
    checks += feed_checks
    checks += [_check_group(report, feeds) for report in sample.groups.values()]
    if not feeds:
        checks.append(Check("feeds", Verdict.DEGRADED, "no feed is configured: nothing will come"))
    checks += _check_readers(sample, before)
    checks.append(_check_latency(sample, before, limits))
    if stopping:
        checks.append(Check("engine", Verdict.UNHEALTHY, "stopping"))
    return Health(max(check.verdict for check in checks), tuple(checks), active)


def _running(workers: tuple[Expected, ...], feed: FeedExpected) -> bool:
    own = feed.label == CONTROL_LABEL  # what is posted to this very process
    return own or any(worker.label == feed.label and worker.phase == "running" for worker in workers)


def _check_process(sample: Sample, before: Sample, worker: Expected, limits: Limits) -> Check:
    name = f"process:{worker.label}"
    often = f"{worker.restarts} restart{'s' if worker.restarts != 1 else ''}"
    if worker.failed:
        return Check(
            name, Verdict.UNHEALTHY, f"fails again and again ({often}), last: {worker.last_end}; still retried"
        )
    if worker.phase != "running":
        last = f", last: {worker.last_end}" if worker.last_end else ""
        return Check(name, Verdict.DEGRADED, f"{worker.phase}{last}")
    process = sample.process(worker.label)
    if process is None or process.state is not ProcessState.READY:
        state = "not registered" if process is None else process.state.name.lower()
        return Check(name, Verdict.DEGRADED, f"its status says {state}")
    age_s = (sample.now_ns - process.heartbeat_ns) / 1e9
    if age_s > limits.heartbeat_timeout_s:
        return Check(name, Verdict.DEGRADED, f"silent for {age_s:.1f} s")
    if process.gauges.get("journal_stalled"):
        behind = sum(
            reader.lag for readers in sample.readers.values() for reader in readers if reader.pid == process.pid
        )
        why = f"nothing can be written to its folder now (see the log); {behind} records behind, it keeps its position"
        return Check(name, Verdict.DEGRADED, why)
    if process.gauges.get("overload"):
        return Check(name, Verdict.DEGRADED, _overload(process, before.process(worker.label)))
    behind_why = _mirror_trouble(process, before.process(worker.label), limits) if process.role == "mirror" else ""
    if behind_why:
        return Check(name, Verdict.DEGRADED, behind_why)
    if worker.recent:
        return Check(name, Verdict.DEGRADED, f"restarted a moment ago ({often}), last: {worker.last_end}")
    return Check(
        name, Verdict.HEALTHY, f"running on {process.placement or 'any core'}" + (f", {often}" * bool(worker.restarts))
    )


def _overload(fanout: ProcessView, before: ProcessView | None) -> str:
    """What a fan-out that gets more than it can send leaves out."""
    left_out = [
        fanout.counters.get(name, 0) - (before.counters.get(name, 0) if before is not None else 0)
        for name in ("records_conflated", "records_shed")
    ]
    return (
        f"overloaded: it sends every trade, of the rest the newest; {left_out[0]} records conflated and "
        f"{left_out[1]} shed in the last seconds"
    )


def _mirror_trouble(mirror: ProcessView, before: ProcessView | None, limits: Limits) -> str:
    """What is wrong with a mirror's store; "" if nothing is."""
    lag_s, records = mirror.gauges.get("lag_seconds", 0.0), mirror.gauges.get("lag_records", 0.0)
    lag = f"{records:.0f} records, {lag_s:.0f} s, behind the journal"
    if mirror.gauges.get("store_down"):
        return f"its database can't be had (see the log); {lag}, it goes on where it was"
    lost = mirror.counters.get("records_lost", 0) - (before.counters.get("records_lost", 0) if before else 0)
    if lost > 0:
        return f"{lost} records had gone from the journal before its database had them; {lag}"
    if lag_s > limits.store_lag_s:
        return f"{lag}: its database is slower than the data"
    return ""


def _is_active(sample: Sample, feed: FeedExpected, watch: FeedWatch, limits: Limits) -> bool:
    cadence = watch.feeds.get(feed.feed_id)
    report = sample.reports.get(feed.feed_id)
    if report is not None and cadence is not None and not cadence.paused:
        return report.state == "live"
    if cadence is None or cadence.ended or cadence.down or cadence.paused or cadence.records == 0:
        return False
    return watch.silent_s(feed.feed_id, sample.monotonic_s) <= watch.allowed_s(feed.feed_id, limits)


def feed_state(sample: Sample, feed: FeedExpected, watch: FeedWatch, limits: Limits) -> str:
    """One word: waiting, active, stale, down, paused, ended; of a live feed also those of its session."""
    cadence = watch.feeds.get(feed.feed_id)
    if cadence is None:
        return "waiting"
    if cadence.ended:
        return "ended"
    report = sample.reports.get(feed.feed_id)
    if report is not None and not cadence.paused:
        return {"live": "active", "closed": "down"}.get(report.state, report.state)
    if cadence.down and not cadence.paused:
        return "down"
    if cadence.paused:
        return "paused"
    if _is_active(sample, feed, watch, limits):
        return "active"
    silent = watch.silent_s(feed.feed_id, sample.monotonic_s) > watch.allowed_s(feed.feed_id, limits)
    return "stale" if silent else "waiting"


def _check_feed(sample: Sample, feed: FeedExpected, watch: FeedWatch, limits: Limits, *, started: bool) -> Check:
    name = f"feed:{feed.name}"
    state = feed_state(sample, feed, watch, limits)
    if state == "ended":
        return Check(name, Verdict.HEALTHY, "the replay has ended: no more data will come from it")
    if not started:
        return Check(name, Verdict.DEGRADED, f"its process {feed.label} is not running")
    counts = sample.feeds.get(feed.feed_id)
    report = sample.reports.get(feed.feed_id)
    if report is not None and state != "paused":
        return _check_live(name, report, state, sample.now_ns)
    silent_s = watch.silent_s(feed.feed_id, sample.monotonic_s)
    if state == "down":
        return Check(name, Verdict.DEGRADED, "the source can not be had; it keeps trying")
    if state == "paused":
        return Check(name, Verdict.HEALTHY, "paused by hand: no data will come until it is resumed")
    if state == "waiting":
        return Check(name, Verdict.HEALTHY, f"no record yet, {silent_s:.0f} s after its start")
    if state == "stale":
        allowed_s = watch.allowed_s(feed.feed_id, limits)
        if counts is None or counts.records == 0:
            return Check(name, Verdict.DEGRADED, f"has not delivered a single record in {silent_s:.0f} s")
        return Check(
            name,
            Verdict.DEGRADED,
            f"silent for {silent_s:.1f} s; from its own cadence {allowed_s:.1f} s would be normal",
        )
    gaps = f", {counts.gaps} gaps" if counts is not None and counts.gaps else ""
    errors = f", {counts.errors} errors" if counts is not None and counts.errors else ""
    return Check(name, Verdict.HEALTHY, f"delivers{gaps}{errors}")


def _check_live(name: str, report: FeedReport, state: str, now_ns: int) -> Check:
    """A feed that judges itself: by each instrument's cadence, which is not to be seen from here."""
    why = report.why
    if report.retry_at_ns:
        why += f"; next try in {max(0.0, (report.retry_at_ns - now_ns) / 1e9):.0f} s"
        if report.breaker == "open":
            why += " (breaker open)"
    if state != "active":
        return Check(name, Verdict.DEGRADED, f"{state}: {why}")
    if report.degraded:
        return Check(name, Verdict.DEGRADED, f"{why}; health {report.health_score:.2f}")
    return Check(name, Verdict.HEALTHY, f"{why}, {report.reconnects} reconnects" if report.reconnects else why)


def standing_by(report: GroupReport) -> list[GroupMember]:
    """The feeds of a group that could take over now."""
    return [one for one in report.members if one.role == "standby" and one.condition in ("proving", "ready")]


def _check_group(report: GroupReport, feeds: tuple[FeedExpected, ...]) -> Check:
    """Who publishes, who stands by, and whether the next loss could be borne."""
    name = f"group:{report.group}"
    names = {feed.feed_id: feed.name for feed in feeds}
    named = {member.feed_id: names.get(member.feed_id, f"feed {member.feed_id}") for member in report.members}
    active = next((member for member in report.members if member.role == "active"), None)
    words = ", ".join(
        f"{named[member.feed_id]} ({member.condition}{': ' + member.why if member.condition == 'out' else ''})"
        for member in report.members
        if member.role == "standby"
    )
    why = f"{named[active.feed_id]} publishes; standing by: {words or 'nobody'}" if active else "nobody publishes"
    elsewhere = active.without if active else ()
    if elsewhere:
        why += f"; on {', '.join(elsewhere[:3])}{' and more' * (len(elsewhere) > 3)} it is silent, others publish"
    if report.switches:
        why += f"; {report.switches} switches, the last: {report.last_switch}"
    if report.held_back:
        why += "; the way back waits: too many switches in a minute"
    if active is None or active.condition not in ("proving", "ready"):
        return Check(name, Verdict.DEGRADED, f"no feed of it delivers: {why}")
    if not standing_by(report):
        return Check(name, Verdict.DEGRADED, f"there is no standby that could take over: {why}")
    return Check(name, Verdict.DEGRADED if elsewhere else Verdict.HEALTHY, why)


def _check_readers(sample: Sample, before: Sample) -> list[Check]:
    """Losses of the engine's own readers since the window began. A stranger's losses are its own affair: not judged."""
    own = {process.pid: process.label for process in sample.processes if process.alive}
    earlier = {(ring, r.pid, r.label): r.lost for ring, readers in before.readers.items() for r in readers}
    checks = []
    for ring_id, readers in sample.readers.items():
        for reader in readers:
            if reader.pid not in own:
                continue
            lost = reader.lost - earlier.get((ring_id, reader.pid, reader.label), 0)
            if lost > 0:
                why = f"{own[reader.pid]} lost {lost} records in the last seconds: it is slower than the ring's writer"
                checks.append(Check(f"ring:{ring_id}", Verdict.DEGRADED, why))
    return checks


def slowest(sample: Sample, before: Sample, hop: str) -> tuple[str, float]:
    """The process whose p99 of a hop (a histogram's name) was highest since `before`, and that p99 in ms; ("", 0.0)."""
    earlier = {process.label: process for process in before.processes}
    found = ("", 0.0)
    for process in sample.processes:
        view = process.histograms.get(hop)
        if view is None:
            continue
        old = earlier.get(process.label)
        if old is not None and old.pid == process.pid and hop in old.histograms:
            view = view - old.histograms[hop]
        if view.count:
            found = max(found, (process.label, view.percentile(99) / 1e6), key=lambda pair: pair[1])
    return found


def _check_latency(sample: Sample, before: Sample, limits: Limits) -> Check:
    label, p99_ms = slowest(sample, before, "ring_latency")
    if not label:
        return Check("latency", Verdict.HEALTHY, "no record passed in the last seconds")
    if limits.latency_alert_ms and p99_ms > limits.latency_alert_ms:
        return Check(
            "latency",
            Verdict.DEGRADED,
            f"p99 from ring to reader is {p99_ms:.1f} ms, above {limits.latency_alert_ms:g}, in {label}",
        )
    return Check("latency", Verdict.HEALTHY, f"p99 from ring to reader is {p99_ms:.3f} ms, in {label}")
