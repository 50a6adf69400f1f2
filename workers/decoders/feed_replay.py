"""A capture of our own, replayed as its feed was: base of the decoders of such captures, one for each kind of wire.

    frames of a `.jsonl` capture, in order --message--> _take   --> what the live feed has between bytes and records
                                           --NOTE-----> _heed, _hole  --> its connections, answers, decisions; gaps
    records: told (status), then worked off (_work); then the next frame --> source REPLAY, flag REPLAYED, venue code

Derived from it: VenueReplay (workers/venues/venue_replay.py), and PolledReplay, FixReplay and IbkrReplay
(workers/sources/*_replay.py). None of them opens a socket, reads a clock or asks anybody; workers/decoders/capture.py
feeds them. What a line may say is in README.md.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Final

import msgspec
import numpy as np

from shm.layout import RECORD, Flag, Source, StatusCode
from shm.ring import status_record
from workers.decoders.frame_queue import FrameQueue
from workers.decoders.protocol import NOTE, UnknownFormatError
from workers.errors import SettingsError
from workers.spec import FeedSpec

_REPLAYED: Final = np.uint16(Flag.REPLAYED)
_UNUSABLE: Final = (msgspec.MsgspecError, LookupError, ValueError, RecursionError)


class Line(msgspec.Struct):
    """A line that is no message: what is read of it. See "The `.jsonl` capture" in README.md; times in ns."""

    t: str
    conn: str = ""
    ns: int = 0
    again: bool = False
    kept: bool = False
    status: int = 0
    messages: int = 0
    data: str = ""
    b64: str = ""


_line: Final = msgspec.json.Decoder(Line)


class FeedReplay(FrameQueue):
    """All of a `Decoder` but its counters."""

    WIRE: ClassVar[str]  # for people: what the capture holds
    DAMAGEABLE: ClassVar[bool] = True  # messages of it may be dropped, corrupted and the like on purpose
    venue: str  # for people: whose

    def __init__(self, feed_id: int, venue: str | None) -> None:
        """`venue`: code of the records instead of their own."""
        super().__init__()
        self._feed_id = feed_id
        self._code = venue.encode() if venue is not None else None
        self._told: deque[bytes] = deque()  # records that come next
        self._gaps = 0  # told here
        self._unusable = 0  # lines

    def decode(self, out: np.ndarray) -> int:
        """See `Decoder.decode`."""
        filled = 0
        while filled < len(out):
            if self._told:
                count = min(len(out) - filled, len(self._told))
                rows = b"".join([self._told.popleft() for _ in range(count)])
                out[filled : filled + count].view(np.uint8)[:] = np.frombuffer(rows, np.uint8)
                filled += count
            elif got := self._work(out[filled:]):
                filled += got
            elif not self._turn():
                break
        if filled:
            self._stamp(out[:filled])
        return filled

    # -- for those who derive

    def _work(self, out: np.ndarray) -> int:  # noqa: ARG002 - for those who have such
        """Records of what was taken up before, as far as there is room; 0 = there are no more."""
        return 0

    def _take(self, data: bytes, ts_receive: int, connection: int) -> None:
        """A message of the venue."""
        raise NotImplementedError

    def _heed(self, line: Line) -> None:
        """Any other line. Whatever it raises of _UNUSABLE is counted in `_unusable`."""
        raise NotImplementedError

    def _hole(self, text: str, at_ns: int) -> None:
        """Here the recorder had to drop messages."""
        self._tell_gap(text, at_ns)

    def _turn(self) -> bool:
        """The next frame's turn; False = there is none."""
        head = self._head()
        if head is None:
            return False
        data = self._pop()
        if head.kind != NOTE:
            self._take(data, head.ts_receive, head.port)
            return True
        try:
            line = _line.decode(data)
            if line.t == "dropped":
                self._hole(f"{line.messages} messages not captured", line.ns)
            else:
                self._heed(line)
        except _UNUSABLE:
            self._unusable += 1
        return True

    def _stamp(self, records: np.ndarray) -> None:
        """What all records of a replay have; they are complete but for that."""
        records["source"] = Source.REPLAY
        records["flags"] |= _REPLAYED
        if self._code is not None:
            records["venue"] = self._code

    def _tell_gap(self, text: str, at_ns: int) -> None:
        """A GAP comes next, and is counted in `_gaps`."""
        self._gaps += 1
        record = status_record(StatusCode.GAP, text=text, feed_id=self._feed_id, source=Source.REPLAY, ts_event=at_ns)
        row = np.frombuffer(record, RECORD).copy()
        row["ts_receive"] = at_ns
        self._told.append(row.tobytes())


@contextmanager
def reading_header() -> Iterator[None]:
    """What is wrong with a capture's header is an UnknownFormatError that says so."""
    try:
        yield
    except (SettingsError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise UnknownFormatError(f"the capture's header names a feed that can't be decoded here: {error}") from None


def spec_of(
    captured: Mapping[str, Any], feed_id: int, *, source: str, without: tuple[str, ...] = (), **more: Any
) -> FeedSpec:
    """The feed as it was configured, of source `source`. `without`: options that no record depends on; `more`: others.

    For use in `reading_header`.
    """
    options = {key: value for key, value in captured["options"].items() if key not in without}
    return FeedSpec(
        feed_id=feed_id,
        name=str(captured["name"]),
        source=source,
        symbols=tuple(captured["symbols"]),
        data_types=tuple(captured["data_types"]),
        options={**options, **more},
    )
