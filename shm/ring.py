"""Rings: made, written, read, taken over.

`RingWriter` and `RingReader` are the two ends that everybody uses; the algorithm and its memory ordering are in
`shm/ring.h`, the hot methods in `shm/_ring.pyx`. This module makes segments, takes locks, claims reader lines; nothing
in it is called once a record. Names of shm/ring_info.py and shm/status_record.py can be had here too.

    writer = RingWriter.create("demo", 2)             reader = RingReader.attach("demo", 2)
    writer.publish_batch(records)                     count = reader.read(out)

A ring outlives its writer: after a crash the next one calls `RingWriter.open`, goes on at the first sequence that was
never stamped, and readers stay attached throughout.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal

import numpy as np

from shm import _ring
from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentMissing, ShmFull, WriterBusy
from shm.layout import MAX_RINGS, RECORD, RECORD_SIZE_BYTES, StatusCode, empty
from shm.locks import ByteLock, unlink_abandoned
from shm.ring_info import FIRST_READER_LOCK, WRITER_LOCK, ReaderInfo, RingInfo, list_readers, reap_readers, ring_info
from shm.segment import Segment, segment_exists, segment_name
from shm.status_record import status_record

__all__ = [
    "DEFAULT_BLOCK_S",
    "DEFAULT_DEPTH_SLOTS",
    "MAX_DEPTH_SLOTS",
    "MIN_DEPTH_SLOTS",
    "ReaderInfo",
    "RingInfo",
    "RingReader",
    "RingSet",
    "RingWriter",
    "Start",
    "create_ring",
    "list_readers",
    "reap_readers",
    "remove_unusable_ring",
    "ring_info",
    "status_record",
]

DEFAULT_DEPTH_SLOTS = 65536
MIN_DEPTH_SLOTS = 16
MAX_DEPTH_SLOTS = 1 << 26
DEFAULT_BLOCK_S = 0.1

Start = Literal["newest", "oldest"] | int


def create_ring(
    engine: str,
    ring_id: int,
    *,
    depth_slots: int = DEFAULT_DEPTH_SLOTS,
    wakeups: bool = True,
    block_s: float = DEFAULT_BLOCK_S,
    mode: int = 0o600,
    group: str | int | None = None,
) -> None:
    """Make a ring without becoming its writer.

    Args:
        engine: engine name, see `shm.segment.check_engine_name`.
        ring_id: 0 to 15.
        depth_slots: a power of two, 16 to 2**26; the ring takes 128 bytes for each.
        wakeups: let readers sleep: the writer then looks for sleepers after each publish (a fence and a load).
        block_s: how long the writer waits for a reliable reader that is a whole ring behind before it demotes it.
        mode, group: see `Segment.create`.

    Raises:
        SegmentExists, ShmFull, BadArgument.
    """
    if not 0 <= ring_id < MAX_RINGS:
        raise BadArgument(f"ring_id is {ring_id}, must be 0 to {MAX_RINGS - 1}")
    if not MIN_DEPTH_SLOTS <= depth_slots <= MAX_DEPTH_SLOTS or depth_slots & (depth_slots - 1):
        raise BadArgument(
            f"depth_slots is {depth_slots}, must be a power of two from {MIN_DEPTH_SLOTS} to {MAX_DEPTH_SLOTS}"
        )
    size_bytes = _ring.SLOTS_OFFSET_BYTES + depth_slots * RECORD_SIZE_BYTES
    segment = Segment.create(segment_name(engine, f"r{ring_id}"), size_bytes, mode=mode, group=group)
    _ring.format_ring(segment.buf, ring_id, depth_slots, wakeups, int(block_s * 1e9))
    segment.close()


def remove_unusable_ring(engine: str, ring_id: int) -> bool:
    """Remove a ring that can't be attached to: half made by a process that was killed, or made by another build.

    False, and nothing is removed, if a live process is its writer.
    """

    def is_unusable() -> bool:
        try:
            ring_info(engine, ring_id)
        except (LayoutMismatch, SegmentMissing):
            return True
        return False

    return unlink_abandoned(segment_name(engine, f"r{ring_id}"), WRITER_LOCK, is_unusable)


class RingWriter(_ring.Writer):
    """The one writer of a ring. Use `create`, `open` or `create_or_open`; then `publish` and `publish_batch`.

    Attributes:
        name: segment name.
        ring_id: number of the ring within its engine.
        restarted: True if an earlier writer ended without closing; a status record WRITER_RESTARTED then tells readers.
        recovered_sequence: first sequence that the earlier writer had not finished; 1 in a new ring.
    """

    name: str
    ring_id: int
    restarted: bool
    recovered_sequence: int
    _segment: Segment
    _lock: ByteLock

    @property
    def segment(self) -> Segment:
        """The ring's segment, mapped for writing."""
        return self._segment

    @classmethod
    def create(cls, engine: str, ring_id: int, *, asymmetric: bool = True, **options: Any) -> RingWriter:
        """Make the ring (options as in `create_ring`) and become its writer."""
        create_ring(engine, ring_id, **options)
        return cls.open(engine, ring_id, asymmetric=asymmetric)

    @classmethod
    def create_or_open(cls, engine: str, ring_id: int, **options: Any) -> RingWriter:
        """Become the writer of the ring, making it first if it is not there."""
        if not segment_exists(segment_name(engine, f"r{ring_id}")):
            return cls.create(engine, ring_id, **options)
        return cls.open(engine, ring_id)

    @classmethod
    def open(cls, engine: str, ring_id: int, *, asymmetric: bool = True) -> RingWriter:
        """Become the writer of an existing ring and go on after the last record that is whole.

        Args:
            engine, ring_id: which ring.
            asymmetric: wake sleepers without a fence after each publish where the system allows it (shm/ring.h, SLEEP);
                False = always the fence.

        Raises:
            WriterBusy: another live process is its writer.
            SegmentMissing, NotAllowed, LayoutMismatch: it can't be used.
        """
        name = segment_name(engine, f"r{ring_id}")
        segment = Segment.attach(name, write=True)
        lock = ByteLock(name, WRITER_LOCK)
        try:
            _ring.check_ring(name, segment.buf)
            if not lock.try_acquire():
                pid = _ring.header_fields(segment.buf)["writer_pid"]
                raise WriterBusy(f"ring {name} has a writer already: process {pid}")
            if not segment.is_named():
                raise SegmentMissing(f"ring {name} has just been removed")
            writer = cls()
            writer._map(segment.buf)
        except BaseException:
            lock.release()
            segment.close()
            raise
        writer.name = name
        writer.ring_id = ring_id
        writer._segment = segment
        writer._lock = lock
        writer.recovered_sequence = writer.next_sequence
        epoch, earlier_pid = writer._take_over(os.getpid(), _ring.now_ns(), asymmetric)
        writer.restarted = epoch > 0 and earlier_pid != 0
        if writer.restarted:
            writer.publish(
                status_record(
                    StatusCode.WRITER_RESTARTED,
                    from_sequence=writer.recovered_sequence,
                    to_sequence=writer.recovered_sequence + 1,
                    text=f"writer {earlier_pid} ended, epoch {epoch + 1}",
                )
            )
        return writer

    def _reap(self) -> None:
        """Free the lines of readers whose process is gone (their lock is free)."""
        reap_readers(self._segment)

    def close(self) -> None:
        """Stop being the writer, in order. The ring stays, with what it holds. Safe to call twice."""
        self._leave()
        if self._lock.held:
            self._lock.release()
            self._segment.close()

    def unlink(self) -> None:
        """Remove the ring's name; who has it mapped keeps it."""
        self._segment.unlink()

    def __enter__(self) -> RingWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RingReader(_ring.Reader):
    """A position in a ring. Use `attach`; then `read`, `poll`, `wait`, or iterate.

    The header and the slots are mapped read-only. Where the segment's mode allows it, the reader also enters itself
    into the ring's reader table (a line of its own), so that its lag and losses are visible and it can sleep.
    """

    name: str
    ring_id: int
    label: str
    slots: np.ndarray
    _segment: Segment
    _lock: ByteLock | None

    @classmethod
    def attach(
        cls,
        engine: str,
        ring_id: int,
        *,
        start: Start = "newest",
        label: str = "",
        reliable: bool = False,
        register: bool = True,
    ) -> RingReader:
        """Attach to a ring.

        Args:
            engine, ring_id: which ring.
            start: "newest" = only what comes from now on; "oldest" = the oldest record that is safe to read (a quarter
                of a full ring is left as the writer's head start); a sequence = that record next. A sequence that has
                been overrun shows as a gap at the first read.
            label: name for people, up to 40 bytes of UTF-8; the default is the process id.
            reliable: ask the writer to wait for this reader (see `create_ring`, block_s).
            register: enter the reader table. Without it, or where the mode forbids it, waiting is by short naps.

        Raises:
            SegmentMissing, NotAllowed, LayoutMismatch: the ring can't be used.
            ShmFull: all 63 reader lines are taken.
            BadArgument: start beyond the ring's end; reliable without register.
        """
        name = segment_name(engine, f"r{ring_id}")
        if reliable and not register:
            raise BadArgument("reliable is True, so register must be True: the writer can't wait for an unknown reader")
        segment = _attach_widest(name, write=register)
        reader = cls()
        reader.name, reader.ring_id, reader._segment, reader._lock = name, ring_id, segment, None
        reader.label = label or f"pid {os.getpid()}"
        try:
            if reliable and not segment.writable:
                raise NotAllowed(f"ring {name}: a reliable reader must write its cursor, the mode forbids it")
            header = segment.window(0, min(segment.size_bytes, _ring.READERS_OFFSET_BYTES), write=False)
            _ring.check_ring(name, header, segment.size_bytes)
            slots_bytes = _ring.header_fields(header)["depth_slots"] * RECORD_SIZE_BYTES
            slots = segment.window(_ring.SLOTS_OFFSET_BYTES, slots_bytes, write=False)
            table = None
            if segment.writable:
                table = segment.window(
                    _ring.READERS_OFFSET_BYTES, _ring.SLOTS_OFFSET_BYTES - _ring.READERS_OFFSET_BYTES, write=True
                )
            reader._map(header, table, slots)
            reader.slots = np.frombuffer(slots, dtype=np.uint8).view(RECORD)
            reader.seek(start)
            if table is not None:
                reader._register(reliable)
                if isinstance(start, str):
                    reader.seek(start)  # again: the writer has gone on while the line was being claimed
        except BaseException:
            reader.close()
            raise
        return reader

    def _register(self, reliable: bool) -> None:
        for index in range(_ring.READERS_MAX):
            lock = ByteLock(self.name, FIRST_READER_LOCK + index)
            if lock.try_acquire():
                self._lock = lock
                self._claim(index, self.label.encode()[: _ring.LABEL_BYTES], os.getpid(), reliable)
                return
        raise ShmFull(f"ring {self.name}: all {_ring.READERS_MAX} reader lines are taken")

    def seek(self, start: Start) -> None:
        """Go to another position; `start` as in `attach`."""
        published = self.published
        if start == "newest":
            sequence = published + 1
        elif start == "oldest":
            sequence = max(1, published + 1 - self.depth_slots * 3 // 4)
        elif isinstance(start, int) and not isinstance(start, bool):
            sequence = start
            reached = 1 <= sequence <= published + 1 or (sequence > 1 and self._is_stamped(sequence - 1))
            if not reached:
                raise BadArgument(f"start is {start}, the newest record of ring {self.name} is {published}")
        else:
            raise BadArgument(f"start is {start!r}, must be 'newest', 'oldest' or a sequence")
        self._set_position(sequence)

    def batches(self, timeout_s: float | None = None, *, slots: int = 4096) -> Iterator[np.ndarray]:
        """Batches as they come: views of one array that the next step overwrites, shape (1..slots,), dtype RECORD.

        Ends when nothing has come for `timeout_s` seconds; None = never.
        """
        out = empty(slots)
        while True:
            count = self.read(out)
            if count:
                yield out[:count]
            elif not self.wait(0.5 if timeout_s is None else timeout_s) and timeout_s is not None:
                return

    def __iter__(self) -> Iterator[np.void]:
        """Records one by one, waiting for more for ever; each is a copy."""
        for batch in self.batches():
            yield from batch.copy()

    async def stream(self, *, slots: int = 4096) -> AsyncIterator[np.ndarray]:
        """`batches` for asyncio: a thread of its own sleeps on the ring, the event loop is never blocked."""
        import asyncio  # 25 ms of import that a polling consumer does not need
        from concurrent.futures import ThreadPoolExecutor

        loop = asyncio.get_running_loop()
        out = empty(slots)
        waiter = ThreadPoolExecutor(1, thread_name_prefix=f"wait {self.name}")
        try:
            while True:
                count = self.read(out)
                if count:
                    yield out[:count]
                    await asyncio.sleep(0)  # a ring that never runs dry must not starve the loop
                else:
                    await loop.run_in_executor(waiter, self.wait, 0.25)
        finally:
            waiter.shutdown(wait=True)  # `wait` uses the mapping: nobody may close the reader under it

    def close(self) -> None:
        """Leave the ring: give the reader line back and let go of the memory. Safe to call twice."""
        self._leave()
        self.slots = empty(0)
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        self._segment.close()

    def __enter__(self) -> RingReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class RingSet(list[RingReader]):
    """Several rings waited on together; at most 16. Each is read by itself."""

    def wait(self, timeout_s: float) -> bool:
        """Whether some ring has something to read, waiting up to `timeout_s` seconds for it."""
        return _ring.wait_any(self, timeout_s)

    def batches(self, timeout_s: float | None = None, *, slots: int = 4096) -> Iterator[tuple[RingReader, np.ndarray]]:
        """(reader, batch) as they come, the rings in turn; see `RingReader.batches`."""
        outs = [empty(slots) for _ in self]
        while True:
            idle = True
            for reader, out in zip(self, outs, strict=True):
                count = reader.read(out)
                if count:
                    idle = False
                    yield reader, out[:count]
            if idle and not self.wait(0.5 if timeout_s is None else timeout_s) and timeout_s is not None:
                return

    def close(self) -> None:
        """Close every reader."""
        for reader in self:
            reader.close()


def _attach_widest(name: str, *, write: bool) -> Segment:
    """Attach with write access where it is wanted and allowed, else read-only; windows are the caller's to map."""
    if write:
        try:
            return Segment.attach(name, write=True, mapped=False)
        except NotAllowed:
            pass
    return Segment.attach(name, mapped=False)
