"""The status of one process: its slot in the status block as its owner writes it, and as others see it.

`StatusBlock.register` (shm/status.py) hands a `ProcessStatus` to the process whose slot it is; `StatusBlock.processes`
gives a `ProcessView` of each to anyone. Neither finds slots or takes locks; `close` gives back the lock it was given.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from shm import _status
from shm._status import Counter, Gauge
from shm.errors import BadArgument, ShmFull
from shm.histogram import Histogram, HistogramView
from shm.locks import ByteLock

MAX_TEXT_BYTES: Final = 31


class ProcessState(enum.IntEnum):
    """Life of a process: STARTING -> READY -> DRAINING -> STOPPED, its own moves; FAILED is its supervisor's word."""

    STARTING = 0
    READY = 1
    DRAINING = 2
    STOPPED = 3
    FAILED = 4


@dataclass(frozen=True, slots=True)
class ProcessView:
    """What one process says about itself, copied at one moment. Times are ns since the epoch; `core` -1 = unpinned.

    `alive` says that the process which registered last still runs; `restarts` is counted by the supervisor.
    """

    label: str
    role: str
    pid: int
    alive: bool
    state: ProcessState
    heartbeat_ns: int
    started_ns: int
    restarts: int
    core: int
    placement: str
    counters: dict[str, int]
    gauges: dict[str, float]
    histograms: dict[str, HistogramView]


class ProcessStatus:
    """The slot of this process: its state, heartbeat, placement and numbers. Made by `StatusBlock.register`.

    Counters, gauges and histograms are created by their first mention and found again by name after a restart, with
    the values they had. Each has one writing thread.
    """

    def __init__(self, slot: _status.Slot, lock: ByteLock) -> None:
        """Wrap a slot whose owner lock this process holds; use `StatusBlock.register`."""
        self._slot = slot
        self._lock = lock
        self._named: dict[tuple[type, str], Any] = {}

    def heartbeat(self, now_ns: int) -> None:
        """Say that the main loop turned at `now_ns`, ns since the Unix epoch."""
        self._slot.beat(now_ns)

    @property
    def heartbeat_ns(self) -> int:
        """The last heartbeat."""
        return self._slot.heartbeat_ns

    @property
    def label(self) -> str:
        """Name of this process within its engine."""
        return self._slot.label

    @property
    def role(self) -> str:
        """What kind of process it is."""
        return self._slot.role

    @property
    def pid(self) -> int:
        """Process id given at registration."""
        return self._slot.pid

    @property
    def started_ns(self) -> int:
        """Time of registration."""
        return self._slot.started_ns

    @property
    def restarts(self) -> int:
        """How often the supervisor has restarted this label."""
        return self._slot.restarts

    @property
    def state(self) -> ProcessState:
        """Where this process is in its life."""
        return ProcessState(self._slot.state)

    @state.setter
    def state(self, state: ProcessState) -> None:
        self._slot.state = int(state)

    @property
    def core(self) -> int:
        """CPU number that this process is pinned to; -1 = none."""
        return self._slot.core

    @core.setter
    def core(self, core: int) -> None:
        self._slot.core = core

    @property
    def placement(self) -> str:
        """What placement was really got, for people; longer texts are cut at 31 bytes."""
        return self._slot.placement

    @placement.setter
    def placement(self, text: str) -> None:
        self._slot.set_placement(text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore").encode())

    def counter(self, name: str) -> Counter:
        """The counter of that name (at most 47 bytes), added with value 0 if new.

        Raises:
            BadArgument: empty, too long, or not printable.
            ShmFull: this process has used up its 1024 counters.
        """
        found: Counter = self._find(Counter, name, self._slot.counter, _status.COUNTERS)
        return found

    def gauge(self, name: str) -> Gauge:
        """The gauge of that name, added with value 0.0 if new; 64 per process. Raises as `counter`."""
        found: Gauge = self._find(Gauge, name, self._slot.gauge, _status.GAUGES)
        return found

    def histogram(self, name: str) -> Histogram:
        """The histogram of that name, added empty if new; 8 per process. Raises as `counter`."""
        found: Histogram = self._find(
            Histogram, name, lambda text: self._slot.histogram(Histogram, text), _status.HISTOGRAMS
        )
        return found

    def _find(self, kind: type, name: str, register: Callable[[bytes], Any], capacity: int) -> Any:
        found = self._named.get((kind, name))
        if found is None:
            found = register(checked_text("name", name, _status.NAME_BYTES - 1))
            if found is None:
                raise ShmFull(f"{kind.__name__.lower()} {name!r} of {self.label}: all {capacity} are in use")
            self._named[(kind, name)] = found
        return found

    def close(self) -> None:
        """Give up the slot, so that the label can be registered again; counters still work. Safe to call twice."""
        self._lock.release()


def checked_text(what: str, text: str, limit_bytes: int) -> bytes:
    """A label, role or name as bytes for the block; BadArgument names `what` if it does not fit or print."""
    encoded = text.encode()
    if not 1 <= len(encoded) <= limit_bytes or not text.isprintable():
        raise BadArgument(f"{what} {text!r}: 1 to {limit_bytes} bytes of printable text")
    return encoded
