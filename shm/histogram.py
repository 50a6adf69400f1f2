"""Latency histograms: what a process records, and what everyone else makes of it.

`Histogram` is the recording side, one per name and process, at home in the status block (shm/status.h says how values
fall into buckets). `HistogramView` is a copy taken at one moment: it answers percentiles, and two of them subtract to
the window between them. Called by shm/status.py, and through it by metrics and `tickengine top`; it never writes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shm import _status


@cache
def _uppers() -> NDArray[np.uint64]:
    return _status.bucket_uppers()


@dataclass(frozen=True, eq=False, slots=True)
class HistogramView:
    """Durations recorded up to one moment, or between two.

    Values are known to 1/32 (3 %) of themselves, exactly below 64 ns; what is longer than 2^42 ns (73 minutes) counts
    in the last bucket.

    Attributes:
        counts: durations per bucket, uint64, shape (1216,).
        sum_ns: their sum. Read at another instant than the buckets, so it may be a few records ahead or behind.
        min: shortest, ns; 0 when there are none.
        max: longest, ns; 0 when there are none.
    """

    counts: NDArray[np.uint64]
    sum_ns: int
    min: int
    max: int

    @classmethod
    def empty(cls) -> HistogramView:
        """A view of no durations."""
        return cls(np.zeros(_status.BUCKETS, dtype=np.uint64), 0, 0, 0)

    @property
    def count(self) -> int:
        """Number of durations."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Mean, ns; 0 when there are none."""
        count = self.count
        return self.sum_ns / count if count else 0.0

    def percentile(self, q: float) -> int:
        """The duration, ns, that `q` percent (0..100) do not exceed: its bucket's upper edge; 0 when there are none.

        Raises:
            ValueError: `q` outside 0..100.
        """
        if not 0 <= q <= 100:
            raise ValueError(f"percentile {q} is outside 0..100")
        cumulative = np.cumsum(self.counts)
        total = int(cumulative[-1])
        if total == 0:
            return 0
        rank = max(1, math.ceil(q / 100 * total))
        bucket = int(np.searchsorted(cumulative, rank))
        if bucket == _status.BUCKETS - 1:
            return self.max
        return min(max(int(_uppers()[bucket]), self.min), self.max)

    def buckets(self) -> Iterator[tuple[int, int]]:
        """(upper bound in ns, inclusive; number of durations up to it) of every bucket that is not empty, ascending."""
        filled = np.flatnonzero(self.counts)
        cumulative = np.cumsum(self.counts[filled])
        for bucket, count in zip(filled.tolist(), cumulative.tolist(), strict=True):
            yield int(_uppers()[bucket]), int(count)

    def cumulative(self, bounds_ns: Sequence[int]) -> list[int]:
        """For each bound, how many durations were at most that long: for an exposition with fixed buckets.

        A bucket that a bound cuts in two counts above it, so the answer is low by at most that bucket (3 % in time).
        """
        upto = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(self.counts)])
        return [int(upto[int(np.searchsorted(_uppers(), bound, side="right"))]) for bound in bounds_ns]

    def __sub__(self, earlier: HistogramView) -> HistogramView:
        """What was recorded between `earlier` and this view of the same histogram; min and max are bucket edges."""
        counts = np.where(self.counts >= earlier.counts, self.counts - earlier.counts, np.uint64(0))
        filled = np.flatnonzero(counts)
        if not len(filled):
            return HistogramView.empty()
        uppers = _uppers()
        least = int(uppers[filled[0] - 1]) + 1 if filled[0] else 0
        return HistogramView(
            counts,
            max(0, self.sum_ns - earlier.sum_ns),
            max(least, self.min),
            min(int(uppers[filled[-1]]), self.max) if filled[-1] < _status.BUCKETS - 1 else self.max,
        )

    def __add__(self, other: HistogramView) -> HistogramView:
        """Both together, e.g. one hop over several processes."""
        if not self.count or not other.count:
            return self if self.count else other
        return HistogramView(
            self.counts + other.counts,
            self.sum_ns + other.sum_ns,
            min(self.min, other.min),
            max(self.max, other.max),
        )


class Histogram(_status.RawHistogram):
    """Log-linear histogram of durations in ns: `record`, `record_many` (one thread), `snapshot` (anyone)."""

    def snapshot(self) -> HistogramView:
        """A copy of what has been recorded so far."""
        counts, sum_ns, min_ns, max_ns = self.raw()
        return HistogramView(counts, sum_ns, max(0, min_ns), max_ns)
