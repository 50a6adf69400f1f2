"""Errors of the shm package.

    ShmError
    |-- BadArgument       the caller's fault: a value out of range, a buffer of the wrong size (also a ValueError)
    |-- SegmentExists     create() of a segment that is there already
    |-- SegmentMissing    attach() to a segment that is not there (also a FileNotFoundError)
    |-- LayoutMismatch    the segment was made by another version or with other sizes; names both sides
    |-- WriterBusy        another live process is this ring's writer
    |-- NotAllowed        the file mode of the segment keeps this user out (also a PermissionError)
    `-- ShmFull           the machine's fault: no room left in shared memory, or no free slot in a fixed table

An overrun is not an error: it is a result of reading (`RingReader.gap`).
"""

from __future__ import annotations


class ShmError(Exception):
    """Base of every error of this package."""


class BadArgument(ShmError, ValueError):
    """A value that the caller passed is unusable; the message names it, its value and the range allowed."""


class SegmentExists(ShmError, FileExistsError):
    """create() found a segment of that name."""


class SegmentMissing(ShmError, FileNotFoundError):
    """attach() found no segment of that name."""


class LayoutMismatch(ShmError):
    """The segment and this build disagree on layout; the message gives the value on each side."""


class WriterBusy(ShmError):
    """A ring has one writer, and another live process holds its lock."""


class NotAllowed(ShmError, PermissionError):
    """The segment's mode does not let this user open it."""


class ShmFull(ShmError):
    """No room: /dev/shm is full, or a fixed table has no free slot."""
