"""A capture of a live IBKR feed, decoded as the feed was: the same client, streams and records, without a socket.

    frames of a `.jsonl` capture --> ib_async's decoder --> Wire --> Market --> Records --> records, flag REPLAYED
    notes (ibkr_witness.py)      --> which request brings which stream, gaps --^

What the feed decided while it ran (what to ask for and when, what to give up) it has noted; here it is done again at
the same place among the messages, and messages of one time are one packet, as they were. What differs from what was
published live: `source`, flag REPLAYED, and the status records FEED_UP, FEED_DOWN and FEED_DEGRADED, which are left
out. A GAP stands for messages that the recorder had to drop. In a part without those before it books lack what was told
there: their rows are INCOMPLETE until they begin anew. Used by workers/decoders/capture.py; sans-I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

import msgspec
import numpy as np

from shm.layout import RECORD, TYPE_NAMES, Action, Flag, RecordType, StatusCode
from workers.decoders.feed_replay import FeedReplay, Line, reading_header, spec_of
from workers.decoders.protocol import Counters, UnknownFormatError
from workers.session import Verdict
from workers.source import SourceContext, read_options
from workers.sources.ibkr_codes import Effect, effect_of
from workers.sources.ibkr_contracts import describe_all
from workers.sources.ibkr_market import Market
from workers.sources.ibkr_options import IbkrOptions, streams_of
from workers.sources.ibkr_records import Records
from workers.sources.ibkr_streams import Step, Stream, Way
from workers.sources.ibkr_wire import Wire
from workers.sources.ibkr_witness import VERSION, IbkrNote, IbkrWitness

_CLIENT: Final = "workers.sources.ibkr_client"
# Names of the messages that concern a feed (TWS API, EDecoder).
_NAMES: Final = {
    1: "tickPrice", 2: "tickSize", 4: "error", 9: "nextValidId", 10: "contractDetails", 12: "marketDepth",
    13: "marketDepthL2", 14: "newsBulletin", 17: "historicalData", 18: "bondContractDetails", 46: "tickString",
    49: "currentTime", 50: "realTimeBar", 52: "contractDetailsEnd", 58: "marketDataType", 81: "tickReqParams",
    84: "tickNews", 90: "historicalDataUpdate", 99: "tickByTick",
}  # fmt: skip
_AT_ONCE: Final = 256  # records that are copied together: one by one costs a quarter more
_note: Final = msgspec.json.Decoder(IbkrNote)


class IbkrReplay(FeedReplay):
    """A `Decoder` of frames that jsonl.JsonlReader gives of a capture of our own."""

    WIRE = "TWS messages"

    def __init__(
        self, captured: Mapping[str, Any], intern: Callable[[str], int], *, feed_id: int = 0, venue: str | None = None
    ) -> None:
        """`captured`: the header's `feed`; `venue`: code of the records instead of the exchanges' own.

        UnknownFormatError: ib_async is not installed, or the feed has options that are not known here.
        """
        if find_spec("ib_async") is None:
            raise UnknownFormatError(
                "a capture of Interactive Brokers (source 'ibkr') needs ib_async, which is not installed: "
                "pip install 'tickengine[ibkr]'"
            )
        super().__init__(feed_id, venue)
        with reading_header():
            spec = spec_of(captured, feed_id, source="ibkr")
            options = read_options(spec, IbkrOptions)
            described = describe_all(spec.name, spec.symbols, options.contracts)
            self._plan = partial(streams_of, SourceContext(spec, intern), options, described)
            self._ids = {stream.symbol: stream.instrument_id for stream in self._plan()}
        self.venue = "interactive brokers"
        self._options = options
        self._running: dict[int, Stream] = {}  # number of a request -> what it brings
        self._unbegun: set[int] = set()  # instruments whose books lack what the capture does not have
        self._duplicates = self._strays = 0  # of the sources before this one
        self._begin()
        self._client: Any = None
        self._faults: list[BaseException] = []  # of our own
        self._counts = Counters()
        self._unreadable = 0

    @property
    def counters(self) -> Counters:
        """See `Decoder.counters`."""
        found = replace(self._counts, messages=dict(self._counts.messages), records=dict(self._counts.records))
        found.duplicates = self._duplicates + self._records.duplicates
        if strays := self._strays + self._market.strays:
            found.messages["for no request"] = strays
        malformed = {"message that can't be read": self._unreadable, "unusable note": self._unusable}
        found.malformed = {name: count for name, count in malformed.items() if count}
        return found

    def _stamp(self, records: np.ndarray) -> None:
        super()._stamp(records)
        counts = self._counts
        kinds, numbers = np.unique(records["record_type"], return_counts=True)
        for kind, number in zip(kinds.tolist(), numbers.tolist(), strict=True):
            name = TYPE_NAMES[kind]
            counts.records[name] = counts.records.get(name, 0) + number
        times = records["ts_event"][records["record_type"] != RecordType.STATUS]
        if len(times):
            counts.first_ns = min(counts.first_ns or int(times.min()), int(times.min()))
            counts.last_ns = max(counts.last_ns, int(times.max()))

    def _begin(self) -> None:
        """As a source that was made anew: it knows nothing of what the one before it knew."""
        streams = self._plan()
        self._streams = {(stream.symbol, stream.way): stream for stream in streams}
        self._running.clear()
        self._unbegun.clear()
        self._packet_ns: int | None = None  # when the packet came whose messages are under way
        self._records = Records(self._feed_id, min(self._options.depth_rows, 255), put=self._put, alive=_spoke)
        self._market = Market(self._running.get, streams, self._records)

    # -- what came, at its time

    def _turn(self) -> bool:
        """Those of so many frames that there are records enough."""
        while len(self._told) < _AT_ONCE and super()._turn():
            if self._faults:
                raise self._faults[0]
        return bool(self._told)

    def _take(self, body: bytes, ts_receive: int, connection: int) -> None:  # noqa: ARG002 - there is one
        counts = self._counts
        counts.frames += 1
        counts.bytes += len(body)
        kind = body[:4].partition(b"\0")[0]
        name = _NAMES.get(int(kind), "other") if kind.isdigit() else "other"
        counts.messages[name] = counts.messages.get(name, 0) + 1
        if self._client is None:
            self._unreadable += 1  # nobody has said which version it is of
            return
        self._at(ts_receive)
        self._packet_ns = self._market.now_ns = ts_receive
        self._client.read(len(body).to_bytes(4, "big") + body)

    def _at(self, now_ns: int) -> None:
        """Something comes now. If it is of another time than the packet, that is over; what was due comes first."""
        if self._packet_ns != now_ns:
            self._end_packet()
            self._records.quotes(now_ns)

    def _end_packet(self) -> None:
        packet_ns, self._packet_ns = self._packet_ns, None
        if packet_ns is not None:
            self._records.quotes(packet_ns)

    def _put(self, row: bytes) -> None:
        if self._unbegun:
            record = np.frombuffer(row, RECORD).copy()
            number = int(record["instrument_id"][0])
            if number in self._unbegun and record["record_type"][0] == RecordType.LEVEL2:
                if record["action"][0] == Action.CLEAR:
                    self._unbegun.discard(number)
                else:
                    record["flags"] |= np.uint16(Flag.INCOMPLETE)
                    row = record.tobytes()
        self._told.append(row)

    # -- notes

    def _heed(self, line: Line) -> None:
        if line.t == "note":
            self._noted(_note.decode(line.data), line)
        elif line.t == "disconnect":
            self._at(line.ns)
            self._end_packet()
            self._forget()
        elif line.t == "connect" and not line.kept:
            self._forget()

    def _hole(self, text: str, at_ns: int) -> None:
        self._at(at_ns)
        self._gap(text, at_ns)
        self._unbegun.update(one.instrument_id for one in self._running.values() if one.way is Way.DEPTH)

    def _noted(self, note: IbkrNote, line: Line) -> None:
        if note.of == VERSION:
            if note.first and not line.kept:
                self._duplicates += self._records.duplicates
                self._strays += self._market.strays
                self._begin()
            if self._client is None or not line.kept:
                self._client = self._client_of(note.version)
        elif note.gap:
            self._at(line.ns)
            self._gap(note.gap, line.ns)
        elif note.over:
            self._at(line.ns)
            stream = self._running.pop(int(note.of))
            stream.step, stream.gap_before = Step.WAITS, note.missed
        elif line.kept:
            if int(note.of) not in self._running:
                stream = self._asked(note)
                self._records.begin(stream, max(line.ns, self._market.now_ns))  # it has, in what is not here
                if stream.way is Way.DEPTH:
                    self._unbegun.add(stream.instrument_id)
        else:
            self._at(line.ns)
            stream = self._asked(note)
            self._unbegun.discard(stream.instrument_id)
            self._records.begin(stream, line.ns)

    def _asked(self, note: IbkrNote) -> Stream:
        way = Way(note.way)
        stream = self._streams.get((note.symbol, way))
        if stream is None:  # in place of tick-by-tick data that was refused
            stream = self._streams[note.symbol, way] = Stream(note.symbol, way, [], self._ids[note.symbol])
        stream.types[:] = note.types
        stream.step, stream.had_data, stream.gap_before = Step.ASKED, note.had, note.missed
        self._running[int(note.of)] = stream
        return stream

    def _gap(self, text: str, now_ns: int) -> None:
        self._counts.gaps += 1
        self._records.tell(StatusCode.GAP, text, now_ns)
        for stream in self._streams.values():
            stream.gap_before = stream.had_data

    def _forget(self) -> None:
        for stream in self._running.values():
            stream.step = Step.WAITS
        self._running.clear()

    # -- what the client says

    def _client_of(self, version: int) -> Any:
        module: Any = import_module(_CLIENT)
        events = _Events(self._complaint, self._message_of_tws)
        wire = Wire(events, self._market, self._faults.append, _no_clock, IbkrWitness(None))
        client = module.MarketDataClient(wire, 0, self._options.max_message_bytes)
        client.take_up(version)
        return client

    def _complaint(self, _: str) -> None:
        self._unreadable += 1

    def _message_of_tws(self, request: int, code: int, text: str) -> None:
        """The one that is no note: a book begins anew."""
        stream = self._running.get(request)
        if stream is not None and effect_of(code, text, of_request=True).effect is Effect.BOOK_RESET:
            self._records.clear_book(stream, self._market.now_ns)


class _Events:
    """The events that change records. What the others have led to stands in notes."""

    def __init__(self, complaint: Callable[[str], None], message_of_tws: Callable[[int, int, str], None]) -> None:
        self.complaint = complaint
        self.message_of_tws = message_of_tws

    def opened(self, version: int) -> None:
        """There is no handshake here."""

    def ready(self) -> None:
        """Nor a login."""

    def ended(self, verdict: Verdict) -> None:
        """Nor a connection."""

    def received(self, now_ns: int, size_bytes: int) -> None:
        """Packets are told apart by their times."""

    def packet_over(self, now_ns: int) -> None:
        """As `received`."""

    def contract_found(self, request: int, details: Any) -> None:
        """Contracts only serve to ask."""

    def contracts_over(self, request: int) -> None:
        """As `contract_found`."""


def _spoke(stream: Stream) -> None:
    stream.spoke()


def _no_clock() -> int:
    return 0  # what is replayed has its times
