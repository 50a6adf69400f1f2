"""Errors of the workers package.

    WorkerError
    |-- SettingsError    the operator's fault: settings that cannot work; exit code 2 (also a ValueError)
    |-- SourceError      the feed's fault: file, network or venue; harms this feed alone, which is tried again
    `-- DecodeError      the peer's fault: bytes that are not what the format says; counted (also a ValueError)

Shared-memory errors are shm.errors.ShmError and end the process with exit code 3.
"""

from __future__ import annotations


class WorkerError(Exception):
    """Base of every error of this package."""


class SettingsError(WorkerError, ValueError):
    """Settings that cannot work; the message names the key, the value and what is allowed."""


class SourceError(WorkerError):
    """A feed cannot deliver now; the message says what failed and what to do about it."""


class DecodeError(WorkerError, ValueError):
    """Input that does not follow its format; the message gives format, offset in bytes and what was expected."""
