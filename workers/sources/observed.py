"""What a polled feed has published already, so that no answer of the vendor's is published twice, whatever restarts.

    answer --sift--> what is new or corrected --poll--> ring --published--> memory of the process --keep--> file

A file of SQLite per feed: series, key (the time an observation speaks of), vintage, digest of its values. It is written
after the ring has the records; what a kill left in between stands in the ring, where the source looks when it starts.
After a power cut the last answer may come twice, never is one lost.

Used by workers/sources/polled.py in a thread of its own, one call at a time. Never asks the vendor, knows no clock.
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np

from shm.layout import HEAD_SIZE_BYTES, RECORD, Flag
from workers.decoders.observations import Observations
from workers.errors import SourceError

MAX_KEPT: Final = 1_000_000  # observations of one series; beyond it those of the earliest times are forgotten
_FORGET: Final = 0.9  # of MAX_KEPT stay then
_SCHEMA: Final = """
    CREATE TABLE IF NOT EXISTS observed (
        series TEXT NOT NULL, key INTEGER NOT NULL, vintage INTEGER NOT NULL, digest INTEGER NOT NULL,
        PRIMARY KEY (series, key, vintage)) WITHOUT ROWID
"""


@dataclass
class Series:
    """What is known of one series. `newest` is the latest key, None = it has never brought anything."""

    name: str
    digests: dict[tuple[int, int], int] = field(default_factory=dict)
    keys: set[int] = field(default_factory=set)
    newest: int | None = None

    def learn(self, key: int, vintage: int, digest: int) -> None:
        """One observation."""
        self.digests[key, vintage] = digest
        self.keys.add(key)
        self.newest = key if self.newest is None else max(self.newest, key)


class Observed:
    """The memory of one feed. Close it when done."""

    def __init__(self, folder: Path | None, feed: str) -> None:
        """Open or make the feed's file in `folder`; None: nothing outlives the process.

        SourceError if it can't be used.
        """
        digest = hashlib.sha256(feed.encode()).hexdigest()[:8]
        name = f"{re.sub(r'[^A-Za-z0-9_-]+', '_', feed)[:40]}-{digest}.sqlite"
        self.path = folder / name if folder is not None else Path(":memory:")
        self._lock = threading.Lock()
        self._series: dict[str, Series] = {}
        try:
            if folder is not None:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._file = sqlite3.connect(self.path, timeout=1.0, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise SourceError(
                f"memory of what was published, {self.path}: {error}; without the file all would be published again"
            ) from error

    def is_new(self, name: str) -> bool:
        """Whether a series has never brought anything."""
        with self._lock:
            return self._known(name).newest is None

    def sift(self, name: str, found: Observations, *, history: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Which of an answer's records are to be published, in order: (rows, flags to add to each).

        CORRECTED: another value was published for that time. BACKFILLED: it is older than the newest that was, or, with
        `history`, part of what there was before the feed.
        """
        with self._lock:
            series = self._known(name)
            newest, digests = series.newest, digests_of(found.records)
            rows: list[int] = []
            flags: list[int] = []
            here: set[int] = set()
            for row, (key, vintage) in enumerate(zip(found.keys.tolist(), found.vintages.tolist(), strict=True)):
                known = series.digests.get((key, vintage))
                before = key in series.keys or key in here
                here.add(key)
                if known == digests[row]:
                    continue
                flag = Flag.CORRECTED if before and not found.live else Flag(0)
                if history or (newest is not None and key < newest):
                    flag |= Flag.BACKFILLED
                rows.append(row)
                flags.append(int(flag))
        return np.array(rows, np.intp), np.array(flags, np.uint16)

    def published(self, name: str, records: np.ndarray, keys: Iterable[int], vintages: Iterable[int]) -> None:
        """The ring has these: write it down. SourceError if that fails."""
        with self._lock:
            series = self._known(name)
            rows = [
                (name, key, vintage, digest)
                for key, vintage, digest in zip(keys, vintages, digests_of(records), strict=True)
            ]
            for _, key, vintage, digest in rows:
                series.learn(key, vintage, digest)
            try:
                self._file.execute("BEGIN")
                self._file.executemany("INSERT OR REPLACE INTO observed VALUES (?, ?, ?, ?)", rows)
                if len(series.digests) > MAX_KEPT:
                    self._forget(series)
                self._file.execute("COMMIT")
            except sqlite3.Error as error:
                if self._file.in_transaction:
                    self._file.execute("ROLLBACK")
                raise SourceError(f"memory of what was published, {self.path}: {error}") from error

    def close(self) -> None:
        """Waits for a call that is under way. Safe to call twice."""
        with self._lock:
            self._file.close()

    def _known(self, name: str) -> Series:
        series = self._series.get(name)
        if series is None:
            series = Series(name)
            try:
                rows = self._file.execute("SELECT key, vintage, digest FROM observed WHERE series = ?", (name,))
                for key, vintage, digest in rows:
                    series.learn(key, vintage, digest)
            except sqlite3.Error as error:
                raise SourceError(f"memory of what was published, {self.path}: {error}") from error
            self._series[name] = series
        return series

    def _forget(self, series: Series) -> None:
        kept = sorted(series.digests)[-int(_FORGET * MAX_KEPT) :]
        self._file.execute("DELETE FROM observed WHERE series = ? AND key < ?", (series.name, kept[0][0]))
        series.digests = {known: digest for known, digest in series.digests.items() if known[0] >= kept[0][0]}
        series.keys = {key for key, _ in series.digests}


def digests_of(records: np.ndarray) -> list[int]:
    """What stands for the values of each record: its body, without times, flags and numbers."""
    raw = np.ascontiguousarray(records.view(np.uint8).reshape(-1, RECORD.itemsize)[:, HEAD_SIZE_BYTES:])
    return [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little", signed=True) for row in raw]
