"""The status block: one segment in which every process of an engine says who it is, how it is, and what it has counted.

Written by every worker about itself, and by the control process about the engine; read by the supervisor (heartbeats),
the metrics, `tickengine top` and anyone else, at any time, without disturbing the writers. shm/status.h holds the
layout and every atomic access. A hot path touches only `Counter.add`, `Histogram.record` and `ProcessStatus.heartbeat`:
no lock, no system call. Registering a process or a name is rare and may lock. What one process says of itself is in
shm/process_status.py, whose names can be had here too.

Ownership of a slot is a file lock that dies with its process, so `ProcessView.alive` is never fooled by a reused PID.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from shm import _status
from shm._status import Counter, Gauge
from shm.errors import (
    BadArgument,
    LayoutMismatch,
    NotAllowed,
    SegmentExists,
    SegmentMissing,
    ShmError,
    ShmFull,
    WriterBusy,
)
from shm.histogram import Histogram, HistogramView
from shm.locks import ByteLock, is_held
from shm.process_status import MAX_TEXT_BYTES, ProcessState, ProcessStatus, ProcessView, checked_text
from shm.segment import Segment, segment_name

__all__ = [
    "Counter",
    "Gauge",
    "Histogram",
    "HistogramView",
    "ProcessState",
    "ProcessStatus",
    "ProcessView",
    "RingEntry",
    "StatusBlock",
    "attach_complete",
]

_LOCK_ALLOCATION: Final = 0
_LOCK_FIRST_SLOT: Final = 1  # slot i is owned by the holder of lock 1 + i
_MAX_SLOTS: Final = 256


@dataclass(frozen=True, slots=True)
class RingEntry:
    """Who writes a ring: the writer's label and role."""

    label: str
    role: str


