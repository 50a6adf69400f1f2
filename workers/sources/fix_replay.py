"""A capture of a live FIX feed, decoded as the feed was: the same session, numbers, requests and decoder, in its order.

    frames of a `.jsonl` capture --> FixIntake (fix_intake.py), as live --> records, flag REPLAYED

Messages are cut, numbered and held behind gaps as they were; notes (fix_witness.py) say what no message does: at which
number a connection began, what a killed worker had published, when the wait for a gap was over. What differs from what
was published live: `source`, flag REPLAYED, and the status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which are
about sockets and are left out.

A capture may lack messages that the feed had: a part is missing, the recorder dropped some, or a replay damages them on
purpose. Then the lines are right and what was worked out is not: a gap that the feed did not note, once its next line
comes, is told with its numbers and passed over; a session that ended here and not there goes on. Used by
workers/decoders/capture.py; sans-I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from shm.layout import Flag, Source
from workers.decoders.feed_replay import FeedReplay, Line, reading_header, spec_of
from workers.decoders.protocol import NOTE, Counters, Gap
from workers.fix_numbers import Numbers
from workers.fix_protocol import State
from workers.session import Verdict
from workers.sources.fix_intake import FixIntake
from workers.sources.fix_options import check
from workers.sources.fix_owner import Told
from workers.sources.fix_place import Place
from workers.sources.fix_witness import ASKED, CLOSED, CONNECTION, LATE, OPENED, FixNote

_OPEN: Final = (State.LOGON, State.ACTIVE, State.GAP)
_MAX_RANGES: Final = 1024  # gaps that counters name
_note: Final = msgspec.json.Decoder(FixNote)


class FixReplay(FeedReplay):
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    WIRE = "FIX messages"

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the venue's own.

        UnknownFormatError: with options that a FIX feed does not have, or simplefix is not installed.
        """
        super().__init__(feed_id, venue)
        with reading_header():
            spec = spec_of(captured, feed_id, source="fix", without=("login",))
            options, types = check(spec)
        self.venue = options.target
        self._numbers = Numbers()
        self._place = Place(self._numbers, None)
        self._intake = FixIntake(
            self,
            spec,
            options,
            types=types,
            intern=lambda symbol: intern(options.rename.get(symbol, symbol)),
            numbers=self._numbers,
            place=self._place,
            source=Source.REPLAY,
            flags=int(Flag.REPLAYED),
        )
        self._left = b""  # messages that came with one that has ended the session here
        self._now_ns = 0
        self._connection = 0  # its number; 0 = none was read of
        self._expected = 0  # number at which to go on in the middle of a connection; 0 = that of its first message
        self._asked = 0  # number of its last request
        self._waits = False  # for a gap, as the feed noted last
        self._again = False
        self._ended_here = False  # a connection that delivered, and its loss was not read yet
        self._ranges: list[Gap] = []

    def _work(self, out: np.ndarray) -> int:
        intake = self._intake
        while intake.busy or self._left:
            if not intake.busy:
                left, self._left = self._left, b""
                self._take(left, self._now_ns, 0)
                continue
            if intake.session.state is State.GAP and intake.left:
                self._passes_over()  # before what came with the message that is ahead
            if got := intake.work(out, 0, self._now_ns):
                return got
        return 0

    def finish(self) -> None:
        """The file has ended: what waits for a gap that the feed did not have comes now."""
        self._passes_over()

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        counters: Counters = self._intake.decoder.counters
        counters.gaps += self._gaps
        counters.gap_ranges = [*counters.gap_ranges, *self._ranges]
        counters.missing += self._intake.missed
        counters.duplicates += self._intake.session.duplicates
        for reason, count in (
            ("length or checksum", self._intake.reader.garbled),
            ("unusable note", self._unusable),
        ):
            if count:
                counters.malformed[reason] = count
        return counters

    # -- what was captured

    def _turn(self) -> bool:
        """To the next frame, and those of messages that came with it."""
        head = self._head()
        if head is None or head.kind == NOTE:
            return super()._turn()
        if not self._passes_over():
            data = [self._pop()]
            while (more := self._head()) is not None and more[3:] == head[3:]:
                data.append(self._pop())
            self._take(b"".join(data), head.ts_receive, head.port)
        return True

    def _passes_over(self) -> bool:
        """The feed has gone on: if it did not wait for a gap, there is none to be waited for."""
        if self._intake.session.state is not State.GAP or self._waits:
            return False
        self._intake.pass_over(self._now_ns)
        return True

    def _take(self, data: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002 - a session is all
        self._now_ns = ts_receive
        piece = self._intake.cut(data, ts_receive)
        if piece is None:
            return
        session = self._intake.session
        if session.state not in _OPEN:
            self._intake.join(self._expected or int(piece.heads["seq"][0]), self._asked, ts_receive)
        self._intake.take_up(piece)

    def _heed(self, line: Line) -> None:
        if line.t in ("connect", "disconnect") and self._passes_over():
            self._put_back()
            return
        self._now_ns = line.ns
        if line.conn != CONNECTION:
            return
        if line.t == "note":
            self._noted(_note.decode(line.data), line)
        elif line.t == "disconnect":
            self._end(line.ns)
        elif line.t == "connect" and not line.kept:
            self._end(line.ns)
            self._again = line.again

    def _hole(self, text: str, at_ns: int) -> None:
        self._now_ns = at_ns
        self._intake.hole(text, at_ns)

    def _noted(self, note: FixNote, line: Line) -> None:
        intake = self._intake
        if line.kept:
            self._rejoin(note, line.ns)
            return
        if note.what == OPENED:
            if intake.session.state is not State.IDLE:  # that it was lost is not in the capture
                self._end(line.ns)
            intake.session.expected, self._place.skip = note.expected, note.skip
            self._numbers.next_out = note.next_out
            intake.was_up |= self._again
            intake.open(line.ns)
        else:
            if note.what == LATE:
                intake.late(line.ns)
            elif note.what == CLOSED:
                intake.pass_over(line.ns, note.expected)
            elif note.what == ASKED and intake.session.state is State.LOGON:  # the venue's logon is not in the capture
                intake.join(note.expected, note.asked, line.ns)
            self._numbers.next_out = note.next_out
        self._connection, self._waits, self._asked = note.connection, note.gap, note.asked

    def _rejoin(self, note: FixNote, at_ns: int) -> None:
        """How the feed stood where a part begins, or behind a hole."""
        if note.connection != self._connection:  # all of another one's beginning is missing
            self._end(at_ns)
            self._expected = note.expected if self._connection or note.gap else 0
            self._connection = note.connection
        self._waits, self._asked = note.gap, note.asked

    def _end(self, at_ns: int) -> None:
        """The feed has given the connection up, unless that was seen before."""
        if self._intake.session.state is not State.IDLE:
            self._intake.close(at_ns)
        elif self._ended_here:
            self._intake.lost_ns = at_ns
        self._ended_here = self._waits = False
        self._expected = 0

    # -- see fix_owner.Owner

    def send(self, data: bytes, now_ns: int) -> None:
        """It was sent then."""

    def logged_on(self, now_ns: int) -> None:
        """The requests go out, as they did."""
        self._intake.subscribe(now_ns)

    def heard(self, records: np.ndarray, now_ns: int) -> None:
        """Nothing depends on it."""

    def refused(self, symbol: str, reason: str, now_ns: int) -> None:
        """It was told then."""

    def told(self, told: Told, now_ns: int) -> None:  # noqa: ARG002 - the owner's protocol
        """See `fix_owner.Owner`; only gaps are told here."""
        self._gaps += 1
        if told.last and len(self._ranges) < _MAX_RANGES:
            self._ranges.append(Gap(0, told.first, told.last))

    def lost(self, verdict: Verdict, now_ns: int) -> None:  # noqa: ARG002 - the owner's protocol
        """The session ends here; where it did not end there, more messages follow."""
        intake = self._intake
        self._left, self._expected, before_ns = intake.left, intake.session.expected, intake.lost_ns
        intake.close(now_ns)
        self._ended_here = intake.lost_ns != before_ns
