"""Circuit breaker and back-off of one connection: when may it be tried again?

    CLOSED --too many failures in a row--> OPEN --cool-down over--> HALF_OPEN --it works--> CLOSED
       '----- one that will not pass -------^  ^------ it fails ---------'

While CLOSED, `workers.backoff` says when: at once, then twice as long each time, capped, jittered. OPEN waits far
longer, and longer each time it opens again, so that a venue which is down, or refuses us, is left in peace; HALF_OPEN
is one try. A venue's own Retry-After is obeyed wherever it is longer.

Pure: time and dice are passed in. Called by workers/session.py.
"""

from __future__ import annotations

import enum
import random
from typing import Final

from workers.backoff import FORGET_NS, Backoff

THRESHOLD: Final = 6  # failures in a row that open it
COOL_DOWN_NS: Final = 60_000_000_000
LONGEST_COOL_DOWN_NS: Final = 600_000_000_000
LONGEST_RETRY_AFTER_NS: Final = 86_400_000_000_000  # more than a day is not believed


class BreakerState(enum.Enum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class BreakerEvent(enum.Enum):
    """What moves it."""

    FAILED = "failed"  # once more, not too often yet
    TRIPPED = "tripped"  # too often, or for a reason that will not pass by itself
    COOLED = "cooled"  # the cool-down is over
    WORKED = "worked"  # the connection delivers


BREAKER_TRANSITIONS: Final = {
    (BreakerState.CLOSED, BreakerEvent.FAILED): BreakerState.CLOSED,
    (BreakerState.CLOSED, BreakerEvent.TRIPPED): BreakerState.OPEN,
    (BreakerState.CLOSED, BreakerEvent.WORKED): BreakerState.CLOSED,
    (BreakerState.OPEN, BreakerEvent.COOLED): BreakerState.HALF_OPEN,
    (BreakerState.HALF_OPEN, BreakerEvent.TRIPPED): BreakerState.OPEN,
    (BreakerState.HALF_OPEN, BreakerEvent.WORKED): BreakerState.CLOSED,
}


class Breaker:
    """`state`, and `failures` in a row; a connection that was up for 30 s begins to count anew."""

    def __init__(self, dice: random.Random, threshold: int = THRESHOLD) -> None:
        """Closed. `dice` spreads the tries of those that failed together."""
        self.state = BreakerState.CLOSED
        self._dice = dice
        self._threshold = threshold
        self._backoff = Backoff(dice)
        self._trips = 0  # openings in a row

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._backoff.failures

    def failed(self, now_ns: int, up_since_ns: int, *, retry_after_ns: int = 0, lasting: bool = False) -> int:
        """It failed, having worked since `up_since_ns` (0 = it never did); returns when to try again, ns.

        Args:
            retry_after_ns: how long the venue says to wait.
            lasting: trying soon will not help (a key refused, a symbol unknown): open at once.
        """
        if up_since_ns and now_ns - up_since_ns >= FORGET_NS:
            self._trips = 0
        due_ns = self._backoff.failed(now_ns, up_since_ns)
        if lasting or self.state is BreakerState.HALF_OPEN or self._backoff.failures >= self._threshold:
            self._move(BreakerEvent.TRIPPED)
            longest_ns = min(LONGEST_COOL_DOWN_NS, COOL_DOWN_NS << min(self._trips, 8))
            self._trips += 1
            due_ns = now_ns + int(longest_ns * self._dice.uniform(0.75, 1.0))
        else:
            self._move(BreakerEvent.FAILED)
        return max(due_ns, now_ns + min(retry_after_ns, LONGEST_RETRY_AFTER_NS))

    def trying(self) -> None:
        """The time that `failed` gave has come, and a try begins."""
        if self.state is BreakerState.OPEN:
            self._move(BreakerEvent.COOLED)

    def worked(self) -> None:
        """The try delivers."""
        self._move(BreakerEvent.WORKED)

    def _move(self, event: BreakerEvent) -> None:
        self.state = BREAKER_TRANSITIONS[self.state, event]