class StatusBlock:
    """The status segment of one engine (`/tk.NAME.stat`)."""

    def __init__(self, segment: Segment, header: _status.Header, process_slots: int) -> None:
        """Wrap a checked segment; use `create`, `attach` or `create_or_attach`."""
        self.segment = segment
        self.name = segment.name
        self._header = header
        self._slots = [_status.Slot(segment.address, index, segment.buf) for index in range(process_slots)]
        self._registered: list[ProcessStatus] = []

    @classmethod
    def create(
        cls, engine: str, *, process_slots: int = 64, mode: int = 0o600, group: str | int | None = None
    ) -> StatusBlock:
        """Make the status segment of an engine; about 150 kB a process slot.

        Raises:
            SegmentExists: there is one already.
            ShmFull: no room in shared memory.
            BadArgument: `process_slots` outside 1..256.
        """
        if not 1 <= process_slots <= _MAX_SLOTS:
            raise BadArgument(f"process_slots is {process_slots}, allowed are 1..{_MAX_SLOTS}")
        size_bytes = _status.size_bytes(process_slots)
        segment = Segment.create(segment_name(engine, "stat"), size_bytes, mode=mode, group=group)
        header = _status.Header(segment.address, segment.buf)
        header.create(process_slots)
        return cls(segment, header, process_slots)

    @classmethod
    def attach(cls, engine: str, write: bool = False) -> StatusBlock:
        """Map the status segment of an engine; `write` is needed to register.

        Raises:
            SegmentMissing: no such engine, or its creator died before the segment was complete.
            LayoutMismatch: made by a build with another layout.
            NotAllowed: the mode keeps this user out.
        """
        segment = attach_complete(segment_name(engine, "stat"), write, _status.MAGIC)
        header = _status.Header(segment.address, segment.buf)
        try:
            version, slots, process_bytes, total_bytes = header.layout
            if header.magic != _status.MAGIC or (version, process_bytes) != (_status.VERSION, _status.PROCESS_BYTES):
                raise LayoutMismatch(
                    f"segment {segment.name}: magic {header.magic:#x} version {version} with {process_bytes} bytes a "
                    f"process; this build has magic {_status.MAGIC:#x} version {_status.VERSION} with "
                    f"{_status.PROCESS_BYTES}"
                )
            if total_bytes > segment.size_bytes:
                raise LayoutMismatch(f"segment {segment.name}: {segment.size_bytes} bytes, header says {total_bytes}")
        except BaseException:
            segment.close()
            raise
        return cls(segment, header, slots)

    @classmethod
    def create_or_attach(
        cls, engine: str, *, process_slots: int = 64, mode: int = 0o600, group: str | int | None = None
    ) -> StatusBlock:
        """Make the segment, or take over the one that is there (written to; its counters go on). Raises as both."""
        try:
            return cls.create(engine, process_slots=process_slots, mode=mode, group=group)
        except SegmentExists:
            return cls.attach(engine, write=True)

    def register(
        self, label: str, role: str, pid: int | None = None, *, started_ns: int | None = None
    ) -> ProcessStatus:
        """Take the slot of `label`, its old one if it had one, and become its owner until `close` or death.

        Args:
            label: name within the engine, at most 31 bytes, e.g. "ingest-0".
            role: kind of process, at most 31 bytes; kept from the first registration of the label.
            pid: this process's id; None asks the system.
            started_ns: time of start, ns; None asks the clock.

        Raises:
            WriterBusy: another living process has registered this label.
            ShmFull: every slot has a label.
            NotAllowed: attached without write.
        """
        self._check_writable()
        label_bytes, role_bytes = (
            checked_text("label", label, MAX_TEXT_BYTES),
            checked_text("role", role, MAX_TEXT_BYTES),
        )
        with ByteLock(self.name, _LOCK_ALLOCATION):
            index, slot = self._slot_of(label)
            if slot is None:
                index, slot = next(((i, s) for i, s in enumerate(self._slots) if not s.used), (-1, None))
                if slot is None:
                    raise ShmFull(f"segment {self.name}: all {len(self._slots)} process slots have a label")
                slot.core = -1
                slot.take(label_bytes, role_bytes)
            lock = ByteLock(self.name, _LOCK_FIRST_SLOT + index)
            try:
                lock.acquire(timeout_s=1.0)  # the kernel may still be busy burying the one before
            except ShmError:
                raise WriterBusy(f"process {label!r} of {self.name} is registered by living pid {slot.pid}") from None
        slot.state = ProcessState.STARTING
        slot.pid = os.getpid() if pid is None else pid
        slot.started_ns = time.time_ns() if started_ns is None else started_ns
        slot.beat(slot.started_ns)
        slot.core = -1
        slot.set_placement(b"")
        slot.retired = False
        status = ProcessStatus(slot, lock)
        self._registered.append(status)
        return status

    def processes(self, *, retired: bool = False) -> list[ProcessView]:
        """Every process that has registered, in order of first registration; `retired` ones only if asked for."""
        return [
            self._view(index, slot)
            for index, slot in enumerate(self._slots)
            if slot.used and (retired or not slot.retired)
        ]

    def process(self, label: str) -> ProcessView | None:
        """One process by its label; None if that label has never registered."""
        index, slot = self._slot_of(label)
        return None if slot is None else self._view(index, slot)

    def heartbeat_ns(self, label: str) -> int | None:
        """Only the heartbeat of a process, cheaply; None if that label has never registered."""
        slot = self._slot_of(label)[1]
        return None if slot is None else slot.heartbeat_ns

    def set_restarts(self, label: str, restarts: int) -> bool:
        """Supervisor: how often `label` has been restarted. False if that label has never registered."""
        slot = self._slot_of(label)[1]
        if slot is not None:
            self._check_writable()
            slot.restarts = restarts
        return slot is not None

    def set_state(self, label: str, state: ProcessState) -> bool:
        """Supervisor: state of a process that it knows to be dead. False if that label has never registered."""
        slot = self._slot_of(label)[1]
        if slot is not None:
            self._check_writable()
            slot.state = int(state)
        return slot is not None

    def retire(self, label: str) -> bool:
        """Supervisor: leave `label` out of `processes()` until it registers again. False if it never has."""
        slot = self._slot_of(label)[1]
        if slot is not None:
            self._check_writable()
            slot.retired = True
        return slot is not None

    def set_ring(self, ring_id: int, label: str, role: str) -> None:
        """Control process: enter in the directory of rings who writes ring `ring_id`; role at most 15 bytes."""
        self._check_writable()
        if not 0 <= ring_id < _status.RINGS:
            raise BadArgument(f"ring id {ring_id} is outside 0..{_status.RINGS - 1}")
        self._header.set_ring(ring_id, checked_text("label", label, MAX_TEXT_BYTES), checked_text("role", role, 15))

    def rings(self) -> dict[int, RingEntry]:
        """The directory of rings: who writes what, by ring id."""
        entries = {ring_id: RingEntry(*self._header.ring(ring_id)) for ring_id in range(_status.RINGS)}
        return {ring_id: entry for ring_id, entry in entries.items() if entry.label}

    def set_engine(self, *, control_pid: int, started_ns: int, config_digest: int = 0) -> None:
        """Control process: who runs this engine, since when, with which settings (any 64-bit digest of them)."""
        self._check_writable()
        self._header.control_pid = control_pid
        self._header.started_ns = started_ns
        self._header.config_digest = config_digest
        self._header.shutdown = False

    @property
    def control_pid(self) -> int:
        """Process id of the control process; 0 = not said."""
        return self._header.control_pid

    @property
    def started_ns(self) -> int:
        """When this run of the engine began, ns; 0 = not said."""
        return self._header.started_ns

    @property
    def config_digest(self) -> int:
        """Digest of the settings; 0 = not said."""
        return self._header.config_digest

    def set_shutdown(self, shutdown: bool = True) -> None:
        """Control process: the engine has begun to stop."""
        self._check_writable()
        self._header.shutdown = shutdown

    @property
    def shutdown(self) -> bool:
        """Whether the engine has begun to stop."""
        return self._header.shutdown

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """Control process: anything that tools want to know, as JSON of at most 1024 bytes, e.g. {"http": URL}."""
        self._check_writable()
        text = json.dumps(facts, separators=(",", ":")).encode()
        if len(text) > _status.FACTS_BYTES:
            raise BadArgument(f"facts take {len(text)} bytes of JSON, at most {_status.FACTS_BYTES} fit")
        self._header.set_facts(text)

    @property
    def facts(self) -> dict[str, Any]:
        """What `set_facts` said; empty if nothing, or nothing usable."""
        try:
            facts = json.loads(self._header.facts or "{}")
        except ValueError:
            return {}
        return facts if isinstance(facts, dict) else {}

    def close(self) -> None:
        """Let go: slots registered through this object are given up. Numbers taken from it stay valid. Safe twice."""
        for status in self._registered:
            status.close()
        self._registered.clear()
        self.segment.close()

    def unlink(self) -> None:
        """Remove the segment's name. Safe to call twice."""
        self.segment.unlink()

    def _check_writable(self) -> None:
        if not self.segment.writable:
            raise NotAllowed(f"segment {self.name} is attached read-only: attach(engine, write=True)")

    def _slot_of(self, label: str) -> tuple[int, _status.Slot | None]:
        for index, slot in enumerate(self._slots):
            if slot.used and slot.label == label:
                return index, slot
        return -1, None

    def _view(self, index: int, slot: _status.Slot) -> ProcessView:
        try:
            alive = is_held(self.name, _LOCK_FIRST_SLOT + index)
        except SegmentMissing:  # unlinked while we look: post mortem
            alive = False
        return ProcessView(
            label=slot.label,
            role=slot.role,
            pid=slot.pid,
            alive=alive,
            state=ProcessState(slot.state),
            heartbeat_ns=slot.heartbeat_ns,
            started_ns=slot.started_ns,
            restarts=slot.restarts,
            core=slot.core,
            placement=slot.placement,
            counters=slot.counters(),
            gauges=slot.gauges(),
            histograms={name: histogram.snapshot() for name, histogram in slot.histograms(Histogram).items()},
        )


def attach_complete(name: str, write: bool, magic: int, timeout_s: float = 1.0) -> Segment:
    """Attach a segment whose first word is its magic, stored last by its creator; wait while it is being made.

    Returns the segment with any magic but 0; comparing it with `magic` in full is the caller's part of the check.

    Raises:
        SegmentMissing: there is none, or it was not complete within `timeout_s` (its creator died).
        NotAllowed: the mode keeps this user out.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            segment = Segment.attach(name, write=write)
            if _status.table_count(segment.address) != 0:
                return segment
            segment.close()
            stage = "made but never completed: its creator died"
        except SegmentMissing as error:
            if "being created" not in str(error):
                raise
            stage = "named but never given a size: its creator died"
        if time.monotonic() >= deadline:
            raise SegmentMissing(f"segment {name} was {stage} (magic {magic:#x} is missing); remove it and start again")
        time.sleep(0.001)
