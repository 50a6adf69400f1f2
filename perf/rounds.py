"""Rounds: how often something is measured, and what becomes of the figures.

Every benchmark measures its subject and its peer in turn, round after round, so that a machine that is slower for a
while is slower for both. The first round warms up and is thrown away; of the others the median counts. Nothing here
knows what is measured.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field

from perf.errors import PeerMissing

Measure = Callable[[], float]


@dataclass(frozen=True)
class Plan:
    """How much to measure: `runs` counted rounds, and a tenth of the data in each if `quick`."""

    runs: int = 5
    quick: bool = False

    def amount(self, full: int, *, least: int = 1) -> int:
        """How many records, messages or samples to take in a round for which a full run takes `full`."""
        return max(least, full // 10) if self.quick else full


@dataclass
class Series:
    """The figures of the counted rounds of one subject."""

    values: list[float] = field(default_factory=list)
    missing: str = ""  # why there are none

    @property
    def median(self) -> float:
        """The middle figure."""
        return statistics.median(self.values)

    def spread(self, form: str = "{:.1f}", scale: float = 1.0) -> str:
        """Lowest and highest figure divided by `scale`, for a note."""
        return f"{form.format(min(self.values) / scale)}..{form.format(max(self.values) / scale)}"


def alternate(plan: Plan, *measures: Measure) -> list[Series]:
    """Measure each in turn, `plan.runs` times after one round of warm-up; one Series each, in that order.

    A measure that raises PeerMissing is left out from then on; its Series says why.
    """
    found = [Series() for _ in measures]
    for round_number in range(plan.runs + 1):
        for measure, series in zip(measures, found, strict=True):
            if series.missing:
                continue
            try:
                value = measure()
            except PeerMissing as reason:
                series.missing = str(reason)
                series.values.clear()
                continue
            if round_number > 0:
                series.values.append(value)
    return found
