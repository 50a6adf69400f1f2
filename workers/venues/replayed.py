"""A capture of a live WebSocket feed, decoded as the feed was: the same dialect, decoder and order.

    frames of a `.jsonl` capture --> dialect.hold, snapshot, after_gap --> dialect.decoder --> records, flag REPLAYED

It does what workers/sources/websocket.py does with its inbox, without sockets and sessions: lines about connections and
snapshots (NOTE frames) stand where the live feed met them, so books wait for and begin with the same snapshots. What
differs from what was published live: `source`, flag REPLAYED, and the status records FEED_UP, FEED_DOWN and
FEED_DEGRADED, which are about sockets and are left out. A GAP for the time without a connection is told as it was live,
and one for messages that the recorder had to drop. Used by workers/decoders/capture.py; sans-I/O.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec
import numpy as np

from shm.layout import RECORD, Flag, RecordType, Source, StatusCode
from shm.ring import status_record
from workers.decoders.protocol import FRAME, NOTE, Counters, UnknownFormatError
from workers.errors import SettingsError
from workers.source import SourceContext
from workers.sources.websocket import open_dialect
from workers.spec import FeedSpec
from workers.venues.dialect import SNAPSHOT_OF, UNREADABLE

_REPLAYED: Final = np.uint16(Flag.REPLAYED)


class _Note(msgspec.Struct):
    """A line about a connection."""

    t: str
    conn: str = ""
    ns: int = 0
    again: bool = False
    kept: bool = False
    status: int = 0
    messages: int = 0
    data: str = ""


_note = msgspec.json.Decoder(_Note)


class VenueReplay:
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the venue's own.

        UnknownFormatError: of a venue that is not known here, or with options that it does not have.
        """
        try:
            options = {key: value for key, value in captured["options"].items() if key != "login"}
            if captured["source"] != "websocket":  # a source that is one venue's stream: "yahoo"
                options["venue"] = captured["source"]
            spec = FeedSpec(
                feed_id=feed_id,
                name=str(captured["name"]),
                source="websocket",
                symbols=tuple(captured["symbols"]),
                data_types=tuple(captured["data_types"]),
                options=options,
            )
            self._dialect = open_dialect(SourceContext(spec, intern))
            self._streams = [one.streams for one in self._dialect.connections()]
        except (SettingsError, KeyError, TypeError, AttributeError) as error:
            raise UnknownFormatError(f"the capture's header names a feed that can't be decoded here: {error}") from None
        self.venue = str(options.get("venue"))
        self._decoder: Any = self._dialect.decoder  # with `gaps`, as every decoder of a venue has it
        self._gaps_seen = 0
        self._feed_id = feed_id
        self._code = venue.encode() if venue is not None else None
        self._buffer: Any = b""
        self._frames: list[tuple[int, int, int, int, int]] = []
        self._next = 0
        self._released: deque[tuple[bytes, int, int]] = deque()  # a snapshot and what waited for it
        self._told: deque[bytes] = deque()  # status records that come next
        self._message: tuple[bytes, int] | None = None  # being decoded, and its connection
        self._missing: list[tuple[int, int]] = []  # gaps found in it: instrument, number at which it goes on
        self._gap_before: set[int] = set()  # connections whose next record has something missing before it
        self._lost_ns: dict[str, int] = {}
        self._gaps = 0  # told here
        self._malformed = 0

    # -- the protocol of a decoder

    def feed(self, buffer: Any, frames: np.ndarray) -> None:
        """See `Decoder.feed`."""
        if frames.dtype != FRAME:
            raise ValueError(f"frames must have dtype FRAME, not {frames.dtype}")
        self._buffer, self._frames, self._next = buffer, frames.tolist(), 0

    def feed_message(self, message: bytes, ts_receive: int, port: int = 0) -> None:
        """See `Decoder.feed_message`."""
        self._buffer, self._frames, self._next = message, [(0, len(message), port, 0, ts_receive)], 0

    def decode(self, out: np.ndarray) -> int:
        """See `Decoder.decode`."""
        filled = 0
        while filled < len(out):
            if self._told:
                row = np.frombuffer(self._told.popleft(), RECORD)
                out[filled : filled + 1].view(np.uint8)[:] = row.view(np.uint8)
                filled += 1
            elif self._message is not None:
                got = self._decoder.decode(out[filled:])
                if got:
                    if self._gap_before or self._decoder.gaps != self._gaps_seen:
                        self._look(out[filled : filled + got], self._message[1])
                    filled += got
                else:
                    self._done(self._message[0])
            elif self._released:
                self._take(*self._released.popleft())
            elif self._next < len(self._frames):
                offset, size, port, kind, ts_receive = self._frames[self._next]
                self._next += 1
                data = bytes(self._buffer[offset : offset + size])
                if kind == NOTE:
                    self._heed(data)
                else:
                    self._take(data, ts_receive, port)
            else:
                break
        if filled:
            records = out[:filled]
            records["source"] = Source.REPLAY
            records["flags"] |= _REPLAYED
            if self._code is not None:
                records["venue"] = self._code
        return filled

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        counters: Counters = self._decoder.counters
        counters.gaps += self._gaps
        if self._malformed:
            counters.malformed["unusable note"] = self._malformed
        return counters

    # -- as the live source does it

    def _take(self, data: bytes, ts_receive: int, connection: int) -> None:
        if not self._dialect.hold(data, ts_receive, connection):
            self._decoder.feed_message(data, ts_receive, connection)
            self._message = data, connection

    def _look(self, records: np.ndarray, connection: int) -> None:
        """Gaps among the records of a message, and the first one after something that is missing."""
        status = records["record_type"] == RecordType.STATUS
        for row in np.flatnonzero(status & (records["code"] == StatusCode.GAP)):
            gap = records[row]
            self._missing.append((int(gap["instrument_id"]), int(gap["to_sequence"])))
        if connection in self._gap_before and not status.all():
            self._gap_before.discard(connection)
            records["flags"][np.flatnonzero(~status)[:1]] |= np.uint16(Flag.GAP_BEFORE)

    def _done(self, data: bytes) -> None:
        self._message = None
        self._gaps_seen = self._decoder.gaps  # not sooner: its record may come with a later part of the message's
        missing, self._missing = self._missing, []
        for instrument_id, resumed in missing:
            self._dialect.after_gap(data, instrument_id, resumed)  # its requests were sent then; the answers follow

    def _heed(self, data: bytes) -> None:
        try:
            note = _note.decode(data)
            if note.t == "connect":
                self._connected(note)
            elif note.t == "disconnect":
                self._lost_ns.setdefault(note.conn, note.ns)
            elif note.t == "dropped":
                self._gap_before.update(range(len(self._streams)))
                self._tell(f"{note.messages} messages not captured", note.ns)
            elif note.conn.startswith(SNAPSHOT_OF):
                symbol = note.conn.removeprefix(SNAPSHOT_OF)
                if note.t == "ask":
                    self._dialect.snapshot_asked(symbol)
                elif note.status == 200:
                    self._released.extend(self._dialect.snapshot(symbol, note.data.encode(), note.ns))
                else:
                    self._dialect.snapshot_failed(symbol, note.ns, 0.0)
        except (*UNREADABLE, IndexError, ValueError):
            self._malformed += 1

    def _connected(self, note: _Note) -> None:
        number = int(note.conn)
        streams = self._streams[number]
        lost_ns = self._lost_ns.pop(note.conn, note.ns)
        if note.kept:
            return
        self._dialect.opened(number)
        self._dialect.subscribe(streams)
        if note.again:
            self._gap_before.add(number)
            self._tell(f"connected again after {(note.ns - lost_ns) / 1e9:.1f} s", note.ns)

    def _tell(self, text: str, at_ns: int) -> None:
        self._gaps += 1
        row = np.frombuffer(
            status_record(StatusCode.GAP, text=text, feed_id=self._feed_id, source=Source.REPLAY, ts_event=at_ns),
            RECORD,
        ).copy()
        row["ts_receive"] = at_ns
        row["flags"] |= _REPLAYED
        self._told.append(row.tobytes())
