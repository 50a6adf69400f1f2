"""A POSIX shared-memory segment: made whole, mapped, named, removed.

Every other segment of this package (ring, status, instruments, latest) stands on `Segment`. It knows names, sizes,
modes and mappings, and nothing of what the bytes mean.

    /tk.NAME.r0 ... /tk.NAME.r15     rings
    /tk.NAME.inst  .stat  .last  .topic

Rules: a created segment is zeroed, allocated in full (posix_fallocate) and pre-faulted, so that a full /dev/shm is an
error here and never a SIGBUS later; it is never resized; only `unlink` removes it, closing never does. CPython's own
SharedMemory is not used because its resource tracker unlinks segments that other processes still use.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from pathlib import Path

import numpy as np
import posix_ipc

from shm.errors import BadArgument, NotAllowed, SegmentExists, SegmentMissing, ShmError, ShmFull
from shm.layout import MAX_RINGS

# Regions of a segment that get different protection start on this boundary: the page size of Apple silicon,
# a multiple of every other page size we run on.
REGION_ALIGNMENT_BYTES = 16384

_SHM_FOLDER = Path("/dev/shm")
_PREFIX = "tk."
_ENGINE_NAME = re.compile(r"[a-z0-9-]{1,16}")
_KINDS = (*(f"r{ring}" for ring in range(MAX_RINGS)), "inst", "stat", "last", "topic", "rank")
_MAX_NAME_CHARS = 31  # macOS: PSHMNAMLEN


def check_engine_name(engine: str) -> str:
    """Return `engine` if it can name an engine, else raise BadArgument."""
    if not _ENGINE_NAME.fullmatch(engine):
        raise BadArgument(f"engine name {engine!r}: use 1 to 16 of the characters a-z, 0-9 and '-'")
    return engine


def segment_name(engine: str, what: str) -> str:
    """Name of one segment of an engine, e.g. ("main", "r2") -> "/tk.main.r2"."""
    name = f"/{_PREFIX}{check_engine_name(engine)}.{what}"
    if len(name) > _MAX_NAME_CHARS:
        raise BadArgument(f"segment name {name!r} has {len(name)} characters, at most {_MAX_NAME_CHARS} are portable")
    return name


def list_segments(engine: str | None = None) -> list[str]:
    """Names of the existing segments, of one engine or of all, sorted.

    Where the system can not list shared memory (macOS) an engine must be given, and its possible names are tried.
    """
    if _SHM_FOLDER.is_dir():
        start = _PREFIX if engine is None else f"{_PREFIX}{engine}."
        return sorted(f"/{path.name}" for path in _SHM_FOLDER.glob(f"{start}*"))
    if engine is None:
        return []
    return sorted(name for what in _KINDS if segment_exists(name := segment_name(engine, what)))


def segment_exists(name: str) -> bool:
    """Whether a segment of that name can be found, whoever owns it."""
    try:
        os.close(posix_ipc.SharedMemory(name, read_only=True).fd)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError:
        return True
    return True


def unlink_segment(name: str) -> bool:
    """Remove the name; processes that have it mapped keep their memory. False if it was not there."""
    try:
        posix_ipc.unlink_shared_memory(name)
    except posix_ipc.ExistentialError:
        return False
    except posix_ipc.PermissionsError as error:
        raise NotAllowed(f"segment {name}: this user may not remove it") from error
    return True


def open_segment(name: str, *, write: bool) -> int:
    """A new file descriptor of a segment (the caller closes it): its own open file description, so its own locks."""
    try:
        return int(posix_ipc.SharedMemory(name, read_only=not write).fd)
    except posix_ipc.ExistentialError as error:
        raise SegmentMissing(f"segment {name} does not exist: is the engine running under this name?") from error
    except posix_ipc.PermissionsError as error:
        access = "write" if write else "read"
        raise NotAllowed(f"segment {name}: its mode does not let user id {os.geteuid()} {access} it") from error
    except OSError as error:  # this process has no descriptor left, or the system none
        raise ShmError(f"segment {name} can not be opened: {error}") from error


class Segment:
    """One segment, mapped into this process.

    Attributes:
        name: the POSIX name, with its leading slash.
        size_bytes: size of the segment and of `buf`.
        buf: memoryview over all of it; read-only unless created or attached with write.
        address: address of `buf` in this process, a multiple of the page size.
        fd: descriptor of the segment, open as long as this object is.
    """

    def __init__(self, name: str, fd: int, size_bytes: int, *, write: bool, mapped: bool = True) -> None:
        """Map `fd`; use `create` or `attach` instead."""
        self.name = name
        self.fd = fd
        self.size_bytes = size_bytes
        self.writable = write
        self.buf = memoryview(b"")
        self.address = 0
        if mapped:
            self.buf = self.window(0, size_bytes, write=write, populate=write)
            self.address = int(np.frombuffer(self.buf, dtype=np.uint8).ctypes.data)

    @classmethod
    def create(cls, name: str, size_bytes: int, *, mode: int = 0o600, group: str | int | None = None) -> Segment:
        """Make a new segment of zeroes, allocated and pre-faulted.

        Args:
            name: POSIX name, see `segment_name`.
            size_bytes: at least 1; rounded up to REGION_ALIGNMENT_BYTES.
            mode: 0o600, or 0o640/0o660 to let `group` read or write.
            group: group name or id that shall own the segment; None keeps the process's own.

        Raises:
            SegmentExists: the name is taken.
            ShmFull: shared memory has no room for it.
            BadArgument: size or group unusable.
        """
        if size_bytes < 1:
            raise BadArgument(f"size_bytes is {size_bytes}, must be at least 1")
        size_bytes = -(-size_bytes // REGION_ALIGNMENT_BYTES) * REGION_ALIGNMENT_BYTES
        try:
            fd = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=mode).fd
        except posix_ipc.ExistentialError as error:
            raise SegmentExists(f"segment {name} exists already") from error
        try:
            _allocate(name, fd, size_bytes)
            os.fchmod(fd, mode)  # the mode given to shm_open is cut by the umask
            if group is not None:
                os.fchown(fd, -1, _group_id(group))
            return cls(name, fd, size_bytes, write=True)
        except BaseException:
            os.close(fd)
            unlink_segment(name)
            raise

    @classmethod
    def attach(cls, name: str, *, write: bool = False, mapped: bool = True) -> Segment:
        """Map an existing segment, read-only unless `write`. Without `mapped`, `buf` is empty: map windows instead.

        Raises:
            SegmentMissing: no such segment, or it is still being made (its size is 0).
            NotAllowed: the mode keeps this user out.
        """
        fd = open_segment(name, write=write)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes == 0:
                raise SegmentMissing(f"segment {name} is being created and has no size yet")
            return cls(name, fd, size_bytes, write=write, mapped=mapped)
        except BaseException:
            os.close(fd)
            raise

    def window(self, offset_bytes: int, size_bytes: int, *, write: bool, populate: bool = True) -> memoryview:
        """Map a part of the segment with its own protection; `offset_bytes` a multiple of REGION_ALIGNMENT_BYTES.

        With `populate` every page is mapped now, not at its first use: for who must not stumble over a page fault. A
        mapping that is only looked into leaves it off, and counts in memory what it has touched.
        """
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if populate else 0)
        return memoryview(mmap.mmap(self.fd, size_bytes, flags=flags, prot=protection, offset=offset_bytes))

    def close(self) -> None:
        """Let go of the segment. The memory is unmapped once no array refers to it any more. Safe to call twice."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            self.buf = memoryview(b"")
            self.address = 0

    def is_named(self) -> bool:
        """Whether the name still means this segment: somebody may have removed it, and made another."""
        try:
            fd = open_segment(self.name, write=False)
        except SegmentMissing:
            return False
        try:
            return os.fstat(fd).st_ino == os.fstat(self.fd).st_ino
        finally:
            os.close(fd)

    def unlink(self) -> None:
        """Remove the name, so that nobody can attach any more. Safe to call twice."""
        unlink_segment(self.name)

    def __repr__(self) -> str:
        access = "rw" if self.writable else "ro"
        return f"<Segment {self.name} {self.size_bytes} bytes {access}{' closed' if self.fd < 0 else ''}>"


def _allocate(name: str, fd: int, size_bytes: int) -> None:
    try:
        if sys.platform == "darwin":
            os.ftruncate(fd, size_bytes)
        else:
            os.posix_fallocate(fd, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.ENOMEM):
            raise
        free = ""
        if _SHM_FOLDER.is_dir():
            stat = os.statvfs(_SHM_FOLDER)
            free = f", /dev/shm has {stat.f_bavail * stat.f_frsize >> 20} MiB free"
        raise ShmFull(f"segment {name}: no room for {size_bytes >> 20} MiB of shared memory{free}") from error


def _group_id(group: str | int) -> int:
    if isinstance(group, int):
        return group
    import grp

    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise BadArgument(f"group {group!r} does not exist on this machine") from None
