"""Which engines have left segments on this host, and whether anyone still lives in them.

An engine is alive while any process holds a lock that only its own processes take: the writer lock of a ring, a slot of
the status block, a shard of the topic table. Such locks end with their process, so neither a reused PID nor a crash
fools this. Attached readers do not make an engine alive: they keep what they have mapped. Called by `tickengine shm`,
`top` and `tail`; it removes nothing but through `remove_engine`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shm.errors import NotAllowed, SegmentMissing, ShmError
from shm.locks import ByteLock, is_held
from shm.segment import Segment, list_segments, unlink_segment

_SEGMENT: Final = re.compile(r"/tk\.([a-z0-9-]{1,16})\.([a-z0-9]+)")
_RING_WRITER: Final = 0
_STATUS_SLOTS: Final = 256
_TOPIC_SHARDS: Final = 64


@dataclass(frozen=True)
class Found:
    """One segment: `what` is its part of the name ("r2", "stat"); `owner`, `mode` and `size_bytes` of its file.

    `held` says whether a process of the engine holds it; None = this user may not know.
    """

    name: str
    engine: str
    what: str
    size_bytes: int
    owner: str
    mode: int
    changed_ns: int
    held: bool | None

    @property
    def ring_id(self) -> int | None:
        """Number of the ring, None for what is no ring."""
        return int(self.what[1:]) if re.fullmatch(r"r\d{1,2}", self.what) else None


def find_segments(engine: str | None = None) -> list[Found]:
    """Segments of one engine, or of all where the system can list them, rings in the order of their numbers."""
    found = []
    for name in list_segments(engine):
        match = _SEGMENT.fullmatch(name)
        if match is None:
            continue
        try:
            found.append(_look(name, match[1], match[2]))
        except SegmentMissing:
            continue  # removed while we looked
    return sorted(found, key=lambda item: (item.engine, item.ring_id is None, item.ring_id or 0, item.what))


def engine_alive(segments: list[Found]) -> bool | None:
    """Whether a process of the engine lives, from its segments; None = nobody seen, but some this user may not see."""
    if any(item.held for item in segments):
        return True
    return None if any(item.held is None for item in segments) else False


def remove_engine(segments: list[Found], *, force: bool = False) -> list[str]:
    """Remove the segments of one engine; returns the names removed.

    The lock of ring 0 is held meanwhile, so that an engine of this name that starts in the same moment is told that the
    name is taken, instead of losing what it has just made.

    Raises:
        ShmError: the engine lives (and not `force`), or this user may not remove its segments.
    """
    if engine_alive(find_segments(segments[0].engine)) is not False and not force:
        raise ShmError(f"engine {segments[0].engine!r} is alive")
    guard = next((ByteLock(item.name, _RING_WRITER) for item in segments if item.ring_id == 0), None)
    if guard is not None and not guard.try_acquire() and not force:
        raise ShmError(f"engine {segments[0].engine!r} is starting")
    try:
        # Ring 0 last: as long as it is there, it guards the others.
        ordered = sorted(segments, key=lambda item: item.ring_id == 0)
        return [item.name for item in ordered if unlink_segment(item.name)]
    finally:
        if guard is not None:
            guard.release()


def running_engines() -> list[str]:
    """Names of the engines that are alive, where the system can list shared memory."""
    by_engine: dict[str, list[Found]] = {}
    for item in find_segments():
        by_engine.setdefault(item.engine, []).append(item)
    return [name for name, items in by_engine.items() if engine_alive(items)]


def _look(name: str, engine: str, what: str) -> Found:
    try:
        # The file's own facts, where shared memory is a folder; a segment that may not be opened still has them.
        stat = Path(f"/dev/shm{name}").stat()
    except FileNotFoundError:
        segment = Segment.attach(name)
        stat = os.fstat(segment.fd)
        segment.close()
    try:
        held = any(is_held(name, index) for index in _locks(what))
    except NotAllowed:
        held = None
    return Found(name, engine, what, stat.st_size, _user(stat.st_uid), stat.st_mode & 0o777, stat.st_mtime_ns, held)


def _locks(what: str) -> range:
    if what == "stat":
        return range(1, 1 + _STATUS_SLOTS)
    return range(_TOPIC_SHARDS) if what == "topic" else range(_RING_WRITER, _RING_WRITER + 1)


def _user(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
