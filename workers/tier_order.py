"""Records in the order of the tiers: by time, then when they were published, then sequence. See workers.tier.Key.

Used by the stores' reading sides to turn what they found into what was asked for, and by the walk over them. Arrays in,
arrays out.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers.tier import Key, Wanted

_COMPACT_RECORDS: Final = 1 << 16  # gathered beyond the limit before they are cut to it


class Gathered:
    """The newest records that were found so far, of those that are wanted; found piece by piece, memory bounded.

    Attributes:
        floor_ns: once `limit` are there, nothing with an earlier `ts_event` can change the answer; None before.
    """

    def __init__(self, wanted: Wanted) -> None:
        """Nothing is found yet."""
        self.floor_ns: int | None = None
        self._wanted = wanted
        self._pieces: list[np.ndarray] = []
        self._count = 0

    def add(self, records: np.ndarray) -> None:
        """Some of the symbol's records, in any order, wanted or not."""
        found = choose(records, self._wanted)
        self._pieces.append(found)
        self._count += len(found)
        limit = self._wanted.limit
        if self._count >= limit and (self.floor_ns is None or self._count >= limit + _COMPACT_RECORDS):
            self._pieces = [self.records()]
            self._count = len(self._pieces[0])
            self.floor_ns = int(self._pieces[0]["ts_event"][0]) if self._count >= limit else None

    def records(self) -> np.ndarray:
        """The newest `limit`, ascending by key, each once."""
        return newest(merge(self._pieces), self._wanted.limit)


def merge(pieces: list[np.ndarray]) -> np.ndarray:
    """Records of any number of pieces, ascending by key, each key once (of equal ones the first piece's)."""
    rows = np.concatenate([words(piece) for piece in pieces]) if pieces else np.empty((0, 16), np.uint64)
    records = rows.reshape(-1).view(RECORD)
    order = order_of(records)
    merged: np.ndarray = take(records, order) if order is not None else records
    return merged


def newest(records: np.ndarray, limit: int) -> np.ndarray:
    """The last `limit` records of an ascending array."""
    return records[max(0, len(records) - limit) :]


def key_of(record: np.ndarray) -> Key:
    """The key of one record."""
    return Key(int(record["ts_event"]), int(record["ts_publish"]), int(record["sequence"]))


def choose(records: np.ndarray, wanted: Wanted) -> np.ndarray:
    """Those of a symbol's records that are wanted: ascending by key, the newest `limit`, each once."""
    events = records["ts_event"]
    keep = np.ones(len(records), bool)
    if wanted.kind is not None:
        keep &= records["record_type"] == wanted.kind
    if wanted.from_ns is not None:
        keep &= events >= wanted.from_ns
    if wanted.to_ns is not None:
        keep &= events < wanted.to_ns
    if wanted.before is not None:
        keep &= _below(records, wanted.before)
    return newest(merge([take(records, np.flatnonzero(keep))]), wanted.limit)


def _below(records: np.ndarray, key: Key) -> np.ndarray:
    events, published, sequences = records["ts_event"], records["ts_publish"], records["sequence"]
    same = events == key.ts_event
    earlier = (published < key.ts_publish) | ((published == key.ts_publish) & (sequences < np.uint64(key.sequence)))
    below: np.ndarray = (events < key.ts_event) | (same & earlier)
    return below


def order_of(records: np.ndarray) -> np.ndarray | None:
    """Indices that put records in order and leave out the later of equal keys; None if they are so already."""
    events = records["ts_event"]
    if len(records) < 2 or bool(np.all(events[1:] > events[:-1])):
        return None
    published, sequences = records["ts_publish"], records["sequence"]
    order = np.lexsort((sequences, published, events))  # stable: of equal keys the first stays first
    events, published, sequences = events[order], published[order], sequences[order]
    fresh = np.ones(len(order), bool)
    fresh[1:] = (events[1:] != events[:-1]) | (published[1:] != published[:-1]) | (sequences[1:] != sequences[:-1])
    return np.asarray(order[fresh])


def words(records: np.ndarray) -> np.ndarray:
    """Records as rows of 16 words, shape (n, 16), uint64."""
    return np.ascontiguousarray(records).view(np.uint64).reshape(len(records), RECORD_SIZE_BYTES // 8)


def take(records: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The records at these indices, in that order."""
    taken: np.ndarray = words(records).take(order, axis=0).reshape(-1).view(RECORD)
    return taken
