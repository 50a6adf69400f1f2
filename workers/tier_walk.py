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

from shm.layout import RECORD
from workers.tier import Tier, TierDown, Wanted
from workers.tier_order import merge, newest, order_of, take, words


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


def _narrowed(wanted: Wanted, records: np.ndarray) -> Wanted:
    """What could still change an answer that has these records."""
    if len(records) < wanted.limit:
        return wanted
    oldest_ns = int(records["ts_event"][0])
    return wanted._replace(from_ns=oldest_ns if wanted.from_ns is None else max(oldest_ns, wanted.from_ns))


def _merged(
    records: np.ndarray, origin: np.ndarray, found: np.ndarray, level: int, limit: int
) -> tuple[np.ndarray, np.ndarray]:
    together = np.concatenate([words(records), words(found)]).reshape(-1).view(RECORD)
    origins = np.concatenate([origin, np.full(len(found), level, np.uint8)])
    order = order_of(together)
    if order is None:
        order = np.arange(len(together))
    order = order[max(0, len(order) - limit) :]
    return take(together, order), origins[order]
