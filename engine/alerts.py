"""What subscribers are told about the engine's own troubles: alerts that begin and end, from one sample to the next.

Pure: samples and the states of the feeds in, status records to be published out. engine/observer.py calls it once a
second and publishes them into ring 0, from where they go to `marketdata.latency.alert` and `marketdata.feed.status`.
They say what /health says, by the same measures (engine/health.py):

    latency     LATENCY_ALERT when p99 of a hop is above `[health] latency_alert_ms`, every ALERT_EVERY_S while it is,
                and once more when it no longer is; `from_sequence` is p99 and `to_sequence` the limit, both in ns, the
                text is "HOP PROCESS" of whoever is slowest: raised and cleared follow from the two numbers
    stale       FEED_STALE when a feed is silent for longer than its own cadence allows, FEED_RECOVERED when it is back
    overload    OVERLOAD when a process has lost or dropped records since the last look, at most every ALERT_EVERY_S
                for each process and counter; `to_sequence` is how many since it was last said, the text is
                "COUNTER PROCESS"

Nothing is published for what goes on unchanged but the latency alert, so that a late subscriber hears of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from engine.health import Limits, slowest
from engine.sample import Sample
from shm.layout import StatusCode

ALERT_EVERY_S: Final = 10.0
HOP: Final = "ring_latency"  # from a record's publication until a reader of ours has it
LOSSES: Final = ("records_lost", "messages_dropped")


@dataclass(frozen=True)
class Alert:
    """One status record: see shm.ring.status_record."""

    code: StatusCode
    text: str
    feed_id: int = 0
    from_sequence: int = 0
    to_sequence: int = 0


class Alerts:
    """Remembers what was said."""

    def __init__(self, limits: Limits) -> None:
        """Nothing has been said."""
        self._limits = limits
        self._raised: str = ""  # who was slow
        self._said_s = 0.0
        self._stale: set[int] = set()
        self._losses: dict[tuple[str, str], tuple[int, float]] = {}  # process, counter -> value and time last said

    def look(self, sample: Sample, before: Sample, states: Mapping[int, tuple[str, str]]) -> list[Alert]:
        """What is to be said at `sample`.

        Args:
            before: the start of the window that latencies are measured over.
            states: feed id -> (state as engine.health.feed_state has it, why).
        """
        return [*self._latency(sample, before), *self._feeds(states), *self._overload(sample)]

    def _latency(self, sample: Sample, before: Sample) -> list[Alert]:
        limit_ms, now_s = self._limits.latency_alert_ms, sample.monotonic_s
        if not limit_ms:
            return []
        label, p99_ms = slowest(sample, before, HOP)
        # At least 1 ns: 0 would say that nothing was measured, which is no end of an alert.
        numbers = {"from_sequence": max(1, round(p99_ms * 1e6)), "to_sequence": round(limit_ms * 1e6)}
        if p99_ms > limit_ms:
            if self._raised and now_s - self._said_s < ALERT_EVERY_S:
                return []
            self._raised, self._said_s = label, now_s
            return [Alert(StatusCode.LATENCY_ALERT, f"{HOP} {label}", **numbers)]
        if not self._raised:
            return []
        label, self._raised = self._raised, ""
        return [Alert(StatusCode.LATENCY_ALERT, f"{HOP} {label}", **numbers)]

    def _feeds(self, states: Mapping[int, tuple[str, str]]) -> list[Alert]:
        found = []
        for feed_id, (state, why) in states.items():
            if state == "stale" and feed_id not in self._stale:
                self._stale.add(feed_id)
                found.append(Alert(StatusCode.FEED_STALE, why, feed_id))
            elif state != "stale" and feed_id in self._stale:
                self._stale.discard(feed_id)
                if state == "active":
                    found.append(Alert(StatusCode.FEED_RECOVERED, "delivers again", feed_id))
        self._stale &= states.keys()
        return found

    def _overload(self, sample: Sample) -> list[Alert]:
        found = []
        for process in sample.processes:
            for counter in LOSSES:
                value, key = process.counters.get(counter, 0), (process.label, counter)
                said, said_s = self._losses.get(key, (0, -ALERT_EVERY_S))
                if value < said:
                    said = 0  # a new process counts anew
                if value > said and sample.monotonic_s - said_s >= ALERT_EVERY_S:
                    self._losses[key] = value, sample.monotonic_s
                    text = f"{counter} {process.label}"
                    found.append(Alert(StatusCode.OVERLOAD, text, to_sequence=value - said))
        return found
