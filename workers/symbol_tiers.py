"""Symbols that have a tier of their own: which instruments those are, found out as symbols are interned.

Made by workers/ingest.py and workers/points.py from the setting `priorities`; the quality checks read `of_instrument`
and write the record's `priority`. It interns nothing by itself: a symbol that is never seen never gets a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

from shm.layout import Priority
from workers.spec import Tier

INSTRUMENTS: Final = 65536
NONE: Final = 255  # the tier of its type


class SymbolTiers:
    """The tiers of one process.

    Attributes:
        of_instrument: shape (65536,), uint8: a shm.layout.Priority, or NONE.
    """

    def __init__(self, priorities: Mapping[str, Tier], intern: Callable[[str], int]) -> None:
        """`intern` gives a symbol its instrument id."""
        self._tiers = {symbol: Priority[tier.upper()] for symbol, tier in priorities.items()}
        self._intern = intern
        self.of_instrument = np.full(INSTRUMENTS, NONE, np.uint8)

    def intern(self, symbol: str) -> int:
        """As the function it was made with; notes the tier of the instrument."""
        found = self._intern(symbol)
        tier = self._tiers.get(symbol)
        if tier is not None and found < INSTRUMENTS:
            self.of_instrument[found] = tier
        return found
