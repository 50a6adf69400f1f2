"""How a FIX feed does: which symbols are silent, its score and warnings, its report, its counters.

Kept by workers/sources/fix.py. It judges by workers/cadence.py and workers/feed_health.py, as for every live source; it
opens nothing and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np

from shm.layout import Flag
from shm.status import Counter
from workers.cadence import Cadence
from workers.feed_health import FeedHealth
from workers.session import Session, State
from workers.sources.calendar import Phase, span_at
from workers.sources.fix_options import FixOptions
from workers.spec import FeedReport

REPORT_EVERY_NS: Final = 1_000_000_000
MAX_NAMED: Final = 3
COUNTERS: Final = ("garbled", "duplicates", "rejected", "resends_asked", "missed", "overflows")


class FixMonitor:
    """See the module. `report` is another object whenever something has changed; `errors` counts since the start."""

    def __init__(
        self,
        feed_id: int,
        options: FixOptions,
        session: Session,
        name: Callable[[int], str],
        counter: Callable[[str], Counter] | None,
    ) -> None:
        """Nothing has come yet. `name`: the venue's symbol of an instrument."""
        self.report = FeedReport(feed_id=feed_id, state=State.RECOVER.value, why="not connected yet")
        self.errors = 0
        self.refused: dict[str, str] = {}  # symbol -> what the venue said
        self.due_ns = 0  # when to call `look`
        self.health = FeedHealth(options.latency_floor_ms)
        is_open = None if options.session == "always" else _open_in_new_york
        self.cadence = Cadence(factor=options.stale_factor, floor_s=options.stale_floor_s, is_open=is_open)
        self._session = session
        self._name = name
        self._silent: list[str] = []
        self._reported: tuple[Any, ...] = ()
        self._counters = {one: counter(f"fix.{feed_id}.{one}") for one in COUNTERS} if counter is not None else {}
        self._counted = dict.fromkeys(COUNTERS, 0)

    def failed(self, now_ns: int, count: int = 1) -> None:
        """So many messages could not be read, or were complaints."""
        self.errors += count
        self.health.errors(now_ns, count)

    def heard(self, records: np.ndarray, now_ns: int) -> None:
        """Fresh market records, one at least."""
        self.cadence.heard(set(records["instrument_id"].tolist()), now_ns)
        newest = records[-1]
        if not newest["flags"] & np.uint16(Flag.SNAPSHOT | Flag.BACKFILLED):
            self.health.latency.observe(now_ns, float(newest["ts_receive"] - newest["ts_event"]))

    def look(self, now_ns: int) -> tuple[str, list[str]]:
        """Once a second: why the whole feed is stale, "" = it is not; and what is to be warned of."""
        self.due_ns = now_ns + REPORT_EVERY_NS
        found = self.cadence.silent(now_ns) if self._session.state in (State.LIVE, State.STALE) else []
        self._silent = [self._name(one.instrument_id) for one in found]
        if found and len(found) == len(self.cadence):
            what = self._silent[0] if len(found) == 1 else f"all {len(found)} symbols"
            return f"{what} silent for {found[-1].silent_s:.1f} s; {found[-1].allowed_s:.1f} s would be usual", []
        if self._session.state is not State.LIVE:
            return "", []
        text = f"{self._silent[0]} silent for {found[0].silent_s:.0f} s" if found else ""
        return "", self.health.warnings(now_ns, text)

    def note(self, now_ns: int) -> bool:
        """Make a new report when something has changed, at most once a second; False = there was no need."""
        session = self._session
        if (session.state, session.why) == self._reported and now_ns - self.report.at_ns < REPORT_EVERY_NS:
            return False
        self._reported = (session.state, session.why)
        live = session.state is State.LIVE
        why = session.why
        if live and self._silent:
            more = f" and {len(self._silent) - MAX_NAMED} more" if len(self._silent) > MAX_NAMED else ""
            why = f"{why}; silent: {', '.join(self._silent[:MAX_NAMED])}{more}"
        refused = [f"{symbol}: {reason}" for symbol, reason in self.refused.items()]
        if live and refused:
            why = f"{why}; refused: {', '.join(refused[:MAX_NAMED])}"
        latency, known = self.health.latency, len(self.cadence)
        share = 1.0 - len(self._silent) / known if known else 1.0
        self.report = FeedReport(
            feed_id=self.report.feed_id,
            state=session.state.value,
            why=why,
            health_score=round(self.health.score(now_ns, delivers=live, fresh_share=share), 3),
            degraded=live and (bool(refused) or self.health.warned),
            breaker=session.breaker.state.value,
            retry_at_ns=session.due_ns if session.state in (State.RECOVER, State.FAILED) else 0,
            reconnects=session.reconnects,
            silent=len(self._silent),
            latency_ms=round(latency.present_ns / 1e6, 3) if latency.samples else None,
            usual_latency_ms=round(latency.baseline_ns / 1e6, 3) if latency.samples else None,
            errors=self.errors,
            at_ns=now_ns,
        )
        return True

    def count(self, found: dict[str, int]) -> None:
        """Bring the worker's counters up to what this source has counted."""
        for one, counter in self._counters.items():
            if found[one] != self._counted[one]:
                counter.add(found[one] - self._counted[one])
                self._counted[one] = found[one]


def _open_in_new_york(now_ns: int) -> bool:
    return span_at(now_ns).phase is not Phase.CLOSED
