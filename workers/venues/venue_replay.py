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
from typing import Any

import numpy as np

from shm.layout import Flag, RecordType, StatusCode
from workers.decoders.feed_replay import FeedReplay, Line, reading_header, spec_of
from workers.decoders.protocol import Counters
from workers.source import SourceContext
from workers.sources.websocket import open_dialect
from workers.venues.dialect import SNAPSHOT_OF


class VenueReplay(FeedReplay):
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    WIRE = "WebSocket messages"

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the venue's own.

        UnknownFormatError: of a venue that is not known here, or with options that it does not have.
        """
        super().__init__(feed_id, venue)
        with reading_header():
            # A source that is one venue's stream: "yahoo".
            more = {} if captured["source"] == "websocket" else {"venue": captured["source"]}
            spec = spec_of(captured, feed_id, source="websocket", without=("login",), **more)
            self._dialect = open_dialect(SourceContext(spec, intern))
            self._streams = [one.streams for one in self._dialect.connections()]
        self.venue = str(spec.options.get("venue"))
        self._decoder: Any = self._dialect.decoder  # with `gaps`, as every decoder of a venue has it
        self._gaps_seen = 0
        self._released: deque[tuple[bytes, int, int]] = deque()  # a snapshot and what waited for it
        self._message: tuple[bytes, int] | None = None  # being decoded, and its connection
        self._missing: list[tuple[int, int]] = []  # gaps found in it: instrument, number at which it goes on
        self._gap_before: set[int] = set()  # connections whose next record has something missing before it
        self._lost_ns: dict[str, int] = {}

    def _work(self, out: np.ndarray) -> int:
        while self._message is not None or self._released:
            if self._message is None:
                self._take(*self._released.popleft())
            elif got := int(self._decoder.decode(out)):
                if self._gap_before or self._decoder.gaps != self._gaps_seen:
                    self._look(out[:got], self._message[1])
                return got
            else:
                self._done(self._message[0])
        return 0

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        counters: Counters = self._decoder.counters
        counters.gaps += self._gaps
        if self._unusable:
            counters.malformed["unusable note"] = self._unusable
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

    def _heed(self, line: Line) -> None:
        if line.t == "connect":
            self._connected(line)
        elif line.t == "disconnect":
            self._lost_ns.setdefault(line.conn, line.ns)
        elif line.conn.startswith(SNAPSHOT_OF):
            symbol = line.conn.removeprefix(SNAPSHOT_OF)
            if line.t == "ask":
                self._dialect.snapshot_asked(symbol)
            elif line.status == 200:
                self._released.extend(self._dialect.snapshot(symbol, line.data.encode(), line.ns))
            else:
                self._dialect.snapshot_failed(symbol, line.ns, 0.0)

    def _hole(self, text: str, at_ns: int) -> None:
        self._gap_before.update(range(len(self._streams)))
        self._tell_gap(text, at_ns)

    def _connected(self, line: Line) -> None:
        number = int(line.conn)
        streams = self._streams[number]
        lost_ns = self._lost_ns.pop(line.conn, line.ns)
        if line.kept:
            return
        self._dialect.opened(number)
        self._dialect.subscribe(streams)
        if line.again:
            self._gap_before.add(number)
            self._tell_gap(f"connected again after {(line.ns - lost_ns) / 1e9:.1f} s", line.ns)
