"""How much a symbol matters now: an online score out of trades, turnover, movement and who watches it.

Pure: totals and the time in, scores out. The cache process (workers/ranking.py) calls it once a second with what the
latest-value table counts anyway, so that a record costs nothing for it.

    score = activity + interest                                            0 to 2
    activity  mean of sqrt(trades), sqrt(notional) and sqrt(move), each divided by that of the symbol that has most
    interest  watchers / (watchers + 1)

    trades, notional, move    sums of what is new at each look, halved every HALF_LIFE_S: the number of trades, price
                              times size, and |p - q| / q of the last prices p now and q at the look before. The root
                              keeps one giant from making all others look alike
    watchers                  subscriptions that name the symbol: ZeroMQ topics, POST /subscriptions

The `count` symbols of highest score above 0 are ranked: under overload their quotes go first, and their levels and bars
are not shed (workers/relief.py). One that is ranked stays so until another has a tenth more: no flicker at the edge.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

HALF_LIFE_S: Final = 60.0
STAYS: Final = 1.1  # what a ranked symbol's score counts for when the ranked are chosen


class Totals(NamedTuple):
    """Of each instrument, by id, arrays of one length: since the day began, as the latest-value table has them.

    Attributes:
        day: days since 1970-01-01; with another day the others begin anew.
        trades, notional: how many, and the sum of price times size.
        price: the last one; NaN or 0 = none.
    """

    day: np.ndarray
    trades: np.ndarray
    notional: np.ndarray
    price: np.ndarray


class SymbolScores:
    """The scores of all instruments.

    Attributes:
        score, trades, notional, move: shape (instruments,), float64.
        ranked: shape (instruments,), bool.
    """

    def __init__(self, instruments: int) -> None:
        """Nothing is known of any."""
        self.score, self.trades, self.notional, self.move = (np.zeros(instruments) for _ in range(4))
        self.ranked = np.zeros(instruments, bool)
        self._before: Totals | None = None
        self._now_s = 0.0

    def look(self, totals: Totals, watchers: np.ndarray, now_s: float, count: int) -> None:
        """Take in a look at the totals; the first only begins.

        Args:
            totals: of instruments 0 to n - 1.
            watchers: of all instruments.
            now_s: monotonic.
            count: how many may be ranked.
        """
        if self._before is not None:
            fade = 0.5 ** (max(0.0, now_s - self._now_s) / HALF_LIFE_S)
            self.trades *= fade
            self.notional *= fade
            self.move *= fade
            self._add(self._before, totals)
        self._before = Totals(*(column.copy() for column in totals))
        self._now_s = now_s
        parts = [_share(part) for part in (self.trades, self.notional, self.move)]
        self.score = np.add.reduce(parts) / 3 + watchers / (watchers + 1.0)
        self._rank(count)

    def _add(self, before: Totals, now: Totals) -> None:
        known, n = len(before.day), len(now.day)
        same = before.day == now.day[:known]
        for into, old, new in (
            (self.trades, before.trades, now.trades),
            (self.notional, before.notional, now.notional),
        ):
            grown = new.astype(np.float64)
            grown[:known] -= np.where(same, old, 0)
            into[:n] += np.maximum(np.nan_to_num(grown, nan=0.0, posinf=0.0, neginf=0.0), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            moved = np.abs(now.price[:known] - before.price) / np.abs(before.price)
        self.move[:known] += np.where(np.isfinite(moved), moved, 0.0)

    def _rank(self, count: int) -> None:
        lasting = np.where(self.ranked, self.score * STAYS, self.score)
        chosen = np.zeros(len(lasting), bool)
        count = min(count, int(np.count_nonzero(lasting > 0)))
        if count:
            chosen[np.argpartition(-lasting, count - 1)[:count]] = True
        self.ranked = chosen


def _share(part: np.ndarray) -> np.ndarray:
    """Roots, as fractions of the greatest."""
    most = part.max(initial=0.0)
    return np.sqrt(part / most) if most > 0 else part * 0.0
