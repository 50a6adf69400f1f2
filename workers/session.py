"""The life of one connection to a venue, sans-I/O: what has happened goes in, what to do comes out.

    RECOVER --due--> CONNECT --open--> AUTHENTICATE --logged in--> SUBSCRIBE --acknowledged and data--> LIVE <--> STALE
       ^                |                    |                         |                                |         |
       '----------------+-------- lost, refused, too late, silent ----+--------------------------------+---------'
                        '--> FAILED: the breaker is open; tried again when it has cooled down

A connection is LIVE when data has come, not when a request was sent: after each reconnect the subscription counts only
once the venue has acknowledged it (where it does that at all) and a record was had. STALE is a connection that is up
and says nothing usable; left so, it is closed and made again. Every state but LIVE has a deadline, so that none lasts
for ever. Used by live sources (workers/sources/websocket.py); FIX, polled sources and groups of feeds go by it too.

Time (ns, never decreasing) and dice are passed in. It opens nothing, reads no clock and knows no venue. What arrives
out of turn, such as data of a connection that was given up, is passed over: calls return no action then.
"""

from __future__ import annotations

import enum
import random
from dataclasses import dataclass
from typing import Final

from workers.breaker import Breaker

DAY_NS: Final = 86_400_000_000_000
LOOK_AGAIN_NS: Final = 50_000_000  # after a deadline that means nothing now, such as that of data from a closed market


class State(enum.Enum):
    """See the module."""

    RECOVER = "recovering"
    CONNECT = "connecting"
    AUTHENTICATE = "authenticating"
    SUBSCRIBE = "subscribing"
    LIVE = "live"
    STALE = "stale"
    FAILED = "failed"
    CLOSED = "closed"


class Event(enum.Enum):
    """What moves a session."""

    DUE = "due"
    OPENED = "opened"
    READY = "ready"  # logged in, or no login wanted
    VERIFIED = "verified"
    SILENT = "silent"
    HEARD = "heard"
    LOST = "lost"
    TRIPPED = "tripped"
    STOPPED = "stopped"


CONNECTED: Final = (State.AUTHENTICATE, State.SUBSCRIBE, State.LIVE, State.STALE)
_TRYING: Final = (State.CONNECT, *CONNECTED)
TRANSITIONS: Final[dict[tuple[State, Event], State]] = {
    (State.RECOVER, Event.DUE): State.CONNECT,
    (State.FAILED, Event.DUE): State.CONNECT,
    (State.CONNECT, Event.OPENED): State.AUTHENTICATE,
    (State.CONNECT, Event.READY): State.SUBSCRIBE,
    (State.AUTHENTICATE, Event.READY): State.SUBSCRIBE,
    (State.SUBSCRIBE, Event.VERIFIED): State.LIVE,
    (State.LIVE, Event.SILENT): State.STALE,
    (State.STALE, Event.HEARD): State.LIVE,
    **{(state, Event.LOST): State.RECOVER for state in _TRYING},
    **{(state, Event.TRIPPED): State.FAILED for state in _TRYING},
    **{(state, Event.STOPPED): State.CLOSED for state in State if state is not State.CLOSED},
}


class Do(enum.Enum):
    """What the owner of the connection has to do. Carry them out in order."""

    CONNECT = "connect"
    LOGIN = "login"
    SUBSCRIBE = "subscribe"
    CLOSE = "close"  # abort what there is of a connection; no `lost` is wanted for it
    UP = "up"  # it delivers (again): tell
    DOWN = "down"  # it delivers no more: tell


@dataclass(frozen=True)
class Limits:
    """How long a state may last, seconds."""

    connect_s: float = 10.0
    login_s: float = 10.0
    acknowledge_s: float = 15.0
    first_data_s: float = 60.0  # from subscribing to the first record
    message_s: float = 60.0  # between two messages of any kind, heartbeats and pongs included
    stale_s: float = 30.0  # how long STALE is looked at before it is made again


@dataclass(frozen=True)
class Verdict:
    """Why and for how long a try has failed."""

    reason: str
    retry_after_s: float = 0.0
    lasting: bool = False


