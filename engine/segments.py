"""The engine's segments: made at start or adopted from a crashed engine of the same name, removed at a clean stop.

Only the control process calls this. That no other engine of this name lives is decided by one thing only: the writer
lock of ring 0, which dies with its holder. It is taken before anything else is touched. Then:

    rings, instruments, latest, topics   adopted all together, if this build can read them and they have the configured
                                         sizes: readers outside the engine stay attached, sequences, symbol numbers and
                                         topic numbers go on. Otherwise all are made anew: they refer to each other
    status, ranks                        always new: counters and scores begin at 0 with the engine

The topic table is made by the fan-out workers; here it is only decided whether an old one may stay.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Any, Final

from engine.byte_size import parse_bytes
from engine.errors import AlreadyRunning, ConfigError, SharedMemoryError
from engine.plan import CONTROL_RING, Plan, RingPlan
from engine.settings import Config
from shm.errors import BadArgument, LayoutMismatch, SegmentExists, SegmentMissing, ShmError, WriterBusy
from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from shm.layout import RECORD_SIZE_BYTES
from shm.ranks import RankTable
from shm.ring import RingWriter, create_ring, remove_unusable_ring, ring_info
from shm.segment import list_segments, segment_exists, segment_name, unlink_segment
from shm.status import StatusBlock

BEING_MADE_S: Final = 1.0  # ring 0 is small, and made within milliseconds
ORPHAN_WAIT_S: Final = 3.0  # longer than the workers of a killed control process take to notice


class Segments:
    """All segments of one engine, as its control process holds them.

    Attributes:
        status: the status block, writable.
        instruments: the symbol table.
        ranks: the scores of symbols, writable.
        ring: writer of ring 0, for the engine's own status records.
        adopted: whether rings and tables of a crashed engine were taken over.
    """

    def __init__(self, config: Config, plan: Plan) -> None:
        """Take the engine's name; `open` makes the rest.

        Raises:
            AlreadyRunning, SharedMemoryError, ConfigError.
        """
        self._config = config
        self._plan = plan
        self._engine = config.engine.name
        self._access: dict[str, Any] = {"mode": int(config.rings.mode, 8), "group": config.rings.group or None}
        self._made: list[str] = []
        self._opened = False
        self.adopted = False
        _check_budget(config, plan)
        try:
            self.ring = self._take_engine(plan)
        except ShmError as error:
            self._undo()
            raise _translated(error) from error

    def open(self) -> None:
        """Make or adopt everything else; takes a few hundred milliseconds, for the memory is allocated in full.

        Raises:
            SharedMemoryError, ConfigError.
        """
        try:
            self._wait_for_orphans(self._plan)
            self.adopted = self._usable(self._plan)
            self._open(self._plan)
        except ShmError as error:
            raise _translated(error) from error
        self._opened = True
        for buffer in (self.ring.segment.buf, self.status.segment.buf, self.instruments.segment.buf):
            forget_pages(buffer)

    def _take_engine(self, plan: Plan) -> RingWriter:
        """Become the writer of ring 0: whoever holds that lock is the engine of this name."""
        ring = plan.rings[CONTROL_RING]
        being_made_until = time.monotonic() + BEING_MADE_S
        while True:
            self._create_ring(ring)
            try:
                return RingWriter.open(self._engine, CONTROL_RING)
            except WriterBusy:
                raise self._running(f"process {ring_info(self._engine, CONTROL_RING).writer_pid}") from None
            except SegmentMissing:
                if time.monotonic() < being_made_until:
                    time.sleep(0.01)
                    continue
            except LayoutMismatch:
                pass
            # Half made by an engine that was killed, or another version's.
            if not remove_unusable_ring(self._engine, CONTROL_RING):
                raise self._running("of another version")

    def _running(self, which: str) -> AlreadyRunning:
        return AlreadyRunning(
            f"an engine named {self._engine!r} is running already ({which}); stop it, or give this one another --name "
            "and other ports"
        )

    def _create_ring(self, ring: RingPlan) -> bool:
        """Make a ring; False if there is one."""
        try:
            create_ring(
                self._engine,
                ring.ring_id,
                depth_slots=ring.depth_slots,
                wakeups=self._config.rings.wakeups,
                block_s=ring.block_s,
                **self._access,
            )
        except SegmentExists:
            return False
        self._made.append(self._name(f"r{ring.ring_id}"))
        return True

    def _wait_for_orphans(self, plan: Plan) -> None:
        """Workers of a control process that was just killed need up to 2 s to go; until then they hold their rings."""
        deadline = time.monotonic() + ORPHAN_WAIT_S
        for ring in plan.rings[CONTROL_RING + 1 :]:
            while True:
                try:
                    info = ring_info(self._engine, ring.ring_id)
                except (LayoutMismatch, SegmentMissing):
                    break
                if not info.writer_alive:
                    break
                if time.monotonic() > deadline:
                    raise SharedMemoryError(
                        f"ring {info.name} is still written by process {info.writer_pid}, left over from an earlier "
                        "engine of this name; end that process first"
                    )
                time.sleep(0.02)

    def _usable(self, plan: Plan) -> bool:
        """Whether everything that a crashed engine left fits this plan."""
        if self._made:  # there was not even a ring 0 of use
            return False
        try:
            for ring in plan.rings:
                info = ring_info(self._engine, ring.ring_id)
                if (info.depth_slots, info.wakeups) != (ring.depth_slots, self._config.rings.wakeups):
                    return False
            InstrumentTable.attach(self._engine).close()
            if segment_exists(self._name("last")):
                LatestTable.attach(self._engine).close()
            old = StatusBlock.attach(self._engine)
            shape = old.facts.get("shape")
            old.close()
        except (LayoutMismatch, SegmentMissing):
            return False
        return bool(shape == self.shape)

    @property
    def shape(self) -> list[int]:
        """What must be equal for an old engine's tables to be of use: kept in the status block's facts."""
        config = self._config
        intervals = config.cache.bar_intervals_s
        sizes = (config.cache.max_symbols, config.cache.records_per_instrument, parse_bytes(config.cache.max_l1_memory))
        return [config.workers.fanout, *sizes, *intervals]

    def _open(self, plan: Plan) -> None:
        planned = {self._name(f"r{ring.ring_id}") for ring in plan.rings}
        keep = (
            planned | {self._name(what) for what in ("inst", "last", "topic")} if self.adopted else {self._name("r0")}
        )
        for name in list_segments(self._engine):
            if name not in keep:
                unlink_segment(name)
        for ring in plan.rings[CONTROL_RING + 1 :]:
            self._create_ring(ring)
        self.status = StatusBlock.create(self._engine, **self._access)
        self._made.append(self.status.name)
        if self.adopted:
            self.instruments = InstrumentTable.attach(self._engine, write=True)
        else:
            self.instruments = InstrumentTable.create(self._engine, **self._access)
            self._made.append(self.instruments.name)
        if not segment_exists(self._name("last")):
            self._create_latest()
        self.ranks = RankTable.create(self._engine, instruments=self._config.cache.max_symbols, **self._access)
        self._made.append(self.ranks.name)
        for entry in plan.rings:
            self.status.set_ring(entry.ring_id, entry.label, entry.role)
        self.status.set_engine(control_pid=os.getpid(), started_ns=time.time_ns())

    def _create_latest(self) -> None:
        cache = self._config.cache
        table = LatestTable.create(
            self._engine,
            instruments=cache.max_symbols,
            depth_records=cache.records_per_instrument,
            pool_records=parse_bytes(cache.max_l1_memory) // RECORD_SIZE_BYTES,
            bar_intervals_s=tuple(sorted(cache.bar_intervals_s)),
            **self._access,
        )
        self._made.append(table.name)
        table.close()

    def _name(self, what: str) -> str:
        return segment_name(self._engine, what)

    def _undo(self) -> None:
        """After a failed start: remove what this start made, leave what it found."""
        for name in self._made:
            unlink_segment(name)

    def unlink(self) -> None:
        """After a stop: remove every segment of this engine. If `open` failed, only what this start has made."""
        if self._opened:
            self.status.close()
            self.instruments.close()
            self.ranks.close()
        self.ring.close()
        if not self._opened:
            self._undo()
            return
        for name in list_segments(self._engine):
            unlink_segment(name)


def forget_pages(buffer: memoryview) -> None:
    """Drop a shared mapping's pages from this process's tables; the data stays, a later look maps it again.

    Segments are mapped whole and pre-faulted, which is right for those who stream through them. The control process
    looks at a few entries now and then: its resident memory should not show gigabytes that it does not use.
    """
    mapping = buffer.obj
    if isinstance(mapping, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapping.madvise(mmap.MADV_DONTNEED)


def make_runtime_dir(path: Path, *, shared: bool) -> None:
    """The folder of the sockets, private to this user (`shared`: its group may enter).

    Raises:
        ConfigError: somebody else's folder is in the way, or it can't be made.
    """
    mode = 0o750 if shared else 0o700
    advice = "set XDG_RUNTIME_DIR to a folder of yours"
    try:
        for folder in (path.parent, path):
            folder.mkdir(mode=mode, exist_ok=True, parents=folder is path.parent)
    except OSError as error:
        raise ConfigError(f"runtime directory {path}: {error.strerror}; {advice}") from error
    for folder in (path.parent, path):
        owner = folder.lstat().st_uid
        if owner not in (os.geteuid(), 0) or not folder.is_dir() or folder.is_symlink():
            raise ConfigError(f"runtime directory {folder} belongs to user id {owner}; {advice}")


def _translated(error: ShmError) -> ConfigError | SharedMemoryError:
    """A size or group that the settings allow and a segment does not is the configuration's fault."""
    return ConfigError(str(error)) if isinstance(error, BadArgument) else SharedMemoryError(str(error))


def _check_budget(config: Config, plan: Plan) -> None:
    limit = parse_bytes(config.engine.max_memory)
    rings = sum(ring.depth_slots for ring in plan.rings) * RECORD_SIZE_BYTES
    if limit and rings + parse_bytes(config.cache.max_l1_memory) > limit:
        raise ConfigError(
            f"[engine] max_memory = {config.engine.max_memory!r}, but rings take {rings >> 20} MiB and L1 up to "
            f"{config.cache.max_l1_memory}; lower [rings] depth_slots or [cache] max_l1_memory"
        )
