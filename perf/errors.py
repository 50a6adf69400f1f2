"""What keeps a benchmark from reporting a figure.

PerfError
  BenchmarkFailed      data was lost or wrong, or a process of the benchmark broke: exit status 1
    RoleFailed         ... the latter
  PeerMissing          no library to compare with: the row has no ratio
  Skipped              can't run here: the row has no figure
"""

from __future__ import annotations


class PerfError(Exception):
    """Base of them all."""


class BenchmarkFailed(PerfError):
    """The data that arrived is not the data that was sent: no figure may be reported."""


class RoleFailed(BenchmarkFailed):
    """A process of the benchmark raised, died, or stayed silent."""


class PeerMissing(PerfError):
    """The library to compare with is not installed or does not work here."""


class Skipped(PerfError):
    """What the benchmark needs is not here: samples, a compiler, a part of the engine."""


def require(promise: bool, otherwise: str) -> None:
    """Raise BenchmarkFailed unless `promise` holds."""
    if not promise:
        raise BenchmarkFailed(otherwise)
