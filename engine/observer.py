"""What the control process knows about its engine at any moment: samples, health, feeds, alerts.

`tick` is called once a second by engine/control.py; HTTP routes ask for the rest. It reads the status block and rings
through engine/sample.py, judges through engine/health.py, and writes nothing but alerts (engine/alerts.py) into ring 0.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Final

from engine import rates
from engine.alerts import Alerts
from engine.archive_client import ArchiveClient
from engine.exposition import FeedLabel, SampleCollector
from engine.feeds import Entry, Feeds
from engine.health import Check, Expected, FeedWatch, Health, Limits, feed_state, judge
from engine.lifecycle import Phase
from engine.plan import CACHE_LABEL, HISTORIAN_LABEL, Plan
from engine.sample import WINDOW_S, History, Sample, take_sample
from engine.segments import Segments, forget_pages
from engine.settings import Config
from engine.subscriptions import Subscriptions
from engine.supervisor import Supervisor
from engine.symbol_scores import Watchers
from engine.tiers import Tiers
from shm.errors import ShmError
from shm.latest import LatestTable
from shm.ring import status_record
from shm.source_names import SourceNames
from workers.spec import FeedReport, FeedSpec, GroupMember, GroupReport

MAX_AGE_S: Final = 0.25  # a request is answered from a sample at most this old
FORGET_EVERY_S: Final = 10.0


@dataclass(frozen=True)
class FeedView:
    """One feed, for the API."""

    spec: FeedSpec
    entry: Entry
    state: str
    active: bool
    last_update_ns: int
    records: int
    errors: int
    gaps: int
    rate: float
    why: str
    label: str
    report: FeedReport | None
    group: GroupReport | None = None
    member: GroupMember | None = None  # this feed in it


class Observer:
    """Eyes of the control process."""

    def __init__(
        self,
        config: Config,
        plan: Plan,
        segments: Segments,
        supervisor: Supervisor,
        book: Feeds,
        *,
        subscriptions: Subscriptions,
    ) -> None:
        """Nothing is read yet."""
        self.config = config
        self.plan = plan
        self.segments = segments
        self.supervisor = supervisor
        self.book = book
        self.subscriptions = subscriptions
        self.source_names = SourceNames(segments.status)
        self.history = History()
        self.stopping = False
        self.started_s = time.monotonic()
        self._watch = FeedWatch()
        self._current: Sample | None = None
        self._restarts: list[tuple[float, dict[str, int]]] = []
        self._latest: LatestTable | None = None
        self._forgotten_s = self.started_s
        self._l1_lost = 0
        historian = partial(self._pid_of, HISTORIAN_LABEL)
        client = ArchiveClient(plan.archive_endpoint, historian) if plan.archive_endpoint else None
        self.tiers = Tiers(
            self.latest, segments.instruments, supervisor.own, client, timeout_s=config.http.archive_timeout_s
        )
        if segments.adopted:  # what the crashed engine's cache had lost is not known any more
            self.tiers.hole_ns = time.time_ns()
        self.limits = Limits(
            heartbeat_timeout_s=config.supervisor.heartbeat_timeout_s,
            stale_factor=config.health.stale_factor,
            stale_floor_s=config.health.stale_floor_s,
            first_data_s=config.health.first_data_s,
            latency_alert_ms=config.health.latency_alert_ms,
            store_lag_s=config.health.store_lag_s,
        )
        self._alerts = Alerts(self.limits)
        self._watchers = Watchers(segments.instruments.find, segments.ranks)

    def tick(self) -> None:
        """Once a second: a sample for the history, the feeds' cadence, alerts."""
        sample = self._take()
        self.history.add(sample)
        self._watch.observe(sample, self.book.expected)
        self._restarts.append((sample.monotonic_s, self._restart_counts()))
        while len(self._restarts) > 2 and sample.monotonic_s - self._restarts[0][0] > WINDOW_S:
            self._restarts.pop(0)
        self._alert(sample)
        self._watchers.note(self.subscriptions.entries.values(), sample.symbols)
        lost = sample.total("records_lost", "cache")
        if lost != self._l1_lost or self._pid_of(CACHE_LABEL) == 0:
            self._l1_lost, self.tiers.hole_ns = lost, sample.now_ns
        if self._latest is not None and sample.monotonic_s - self._forgotten_s > FORGET_EVERY_S:
            self._forgotten_s = sample.monotonic_s
            forget_pages(self._latest.segment.buf)

    def current(self) -> Sample:
        """A sample at most MAX_AGE_S old."""
        if self._current is None or time.monotonic() - self._current.monotonic_s > MAX_AGE_S:
            return self._take()
        return self._current

    def health(self) -> Health:
        """The verdict on this moment."""
        sample = self.current()
        before = self.history.oldest or sample
        return judge(
            sample,
            before,
            workers=self._workers(),
            feeds=self.book.expected,
            watch=self._watch,
            limits=self.limits,
            stopping=self.stopping,
        )

    def feeds(self) -> list[FeedView]:
        """Every feed."""
        sample = self.current()
        whys = {check.name: check for check in self.health().checks}
        views = []
        for entry, expected in zip(self.book.entries.values(), self.book.expected, strict=True):
            spec = entry.spec
            counts = sample.feeds.get(spec.feed_id)
            state = feed_state(sample, expected, self._watch, self.limits)
            group = sample.groups.get(spec.group) if spec.group else None
            members = group.members if group is not None else ()
            views.append(
                FeedView(
                    spec=spec,
                    entry=entry,
                    state=state,
                    active=state == "active",
                    last_update_ns=counts.last_update_ns if counts else 0,
                    records=counts.records if counts else 0,
                    errors=counts.errors if counts else 0,
                    gaps=counts.gaps if counts else 0,
                    rate=rates.feed_rate(self.history, sample, spec.feed_id),
                    why=whys[f"feed:{spec.name}"].why,
                    label=expected.label,
                    report=sample.reports.get(spec.feed_id),
                    group=group,
                    member=next((member for member in members if member.feed_id == spec.feed_id), None),
                )
            )
        return views

    def collector(self) -> SampleCollector:
        """The exposition of this moment."""
        sample = self.current()
        feeds = {
            view.spec.feed_id: FeedLabel(
                view.spec.name,
                view.entry.data_source,
                view.rate,
                view.active,
                score=feed_score(view),
                report=view.report,
                role=view.member.role if view.member else "",
            )
            for view in self.feeds()
        }
        rate = rates.messages_rate(self.history, sample)
        return SampleCollector(sample, feeds, self._restart_counts(), rate, self.subscriptions.active)

    def feeds_changed(self, fresh: int = 0) -> None:
        """A feed was changed just now: look again. `fresh` is the number of a new one, whose cadence is not known."""
        if fresh:
            self._watch.forget(fresh)
        self._watch.observe(self._take(), self.book.expected)

    @property
    def replays_ended(self) -> bool:
        """Whether there are feeds, and all of them have come to their end."""
        sample = self.current()
        counts = [sample.feeds.get(feed.feed_id) for feed in self.book.expected]
        return bool(counts) and all(found is not None and found.ended for found in counts)

    def latest(self) -> LatestTable:
        """The latest-value table, attached read-only at first use. ShmError if it can't be."""
        if self._latest is None:
            self._latest = LatestTable.attach(self.config.engine.name)
            forget_pages(self._latest.segment.buf)
        return self._latest

    def records_held(self) -> int:
        """Records in L1. ShmError if it can't be read."""
        table = self.latest()
        try:
            return table.records_held()
        finally:
            forget_pages(table.segment.buf)  # it has looked at every entry

    def close(self) -> None:
        """Let go of the tiers."""
        self.tiers.close()
        if self._latest is not None:
            self._latest.close()
            self._latest = None

    def _take(self) -> Sample:
        now_ns = time.time_ns()
        self._current = take_sample(
            self.config.engine.name,
            self.segments.status,
            [ring.ring_id for ring in self.plan.rings],
            symbols=len(self.segments.instruments),
            now_ns=now_ns,
            reports=self.book.reports(now_ns),
            groups=self.book.group_reports(now_ns),
            monotonic_s=time.monotonic(),
        )
        return self._current

    def _pid_of(self, label: str) -> int:
        """Process id of a worker; 0 while it is not ready."""
        worker = self.supervisor.workers[label]
        return worker.pid if worker.life.phase is Phase.RUNNING else 0

    def _restart_counts(self) -> dict[str, int]:
        return {label: worker.life.restarts for label, worker in self.supervisor.workers.items()}

    def _workers(self) -> tuple[Expected, ...]:
        before = self._restarts[0][1] if self._restarts else {}
        return tuple(
            Expected(
                label=label,
                phase=worker.life.phase.value,
                failed=worker.life.failed and worker.life.phase is not Phase.STOPPED,
                restarts=worker.life.restarts,
                last_end=worker.last_end,
                recent=worker.life.restarts > before.get(label, worker.life.restarts),
            )
            for label, worker in self.supervisor.workers.items()
        )

    def _alert(self, sample: Sample) -> None:
        """Tell subscribers what has begun or ended: slow hops, stale feeds, losses."""
        before = self.history.oldest or sample
        why = {check.name: check.why for check in self.health().checks}
        states = {
            feed.feed_id: (feed_state(sample, feed, self._watch, self.limits), why.get(f"feed:{feed.name}", ""))
            for feed in self.book.expected
        }
        for alert in self._alerts.look(sample, before, states):
            record = status_record(
                alert.code,
                text=alert.text,
                feed_id=alert.feed_id,
                from_sequence=alert.from_sequence,
                to_sequence=alert.to_sequence,
            )
            try:
                self.segments.ring.publish(record)
            except ShmError:  # the ring is gone: the engine is stopping
                return


def feed_score(view: FeedView) -> float:
    """How well a feed does, 0 to 1: its own word if it is live, else the share of records without an error."""
    if view.report is not None and view.state != "paused":
        return view.report.health_score
    if view.state not in ("active", "ended") or not view.records:
        return 0.0
    return 1.0 - min(1.0, view.errors / view.records)


def checks_of(health: Health, prefix: str) -> list[Check]:
    """The checks about one kind of thing, e.g. "process:"."""
    return [check for check in health.checks if check.name.startswith(prefix)]
