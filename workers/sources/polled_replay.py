"""A capture of a polled feed, decoded as the feed was: of each answer, read as its vendor has it, what was published.

    http BODY --> kept as it is --> note: rows --> vendor.read(BODY, when it came) --> those rows, flag REPLAYED
                              '--> note: why                                          nothing

It does what workers/sources/polled.py does with an answer, but for the judgement what of it is new: the notes have that
(workers/sources/polled_witness.py), so that the records do not depend on where the capture begins. An answer of which
nothing was published is not even read. What differs from what was published live: `source`, flag REPLAYED, and the
status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which are about requests and are left out. A GAP is told for
messages that the recorder had to drop, and for published records whose answer is not in these files.

Used by workers/decoders/capture.py; sans-I/O: it asks nobody, and needs no key.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from shm.layout import RECORD_SIZE_BYTES, TYPE_NAMES, Flag
from workers.decoders.feed_replay import FeedReplay, Line, reading_header, spec_of
from workers.decoders.observations import Observations, VendorError
from workers.decoders.protocol import Counters
from workers.source import SourceContext
from workers.sources.alpha_vantage import AlphaVantage
from workers.sources.api_key import ApiKey
from workers.sources.fred import Fred
from workers.sources.polled_witness import PolledNote
from workers.sources.vendor import Job, Vendor
from workers.sources.yahoo import YahooCharts
from workers.venues.venue_replay import VenueReplay

_NO_KEY: Final = ApiKey("", "")
_VENDORS: Final[dict[str, Callable[[SourceContext], Vendor]]] = {
    "alpha_vantage": lambda context: AlphaVantage(context, _NO_KEY),
    "fred": lambda context: Fred(context, _NO_KEY),
    "yahoo": YahooCharts,
}
_OF_ASKING: Final = ("key_variable", "url", "headers", "ca_file")  # options that no answer depends on
_note: Final = msgspec.json.Decoder(PolledNote)


class _Reading(NamedTuple):
    """What an answer holds."""

    answer_ns: int
    job: Job
    found: Observations


class PolledReplay(FeedReplay):
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    DAMAGEABLE = False  # answers over HTTP come whole or not at all
    WIRE = "answers over HTTP"

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the vendor's own.

        UnknownFormatError: of a vendor that is not known here, or with options that it does not have.
        """
        super().__init__(feed_id, venue)
        with reading_header():
            spec = spec_of(captured, feed_id, source=str(captured["source"]), without=_OF_ASKING)
            self._vendor = _VENDORS[spec.source](SourceContext(spec, intern))
        self.venue = self._vendor.NAME.replace("_", " ")
        self._jobs = {job.name: job for job in self._vendor.jobs}
        self._counters = Counters()
        self._answer: Line | None = None  # the newest
        self._reading: _Reading | None = None  # of it, once something of it is asked for
        self._runs: list[tuple[int, int, int]] = []  # of that, what comes next: first, how many, flags; from the end
        self._gap_before = False  # the next record has something missing before it

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        now = self._counters
        found = replace(now, messages=dict(now.messages), records=dict(now.records), malformed=dict(now.malformed))
        found.gaps = self._gaps
        if self._unusable:
            found.malformed["line"] = self._unusable
        return found

    # -- as the live source does it

    def _work(self, out: np.ndarray) -> int:
        """The next records of the answer."""
        if not self._runs:
            return 0
        assert self._reading is not None
        answer_ns, job, found = self._reading
        first, left, flags = self._runs.pop()
        count = min(left, len(out))
        if count < left:
            self._runs.append((first + count, left - count, flags))
        records = out[:count]
        rows = found.records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[first : first + count]
        records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[:] = rows
        records["flags"] |= np.uint16(flags)
        records["ts_receive"] = answer_ns
        records["instrument_id"] = job.instrument_id
        records["feed_id"] = self._feed_id
        records["venue"] = self._vendor.VENUE
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

    def _turn(self) -> bool:
        head = self._head()
        if head is not None:
            self._counters.frames += 1
            self._counters.bytes += head.size
        return super()._turn()

    def _take(self, data: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002
        self._unusable += 1  # a vendor sends nothing unasked

    def _heed(self, line: Line) -> None:
        if line.t == "http":
            self._answer, self._reading = line, None
            self._seen("answer" if line.status else "no answer")
        elif line.t == "note" and not line.kept:  # each counts once
            self._judge(line)

    def _hole(self, text: str, at_ns: int) -> None:
        self._gap_before = True
        self._tell_gap(text, at_ns)

    def _judge(self, line: Line) -> None:
        """What became of the answer."""
        note = _note.decode(line.data)
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
            self._hole(f"{published} records without their answer", line.ns)
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


def yahoo_replay(
    captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
) -> PolledReplay | VenueReplay:
    """The decoder of a feed from source "yahoo": of its stream, or of its charts."""
    types = captured.get("data_types")
    kind = PolledReplay if isinstance(types, list) and "bar" in types else VenueReplay
    return kind(captured, intern, feed_id=feed_id, venue=venue)
