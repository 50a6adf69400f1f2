"""Records in the order of the tiers: by time, then when they were published, then sequence. See workers.tier.Key.

Used by the stores' reading sides to turn what they found into what was asked for.
"""

from __future__ import annotations

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, empty
from workers.tier import Wanted


def newest(records: np.ndarray, wanted: Wanted) -> np.ndarray:
    """The newest `limit` of `records` (dtype RECORD, any order) that are wanted, each key once, ascending by key."""
    event = records["ts_event"]
    keep = np.ones(len(records), bool)
    if wanted.kind is not None:
        keep &= records["record_type"] == wanted.kind
    if wanted.from_ns is not None:
        keep &= event >= wanted.from_ns
    if wanted.to_ns is not None:
        keep &= event < wanted.to_ns
    if wanted.before is not None:
        at, publish, sequence = wanted.before
        publish_ns, numbers = records["ts_publish"], records["sequence"]
        same_event = event == at
        same_both = same_event & (publish_ns == publish)
        keep &= (event < at) | (same_event & (publish_ns < publish)) | (same_both & (numbers < sequence))
    found = np.flatnonzero(keep)
    order = found[np.lexsort((records["sequence"][found], records["ts_publish"][found], event[found]))]
    if len(order) > 1:
        chosen = records[["ts_event", "ts_publish", "sequence"]][order]
        order = order[np.concatenate(([True], chosen[1:] != chosen[:-1]))]
    order = order[-wanted.limit :]
    if not len(order):
        return empty(0)
    rows = np.ascontiguousarray(records).view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)
    return np.ascontiguousarray(rows[order]).reshape(-1).view(RECORD)
