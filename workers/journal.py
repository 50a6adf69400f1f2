"""The journal: every record of every ring, appended to segment files in one folder, and found again after any crash.

Written by the recorder (workers/recorder.py) alone, which holds the folder's lock; read by anybody
(workers/journal_reader.py), while it is written too. The format is in workers/journal_format.py. Nothing here knows
rings, clocks or processes: blocks and times come in.

What is promised, and by which step:

    1  symbols of the block's instrument ids are in the symbol file
    2  header and records are written behind the last whole block, in one call
    3  `position` moves on: the journal holds the block

Killed within 2, the file ends with part of a block: `open_ring` finds it by its CRC, cuts it off, and says up to which
sequence the journal holds; the ring still has what was cut. Nothing is there twice because the next block begins there.
No room within 2: the part that was written is cut off at once, JournalFull is raised, and the same block can be
appended again later. A power cut loses what was not on the disk yet: nothing ("always": whoever appends waits for
`synced`), the last `fsync_interval_s` ("interval"), or what the kernel had not written by itself ("none").

A segment is left for a new one when it is full, when the hour of the wall clock has passed, and when the ring was made
anew. The clock may be set back: the hour of a segment never is.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np

from workers.errors import WorkerError
from workers.journal_format import (
    HEADER_BYTES,
    Header,
    SegmentName,
    gap_header,
    hour_of,
    pack_header,
    records_header,
)
from workers.journal_reader import list_segments, walk
from workers.journal_symbols import SymbolFile
from workers.journal_sync import Syncer

FsyncPolicy = Literal["none", "interval", "always"]

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CLOSE_WAIT_S: Final = 0.3  # a stop may take no longer; the kernel writes the rest in its own time


class JournalFull(WorkerError):
    """No room for the block; the journal is as it was before, and the block can be tried again."""


class JournalBusy(WorkerError):
    """Another process writes this journal."""


@dataclass
class _Segment:
    """The segment that a ring's blocks go to now."""

    name: SegmentName
    fd: int
    size_bytes: int


