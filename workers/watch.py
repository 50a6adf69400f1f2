"""Fan-out's side of the ranking: who subscribed to a symbol by name goes in, which symbols rank high comes out.

Called by workers/listeners.py when subscriptions change, and about once a second. It keeps nothing: what counts is in
the rank table (shm/ranks.py), and without one it does nothing. No record is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import numpy as np

from shm.errors import LayoutMismatch, NotAllowed, SegmentMissing
from shm.ranks import RankTable
from workers.wire import PREFIX, SYMBOL_TYPES, symbol_topic

LOOK_NS: Final = 1_000_000_000
MOST_AT_ONCE: Final = 1000  # topics looked up at a time; of more that change at once the others do not count


class Watch:
    """One fan-out's. `find` gives the instrument id of a symbol, None if it was never seen."""

    def __init__(self, engine: str, find: Callable[[str], int | None]) -> None:
        """Attach to the rank table if there is one."""
        self._find = find
        self._next_ns = 0
        self._table: RankTable | None = None
        try:
            self._table = RankTable.attach(engine, write=True)
        except (SegmentMissing, LayoutMismatch, NotAllowed):
            pass

    def note(self, changed: Iterable[bytes], listeners: Callable[[bytes], int]) -> None:
        """Topics got their first or lost their last listener: count those of their symbols anew.

        `listeners` says how many have subscribed to exactly this topic.
        """
        if self._table is None:
            return
        for topic in list(changed)[:MOST_AT_ONCE]:
            kind, _, symbol = topic.decode("utf-8", "replace").removeprefix(PREFIX).partition(".")
            found = self._find(symbol) if kind and symbol and len(symbol.encode()) <= 32 else None
            if found is not None and found < len(self._table.entries):
                topics = [symbol_topic(each, symbol).encode() for each in SYMBOL_TYPES]
                self._table.entries["zmq_watchers"][found] = sum(map(listeners, topics))

    def look(self, now_ns: int, ranked: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Bring `ranked` (uint8, by instrument id) up to date, if it is a second since that was done."""
        if self._table is None or 0 <= self._next_ns - now_ns <= LOOK_NS:
            return
        self._next_ns = now_ns + LOOK_NS
        entries = self._table.entries[: len(ranked)]
        ranked[: len(entries)] = entries["ranked"]

    def close(self) -> None:
        """Let go of the table. Safe to call twice."""
        if self._table is not None:
            self._table.close()
            self._table = None
