"""What a plug-in has handed out, checked before it goes on: a record that can't be right is left out, and why is said.

Called by workers/sources/hosted.py with every batch. Quality (workers/quality.py) judges what is odd; here is only what
no working source would write: a type that there is not, an instrument that was never interned, a price that is none.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from shm.layout import NO_INSTRUMENT, Action, RecordType, Side, StatusCode

EARLIEST_NS: Final = 100_000_000_000_000_000  # 1973: less is seconds, milliseconds or microseconds
AHEAD_NS: Final = 86_400_000_000_000


class Fault(NamedTuple):
    """One kind of wrong record: the field, what is wrong with it, how many."""

    field: str
    what: str
    records: int

    def __str__(self) -> str:
        """For people."""
        return f"{self.field} {self.what}" + (f" ({self.records} records)" if self.records > 1 else "")


class Interned:
    """Which instrument ids one plug-in has been given."""

    def __init__(self) -> None:
        """None yet."""
        self._known = np.zeros(64, dtype=bool)
        self.count = 0

    def add(self, instrument_id: int) -> None:
        """This one is its now."""
        while instrument_id >= len(self._known):
            self._known = np.concatenate((self._known, np.zeros(len(self._known), dtype=bool)))
        self.count += not self._known[instrument_id]
        self._known[instrument_id] = True

    def are(self, ids: np.ndarray) -> np.ndarray:
        """Which of these ids it has been given."""
        known: np.ndarray = self._known[np.minimum(ids, len(self._known) - 1)] & (ids < len(self._known))
        return known


def examine(records: np.ndarray, interned: Interned, now_ns: int) -> tuple[np.ndarray | None, list[Fault]]:
    """(mask of the usable ones, what is wrong with the others); the mask is None when all are usable."""
    good = np.ones(len(records), dtype=bool)
    faults: list[Fault] = []

    def refuse(bad: np.ndarray, field: str, what: str) -> None:
        nonlocal good
        bad &= good
        if count := int(np.count_nonzero(bad)):
            value = records[field][int(np.argmax(bad))]
            faults.append(Fault(field, f"is {value!s}: {what}", count))
            good &= ~bad

    types = records["record_type"]
    status = types == RecordType.STATUS
    refuse((types == 0) | (types > RecordType.STATUS), "record_type", "1 to 6 are records, 7 a gap")
    refuse(status & (records["code"] != StatusCode.GAP), "code", "of status records a plug-in makes only GAP")
    ids = records["instrument_id"]
    nobody = status & (ids == NO_INSTRUMENT)
    refuse(~interned.are(ids) & ~nobody, "instrument_id", "not one that this source has interned")
    refuse(records["side"] > Side.SELL, "side", "0 none, 1 buy, 2 sell")
    for field in ("ts_event", "ts_receive"):
        times = records[field]
        refuse((times != 0) & (times < EARLIEST_NS), field, "times are nanoseconds since 1970")
        refuse(times > now_ns + AHEAD_NS, field, "more than a day ahead")
    prices = np.isfinite(records["price"])  # at the same offset: bid of a quote, open of a bar
    prints = (types == RecordType.TICK) | (types == RecordType.TRADE)
    refuse(prints & ~prices, "price", "a price is a finite number")
    levels = types == RecordType.LEVEL2
    if levels.any():
        refuse(levels & (records["action"] > Action.EXECUTE), "action", "see shm.layout.Action")
        refuse(levels & ~prices & (records["action"] != Action.CLEAR), "price", "a price is a finite number")
    quotes = types == RecordType.QUOTE
    if quotes.any():
        asks = records["ask"]
        refuse(quotes & (np.isinf(records["bid"]) | np.isinf(asks)), "bid", "bid and ask are numbers; NaN = none")
        refuse(quotes & ~prices & np.isnan(asks), "bid", "and so is ask: a quote has at least one of them")
    bars = types == RecordType.BAR
    if bars.any():
        for field in ("open", "high", "low", "close"):
            refuse(bars & ~np.isfinite(records[field]), field, "a price is a finite number")
        refuse(bars & (records["interval_s"] == 0), "interval_s", "a bar has a length in seconds")
    return (None if not faults else good), faults
