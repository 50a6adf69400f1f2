"""Records that carry their own proof: made so that a torn, stale, repeated or misplaced one shows itself.

A sealed record holds its number in `source_sequence`; every other word that a ring does not touch is derived from that
number, and the last word is the exclusive or of them all. A pool of PERIOD of them is published over and over, in
order, so that sequence s must carry number (s - 1) % PERIOD; PERIOD is prime, so a slot differs from lap to lap.
"""

from __future__ import annotations

import numpy as np

from shm.layout import RecordType, empty

PERIOD = 4093
_WORDS = 16
_FREE = (1, 2, *range(5, 15))  # not sequence, ts_publish, nor the word with flags; 15 is the seal
_NUMBER = 5


def sealed(count: int = PERIOD, first: int = 0) -> np.ndarray:
    """`count` records numbered from `first` modulo PERIOD, shape (count,), dtype RECORD."""
    records = empty(count)
    words = records.view(np.uint64).reshape(count, _WORDS)
    number = ((first + np.arange(count)) % PERIOD).astype(np.uint64)
    records["record_type"] = RecordType.TRADE
    seal = np.zeros(count, np.uint64)
    for column in _FREE:
        words[:, column] = number * np.uint64(0x9E3779B97F4A7C15 + 2 * column) + np.uint64(column)
        if column == _NUMBER:
            words[:, column] = number
        seal ^= words[:, column]
    words[:, _WORDS - 1] = seal
    return records


def broken(records: np.ndarray) -> int:
    """How many of the records read from a ring are not what was published under their sequence."""
    words = records.view(np.uint64).reshape(len(records), _WORDS)
    seal = words[:, _WORDS - 1].copy()
    for column in _FREE:
        seal ^= words[:, column]
    wrong = (seal != 0) | (words[:, _NUMBER] != (words[:, 0] - np.uint64(1)) % np.uint64(PERIOD))
    return int(np.count_nonzero(wrong))
