"""The `.jsonl` capture of WebSocket sessions -> text frames; `t` of a line: header, http, connect, send or recv.

A container (`workers.decoders.protocol`) used by `capture`: reads no file. `recv.data` is a text message, `ts` its
receive time in seconds; `conn` names the connection. Of the http answers only whole books become frames, in the words
of the venue's stream: of Binance {"stream": "SYMBOL@depth", "data": BODY}, of Bitstamp
{"event": "picture", "channel": "diff_order_book_PAIR", "data": BODY}.

A capture of our own (workers/capture_log.py) has more: `ns` beside `ts`, and a header with the `feed` it is of.
Its connects, losses, answers over HTTP, notes and dropped messages become frames too, marked as NOTE: the line itself.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from workers.decoders.protocol import FRAME, NOTE, Batch, FramingError, many_frames

LINE_MAX_BYTES: Final = 1 << 27  # an answer of 64 MiB over HTTP, as JSON writes it
_NOTED: Final = ("connect", "disconnect", "ask", "http", "note", "dropped")
_DEPTH_URL: Final = re.compile(r"/depth\?(?:.*&)?symbol=([A-Za-z0-9_.-]{1,32})(?:&|$)")

_PICTURE_URL: Final = re.compile(r"bitstamp\.net/api/v2/order_book/([a-z0-9]{1,24})/?(?:\?|$)")


class Line(msgspec.Struct):
    """What is read of a line; the rest is ignored."""

    t: str
    conn: str = ""
    ts: float = 0.0
    data: str = ""
    url: str = ""
    exchange: str = ""
    ns: int = 0
    b64: str = ""  # instead of data, where that is no text
    feed: dict[str, Any] = {}


class JsonlReader:
    """Cuts a `.jsonl` capture into text frames.

    Attributes:
        exchange: "" until the header line was read.
        captured: the feed that a capture of our own is of; {} in those of others.
    """

    def __init__(self) -> None:
        self.exchange = ""
        self.captured: dict[str, Any] = {}
        self._rest: list[bytes] = []  # of a line that goes on: joined once, however many pieces it comes in
        self._rest_bytes = 0
        self._offset = 0
        self._error: FramingError | None = None
        self._passed: Counter[str] = Counter()
        self._connections: dict[str, int] = {}
        self._decoder = msgspec.json.Decoder(Line)

    @property
    def error(self) -> FramingError | None:
        """FramingError once a line is longer than any message."""
        return self._error

    def counts(self) -> dict[str, int]:
        """Lines passed over, by what they are."""
        return dict(self._passed)

    def finish(self) -> int:
        """Bytes of a last line without its newline: feed one at the end of the input to have it read."""
        return 0 if self._error is not None else self._rest_bytes

    def feed(self, data: bytes) -> Batch:
        """Frames of the lines that are whole now."""
        if self._error is not None:
            return Batch(b"", np.zeros(0, FRAME))
        lines = b"".join((*self._rest, data)).split(b"\n") if b"\n" in data else []
        if lines:
            data = lines.pop()
            self._rest, self._rest_bytes = [], 0
        self._rest.append(data)
        self._rest_bytes += len(data)
        found = _Found([], [], [], [])
        for line in lines:
            self._offset += len(line) + 1
            if line.strip():
                self._line(line, found)
        if self._rest_bytes > LINE_MAX_BYTES:
            self._error = FramingError("jsonl", self._offset, f"a line of more than {LINE_MAX_BYTES >> 20} MiB")
        batch = many_frames(found.messages, found.times)
        batch.frames["port"] = found.connections
        batch.frames["reserved"] = found.kinds
        return batch

    def _line(self, text: bytes, found: _Found) -> None:
        try:
            line = self._decoder.decode(text)
            ts_receive = line.ns or round(line.ts * 1e6) * 1000  # a float of seconds says microseconds and no more
            data = base64.b64decode(line.b64, validate=True) if line.b64 else line.data.encode()
        except (msgspec.MsgspecError, binascii.Error, ValueError, OverflowError):
            self._passed["lines that are not JSON"] += 1
            return
        if not -(2**63) <= ts_receive < 2**63:
            self._passed["lines without a usable time"] += 1
            return
        if line.t == "header":
            self.exchange = self.exchange or line.exchange
            self.captured = self.captured or line.feed
        if self.captured:
            if line.t == "recv":
                number = int(line.conn) if line.conn.isdecimal() and len(line.conn) < 6 else 0
                found.add(data, ts_receive, number & 0xFFFF, 0)
                return
            if line.t in _NOTED:
                found.add(text, ts_receive, 0, NOTE)
                return
        elif line.t == "http":
            data = _book(line.url, data)
        if line.t == "recv" or (line.t == "http" and data):
            number = self._connections.setdefault(line.conn, len(self._connections))
            found.add(data, ts_receive, number & 0xFFFF, 0)
        else:
            self._passed[f"{line.t or '?'} lines"[:40]] += 1


class _Found(NamedTuple):
    """Frames of a batch, column by column."""

    messages: list[bytes]
    times: list[int]
    connections: list[int]
    kinds: list[int]

    def add(self, data: bytes, ts_receive: int, connection: int, kind: int) -> None:
        self.messages.append(data)
        self.times.append(ts_receive)
        self.connections.append(connection)
        self.kinds.append(kind)


def _book(url: str, body: bytes) -> bytes:
    """A whole book that was asked for, as the venue's stream would bring it; b"" for any other answer."""
    if depth := _DEPTH_URL.search(url):
        return b'{"stream":"%s@depth","data":%s}' % (depth[1].lower().encode(), body)
    if picture := _PICTURE_URL.search(url):
        return b'{"event":"picture","channel":"diff_order_book_%s","data":%s}' % (picture[1].encode(), body)
    return b""
