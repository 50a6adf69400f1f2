"""Where a FIX feed is in the venue's numbers: what it has worked off, handed out, and knows to be in the ring.

    reached      every message below it is worked off
    handed out   the same at the end of the last poll; at the next one its records are in the ring: the file is told

What a kill leaves between ring and file is settled at the next start by the ring: the newest record of this feed there
says which message it came from, and whether it was its last. Kept by workers/sources/fix.py and
fix_intake.py; it sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from shm.layout import RECORD
from workers.fix_numbers import Numbers
from workers.resume import Newest


class Place:
    """See the module. `reached` is set by the owner.

    `skip`: number of a message and how many of its records are in the ring already; (0, 0) = there is none.
    """

    def __init__(self, numbers: Numbers, newest: Callable[[int, int], Newest | None] | None) -> None:
        """Bring the stored number to where the ring is (`newest`: workers.source.SourceContext)."""
        self._numbers = numbers
        self.skip = (0, 0)
        found = newest(numbers.settled_ns, numbers.reset_ns) if newest is not None else None
        if found is not None and found.source_sequence >= numbers.next_in:
            numbers.settle(found.source_sequence + found.complete, numbers.settled_ns)
            if not found.complete:
                self.skip = (found.source_sequence, found.records)
        self.reached = self._handed_out = numbers.next_in

    def settle(self, now_ns: int) -> None:
        """A poll begins, or the feed is closed: what the last poll handed out is in the ring."""
        if self._numbers.next_in != self._handed_out:
            self._numbers.settle(self._handed_out, now_ns)

    def hand_out(self) -> None:
        """A poll ends."""
        self._handed_out = self.reached

    def without_published(self, records: np.ndarray) -> np.ndarray:
        """Leave out what a killed worker had published of the message that it was at. Works in place."""
        number, left = self.skip
        if not left:
            return records
        same = np.flatnonzero(records["source_sequence"] == number)
        dropped = min(left, len(same))
        beyond = bool((records["source_sequence"] != number).any())
        self.skip = (number, 0 if beyond else left - dropped)
        if not dropped:
            return records
        kept = np.ones(len(records), bool)
        kept[same[:dropped]] = False
        rows = records.view(np.uint8).reshape(len(records), RECORD.itemsize)
        rows[: int(kept.sum())] = rows[kept]
        return records[: int(kept.sum())]
