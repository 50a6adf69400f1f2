"""One capture file of a replay, or the parts of one capture: the records that its feed wants, batch by batch, damage
and counters included.

Made by the replay source (`replay.py`), which decides when a file is opened and in which order records of several files
go out (`merge.py`). Knows no pace and no other file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from shm.layout import empty
from workers.decoders.capture import Capture, open_capture
from workers.decoders.protocol import FramingError
from workers.source import SourceContext
from workers.sources.faults import FaultInjector, ReplayFaults
from workers.sources.selection import Selection

log = logging.getLogger("replay")

COUNT_EVERY: Final = 64  # batches, the first among them
WORTH_COUNTING: Final = 256  # records in one
REST_BYTES: Final = 1 << 20  # of input without a record, or ...
REST_RECORDS: Final = 1 << 16  # ... so many that nobody wants: then the caller's other work has its turn
_PROBE_SLOTS: Final = 64

OnCount = Callable[[int, int, int], None]  # errors, gaps, bytes that have come since the last call


class ReplayFile:
    """A file from its begin to its end; `ended` says that it is there.

    Opening raises OSError, SettingsError or DecodeError.
    """

    def __init__(
        self,
        parts: tuple[Path, ...],
        context: SourceContext,
        selection: Selection,
        options: Mapping[str, Any],
        *,
        number: int = 0,
        faults: ReplayFaults | None = None,
        counted: OnCount,
        ended: Callable[[ReplayFile], None],
    ) -> None:
        """`selection` tells what the feed wants, `options` are the decoder's; `ended` is called at the file's end.

        `parts`: a file, or those of one capture, decoded as one. `faults`: what is damaged, told apart by `number`.
        """
        self.path = parts[0]  # the one in hand
        self.ended = False
        self._parts = parts
        self._part = 0
        self._context = context
        self._options = options
        self._number = number
        self._faults = faults
        self._injector: FaultInjector | None = None
        self._feed = context.spec.name
        self._selection = selection
        self._counted = counted
        self._at_end = ended
        self._before = (0, 0, 0)  # what `counted` has been told
        self._damaged = self._turn = 0
        self.waiting = 0  # of the records read last, how many are kept back; whoever does so says it here
        self._read = 0  # how many those were
        self._begun_share = 0.0  # of the file, before them
        self._capture = self._open(None)

    def read(self, into: np.ndarray) -> np.ndarray:
        """The next wanted records, at the start of `into`; none if the file has `ended`, and is closed, or to go on
        later: what has much in it that nobody wants is not read in one go."""
        self._begun_share, self.waiting = (self._part + self._capture.progress) / len(self._parts), 0
        passed = 0
        while True:
            over = False
            try:
                count = self._capture.decode(into, input_bytes=REST_BYTES)
                over = self._capture.done and not count
            except FramingError as error:
                # Nothing after the damage can be read; what stood before it has been handed out.
                log.warning("feed %s: %s: %s; the rest of the file is left out", self._feed, self.path.name, error)
                count, over = 0, True
                self._damaged += 1
            # The decoders' counters are copied, which costs more than a small batch; a large one, paced, lasts long.
            if over or count >= WORTH_COUNTING or self._turn % COUNT_EVERY == 0:
                self._count()
            self._turn += 1
            if over:
                self.close()
                if self._part + 1 < len(self._parts):
                    self._part += 1
                    self.path = self._parts[self._part]
                    self._capture = self._open(self._capture)
                else:
                    self.ended = True
                    self._at_end(self)
                return into[:0]
            batch = self._selection.keep(into[:count])
            if len(batch):
                self._read = len(batch)
                return batch
            passed += count
            if not count or passed >= REST_RECORDS:
                return into[:0]

    @property
    def progress(self) -> float:
        """How much of the file has been decoded and is not waiting, 0 to 1."""
        end = (self._part + self._capture.progress) / len(self._parts)
        return end - (end - self._begun_share) * self.waiting / self._read if self.waiting else end

    def close(self) -> None:
        """Let go of the file. Safe to call twice."""
        self._capture.close()
        if self._faults is not None and self._injector is not None:
            self._faults.ended(self._injector)
            self._injector = None

    def _open(self, after: Capture | None) -> Capture:
        """The part in hand, which goes on from the part before it."""
        if self._faults is not None:
            self._injector = self._faults.of_file(self._number << 20 | self._part)
        return open_capture(
            self.path,
            intern=self._context.intern,
            options=self._options or None,
            feed_id=self._context.spec.feed_id,
            after=after,
            faults=self._injector,
        )

    def _count(self) -> None:
        if self._faults is not None:
            self._faults.show()
        counters = self._capture.counters
        now = (sum(counters.malformed.values()) + self._damaged, counters.gaps, counters.bytes)
        self._counted(*(new - old for new, old in zip(now, self._before, strict=True)))
        self._before = now


def recorded_ns(batch: np.ndarray) -> np.ndarray:
    """The time by which records are paced and merged, int64 ns: of receipt, or the venue's where there is none."""
    recorded: np.ndarray = np.where(batch["ts_receive"] != 0, batch["ts_receive"], batch["ts_event"])
    return recorded


def first_recorded_ns(path: Path, options: Mapping[str, Any]) -> int:
    """When the first message of a file was received, or else when its first record was; 0 = neither is known.

    No record of it is earlier, but for disorder. Raises what opening the file raises. Reads no further than it must.
    """
    out = empty(_PROBE_SLOTS)
    with open_capture(path, intern=lambda _: 0, options=options or None) as capture:
        try:
            received_ns = capture.first_received_ns()
            count = 0 if received_ns else capture.decode(out)
        except FramingError:  # told when its turn comes
            return 0
    if received_ns:
        return received_ns
    times = recorded_ns(out[:count])
    timed = times[times != 0]
    return int(timed[0]) if len(timed) else 0
