"""Locks that die with their process: who writes a ring, which reader is alive, who may intern a symbol.

A PID says little (it is reused, and another namespace has its own); a kernel file lock is released at the moment its
holder ends, however it ends. On Linux each lock is an open-file-description lock on one byte of the segment itself, so
there is no lock file to agree on or to clean up. Where shared memory takes no locks (macOS) it is `flock` on a file in
the system's folder for temporary files.

Never use these on a hot path: each call is a system call or several.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import time
from collections.abc import Callable

from shm.errors import SegmentMissing, ShmError
from shm.segment import open_segment, unlink_segment

_ON_SEGMENT = hasattr(fcntl, "F_OFD_SETLK") and sys.platform != "darwin"
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid (0 for such locks)


class ByteLock:
    """Exclusive lock number `index` of a segment. Not re-entrant; two objects conflict also within one process."""

    def __init__(self, segment: str, index: int) -> None:
        """Name the lock; nothing is opened yet. `index` is any number from 0; unrelated to the segment's size."""
        self.segment = segment
        self.index = index
        self._fd = -1

    def try_acquire(self) -> bool:
        """Take the lock if nobody has it; returns at once."""
        if self._fd >= 0:
            return False
        fd = _open(self.segment, self.index)
        if not _lock(fd, self.index):
            os.close(fd)
            return False
        self._fd = fd
        return True

    def acquire(self, timeout_s: float = 5.0) -> None:
        """Wait for the lock. Raises ShmError if another process keeps it for longer than `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                raise ShmError(f"lock {self.index} of segment {self.segment} was not free within {timeout_s} s")
            time.sleep(0.0005)

    def release(self) -> None:
        """Give the lock back. Safe to call when it is not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_of(self, segment: str) -> bool:
        """Whether the lock that is held is of the segment which the name means now, and not of one made before it."""
        if not _ON_SEGMENT:
            return self.held
        fd = open_segment(segment, write=False)
        try:
            return self.held and os.fstat(fd).st_ino == os.fstat(self._fd).st_ino
        finally:
            os.close(fd)

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._fd >= 0

    def __del__(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def __enter__(self) -> ByteLock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def is_held(segment: str, index: int) -> bool:
    """Whether any living process, this one included, holds lock `index` of the segment."""
    if not _ON_SEGMENT:
        probe = ByteLock(segment, index)
        if probe.try_acquire():
            probe.release()
            return False
        return True
    fd = open_segment(segment, write=False)
    try:
        # A read lock is asked about, because the descriptor is open for reading only: it too conflicts with a writer's.
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, index, 1, 0))
        return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
    finally:
        os.close(fd)


def unlink_abandoned(segment: str, index: int, is_unusable: Callable[[], bool]) -> bool:
    """Remove a segment's name if nobody alive holds its lock `index` and it is of no use; False if somebody does.

    For what a killed process left half-made, or another build made. `is_unusable` attaches by name, and is asked while
    the lock is held: of several processes that try at once none removes what another has made meanwhile. True also if
    the segment is gone or usable by now.
    """
    lock = ByteLock(segment, index)
    try:
        if not lock.try_acquire():
            return False
        if lock.is_of(segment) and is_unusable():
            unlink_segment(segment)
    except SegmentMissing:
        pass
    finally:
        lock.release()
    return True


def _open(segment: str, index: int) -> int:
    if _ON_SEGMENT:
        return open_segment(segment, write=True)
    folder = os.environ.get("TMPDIR", "/tmp")
    path = os.path.join(folder, f"tickengine.{segment.strip('/')}.{index}.lock")
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)


def _lock(fd: int, index: int) -> bool:
    try:
        if _ON_SEGMENT:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, index, 1, 0))
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True
