"""The control process's side of the ranking: who watches a symbol goes in, scores come out for GET /symbols.

Called by engine/observer.py once a second and by engine/http.py. The scores themselves are the cache's to compute
(workers/symbol_score.py); this reads and writes the rank table (shm/ranks.py) and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from engine.data_bodies import SymbolScore
from engine.store import StoredSubscription
from shm.ranks import RankTable

WEIGHTS: Final = {"high": 3, "normal": 2, "low": 1}  # what a subscription counts for as a watcher


class Watchers:
    """Who watches which symbol, as far as POST /subscriptions tells; looked up again when that changes."""

    def __init__(self, find: Callable[[str], int | None], ranks: RankTable) -> None:
        """`find` gives the instrument id of a symbol, None if it was never seen."""
        self._find, self._ranks = find, ranks
        self._seen: tuple[StoredSubscription, ...] = ()
        self._known = -1

    def note(self, subscriptions: Iterable[StoredSubscription], known: int) -> None:
        """Say which symbols active subscriptions name, by their priority; what a wildcard takes is no preference.

        `known`: how many symbols have been seen so far.
        """
        now = tuple(subscriptions)
        same = len(now) == len(self._seen) and all(a is b for a, b in zip(now, self._seen, strict=True))
        if (same and known == self._known) or (not now and not self._seen):
            return
        self._seen, self._known = now, known
        watchers = np.zeros(len(self._ranks.entries), np.uint32)
        for subscription in now:
            if subscription.is_active:
                for symbol in subscription.symbols:
                    found = self._find(symbol) if not symbol.endswith("*") else None
                    if found is not None and found < len(watchers):
                        watchers[found] += WEIGHTS[subscription.priority]
        self._ranks.entries["http_watchers"] = watchers


def symbol_scores(symbols: list[str], ranks: RankTable) -> list[SymbolScore]:
    """Of each symbol, by instrument id, the highest score first; 0 for those that the table has no room for."""
    entries = ranks.entries.copy()[: len(symbols)]
    found = [
        SymbolScore(
            symbol=symbol,
            score=entry["score"].item(),
            ranked=bool(entry["ranked"]),
            trades=entry["trades"].item(),
            notional=entry["notional"].item(),
            move=entry["move"].item(),
            watchers=int(entry["zmq_watchers"]) + int(entry["http_watchers"]),
        )
        for symbol, entry in zip(symbols, entries, strict=False)
    ]
    found += [
        SymbolScore(symbol=symbol, score=0.0, ranked=False, trades=0.0, notional=0.0, move=0.0, watchers=0)
        for symbol in symbols[len(entries) :]
    ]
    return sorted(found, key=lambda one: -one.score)
