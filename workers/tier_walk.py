"""Walks the tiers below L1 for one answer: the newest records of a symbol, merged by key, each once.

Called by workers/historian.py. What decides is pure: tiers and time are passed in. The rule that makes an answer exact:

    L1's records come first; each store is then asked only for what could still change the answer. Once `limit`
    records are there, that is what is not older than the oldest of them: nearly always nothing, which a store tells
    from its statistics or its index.

So it does not matter which store holds what, whether one lags behind or which are restored from a copy. A store that
is down is left out and named; the others answer. No store is asked once the time for the answer is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers.tier import Key, Tier, TierDown, Wanted


class Walked(NamedTuple):
    """An answer. Levels are "L1", "L2", "L3"."""

    records: np.ndarray  # dtype RECORD, ascending by key, no two with the same
    asked: tuple[str, ...]  # levels that answered while records were still missing, L1 not counted
    gave: tuple[str, ...]  # levels of which a record is in `records` that none before them had
    missing: tuple[str, ...]  # "L3 postgresql: why"


def walk(tiers: Iterable[Tier], wanted: Wanted, newer: np.ndarray, out_of_time: Callable[[], bool]) -> Walked:
    """The newest `wanted.limit` records of `newer` (L1's, any order) and of all tiers."""
    records = newest(merge([newer]), wanted.limit)
    origin = np.zeros(len(records), np.uint8)  # index into `levels`
    levels = ["L1"]
    asked: list[str] = []
    missing: list[str] = []
    for tier in tiers:
        if out_of_time():
            missing.append(f"{tier.level} {tier.name}: no time was left for it")
            continue
        try:
            found = tier.read(_narrowed(wanted, records))
        except TierDown as error:
            missing.append(f"{tier.level} {tier.name}: {error}")
            continue
        if len(records) < wanted.limit and tier.level not in asked:
            asked.append(tier.level)
        levels.append(tier.level)
        if len(found):
            records, origin = _merged(records, origin, found, len(levels) - 1, wanted.limit)
    gave = {levels[index] for index in np.unique(origin).tolist()}
    return Walked(records, tuple(asked), tuple(sorted(gave)), tuple(missing))


def merge(pieces: list[np.ndarray]) -> np.ndarray:
    """Records of any number of pieces, ascending by key, each key once (of equal ones the first piece's)."""
    words = np.concatenate([_words(piece) for piece in pieces]) if pieces else np.empty((0, 16), np.uint64)
    records = words.reshape(-1).view(RECORD)
    order = _order(records)
    merged: np.ndarray = _take(records, order) if order is not None else records
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
    return newest(merge([_take(records, np.flatnonzero(keep))]), wanted.limit)


def _below(records: np.ndarray, key: Key) -> np.ndarray:
    events, published, sequences = records["ts_event"], records["ts_publish"], records["sequence"]
    same = events == key.ts_event
    earlier = (published < key.ts_publish) | ((published == key.ts_publish) & (sequences < np.uint64(key.sequence)))
    below: np.ndarray = (events < key.ts_event) | (same & earlier)
    return below


def _narrowed(wanted: Wanted, records: np.ndarray) -> Wanted:
    """What could still change an answer that has these records."""
    if len(records) < wanted.limit:
        return wanted
    oldest_ns = int(records["ts_event"][0])
    return wanted._replace(from_ns=oldest_ns if wanted.from_ns is None else max(oldest_ns, wanted.from_ns))


def _merged(
    records: np.ndarray, origin: np.ndarray, found: np.ndarray, level: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    together = np.concatenate([_words(records), _words(found)]).reshape(-1).view(RECORD)
    origins = np.concatenate([origin, np.full(len(found), level, np.uint8)])
    order = _order(together)
    if order is None:
        order = np.arange(len(together))
    order = order[max(0, len(order) - limit) :]
    return _take(together, order), origins[order]


def _order(records: np.ndarray) -> np.ndarray | None:
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


def _words(records: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(records).view(np.uint64).reshape(len(records), RECORD_SIZE_BYTES // 8)


def _take(records: np.ndarray, order: np.ndarray) -> np.ndarray:
    taken: np.ndarray = _words(records).take(order, axis=0).reshape(-1).view(RECORD)
    return taken
