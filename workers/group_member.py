"""A feed's place in a redundancy group: its condition, and what moves it from one to another.

    OUT --up--> PROVING --healthy for `hold`--> READY        condition of a member; which of them publishes is the
     ^            |  ^                            |          group's `active`. The way back goes to READY members only,
     |            |  '--spoke-- MUTE <--silent----'          a feed that is lost is left at once for any that delivers
     '---down-----'--------------'---- (from every one)

Left out: how long each takes, which workers/redundancy.py decides. Pure; reads no clock.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final


class Condition(enum.Enum):
    """See the module."""

    OUT = "out"
    MUTE = "silent"
    PROVING = "proving"
    READY = "ready"


class Event(enum.Enum):
    """What moves a member from one condition to another."""

    UP = "up"
    DOWN = "down"
    SILENT = "silent"
    SPOKE = "spoke"
    PROVEN = "proven"


TRANSITIONS: Final[dict[tuple[Condition, Event], Condition]] = {
    (Condition.OUT, Event.UP): Condition.PROVING,
    (Condition.PROVING, Event.PROVEN): Condition.READY,
    (Condition.PROVING, Event.SILENT): Condition.MUTE,
    (Condition.READY, Event.SILENT): Condition.MUTE,
    (Condition.MUTE, Event.SPOKE): Condition.PROVING,
    (Condition.MUTE, Event.DOWN): Condition.OUT,
    (Condition.PROVING, Event.DOWN): Condition.OUT,
    (Condition.READY, Event.DOWN): Condition.OUT,
}
DELIVERING: Final = (Condition.PROVING, Condition.READY)


@dataclass
class Member:
    """One feed of a group. `slot` is its number on the board."""

    slot: int
    feed_id: int
    name: str
    rank: int
    condition: Condition = Condition.OUT
    score: float = 1.0
    why: str = "not up yet"
    asks: bool = False  # it is polled
    kinds: int = 0  # bits of the record types it has subscribed to; 0 = nobody knows
    since_ns: int = 0  # of the condition
    better_ns: int = 0  # since when it has been better than the one that publishes; 0 = it is not

    def carries(self, kind: int) -> bool:
        """Whether records of that type may be expected of it."""
        return not self.kinds or bool(self.kinds >> kind & 1)

    @property
    def delivers(self) -> bool:
        """Whether it may publish."""
        return self.condition in DELIVERING

    def better_than(self, other: Member, margin: float) -> bool:
        """Never both ways round: a difference of scores below the margin is none, and then the rank decides."""
        if self.score >= other.score + margin:
            return True
        return self.rank < other.rank and self.score > other.score - margin


def best_of(members: Iterable[Member], margin: float) -> Member | None:
    """The healthiest; of those as healthy but for the margin, the one of lowest rank. None of none."""
    found = list(members)
    if not found:
        return None
    top = max(member.score for member in found)
    return min((member for member in found if member.score > top - margin), key=by_rank)


def by_rank(member: Member) -> tuple[int, int]:
    """Sorts members: the preferred one first."""
    return member.rank, member.feed_id
