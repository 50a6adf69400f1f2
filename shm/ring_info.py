"""Looking into a ring: what its header and its reader table say, and whether those who stand there live.

Called by metrics, tools and supervisors at any time, post mortem too, and by a ring's writer, which frees the lines of
dead readers. Who looks disturbs nobody: no record is read, no position taken, and a ring is mapped for reading only.
"""

from __future__ import annotations

from dataclasses import dataclass

from shm import _ring
from shm.locks import ByteLock, is_held
from shm.segment import Segment, segment_name

# Locks of a ring's file: its writer's, and those of the reader lines, in order.
WRITER_LOCK = 0
FIRST_READER_LOCK = 1


@dataclass(frozen=True)
class RingInfo:
    """What a ring's header says. `published` is the newest sequence; `writer_pid` 0 means closed in order."""

    name: str
    ring_id: int
    depth_slots: int
    size_bytes: int
    wakeups: bool
    asymmetric: bool
    epoch: int
    published: int
    writer_pid: int
    writer_alive: bool
    writer_started_ns: int
    created_ns: int


@dataclass(frozen=True)
class ReaderInfo:
    """One registered reader of a ring, as its own line in the ring's reader table says."""

    index: int
    label: str
    pid: int
    cursor: int
    lag: int
    lost: int
    overruns_polling: int
    overruns_reading: int
    reads: int
    reliable: bool
    demoted: bool
    alive: bool
    attached_ns: int


def ring_info(engine: str, ring_id: int) -> RingInfo:
    """Look into a ring's header; works post mortem and while others use it."""
    name = segment_name(engine, f"r{ring_id}")
    segment = Segment.attach(name, mapped=False)
    try:
        header = segment.window(0, _ring.READERS_OFFSET_BYTES, write=False)
        _ring.check_ring(name, header, segment.size_bytes)
        fields = _ring.header_fields(header)
        fields.pop("block_ns")
        alive = is_held(name, WRITER_LOCK)
        return RingInfo(name=name, size_bytes=segment.size_bytes, writer_alive=alive, **fields)
    finally:
        segment.close()


def list_readers(engine: str, ring_id: int) -> list[ReaderInfo]:
    """Every registered reader of a ring, dead ones that nobody has cleaned up included (`alive` is False)."""
    name = segment_name(engine, f"r{ring_id}")
    segment = Segment.attach(name, mapped=False)
    try:
        top = segment.window(0, _ring.SLOTS_OFFSET_BYTES, write=False)
        _ring.check_ring(name, top, segment.size_bytes)
        published = _ring.header_fields(top)["published"]
        found = []
        for index, fields in _ring.reader_fields(top[_ring.READERS_OFFSET_BYTES :]):
            lag = max(0, published + 1 - fields["cursor"])
            found.append(ReaderInfo(index=index, lag=lag, alive=is_held(name, FIRST_READER_LOCK + index), **fields))
        return found
    finally:
        segment.close()


def reap_readers(segment: Segment) -> int:
    """Free the lines of dead readers of a ring that is mapped writable; returns how many there were."""
    table = segment.buf[_ring.READERS_OFFSET_BYTES :]
    freed = 0
    for index, _ in _ring.reader_fields(table):
        lock = ByteLock(segment.name, FIRST_READER_LOCK + index)
        if lock.try_acquire():
            _ring.free_reader(table, index)
            lock.release()
            freed += 1
    return freed
