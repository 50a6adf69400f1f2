"""The cache's side of the ranking: once a second, from what the latest-value table counts, into the rank table.

Called by workers/cache.py; attaches when the rank table is there, and does nothing without one. It computes nothing
itself (workers/symbol_score.py) and touches no record.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from shm.errors import LayoutMismatch, SegmentMissing
from shm.ranks import RankTable
from workers._cache import Applier
from workers.symbol_score import SymbolScores, Totals

LOOK_NS: Final = 1_000_000_000


class Ranking:
    """Scores of one engine, kept up to date."""

    def __init__(self, engine: str, applier: Applier, instruments: int, ranked: int) -> None:
        """`instruments` entries of the latest-value table; `ranked` symbols rank high, 0 = no scores at all."""
        self._applier, self._ranked = applier, ranked
        self._next_ns = 0
        self._table: RankTable | None = None
        if ranked:
            try:
                self._table = RankTable.attach(engine, write=True)
            except (SegmentMissing, LayoutMismatch):
                return
            instruments = min(instruments, len(self._table.entries))
        self._instruments = instruments
        self._scores = SymbolScores(instruments)
        prices, notionals = np.zeros(instruments), np.zeros(instruments)
        self._columns = Totals(np.zeros(instruments, np.int64), np.zeros(instruments, np.uint64), notionals, prices)

    def look(self, now_ns: int) -> None:
        """Bring the table up to date, if it is a second since that was done."""
        if self._table is None or 0 <= self._next_ns - now_ns <= LOOK_NS:
            return
        self._next_ns = now_ns + LOOK_NS
        entries, scores = self._table.entries[: self._instruments], self._scores
        count = self._applier.activity(*self._columns)
        watchers = entries["zmq_watchers"].astype(np.float64) + entries["http_watchers"]
        scores.look(Totals(*(column[:count] for column in self._columns)), watchers, now_ns / 1e9, self._ranked)
        for name in ("score", "trades", "notional", "move"):
            entries[name] = getattr(scores, name)
        entries["ranked"] = scores.ranked
        self._table.updated_ns = now_ns

    def close(self) -> None:
        """Let go of the table. Safe to call twice."""
        if self._table is not None:
            self._table.close()
            self._table = None
