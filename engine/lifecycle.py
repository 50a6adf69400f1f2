"""The life of one supervised worker: events and time in, actions out.

                 spawned                beat: ready
    WAITING ---------------> STARTING ---------------> RUNNING
       ^  <- due: SPAWN         |  silent: KILL           |  silent: KILL
       |                        |                         |
       +--------- exited <------+----------- exited <-----+
       |
       +-- after `failed_after` failures in a row the worker shows as failed; it is still started again, at the cap
    any -- stop() --> STOPPING -- exited --> STOPPED

The supervisor is the only caller: it carries out what `Life` asks for and tells it what happened. Nothing here reads a
clock, draws a random number or touches a process: time (monotonic seconds) and randomness are passed in.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

FIRST_DELAY_S: Final = 0.1


class Phase(enum.Enum):
    """Where a worker is in its life."""

    WAITING = "waiting"  # no process; one is due at `due_s`
    STARTING = "starting"  # a process that has not said ready
    RUNNING = "running"
    STOPPING = "stopping"  # asked to end, for good
    STOPPED = "stopped"


class Action(enum.Enum):
    """What the supervisor must do now."""

    NOTHING = "nothing"
    SPAWN = "spawn"
    KILL = "kill"


class Event(enum.Enum):
    """What happened to a worker."""

    SPAWNED = "spawned"
    READY = "ready"
    EXITED = "exited"
    STOP = "stop"


# Which event leads where. An event without a row for a phase is late news (a ready that crossed a stop): ignored.
TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.WAITING, Event.SPAWNED): Phase.STARTING,
    (Phase.STARTING, Event.READY): Phase.RUNNING,
    (Phase.STARTING, Event.EXITED): Phase.WAITING,
    (Phase.RUNNING, Event.EXITED): Phase.WAITING,
    (Phase.WAITING, Event.STOP): Phase.STOPPED,
    (Phase.STARTING, Event.STOP): Phase.STOPPING,
    (Phase.RUNNING, Event.STOP): Phase.STOPPING,
    (Phase.STOPPING, Event.EXITED): Phase.STOPPED,
}


@dataclass(frozen=True)
class Limits:
    """The supervisor's settings that a life depends on, seconds."""

    heartbeat_timeout_s: float = 1.0
    startup_grace_s: float = 15.0
    backoff_cap_s: float = 5.0
    stable_after_s: float = 10.0
    failed_after: int = 5


def backoff_s(failures: int, cap_s: float, random: Callable[[], float]) -> float:
    """Pause before the next start, after `failures` in a row: 0 for the first, then doubling from 0.1 s up to the cap.

    `random` gives [0, 1); a delay is drawn from the upper half of its range, so that workers felled together do not
    come back together.
    """
    if failures <= 1:
        return 0.0
    full = min(cap_s, FIRST_DELAY_S * 2.0 ** min(failures - 2, 30))
    return full * (0.5 + 0.5 * random())


class Life:
    """One worker's life; `phase`, `failures` (in a row) and `restarts` (ever) are for reading.

    A heartbeat is any change of the worker's heartbeat field; its value does not matter. Silence is counted in the
    turns of the supervisor itself: after a turn that came late (a suspended laptop, an overloaded host)
    only the usual interval is added, so that nobody is killed for a pause that the supervisor itself slept through.
    """

    def __init__(self, limits: Limits, random: Callable[[], float], now_s: float) -> None:
        """A worker that is due at once."""
        self._limits = limits
        self._random = random
        self.phase = Phase.WAITING
        self.due_s = now_s
        self.failures = 0
        self.restarts = 0
        self.silent_s = 0.0
        self._started_s = now_s
        self._heartbeat = 0
        self._turn_s = now_s
        self._asked = False  # a process is on its way: SPAWN is said once, however late it is carried out

    @property
    def failed(self) -> bool:
        """Whether it died so often in a row that people should look at it."""
        return self.failures >= self._limits.failed_after

    def _go(self, event: Event) -> bool:
        target = TRANSITIONS.get((self.phase, event))
        if target is None:
            return False
        self.phase = target
        return True

    def spawned(self, now_s: float, heartbeat: int = 0) -> None:
        """A process was started; `heartbeat` is what its field held before it could beat."""
        self._asked = False
        if self._go(Event.SPAWNED):
            self._started_s = self._turn_s = now_s
            self._heartbeat = heartbeat
            self.silent_s = 0.0

    def exited(self, now_s: float) -> Action:
        """The process is gone. SPAWN when the next is due at once."""
        was_running = self.phase is Phase.RUNNING
        if not self._go(Event.EXITED) or self.phase is not Phase.WAITING:
            return Action.NOTHING
        stable = was_running and now_s - self._started_s >= self._limits.stable_after_s
        self.failures = 1 if stable else self.failures + 1
        self.restarts += 1
        delay_s = backoff_s(self.failures, self._limits.backoff_cap_s, self._random)
        self.due_s = now_s + delay_s
        return self._spawn_once() if delay_s == 0.0 else Action.NOTHING

    def _spawn_once(self) -> Action:
        if self._asked:
            return Action.NOTHING
        self._asked = True
        return Action.SPAWN

    def turn(self, now_s: float, interval_s: float, heartbeat: int, ready: bool) -> Action:
        """A look at the worker, every `interval_s` seconds or so.

        Args:
            now_s: monotonic time.
            interval_s: how often this is usually called.
            heartbeat: the worker's heartbeat field.
            ready: whether its state field says ready.
        """
        if self.phase is Phase.WAITING:
            return self._spawn_once() if now_s >= self.due_s else Action.NOTHING
        if self.phase not in (Phase.STARTING, Phase.RUNNING):
            return Action.NOTHING
        if heartbeat != self._heartbeat:
            self._heartbeat = heartbeat
            self.silent_s = 0.0
        else:
            self.silent_s += min(now_s - self._turn_s, 1.5 * interval_s)
        self._turn_s = now_s
        if self.phase is Phase.STARTING:
            if ready:
                self._go(Event.READY)
                return Action.NOTHING
            return Action.KILL if now_s - self._started_s > self._limits.startup_grace_s else Action.NOTHING
        if now_s - self._started_s >= self._limits.stable_after_s:
            self.failures = 0
        return Action.KILL if self.silent_s > self._limits.heartbeat_timeout_s else Action.NOTHING

    def stop(self) -> None:
        """No more restarts; what is there is being ended."""
        self._go(Event.STOP)