class Journal:
    """The writing side. One a folder; not for several threads.

    Attributes:
        symbols: the symbol file; `symbols.follow` before an `append` whose instruments it may not have.
        bytes_written: since this object was made.
        bytes_cut: of torn tails that `open_ring` found.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: FsyncPolicy = "interval",
        fsync_interval_s: float = 1.0,
        segment_bytes: int = 64 << 20,
        on_synced: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Make the folder where it is missing, and lock it.

        Args:
            fsync: when blocks are brought to the disk; see `sync`.
            segment_bytes: a segment that has reached this is left for a new one.
            on_synced: called with the duration of each fsync in ns, in another thread.

        Raises:
            JournalBusy: another process is the writer.
            OSError: the folder can't be made or written.
        """
        self.folder = folder
        self.fsync = fsync
        self.bytes_written = 0
        self.bytes_cut = 0
        self._segment_bytes = segment_bytes
        self._interval_ns = int(fsync_interval_s * 1e9)
        self._open: dict[int, _Segment] = {}
        self._positions: dict[int, tuple[int, int]] = {}  # ring -> (stream, next sequence)
        self._dirty: set[int] = set()
        self._next_sync_ns = 0
        folder.mkdir(parents=True, exist_ok=True, mode=0o750)
        self._lock_fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise JournalBusy(f"{folder} is written by another process") from None
        self.symbols = SymbolFile(folder)
        self._syncer = Syncer(on_synced)

    def open_ring(self, ring_id: int, stream: int) -> int | None:
        """Recover what the journal holds of a ring made at `stream`; returns the next sequence, None if it has nothing.

        Cuts off a torn tail. Call before the first append of the ring. Reads the newest segment of the ring in full
        and no other, so that a start costs the same however large the journal is. What comes next goes to a new
        segment: the one found may have been sealed already.
        """
        self._leave(ring_id)
        segments = [s for s in list_segments(self.folder) if (s.name.ring_id, s.name.stream) == (ring_id, stream)]
        for found in reversed(segments):
            fd = os.open(found.path, os.O_RDWR | os.O_CLOEXEC)
            end, last = 0, None
            for offset, header in walk(fd, verify=True):
                end, last = offset + header.block_bytes, header
            size_bytes = os.fstat(fd).st_size
            if end < size_bytes:
                os.ftruncate(fd, end)
                self.bytes_cut += size_bytes - end
            os.close(fd)
            if last is not None:
                self._positions[ring_id] = (stream, last.next_sequence)
                return last.next_sequence
            os.unlink(found.path)  # not a single whole block: whatever comes next begins it again
        return None

    def position(self, ring_id: int) -> int:
        """The sequence after the last one that the journal holds of a ring; 0 = nothing yet."""
        return self._positions.get(ring_id, (0, 0))[1]

    @property
    def streams(self) -> dict[int, int]:
        """Of each ring that the journal holds something of: the stream (`created_ns`) that is appended to."""
        return {ring_id: stream for ring_id, (stream, _) in self._positions.items()}

    def append(self, ring_id: int, stream: int, epoch: int, records: np.ndarray, now_ns: int) -> None:
        """Append records of a ring as one block.

        Args:
            stream: `created_ns` of the ring; `epoch`: how many writers it had had.
            records: shape (1..MAX_BLOCK_RECORDS,), dtype RECORD, contiguous, sequences without a hole.
            now_ns: the wall clock; decides about the hour.

        Raises:
            JournalFull: no room; nothing has changed.
            OSError: the disk failed.
        """
        header = records_header(
            records, ring_id=ring_id, stream=stream, epoch=epoch, table=self.symbols.table, written_ns=now_ns
        )
        self._write(header, records, now_ns)

    def append_gap(self, ring_id: int, stream: int, epoch: int, gap: tuple[int, int], now_ns: int) -> None:
        """Say that records [from, to) of a ring were overrun. Raises as `append`."""
        header = gap_header(
            gap, ring_id=ring_id, stream=stream, epoch=epoch, table=self.symbols.table, written_ns=now_ns
        )
        self._write(header, None, now_ns)

    def follow_symbols(self, symbols: Sequence[str]) -> None:
        """Make the symbol file hold the engine's table; before the blocks that need it. Raises as `append`."""
        try:
            if self.symbols.follow(symbols) and self.fsync != "none":
                self.symbols.sync()
        except OSError as error:
            raise _no_room(error, self.folder) from error

    def sync(self, now_ns: int) -> int:
        """Ask for what was appended to be brought to the disk, as the policy says; returns a ticket for `synced`.

        "always": at every call; "interval": `fsync_interval_s` after the last time; "none": never.
        """
        if self.fsync == "none" or not self._dirty:
            return 0
        late = now_ns >= self._next_sync_ns or self._next_sync_ns - now_ns > self._interval_ns
        if self.fsync == "interval" and not late:
            return 0
        self._next_sync_ns = now_ns + self._interval_ns
        ticket = self._syncer.request(sorted(self._dirty))
        self._dirty.clear()
        return ticket

    def synced(self, ticket: int, timeout_s: float) -> bool:
        """Whether what `sync` asked for is on the disk, waiting up to `timeout_s`."""
        return self._syncer.wait(ticket, timeout_s)

    @property
    def sync_errors(self) -> int:
        """Failed fsyncs."""
        return self._syncer.errors

    def open_names(self) -> set[str]:
        """File names of the segments that are being written: never to be sealed or removed."""
        return {segment.name.file_name for segment in self._open.values()}

    def leave_old_hours(self, now_ns: int) -> None:
        """Leave segments of hours that are over, so that they can be sealed even if their ring has fallen silent."""
        for ring_id, segment in list(self._open.items()):
            if segment.name.hour < hour_of(now_ns):
                self._leave(ring_id)

    def leave(self) -> None:
        """Leave every segment now; the next blocks begin new ones."""
        for ring_id in list(self._open):
            self._leave(ring_id)

    def close(self) -> None:
        """Leave everything, bring it to the disk (unless "none"; bounded in time), unlock. Safe to call twice."""
        if self._lock_fd < 0:
            return
        self.leave()
        self._syncer.close(_CLOSE_WAIT_S)
        self.symbols.close()
        os.close(self._lock_fd)
        self._lock_fd = -1

    def _leave(self, ring_id: int) -> None:
        segment = self._open.pop(ring_id, None)
        if segment is None:
            return
        self._dirty.discard(segment.fd)
        if self.fsync == "none":
            os.close(segment.fd)
        else:
            self._syncer.retire(segment.fd)

    def _segment(self, header: Header, now_ns: int) -> _Segment:
        """The segment that a block goes to, made if it is time for a new one."""
        segment = self._open.get(header.ring_id)
        if (
            segment is not None
            and segment.name.stream == header.stream
            and segment.size_bytes < self._segment_bytes
            and segment.name.hour >= hour_of(now_ns)
        ):
            return segment
        hour = hour_of(now_ns)
        if segment is not None and segment.name.stream == header.stream:
            hour = max(hour, segment.name.hour)
        name = SegmentName(header.ring_id, header.stream, header.first_sequence, hour)
        path = self.folder / name.file_name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        self._leave(header.ring_id)
        made = self._open[header.ring_id] = _Segment(name, fd, 0)
        if self.fsync == "always":
            self._sync_folder()
        return made

    def _sync_folder(self) -> None:
        fd = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def _write(self, header: Header, records: np.ndarray | None, now_ns: int) -> None:
        stream, position = self._positions.get(header.ring_id, (0, 0))
        if stream == header.stream and header.first_sequence != position:
            raise ValueError(f"ring {header.ring_id}: block from {header.first_sequence}, expected {position}")
        try:
            segment = self._segment(header, now_ns)
            try:
                _write_at(segment.fd, pack_header(header), records, segment.size_bytes)
            except OSError:
                os.ftruncate(segment.fd, segment.size_bytes)
                raise
        except OSError as error:
            raise _no_room(error, self.folder) from error
        segment.size_bytes += header.block_bytes
        self.bytes_written += header.block_bytes
        self._positions[header.ring_id] = (header.stream, header.next_sequence)
        self._dirty.add(segment.fd)


def _no_room(error: OSError, folder: Path) -> Exception:
    return JournalFull(f"{folder}: {error.strerror}") if error.errno in _NO_ROOM else error


def _write_at(fd: int, header: bytes, records: np.ndarray | None, offset: int) -> None:
    """The block in one call; what a short write left over in further ones."""
    parts = [memoryview(header)]
    if records is not None:
        parts.append(records.view(np.uint8).data)
    left = sum(len(part) for part in parts)
    assert len(header) == HEADER_BYTES
    while left:
        written = os.pwritev(fd, parts, offset)
        offset += written
        left -= written
        while written and written >= len(parts[0]):
            written -= len(parts.pop(0))
            if not parts:
                return
        if written:
            parts[0] = parts[0][written:]
