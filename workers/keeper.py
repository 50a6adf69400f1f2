"""Looks after what the recorder has written: has hours sealed into Parquet, removes what is too old or too much.

Turned by the recorder every LOOK_NS at most. Which segments to seal and which files may go is decided by pure functions
(`due_for_sealing`, `to_remove`); sealing itself is another process (workers/sealer.py). The rules of removal:

    never       a segment that is being written or sealed; the newest segment of a ring, because it says where to go on:
                of the ring that is recorded now, which need not be the one made last by the clock
    too old     anything whose hour ended more than `retention_hours` ago; a sealed segment after `journal_hours`
    too much    beyond `max_journal_bytes` the oldest segments, sealed ones first; an unsealed one is a loss, counted
                as `segments_dropped`; beyond `max_parquet_bytes` the oldest parts
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from workers.archive import Archive
from workers.journal import Journal
from workers.journal_format import HEADER_BYTES, HOUR_NS, SegmentName, hour_of, unpack_header
from workers.journal_reader import list_segments
from workers.journal_symbols import symbols_path, tables
from workers.sealer import Job
from workers.spec import RecorderSettings

LOOK_NS: Final = 2_000_000_000
SEAL_AGAIN_NS: Final = 60_000_000_000  # after a failure
FOREVER: Final = 0.0  # of `retention_hours`

log = logging.getLogger("recorder")


class Held(NamedTuple):
    """One segment of the journal as the keeper sees it."""

    name: SegmentName
    path: Path
    size_bytes: int
    sealed: bool
    busy: bool  # being written or sealed


class Removal(NamedTuple):
    """What has to go."""

    segments: tuple[Held, ...]
    dropped: int  # how many of them were not sealed though they should have been


class Keeper:
    """One a recorder. The time comes from the caller."""

    def __init__(self, settings: RecorderSettings) -> None:
        """Nothing is touched yet."""
        folder = Path(settings.folder)
        self.settings = settings
        self.archive = Archive(folder / "parquet")
        self.can_seal = settings.seal and find_spec("pyarrow") is not None
        self.counters = {"segments_removed": 0, "segments_dropped": 0, "parts_sealed": 0, "seal_errors": 0}
        self.gauges = {"journal_size_bytes": 0.0, "parquet_size_bytes": 0.0}
        self._sealer: subprocess.Popen[bytes] | None = None
        self._sealing: frozenset[str] = frozenset()
        self._next_ns = 0
        self._seal_ns = 0
        self._looked = False

    def turn(self, journal: Journal, now_ns: int) -> None:
        """Look after everything, if it is time to."""
        if not self._looked:  # not in the first turn: the engine is starting
            self._looked, self._next_ns = True, now_ns + LOOK_NS
        if now_ns < self._next_ns and self._next_ns - now_ns <= LOOK_NS:
            return
        self._next_ns = now_ns + LOOK_NS
        journal.leave_old_hours(now_ns)
        self._finish_sealing(now_ns)
        held = self._held(journal)
        if (
            self.can_seal
            and self._sealer is None
            and (now_ns >= self._seal_ns or self._seal_ns - now_ns > SEAL_AGAIN_NS)
        ):
            names = due_for_sealing(held, hour_of(now_ns), self.settings.seal_bytes)
            if names:
                self._seal(names)
                held = [item._replace(busy=item.busy or item.path.name in self._sealing) for item in held]
        self._remove(held, journal.streams, now_ns)

    def make_room(self, journal: Journal, now_ns: int) -> None:
        """The disk is full: remove what the rules let go, now."""
        self._remove(self._held(journal), journal.streams, now_ns)

    def close(self) -> None:
        """End a sealer that is at work; its job is done again next time. Safe to call twice."""
        if self._sealer is not None:
            self._sealer.kill()
            self._sealer.wait()
            self._sealer = None

    def _held(self, journal: Journal) -> list[Held]:
        sealed, busy = self.archive.sealed(), journal.open_names() | self._sealing
        held = []
        for name, path in list_segments(journal.folder):
            try:
                size_bytes = path.stat().st_size
            except FileNotFoundError:
                continue
            held.append(Held(name, path, size_bytes, path.name in sealed, path.name in busy))
        return held

    def _seal(self, names: Iterable[str]) -> None:
        job = Job(self.settings.folder, tuple(names))
        self._sealing = frozenset(job.segments)
        self._sealer = subprocess.Popen([sys.executable, "-m", "workers.sealer"], stdin=subprocess.PIPE)
        assert self._sealer.stdin is not None
        try:
            self._sealer.stdin.write(msgspec.json.encode(job) + b"\n")
            self._sealer.stdin.close()
        except BrokenPipeError:
            pass  # it has ended already; its exit status is looked at

    def _finish_sealing(self, now_ns: int) -> None:
        if self._sealer is None or self._sealer.poll() is None:
            return
        if self._sealer.returncode == 0:
            self.counters["parts_sealed"] += 1
        else:
            self.counters["seal_errors"] += 1
            self._seal_ns = now_ns + SEAL_AGAIN_NS
            log.error("sealing failed (exit status %d); tried again in a minute", self._sealer.returncode)
        self._sealer = None
        self._sealing = frozenset()

    def _remove(self, held: list[Held], streams: Mapping[int, int], now_ns: int) -> None:
        removal = to_remove(held, streams, self.settings, now_ns, sealing=self.can_seal)
        for item in removal.segments:
            item.path.unlink(missing_ok=True)
        self.counters["segments_removed"] += len(removal.segments)
        self.counters["segments_dropped"] += removal.dropped
        if removal.dropped:
            log.warning("journal over its limit of size: %d segments removed before they were sealed", removal.dropped)
        gone = {item.path for item in removal.segments}
        left = [item for item in held if item.path not in gone]
        if gone:
            _forget_symbols(left)
        self.gauges["journal_size_bytes"] = float(sum(item.size_bytes for item in left))
        parts = self.archive.parts()
        total = sum(part.size_bytes for part in parts)
        limit = self.settings.max_parquet_bytes
        for part in parts:
            if not _old(part.manifest.hour, self.settings.retention_hours, now_ns) and not 0 < limit < total:
                continue
            self.archive.remove(part)
            total -= part.size_bytes
        self.gauges["parquet_size_bytes"] = float(total)


def due_for_sealing(held: Iterable[Held], hour_now: int, seal_bytes: int) -> list[str]:
    """Names of the segments to seal next: of the oldest hour that is over, or that has come to `seal_bytes`; else none.

    Not more than `seal_bytes` at once, but for a single segment that is longer.
    """
    by_hour: dict[int, list[Held]] = {}
    for item in held:
        if not item.sealed and not item.busy and item.size_bytes:
            by_hour.setdefault(item.name.hour, []).append(item)
    for hour in sorted(by_hour):
        items = by_hour[hour]
        if hour >= hour_now and sum(item.size_bytes for item in items) < seal_bytes:
            continue
        chosen: list[str] = []
        room = seal_bytes
        for item in items:
            if chosen and item.size_bytes > room:
                break
            chosen.append(item.path.name)
            room -= item.size_bytes
        return chosen
    return []


def to_remove(
    held: list[Held], streams: Mapping[int, int], settings: RecorderSettings, now_ns: int, *, sealing: bool
) -> Removal:
    """Segments that must go, by the rules at the top of this module.

    Args:
        held: what the journal holds.
        streams: ring -> the stream of it that is recorded now; of other rings the latest counts.
    """

    def rank(name: SegmentName) -> tuple[bool, SegmentName]:
        return streams.get(name.ring_id) == name.stream, name

    newest: dict[int, SegmentName] = {}
    for item in held:
        newest[item.name.ring_id] = max(newest.get(item.name.ring_id, item.name), item.name, key=rank)
    may_go = [item for item in held if not item.busy and newest[item.name.ring_id] != item.name]
    gone = [
        item
        for item in may_go
        if _old(item.name.hour, settings.retention_hours, now_ns)
        or (item.sealed and _ended_hours_ago(item.name.hour, now_ns) >= settings.journal_hours)
    ]
    dropped = 0
    total = sum(item.size_bytes for item in held) - sum(item.size_bytes for item in gone)
    left = [item for item in may_go if item not in gone]
    for item in sorted(left, key=lambda item: (not item.sealed, item.name.hour, item.path.stat().st_mtime_ns)):
        if not settings.max_journal_bytes or total <= settings.max_journal_bytes:
            break
        gone.append(item)
        total -= item.size_bytes
        dropped += sealing and not item.sealed
    return Removal(tuple(gone), dropped)


def _ended_hours_ago(hour: int, now_ns: int) -> float:
    return (now_ns - (hour + 1) * HOUR_NS) / HOUR_NS


def _old(hour: int, retention_hours: float, now_ns: int) -> bool:
    return retention_hours != FOREVER and _ended_hours_ago(hour, now_ns) >= retention_hours


def _forget_symbols(held: list[Held]) -> None:
    """Remove symbol tables that no block of the journal means any more; the newest stays.

    The tables of a segment never go down, so that its first block tells the lowest.
    """
    if not held:
        return
    lowest = None
    for item in held:
        try:
            with item.path.open("rb") as file:
                header = unpack_header(file.read(HEADER_BYTES))
        except FileNotFoundError:
            continue
        if header is not None:
            lowest = header.table if lowest is None else min(lowest, header.table)
    folder = held[0].path.parent
    for table in tables(folder)[:-1]:
        if lowest is not None and table < lowest:
            symbols_path(folder, table).unlink(missing_ok=True)
