"""The records that benchmarks send, and the check of those that arrive.

Record i of a batch carries `source_sequence` i + 1 and a price that follows from it, so that a reader can tell from a
record and its ring sequence alone whether it is the right one and whole.
"""

from __future__ import annotations

import numpy as np

from perf.errors import require
from shm.layout import NO_INSTRUMENT, RecordType, Source, empty


def ticks(count: int, instruments: int = 0) -> np.ndarray:
    """`count` ticks, shape (count,), dtype RECORD, spread over `instruments` in turn (0: they concern none)."""
    records = empty(count)
    number = np.arange(count)
    records["record_type"] = RecordType.TICK
    records["source"] = Source.MOCK
    records["instrument_id"] = number % instruments if instruments else NO_INSTRUMENT
    records["source_sequence"] = number + 1
    records["venue"] = b"PERF"
    records["price"] = 100.0 + number / 64
    records["size"] = 1.0 + number % 10
    records["trade_id"] = number + 1
    return records


def check_ticks(records: np.ndarray, first_sequence: int, batch: int) -> None:
    """Require that `records` are what a ring holds from `first_sequence` on if it only ever got `ticks(batch)`."""
    wanted = np.arange(first_sequence, first_sequence + len(records), dtype=np.uint64)
    require(np.array_equal(records["sequence"], wanted), f"sequences from {first_sequence} on are not contiguous")
    place = (wanted - 1) % batch
    require(np.array_equal(records["source_sequence"], place + 1), "a record is not the one that was published there")
    require(np.array_equal(records["price"], 100.0 + place / 64), "a record is torn")