class Session:
    """See the module. `state`, `why` (one line, for people) and `due_ns` (call `tick` then) are its face.

    `reconnects` counts connections made after the first; `up_since_ns` is 0 while it does not deliver.
    """

    def __init__(
        self,
        dice: random.Random,
        *,
        limits: Limits | None = None,
        login: bool = False,
        acknowledged: bool = True,
    ) -> None:
        """To be connected at the first `tick`.

        Args:
            dice: jitters the times of retries.
            login: the venue wants a login before a subscription.
            acknowledged: the venue acknowledges subscriptions.
        """
        self.state = State.RECOVER
        self.why = "not connected yet"
        self.due_ns = 0
        self.up_since_ns = 0
        self.connects = 0
        self.breaker = Breaker(dice)
        self._limits = limits or Limits()
        self._login = login
        self._wants_acknowledgement = acknowledged
        self._acknowledged = False
        self._heard = False  # a record since subscribing
        self._entered_ns = 0
        self._message_ns = 0

    @property
    def reconnects(self) -> int:
        """How often it was connected after the first time."""
        return max(0, self.connects - 1)

    @property
    def connected(self) -> bool:
        """Whether there is a connection, whatever it is good for."""
        return self.state in CONNECTED

    def tick(self, now_ns: int, *, expected: bool = True) -> list[Do]:
        """Look at the deadlines. `expected` is False while the market is closed: silence means nothing then."""
        state, limits = self.state, self._limits
        if state in (State.RECOVER, State.FAILED):
            if now_ns < self.due_ns:
                return []
            self.breaker.trying()
            self._move(Event.DUE, now_ns)
            self.why = "connecting" if not self.connects else f"connecting again; {self.why}"
            self._deadline(limits.connect_s)
            return [Do.CONNECT]
        if state is State.CLOSED:
            return []
        if state in (State.SUBSCRIBE, State.LIVE, State.STALE) and self._late(
            self._message_ns, limits.message_s, now_ns
        ):
            return self._fail(now_ns, Verdict(f"no message of any kind for {limits.message_s:g} s"))
        if now_ns < self.due_ns:
            return []
        if state is State.CONNECT:
            return self._fail(now_ns, Verdict(f"no connection within {limits.connect_s:g} s"))
        if state is State.AUTHENTICATE:
            return self._fail(now_ns, Verdict(f"login not answered within {limits.login_s:g} s"))
        if state is State.SUBSCRIBE:
            if not self._acknowledged and self._late(self._entered_ns, limits.acknowledge_s, now_ns):
                return self._fail(now_ns, Verdict(f"subscription not acknowledged within {limits.acknowledge_s:g} s"))
            if expected and not self._heard and self._late(self._entered_ns, limits.first_data_s, now_ns):
                return self._fail(now_ns, Verdict(f"no data within {limits.first_data_s:g} s of subscribing"))
        if state is State.STALE:
            if not expected:
                self._entered_ns = now_ns
            elif self._late(self._entered_ns, limits.stale_s, now_ns):
                return self._fail(now_ns, Verdict(self.why))
        self._set_due(now_ns)
        return []

    def opened(self, now_ns: int) -> list[Do]:
        """The connection is there."""
        if self.state is not State.CONNECT:
            return []
        self.connects += 1
        self._message_ns = now_ns
        if self._login:
            self._move(Event.OPENED, now_ns)
            self.why = "logging in"
            self._deadline(self._limits.login_s)
            return [Do.LOGIN]
        return self._subscribe(now_ns)

    def logged_in(self, now_ns: int) -> list[Do]:
        """The venue took the login."""
        return self._subscribe(now_ns) if self.state is State.AUTHENTICATE else []

    def acknowledged(self, now_ns: int) -> list[Do]:
        """The venue has acknowledged all that was subscribed to."""
        if self.state is not State.SUBSCRIBE:
            return []
        self._acknowledged = True
        self.why = "subscribed, waits for the first data"
        return self._verify(now_ns)

    def message(self, now_ns: int) -> None:
        """Something came, if only a heartbeat."""
        if self.connected:
            self._message_ns = now_ns

    def heard(self, now_ns: int) -> list[Do]:
        """A record came."""
        self.message(now_ns)
        if self.state is State.LIVE:
            return []
        if self.state is State.STALE:
            self._move(Event.HEARD, now_ns)
            self.why = "delivers again"
            self._set_due(now_ns)
            return [Do.UP]
        if self.state is State.SUBSCRIBE and not self._heard:
            self._heard = True
            if not self._acknowledged:
                self.why = "data comes, the subscription is not acknowledged yet"
            return self._verify(now_ns)
        return []

    def silent(self, now_ns: int, why: str) -> list[Do]:
        """What was subscribed to is silent for longer than it ever is; `why` says so with figures."""
        if self.state is not State.LIVE:
            return []
        self._move(Event.SILENT, now_ns)
        self.why = why
        self._deadline(self._limits.stale_s)
        return [Do.DOWN]

    def lost(self, now_ns: int, verdict: Verdict) -> list[Do]:
        """The connection is gone, could not be made, or is of no use; also: the venue refuses login or subscription."""
        return self._fail(now_ns, verdict) if self.state in _TRYING else []

    def stop(self, now_ns: int) -> list[Do]:
        """No more of it."""
        if self.state is State.CLOSED:
            return []
        was_up = self.state is State.LIVE
        self._move(Event.STOPPED, now_ns)
        self.why, self.up_since_ns, self.due_ns = "closed", 0, now_ns + DAY_NS
        return [Do.DOWN, Do.CLOSE] if was_up else [Do.CLOSE]

    def _subscribe(self, now_ns: int) -> list[Do]:
        self._move(Event.READY, now_ns)
        self._acknowledged, self._heard = not self._wants_acknowledgement, False
        self._message_ns = now_ns
        self.why = "subscribing"
        self._set_due(now_ns)
        return [Do.SUBSCRIBE]

    def _verify(self, now_ns: int) -> list[Do]:
        if not (self._acknowledged and self._heard):
            self._set_due(now_ns)
            return []
        self._move(Event.VERIFIED, now_ns)
        self.breaker.worked()
        self.up_since_ns = now_ns
        self.why = "delivers"
        self._set_due(now_ns)
        return [Do.UP]

    def _fail(self, now_ns: int, verdict: Verdict) -> list[Do]:
        was_up = self.state is State.LIVE
        self.due_ns = self.breaker.failed(
            now_ns, self.up_since_ns, retry_after_ns=round(verdict.retry_after_s * 1e9), lasting=verdict.lasting
        )
        tripped = self.breaker.state.value == "open"
        self._move(Event.TRIPPED if tripped else Event.LOST, now_ns)
        self.up_since_ns = 0
        self.why = verdict.reason
        return [Do.DOWN, Do.CLOSE] if was_up else [Do.CLOSE]

    def _move(self, event: Event, now_ns: int) -> None:
        self.state = TRANSITIONS[self.state, event]
        self._entered_ns = now_ns

    def _deadline(self, after_s: float) -> None:
        self.due_ns = self._entered_ns + round(after_s * 1e9)

    @staticmethod
    def _late(since_ns: int, limit_s: float, now_ns: int) -> bool:
        return now_ns - since_ns >= round(limit_s * 1e9)

    def _set_due(self, now_ns: int) -> None:
        """The nearest time at which something may be too late."""
        limits, waits = self._limits, [self._message_ns + round(self._limits.message_s * 1e9)]
        if self.state is State.SUBSCRIBE:
            if not self._acknowledged:
                waits.append(self._entered_ns + round(limits.acknowledge_s * 1e9))
            if not self._heard:
                waits.append(self._entered_ns + round(limits.first_data_s * 1e9))
        elif self.state is State.STALE:
            waits.append(self._entered_ns + round(limits.stale_s * 1e9))
        self.due_ns = max(min(waits), now_ns + LOOK_AGAIN_NS)
