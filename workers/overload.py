"""Whether fan-out keeps up, and what it does about it: how loaded it is in, a state out.

Pure: called by workers/fanout.py once a busy turn, with the time passed in; it sheds, sends and counts nothing itself.

    NORMAL        everything is sent, in the order of arrival
    CONFLATING    high tier at once and in full; of normal and low the newest of each key (workers/conflate.h)
    SHEDDING      the same, and low is not sent at all, unless its instrument ranks high
    PROBING       everything is sent again, as a trial; subscribers are still told CONFLATING

A load shows as one of three signs, and the table says what follows:

    HEAVY         the backlog is a quarter of the ring, or there is more to encode than there is time for
    SEVERE        half of the ring, or a record waits for a second, for longer than SEVERE_NS; also: no room to wait
    LIGHT         less than an eighth of the ring, time for all that is to be encoded, nothing waits for half as long
    (neither)     between LIGHT and HEAVY nothing changes: that is the hysteresis

Only sending everything again tells whether it would be too much: conflating makes every backlog small. So PROBING is
tried after `hold_s` of LIGHT. A failed try costs a few milliseconds, doubles the pause up to the next one (up to
HOLD_CAP_S), and is not announced; a try that lasts SETTLE_S is the end of the overload.
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from shm.layout import Priority

HEAVY_LAG: Final = 0.25  # of the ring's slots
SEVERE_LAG: Final = 0.5
LIGHT_LAG: Final = 0.125
SEVERE_WAIT_NS: Final = 1_000_000_000
SEVERE_NS: Final = 20_000_000
HOLD_S: Final = 1.0
HOLD_CAP_S: Final = 30.0
SETTLE_S: Final = 1.0


class State(enum.IntEnum):
    """See above; the value is that of the gauge `overload`."""

    NORMAL = 0
    CONFLATING = 1
    SHEDDING = 2
    PROBING = 3

    @property
    def told(self) -> State:
        """What subscribers are told."""
        return State.CONFLATING if self is State.PROBING else self


class Load(NamedTuple):
    """One turn.

    Attributes:
        lag: records that were in the ring and not read, the turn's own included, as a fraction of its slots.
        excess: there is more to encode than there is time for, were nothing left out.
        waited_ns: how long the topic that has waited longest has.
        full: records found no room to wait.
    """

    lag: float
    excess: bool = False
    waited_ns: int = 0
    full: bool = False


class Sign(enum.Enum):
    """What a turn's load shows."""

    LIGHT = enum.auto()
    BETWEEN = enum.auto()
    HEAVY = enum.auto()
    SEVERE = enum.auto()


# What follows at once. Nothing else does, but for what LIGHT leads to in time: see `_IN_TIME`.
_AT_ONCE: Final = {
    (State.NORMAL, Sign.HEAVY): State.CONFLATING,
    (State.NORMAL, Sign.SEVERE): State.CONFLATING,
    (State.CONFLATING, Sign.SEVERE): State.SHEDDING,
    (State.PROBING, Sign.HEAVY): State.CONFLATING,
    (State.PROBING, Sign.SEVERE): State.CONFLATING,
}
_IN_TIME: Final = {
    State.SHEDDING: State.CONFLATING,
    State.CONFLATING: State.PROBING,
    State.PROBING: State.NORMAL,
}
_KEPT_BACK: Final = {
    State.NORMAL: 0,
    State.PROBING: 0,
    State.CONFLATING: 1 << Priority.NORMAL | 1 << Priority.LOW,
    State.SHEDDING: 1 << Priority.NORMAL | 1 << Priority.LOW,
}


class Overload:
    """The state of one fan-out process.

    Attributes:
        state: now.
        hold_s: how long LIGHT must last before the next try.
    """

    def __init__(self) -> None:
        """Begin in NORMAL."""
        self.state = State.NORMAL
        self.hold_s = HOLD_S
        self._light_since_ns: int | None = None
        self._severe_since_ns: int | None = None

    @property
    def hold(self) -> int:
        """Bit t is set if records of tier t (shm.layout.Priority) wait instead of being sent at once."""
        return _KEPT_BACK[self.state]

    @property
    def shed(self) -> int:
        """Bit t is set if records of tier t are not sent."""
        return 1 << Priority.LOW if self.state is State.SHEDDING else 0

    def judge(self, load: Load, now_ns: int) -> State:
        """Take in one turn, at monotonic time `now_ns`; returns the state that it is dealt with in."""
        sign = self._sign(load, now_ns)
        following = _AT_ONCE.get((self.state, sign))
        if sign is not Sign.LIGHT:
            self._light_since_ns = None
        elif self._light_since_ns is None:
            self._light_since_ns = now_ns
        elif self.state in _IN_TIME:
            needed_s = SETTLE_S if self.state is State.PROBING else self.hold_s
            if now_ns - self._light_since_ns >= needed_s * 1e9:
                following = _IN_TIME[self.state]
        if following is not None and following is not self.state:
            self._change(following)
        return self.state

    def _sign(self, load: Load, now_ns: int) -> Sign:
        if load.full:
            return Sign.SEVERE
        if load.lag >= SEVERE_LAG or load.waited_ns >= SEVERE_WAIT_NS:
            if self._severe_since_ns is None:
                self._severe_since_ns = now_ns
            return Sign.SEVERE if now_ns - self._severe_since_ns >= SEVERE_NS else Sign.HEAVY
        self._severe_since_ns = None
        if load.lag >= HEAVY_LAG or load.excess:
            return Sign.HEAVY
        light = load.lag < LIGHT_LAG and load.waited_ns < SEVERE_WAIT_NS // 2
        return Sign.LIGHT if light else Sign.BETWEEN

    def _change(self, following: State) -> None:
        if self.state is State.PROBING and following is State.CONFLATING:
            self.hold_s = min(HOLD_CAP_S, 2 * self.hold_s)
        elif following is State.NORMAL:
            self.hold_s = HOLD_S
        self.state = following
        self._light_since_ns = self._severe_since_ns = None
