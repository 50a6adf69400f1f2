"""A capture of a polled feed, decoded as the feed was: of each answer, read as its vendor has it, what was published.

    http BODY --> kept as it is --> note: rows --> vendor.read(BODY, when it came) --> those rows, flag REPLAYED
                              '--> note: why                                          nothing

It does what workers/sources/polled.py does with an answer, but for the judgement what of it is new: the notes have that
(workers/sources/polled_wire.py), so that the records do not depend on where the capture begins. An answer of which
nothing was published is not even read. What differs from what was published live: `source`, flag REPLAYED, and the
status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which are about requests and are left out. A GAP is told for
messages that the recorder had to drop, and for published records whose answer is not in these files.

Used by workers/decoders/capture.py; sans-I/O: it asks nobody, and needs no key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, TYPE_NAMES, Flag, Source, StatusCode
from shm.ring import status_record
from workers.decoders.observations import Observations, VendorError
from workers.decoders.protocol import FRAME, Counters, UnknownFormatError
from workers.errors import SettingsError
from workers.source import SourceContext
from workers.sources.alpha_vantage import AlphaVantage
from workers.sources.api_key import ApiKey
from workers.sources.fred import Fred
from workers.sources.polled_wire import read_note
from workers.sources.vendor import Job, Vendor
from workers.sources.yahoo import YahooCharts
from workers.spec import FeedSpec
from workers.venues.replayed import VenueReplay

_NO_KEY: Final = ApiKey("", "")
_VENDORS: Final[dict[str, Callable[[SourceContext], Vendor]]] = {
    "alpha_vantage": lambda context: AlphaVantage(context, _NO_KEY),
    "fred": lambda context: Fred(context, _NO_KEY),
    "yahoo": YahooCharts,
}
_OF_ASKING: Final = ("key_variable", "url", "headers", "ca_file")  # options that no answer depends on


class _Line(msgspec.Struct):
    """A line of the capture."""

    t: str
    conn: str = ""
    ns: int = 0
    status: int = 0
    kept: bool = False  # told again, for readers that have not seen it: here each note counts once
    messages: int = 0
    data: str = ""
    b64: str = ""


_line: Final = msgspec.json.Decoder(_Line)


class _Reading(NamedTuple):
    """What an answer holds."""

    answer_ns: int
    job: Job
    found: Observations


class PolledReplay:
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    DAMAGEABLE = False  # answers over HTTP come whole or not at all
    WIRE = "answers over HTTP"

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the vendor's own.

        UnknownFormatError: of a vendor that is not known here, or with options that it does not have.
        """
        try:
            spec = FeedSpec(
                feed_id=feed_id,
                name=str(captured["name"]),
                source=str(captured["source"]),
                symbols=tuple(captured["symbols"]),
                data_types=tuple(captured["data_types"]),
                options={key: value for key, value in captured["options"].items() if key not in _OF_ASKING},
            )
            self._vendor = _VENDORS[spec.source](SourceContext(spec, intern))
        except (SettingsError, KeyError, TypeError, AttributeError) as error:
            raise UnknownFormatError(f"the capture's header names a feed that can't be decoded here: {error}") from None
        self.venue = self._vendor.NAME.replace("_", " ")
        self._jobs = {job.name: job for job in self._vendor.jobs}
        self._feed_id = feed_id
        self._code = venue.encode() if venue is not None else self._vendor.VENUE
        self._counters = Counters()
        self._buffer: Any = b""
        self._frames: list[tuple[int, int, int, int, int]] = []
        self._next = 0
        self._answer: _Line | None = None  # the newest
        self._reading: _Reading | None = None  # of it, once something of it is asked for
        self._runs: list[tuple[int, int, int]] = []  # of that, what comes next: first, how many, flags; from the end
        self._told: bytes = b""  # a status record that comes next
        self._gap_before = False  # the next record has something missing before it

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
                out[filled : filled + 1].view(np.uint8)[:] = np.frombuffer(self._told, np.uint8)
                self._told = b""
                filled += 1
            elif self._runs:
                filled += self._publish(out[filled:])
            elif self._next < len(self._frames):
                offset, size, *_ = self._frames[self._next]
                self._next += 1
                self._counters.frames += 1
                self._counters.bytes += size
                self._heed(bytes(self._buffer[offset : offset + size]))
            else:
                break
        return filled

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        now = self._counters
        return Counters(
            messages=dict(now.messages),
            records=dict(now.records),
            malformed=dict(now.malformed),
            frames=now.frames,
            bytes=now.bytes,
            gaps=now.gaps,
            missing=now.missing,
            first_ns=now.first_ns,
            last_ns=now.last_ns,
        )

    # -- as the live source does it

    def _publish(self, out: np.ndarray) -> int:
        """The next records of the answer, as far as there is room."""
        assert self._reading is not None
        answer_ns, job, found = self._reading
        first, left, flags = self._runs.pop()
        count = min(left, len(out))
        if count < left:
            self._runs.append((first + count, left - count, flags))
        records = out[:count]
        rows = found.records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[first : first + count]
        records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[:] = rows
        records["flags"] |= np.uint16(flags | Flag.REPLAYED)
        records["ts_receive"] = answer_ns
        records["instrument_id"] = job.instrument_id
        records["feed_id"] = self._feed_id
        records["source"] = Source.REPLAY
        records["venue"] = self._code
        if self._gap_before:
            self._gap_before = False
            records["flags"][:1] |= np.uint16(Flag.GAP_BEFORE)
        self._count(records, TYPE_NAMES[job.kind])
        return count

    def _count(self, records: np.ndarray, kind: str) -> None:
        counters = self._counters
        counters.records[kind] = counters.records.get(kind, 0) + len(records)
        first, last = int(records["ts_event"].min()), int(records["ts_event"].max())
        counters.first_ns = min(counters.first_ns, first) if counters.first_ns else first
        counters.last_ns = max(counters.last_ns, last)

    def _heed(self, text: bytes) -> None:
        try:
            line = _line.decode(text)
            if line.t == "http":
                self._answer, self._reading = line, None
                self._seen("answer" if line.status else "no answer")
            elif line.t == "note" and not line.kept:
                self._judge(line)
            elif line.t == "dropped":
                self._tell(f"{line.messages} messages not captured", line.ns)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            self._malformed("line")

    def _judge(self, line: _Line) -> None:
        """What became of the answer."""
        note = read_note(line.data)
        if note.why:
            self._seen("refusal")
            return
        published = sum(count for _, count, _ in note.rows)
        reading = self._read(note.answer)
        if reading is not None and any(first + count > len(reading.found.records) for first, count, _ in note.rows):
            self._malformed("answer with less in it than was published of it")
            reading = None
        if reading is None:
            self._counters.missing += published
            self._tell(f"{published} records without their answer", line.ns)
            return
        self._runs = note.rows[::-1]

    def _read(self, answer_ns: int) -> _Reading | None:
        """What is in the answer of that time; None = it is not there, or can't be read."""
        answer = self._answer
        if answer is None or answer.ns != answer_ns or (job := self._jobs.get(answer.conn)) is None:
            return None
        if self._reading is None:
            try:
                body = base64.b64decode(answer.b64, validate=True) if answer.b64 else answer.data.encode()
                found = self._vendor.read(job, answer.status, body, answer.ns)
            except (VendorError, ValueError):
                self._malformed("answer that can't be read")
                return None
            if found.malformed:
                self._malformed("entry", found.malformed)
            self._reading = _Reading(answer.ns, job, found)
        return self._reading

    def _seen(self, what: str) -> None:
        self._counters.messages[what] = self._counters.messages.get(what, 0) + 1

    def _malformed(self, what: str, count: int = 1) -> None:
        self._counters.malformed[what] = self._counters.malformed.get(what, 0) + count

    def _tell(self, text: str, at_ns: int) -> None:
        self._counters.gaps += 1
        self._gap_before = True
        record = status_record(StatusCode.GAP, text=text, feed_id=self._feed_id, source=Source.REPLAY, ts_event=at_ns)
        row = np.frombuffer(record, RECORD).copy()
        row["ts_receive"] = at_ns
        row["flags"] |= np.uint16(Flag.REPLAYED)
        self._told = row.tobytes()


def yahoo_replay(
    captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
) -> PolledReplay | VenueReplay:
    """The decoder of a feed from source "yahoo": of its stream, or of its charts."""
    types = captured.get("data_types")
    kind = PolledReplay if isinstance(types, list) and "bar" in types else VenueReplay
    return kind(captured, intern, feed_id=feed_id, venue=venue)
