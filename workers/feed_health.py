"""How well a live feed does, from 0 to 1, and warnings before it is down.

    score = 0 while it does not deliver, else the product of
        the share of its instruments that are not silent for too long    (workers/cadence.py)
        1 - share of errors among the messages of the last minutes, at least 0.5
        1 / (1 + gaps / 10), gaps of the last minutes, at least 0.5
        usual / present excess of latency, at least 0.5                  only where it is above what is usual
        1 / (1 + reconnects / 4), of the last ten minutes, at least 0.5

Latency is ts_receive - ts_event against the feed's own baseline, because the venue's clock is not ours: what counts is
that it grows. A warning is given once when a limit is crossed, and again only after things were well in between.
Pure; called by live sources (workers/sources/websocket.py).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

COUNT_HALF_LIFE_NS: Final = 60e9
RECONNECT_HALF_LIFE_NS: Final = 300e9
FAST_HALF_LIFE_NS: Final = 2e9
SLOW_HALF_LIFE_NS: Final = 300e9
WARM_UP: Final = 50  # samples before a latency is judged
DEVIATIONS: Final = 6.0

ERROR_SHARE_ALERT: Final = 0.05
ERRORS_ALERT: Final = 3.0
RECONNECTS_ALERT: Final = 2.5


@dataclass(slots=True)
class _Fading:
    """A count of which half is forgotten in each half-life."""

    half_life_ns: float
    value: float = 0.0
    at_ns: int = 0

    def add(self, now_ns: int, count: float) -> None:
        self.value = self.now(now_ns) + count
        self.at_ns = now_ns

    def now(self, now_ns: int) -> float:
        return self.value * math.exp2(-max(0, now_ns - self.at_ns) / self.half_life_ns)


class Latency:
    """A feed's latency, lately and usually. Times in ns; `baseline_ns` may be negative: clocks differ."""

    def __init__(self, floor_ms: float = 50.0) -> None:
        """No sample yet. `floor_ms`: growing by less is never worth a word."""
        self.samples = 0
        self.present_ns = 0.0
        self.baseline_ns = 0.0
        self._deviation_ns = 0.0
        self._floor_ns = floor_ms * 1e6
        self._last_ns = 0

    def observe(self, now_ns: int, latency_ns: float) -> None:
        """Take in a sample."""
        self.samples += 1
        if self.samples == 1:
            self.present_ns = self.baseline_ns = latency_ns
        passed_ns = max(1, now_ns - self._last_ns) if self._last_ns else 1
        self._last_ns = now_ns
        fast = 1.0 - math.exp2(-passed_ns / FAST_HALF_LIFE_NS)
        # While it warms up the baseline is the plain mean, so that the first sample is not taken for what is usual.
        slow = max(
            1.0 - math.exp2(-passed_ns / SLOW_HALF_LIFE_NS), 1.0 / self.samples if self.samples <= WARM_UP else 0.0
        )
        self.present_ns += max(fast, 1.0 / self.samples) * (latency_ns - self.present_ns)
        distance_ns = abs(latency_ns - self.baseline_ns)
        self._deviation_ns += slow * (distance_ns - self._deviation_ns)
        self.baseline_ns += slow * (latency_ns - self.baseline_ns)

    @property
    def excess(self) -> float:
        """How far above what is usual, in limits: 1 and more is worth a warning."""
        if self.samples < WARM_UP:
            return 0.0
        limit_ns = max(self._floor_ns, DEVIATIONS * self._deviation_ns)
        return max(0.0, self.present_ns - self.baseline_ns) / limit_ns


class FeedHealth:
    """One feed's health. Counts fade by themselves."""

    def __init__(self, latency_floor_ms: float = 50.0) -> None:
        """Nothing has happened yet."""
        self.latency = Latency(latency_floor_ms)
        self._messages = _Fading(COUNT_HALF_LIFE_NS)
        self._errors = _Fading(COUNT_HALF_LIFE_NS)
        self._gaps = _Fading(COUNT_HALF_LIFE_NS)
        self._reconnects = _Fading(RECONNECT_HALF_LIFE_NS)
        self._warned: set[str] = set()

    def messages(self, now_ns: int, count: int) -> None:
        """So many messages have come, good or bad."""
        self._messages.add(now_ns, count)

    def errors(self, now_ns: int, count: int = 1) -> None:
        """So many could not be read, or the venue complained."""
        self._errors.add(now_ns, count)

    def gaps(self, now_ns: int, count: int = 1) -> None:
        """Holes in the venue's numbering."""
        self._gaps.add(now_ns, count)

    def reconnected(self, now_ns: int) -> None:
        """The connection was made anew."""
        self._reconnects.add(now_ns, 1.0)

    def score(self, now_ns: int, *, delivers: bool, fresh_share: float = 1.0) -> float:
        """0 to 1. `fresh_share`: of the instruments, those that are not silent for too long."""
        if not delivers:
            return 0.0
        excess = self.latency.excess
        return (
            min(1.0, max(0.0, fresh_share))
            * max(0.5, 1.0 - self._error_share(now_ns))
            * max(0.5, 1.0 / (1.0 + self._gaps.now(now_ns) / 10.0))
            * (max(0.5, 1.0 / excess) if excess > 1.0 else 1.0)
            * max(0.5, 1.0 / (1.0 + self._reconnects.now(now_ns) / 4.0))
        )

    def warnings(self, now_ns: int, silent: str = "") -> list[str]:
        """What is new to be warned of, in words; `silent` names instruments that are silent for too long, "" = none."""
        latency, errors, reconnects = self.latency, self._errors.now(now_ns), self._reconnects.now(now_ns)
        grown_ms = (latency.present_ns - latency.baseline_ns) / 1e6
        judged = {
            "latency": (latency.excess, f"latency {grown_ms:.0f} ms above usual"),
            "errors": (
                min(errors / ERRORS_ALERT, self._error_share(now_ns) / ERROR_SHARE_ALERT),
                f"{errors:.0f} errors in the last minutes",
            ),
            "reconnects": (reconnects / RECONNECTS_ALERT, f"{reconnects:.0f} reconnects in ten minutes"),
            "silent": (1.0 if silent else 0.0, silent),
        }
        found = []
        for name, (measure, text) in judged.items():
            if measure >= 1.0 and name not in self._warned:
                self._warned.add(name)
                found.append(text)
            elif measure < 0.5:
                self._warned.discard(name)
        return found

    @property
    def warned(self) -> bool:
        """Whether a warning stands."""
        return bool(self._warned)

    def _error_share(self, now_ns: int) -> float:
        messages = self._messages.now(now_ns)
        return min(1.0, self._errors.now(now_ns) / messages) if messages >= 1.0 else 0.0
