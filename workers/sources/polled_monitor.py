"""How a polled feed does: which symbols are silent, its score and warnings, its report, its counters.

Kept by workers/sources/polled.py, as fix_monitor.py by a FIX feed. It judges by workers/cadence.py and
workers/feed_health.py, as for every live source; it asks nobody, and moves neither job nor session.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shm.errors import ShmFull
from shm.status import Counter
from workers.cadence import Cadence
from workers.feed_health import FeedHealth
from workers.session import Session, State
from workers.sources.market_hours import MarketHours
from workers.sources.polled_requests import PolledRequests
from workers.sources.vendor import Job, Vendor
from workers.spec import FeedReport

LOOK_EVERY_NS: Final = 1_000_000_000
MAX_NAMED: Final = 3
COUNTERS: Final = ("requests", "waiting", "missing", "corrected")


class PolledMonitor:
    """See the module.

    Attributes:
        report: how the feed is; another object whenever that has changed.
        errors: since the start.
        due_ns: when to call `look`.
    """

    def __init__(
        self,
        feed_id: int,
        vendor: Vendor,
        session: Session,
        hours: MarketHours | None,
        counter: Callable[[str], Counter] | None,
    ) -> None:
        """Nothing has come yet. `hours`: None = always. `counter` makes or finds a counter of the worker by name."""
        self.report = FeedReport(feed_id=feed_id, state=State.RECOVER.value, why="not asked yet")
        self.errors = 0
        self.due_ns = 0
        self._vendor = vendor
        self._session = session
        self._health = FeedHealth()
        options = vendor.options
        self._cadence = Cadence(
            factor=options.stale_factor,
            floor_s=options.stale_factor * options.poll_s,
            is_open=hours.is_open if hours is not None else None,
        )
        self._memory_problem = ""
        self._silent: list[str] = []
        self._silence = ""  # of the one that is silent for longest
        self._reported: tuple[Any, ...] = ()

        def found(name: str) -> Counter | None:
            try:
                return counter(f"polled.{feed_id}.{name}") if counter is not None else None
            except ShmFull:
                return None  # of so many feeds some do without: the report says the same in words

        self._counters = {name: found(name) for name in COUNTERS}
        if (waiting := self._counters["waiting"]) is not None:
            waiting.set(0)

    def asked(self) -> None:
        """A request goes out."""
        self._count("requests", 1)

    def answered(self, job: Job, now_ns: int, *, missing: int, malformed: int, corrected: int, news: bool) -> None:
        """A good answer. So many observations of it were said not to be there, unreadable, or others than before.

        `news`: it has what was to be expected of it.
        """
        self.errors += malformed
        self._count("missing", missing)
        self._count("corrected", corrected)
        self._health.messages(now_ns, 1)
        if malformed:
            self._health.errors(now_ns)
        if news:
            number = next(number for number, one in enumerate(self._vendor.jobs) if one is job)
            self._cadence.heard((number,), now_ns)

    def refused(self, now_ns: int) -> None:
        """The vendor does not serve a job."""
        self.errors += 1
        self._health.errors(now_ns)

    def lost(self, now_ns: int) -> None:
        """A request without an answer that is any use."""
        self.errors += 1
        self._health.messages(now_ns, 1)
        self._health.errors(now_ns)

    def reconnected(self, now_ns: int) -> None:
        """The session begins anew."""
        self._health.reconnected(now_ns)

    def forgetful(self, problem: str) -> None:
        """This process remembers, the next one may not: said in the report until it works again."""
        self.errors += 1
        self._memory_problem = problem

    def remembers(self) -> None:
        """What was published is written down."""
        self._memory_problem = ""

    def look(self, now_ns: int, requests: PolledRequests) -> str:
        """Once a second: why the whole feed is stale, "" = it is not."""
        self.due_ns = now_ns + LOOK_EVERY_NS
        found = self._cadence.silent(now_ns)
        self._silent = [self._vendor.jobs[one.instrument_id].name for one in found]
        self._silence = f"{self._silent[0]} silent for {found[0].silent_s:.0f} s" if found else ""
        if not found or len(found) < len(self._cadence):
            return ""
        return requests.words(now_ns) or f"{self._silence}; {found[0].allowed_s:.0f} s would be usual"

    def warnings(self, now_ns: int) -> list[str]:
        """After `look`, once the session knows of it: what is to be warned of."""
        return self._health.warnings(now_ns, self._silence) if self._session.state is State.LIVE else []

    def note(self, now_ns: int, requests: PolledRequests) -> None:
        """Make a new report when something has changed, at most once a second."""
        session = self._session
        now = (session.state, session.why, requests.waiting)
        if now == self._reported and now_ns - self.report.at_ns < LOOK_EVERY_NS:
            return
        self._reported = now
        if (waiting := self._counters["waiting"]) is not None:
            waiting.set(requests.waiting)
        jobs = self._vendor.jobs
        refused = [f"{job.name}: {job.refused}" for job in jobs if job.refused]
        words = [session.why]
        budget = requests.words(now_ns) if session.state in (State.CONNECT, State.LIVE) else ""
        if budget:
            words.append(budget)
        if self._silent and session.state is State.LIVE:
            words.append(f"silent: {_named(self._silent)}")
        if refused and len(refused) < len(jobs):
            words.append(f"refused: {_named(refused)}")
        if self._memory_problem:
            words.append(self._memory_problem)
        served = 1.0 - len(refused) / len(jobs)
        known = len(self._cadence)
        share = served * (1.0 - len(self._silent) / known if known else 1.0)
        live = session.state is State.LIVE
        self.report = FeedReport(
            feed_id=self.report.feed_id,
            state=session.state.value,
            why="; ".join(words),
            health_score=round(self._health.score(now_ns, delivers=live, fresh_share=share), 3),
            degraded=live
            and bool(refused or self._silent or self._memory_problem or requests.slow or self._health.warned),
            breaker=session.breaker.state.value,
            retry_at_ns=session.due_ns if session.state in (State.RECOVER, State.FAILED) else 0,
            connections=1,
            reconnects=session.reconnects,
            silent=len(self._silent),
            errors=self.errors,
            at_ns=now_ns,
        )

    def _count(self, name: str, count: int) -> None:
        found = self._counters[name]
        if found is not None and count:
            found.add(count)


def _named(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
