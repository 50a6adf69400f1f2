"""What workers/sources/fix_intake.py asks of who has the connection of a FIX feed, and tells it.

A live feed is one (fix.py), a replay of a capture another (fix_replay.py). Words alone: nothing is done here.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from shm.layout import StatusCode
from workers.session import Verdict


class Told(NamedTuple):
    """A status record to come; [first, last) are messages that are missing."""

    code: StatusCode
    text: str
    at_ns: int
    first: int = 0
    last: int = 0


class Owner(Protocol):
    """Who has the connection."""

    def send(self, data: bytes, now_ns: int) -> None:
        """To the venue."""

    def logged_on(self, now_ns: int) -> None:
        """The venue took the logon: `subscribe` is wanted."""

    def heard(self, records: np.ndarray, now_ns: int) -> None:
        """Market records, one at least, that the ring has not had."""

    def refused(self, symbol: str, reason: str, now_ns: int) -> None:
        """A request for a symbol is refused; "" = a complaint about something else, or one that can't be read."""

    def told(self, told: Told, now_ns: int) -> None:
        """A status record stands among the records now."""

    def lost(self, verdict: Verdict, now_ns: int) -> None:
        """The connection is of no more use: `close` is wanted."""
