"""Back-off of a feed that fails: first retry at once, then twice as long each time, capped, jittered.

Pure: used by workers/feed.py, which passes the time and the random numbers in.
"""

from __future__ import annotations

import random

FIRST_NS = 500_000_000
CAP_NS = 30_000_000_000
FORGET_NS = 30_000_000_000


class Backoff:
    """When to try again. A feed that was up for 30 s has recovered: its next failure counts as the first."""

    def __init__(self, dice: random.Random) -> None:
        """`dice` spreads the retries of feeds that failed together."""
        self._dice = dice
        self.failures = 0

    def failed(self, now_ns: int, up_since_ns: int) -> int:
        """The feed that was up from `up_since_ns` (0 = never came up) failed; returns when to try again, ns."""
        if up_since_ns and now_ns - up_since_ns >= FORGET_NS:
            self.failures = 0
        self.failures += 1
        if self.failures == 1:
            return now_ns
        longest_ns = min(CAP_NS, FIRST_NS << min(self.failures - 2, 16))
        return now_ns + int(longest_ns * self._dice.uniform(0.5, 1.0))
