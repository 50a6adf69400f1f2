"""What a tier below L1 is: a store that can be asked for the records of one symbol, newest first wins.

Implemented by the stores (Redis or the journal as L2, PostgreSQL or Parquet as L3) and walked by the historian process.
All tiers order records by `Key`, so that what several of them hold is merged without duplicates, and the key of the
oldest record of an answer is where the next page goes on. It opens no store itself.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from shm.layout import RecordType
from workers.errors import WorkerError


class TierDown(WorkerError):
    """The store can't answer now: not reachable, too slow, damaged. The others can still be asked."""


class Key(NamedTuple):
    """Place of a record among those of its symbol; two records with equal keys are one record in two tiers."""

    ts_event: int  # ns since the Unix epoch
    ts_publish: int  # ns since the Unix epoch
    sequence: int  # in its ring


class Wanted(NamedTuple):
    """Which records: of `symbol`, with from_ns <= ts_event < to_ns and a key below `before`, the newest `limit`."""

    symbol: str
    kind: RecordType | None  # None = every type
    from_ns: int | None
    to_ns: int | None
    before: Key | None
    limit: int  # at least 1


class Tier(Protocol):
    """One store. Used by one thread at a time."""

    level: str  # "L2" or "L3"
    name: str  # "redis", "journal", "postgresql", "parquet"

    def read(self, wanted: Wanted) -> np.ndarray:
        """The records, dtype shm.layout.RECORD, ascending by key. `instrument_id` may be any number.

        Raises:
            TierDown: it can't answer now.
        """

    def close(self) -> None:
        """Let go of the store. Safe to call twice."""
