"""The replay socket of a fan-out shard: asks for the past are answered between turns, by exact ranges. ROUTER.

    client   DEALER or REQ     request: one msgpack map                                  (wire format: workers/wire.py)
    service  ROUTER            answer:  one message: a msgpack map, then raw frames with the records

Part of the fan-out process (workers/fanout.py), which calls `look` every few milliseconds and `step` as long as
something is pending. The service must not cost subscribers anything, so all of it is bounded:

    a request       REQUEST_BYTES; what is larger ends the connection
    waiting         WAITING requests; further ones are refused at once, which is counted
    work            one request at a time, in slices (workers/recent.py), as many as fit into the time given to `step`
    an answer       recent.ANSWER_RECORDS records; a client asks on where the answer ends, which is also flow control
    a slow client   ANSWERS_QUEUED answers; what it does not take is dropped and counted as refused

Each request gets exactly one answer. It keeps nothing about clients, so any of them may ask any shard's service again
after either side was started anew. It never writes shared memory but its counters.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import asdict
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import zmq
from msgspec import Meta, Struct

from shm.errors import ShmError
from shm.instruments import InstrumentTable
from shm.latest import LatestTable, Snapshot
from shm.layout import RECORD, TYPE_NAMES, RecordType, empty
from shm.status import ProcessStatus
from workers import topics
from workers.chronicle import DISK, Chronicle, TooOld
from workers.journal_fetch import Place
from workers.outlet import bind, rebind
from workers.recent import ANSWER_RECORDS, Found, Past
from workers.topics import INSTRUMENTS, SYMBOL_TOPICS, TopicTable, topic_index
from workers.wire import ALERT_TOPIC, BATCH_TOPIC, ERROR_TOPIC, HEADER_SIZE_BYTES, PREFIX, STATUS_TOPIC, pack_header

REQUEST_BYTES: Final = 4096
WAITING: Final = 256
ANSWERS_QUEUED: Final = 64  # per client; one that asks 16 things at a time loses none
LOOK_REQUESTS: Final = 32  # most that are taken from the socket at a time
HISTORY_RECORDS: Final = 2000  # most records of a snapshot that come from the latest-value table

SHARD_TOPICS: Final = {
    BATCH_TOPIC: topics.BATCH,
    STATUS_TOPIC: topics.STATUS,
    ERROR_TOPIC: topics.ERROR,
    ALERT_TOPIC: topics.ALERT,
}

_TYPES: Final = {name: kind for kind, name in enumerate(TYPE_NAMES) if name and kind != RecordType.STATUS}

Sequence = Annotated[int, Meta(ge=0, le=1 << 62)]
TOPICS_ASKED: Final = 64

Job = Generator[str | None, None, tuple[dict[str, Any], list[bytes]]]


class _Request(Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What every request may have: an id of the client's own, which the answer carries."""

    id: int | str = 0


class RangeRequest(_Request, frozen=True, kw_only=True, tag="range"):
    """Records [from, to) of a topic, by topic sequence."""

    topic: str
    first: Sequence = msgspec.field(name="from")
    end: Sequence = msgspec.field(name="to")


class RingRequest(_Request, frozen=True, kw_only=True, tag="ring"):
    """Records [from, to) of a ring, by ring sequence: of all shards and topics."""

    ring: Annotated[int, Meta(ge=0, le=15)]
    first: Sequence = msgspec.field(name="from")
    end: Sequence = msgspec.field(name="to")


class TimeRequest(_Request, frozen=True, kw_only=True, tag="time"):
    """Records of topics published in [from_ns, to_ns), to_ns 0 = up to now; `next` as the answer before had it."""

    topics: Annotated[tuple[str, ...], Meta(min_length=1, max_length=TOPICS_ASKED)]
    from_ns: Sequence
    to_ns: Sequence = 0
    next: Annotated[tuple[tuple[int, Sequence, Sequence], ...], Meta(max_length=16)] | None = None


class SnapshotRequest(_Request, frozen=True, kw_only=True, tag="snapshot"):
    """Latest values of a topic's or a symbol's instrument, and its last `limit` records."""

    topic: str = ""
    symbol: str = ""
    limit: Annotated[int, Meta(ge=0, le=ANSWER_RECORDS)] = 0


class RequestError(Exception):
    """A request that can't be answered; `code` for programs, the message names the field."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


_decode: Final = msgspec.msgpack.Decoder(RangeRequest | RingRequest | TimeRequest | SnapshotRequest).decode
_decode_any: Final = msgspec.msgpack.Decoder().decode
_encode: Final = msgspec.msgpack.Encoder().encode


class ReplayService:
    """One shard's replay socket."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Iterable[str],
        past: Past,
        chronicle: Chronicle,
        *,
        engine: str,
        shard: int,
        rings: Iterable[int],
        table: TopicTable,
        instruments: InstrumentTable,
        status: ProcessStatus,
        published: Callable[[int], int],
        guard: Callable[[zmq.Socket[bytes]], None] = lambda _: None,
    ) -> None:
        """Bind, and answer from `past`; by time, and what that no longer has of a ring, from `chronicle`.

        Args:
            rings: the rings that may be asked for.
            published: newest sequence of a ring.
            guard: gets the socket before it is bound, to say who may connect (workers/gate.py).

        WorkerError names the endpoint that can't be bound and why.
        """
        self.endpoints = tuple(endpoints)
        self._past, self._chronicle = past, chronicle
        self.waiting = False  # whether all that is pending waits for the disk
        self._engine, self._shard, self._rings = engine, shard, frozenset(rings)
        self._table, self._instruments, self._published = table, instruments, published
        self._latest: LatestTable | None = None
        self._requests = status.counter("replay_requests")
        self._records = status.counter("replay_records")
        self._refused = status.counter("replay_refused")
        self._waiting: deque[tuple[list[bytes], Any, Job]] = deque()
        self.asked_at = -1e9  # time.monotonic() of the last request
        self._socket = context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.sndhwm, self._socket.rcvhwm = ANSWERS_QUEUED, WAITING
        self._socket.setsockopt(zmq.MAXMSGSIZE, REQUEST_BYTES)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        guard(self._socket)
        for endpoint in self.endpoints:
            bind(self._socket, endpoint)

    def drop_connections(self) -> None:
        """Make everybody connect anew. WorkerError if an endpoint can't be had again."""
        rebind(self._socket, self.endpoints)

    @property
    def pending(self) -> bool:
        """Whether there is something to do in `step`."""
        return bool(self._waiting)

    def look(self) -> None:
        """Take in requests; those that can't be served are answered at once."""
        for _ in range(LOOK_REQUESTS):
            if not int(self._socket.events) & zmq.POLLIN:
                return
            frames = self._socket.recv_multipart(zmq.DONTWAIT)
            self.asked_at = time.monotonic()
            self._requests.add(1)
            # A REQ socket puts an empty frame before its request, and wants it before the answer.
            envelope = frames[:2] if len(frames) > 2 and not frames[1] else frames[:1]
            number: Any = 0
            try:
                body = frames[len(envelope) :]
                if len(body) != 1:
                    raise RequestError(
                        "bad_request", f"the request has {len(body)} frames, must have one: a msgpack map"
                    )
                number = _id_of(body[0])
                if len(self._waiting) >= WAITING:
                    raise RequestError("busy", f"{WAITING} requests are waiting already: ask again later")
                self._waiting.append((envelope, number, self._job(body[0])))
            except RequestError as error:
                self._refuse(envelope, number, error)

    def step(self, budget_ns: int) -> None:
        """Work on what is pending for about that long; at least one slice, of a fraction of a millisecond."""
        until = time.perf_counter_ns() + budget_ns
        waiting = 0
        while self._waiting and waiting < len(self._waiting):
            envelope, number, job = self._waiting[0]
            try:
                if next(job) is DISK:
                    waiting += 1
                    self._waiting.rotate(-1)
                else:
                    waiting = 0
            except StopIteration as done:
                self._waiting.popleft()
                header, frames = done.value
                if self._send(envelope, {"id": number, **header}, frames):
                    self._records.add(header["records"])
            except RequestError as error:
                self._waiting.popleft()
                self._refuse(envelope, number, error)
            if time.perf_counter_ns() >= until:
                break
        self.waiting = 0 < len(self._waiting) <= waiting

    def _refuse(self, envelope: list[bytes], number: Any, error: RequestError) -> None:
        self._refused.add(1)
        self._send(envelope, {"id": number, "kind": "error", "code": error.code, "error": str(error)}, [], counted=True)

    def _send(
        self, envelope: list[bytes], header: dict[str, Any], frames: list[bytes], *, counted: bool = False
    ) -> bool:
        try:
            self._socket.send_multipart([*envelope, _encode(header), *frames], zmq.DONTWAIT)
        except (zmq.Again, zmq.ZMQError):  # the client takes nothing, or is gone
            if not counted:
                self._refused.add(1)
            return False
        return True

    def _job(self, body: bytes) -> Job:
        """The work that a request asks for. RequestError if it is none."""
        try:
            request = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RequestError("bad_request", str(error)) from error
        if isinstance(request, TimeRequest):
            if 0 < request.to_ns < request.from_ns:
                raise RequestError("bad_request", f"to_ns is {request.to_ns}, must be 0 or not before from_ns")
            indices = [(self._topic(topic), _symbol_in(topic)) for topic in request.topics]
            return self._time(request, indices)
        if not isinstance(request, SnapshotRequest) and request.first > request.end:
            raise RequestError("bad_request", f"from is {request.first}, must not be above to, which is {request.end}")
        if isinstance(request, RingRequest):
            if request.ring not in self._rings:
                raise RequestError("unknown_ring", f"ring is {request.ring}, this shard reads {sorted(self._rings)}")
            return self._ring(request)
        if isinstance(request, RangeRequest):
            return self._range(request.topic, self._topic(request.topic), request.first, request.end)
        if bool(request.topic) == bool(request.symbol):
            raise RequestError("bad_request", "topic, symbol: name exactly one of them")
        if request.symbol:
            return self._symbol(request.symbol, self._instrument("symbol", request.symbol), request.limit)
        return self._snapshot(request.topic, self._topic(request.topic), request.limit)

    def _topic(self, topic: str) -> int:
        """Index of a topic. RequestError if this shard does not number it."""
        if topic in SHARD_TOPICS:
            return SHARD_TOPICS[topic]
        kind, _, symbol = topic.removeprefix(PREFIX).partition(".")
        if not topic.startswith(PREFIX) or kind not in _TYPES or not symbol:
            known = f"{PREFIX}TYPE.SYMBOL with TYPE of {', '.join(_TYPES)}; {', '.join(SHARD_TOPICS)}"
            raise RequestError("bad_request", f"topic is {topic!r}, must be one of {known}")
        return topic_index(_TYPES[kind], self._instrument("topic", symbol))

    def _instrument(self, name: str, symbol: str) -> int:
        found = self._instruments.find(symbol)
        if found is None or found >= INSTRUMENTS:
            raise RequestError("unknown_symbol", f"{name}: no record of symbol {symbol!r} has been published")
        if found % self._table.shards != self._shard:
            owner = found % self._table.shards
            raise RequestError(
                "other_shard", f"{name}: symbol {symbol!r} is on shard {owner}, this is shard {self._shard}"
            )
        return found

    def _range(self, topic: str, index: int, first: int, end: int) -> Job:
        found = yield from self._past.topic_range(index, first, end)
        return self._numbered("range", topic, index, found), found.frames

    def _ring(self, request: RingRequest) -> Job:
        found = yield from self._past.ring_range(request.ring, request.first, request.end)
        if found.unavailable and self._chronicle.has_journal:
            first, end = found.unavailable[0]
            recorded = yield from self._chronicle.ring_range(request.ring, first, end)
            found = recorded or found
        published = self._published(request.ring)
        return {**_covered("ring", found), "ring": request.ring, "published": published}, found.frames

    def _time(self, request: TimeRequest, indices: list[tuple[int, str]]) -> Job:
        places = None
        if request.next is not None:
            places = {ring: Place(stream, sequence) for ring, stream, sequence in request.next}
            unknown = sorted(set(places) - self._rings)
            if unknown:
                raise RequestError("unknown_ring", f"next: ring {unknown[0]}, this shard reads {sorted(self._rings)}")
        try:
            told = yield from self._chronicle.told(indices, request.from_ns, request.to_ns, places)
        except TooOld as error:
            raise RequestError("no_journal", f"from_ns is {request.from_ns}: {error}") from error
        except OSError as error:
            raise RequestError("journal_error", f"the journal can't be read: {error.strerror}") from error
        header = {
            "kind": "time",
            "topics": request.topics,
            "from_ns": request.from_ns,
            "to_ns": request.to_ns,
            "records": told.records,
            "topics_of": told.topics_of,
            "unavailable": told.unavailable,
            "since_ns": told.since_ns,
            "next": None if told.next is None else [(ring, *place) for ring, place in told.next.items()],
            "topic_sequences": told.numbers,
            "as_of_ns": time.time_ns(),
        }
        return header, told.frames

    def _snapshot(self, topic: str, index: int, limit: int) -> Job:
        end = self._table.sequence(index, self._shard) + 1
        found = yield from self._past.topic_range(index, end - limit, end)
        header = self._numbered("snapshot", topic, index, found)
        # A slow search may have seen fan-out go on: the snapshot is of its beginning.
        header["topic_sequence"] = end - 1
        if index < SYMBOL_TOPICS:
            symbol, instrument = topic.removeprefix(PREFIX).partition(".")[2], index % INSTRUMENTS
            header |= self._values(symbol, instrument)
            older = self._older(instrument, index // INSTRUMENTS + 1, limit - found.records, found)
            header["history"] = len(older)
            if len(older):
                found.frames.append(pack_header(0, len(older), 0) + older.tobytes())
        return header, found.frames

    def _symbol(self, symbol: str, instrument: int, limit: int) -> Job:
        latest = self._table_of_latest()
        snapshot, records = None, empty(0)
        if latest is not None:
            snapshot, records = latest.join(instrument, min(limit, HISTORY_RECORDS))
        yield None
        header = {"kind": "snapshot", "records": 0, "as_of_ns": time.time_ns(), "history": len(records)}
        header |= _values_of(symbol, snapshot)
        return header, [pack_header(0, len(records), 0) + records.tobytes()] if len(records) else []

    def _older(self, instrument: int, record_type: int, limit: int, found: Found) -> np.ndarray:
        """Records of the latest-value table that are older than all that the rings gave, oldest first."""
        latest = self._table_of_latest()
        if latest is None or limit <= 0 or not found.oldest_ns:
            return empty(0)
        records = latest.history(instrument, HISTORY_RECORDS, record_type)
        before_ns, before = found.oldest_ns, 0
        if found.frames:
            oldest = np.frombuffer(found.frames[0], RECORD, 1, HEADER_SIZE_BYTES)[0]
            before_ns, before = int(oldest["ts_publish"]), int(oldest["sequence"])
        times_ns = records["ts_publish"]
        older: np.ndarray = records[(times_ns < before_ns) | ((times_ns == before_ns) & (records["sequence"] < before))]
        return older[max(0, len(older) - limit) :]

    def _values(self, symbol: str, instrument: int) -> dict[str, Any]:
        latest = self._table_of_latest()
        return _values_of(symbol, latest.snapshot(instrument) if latest else None)

    def _table_of_latest(self) -> LatestTable | None:
        """The latest-value table, attached when first asked for: not every engine has one."""
        if self._latest is None:
            try:
                self._latest = LatestTable.attach(self._engine)
            except ShmError:
                return None
        return self._latest

    def _numbered(self, kind: str, topic: str, index: int, found: Found) -> dict[str, Any]:
        last = self._table.sequence(index, self._shard)
        return {**_covered(kind, found), "topic": topic, "topic_sequence": last}

    def close(self) -> None:
        """Stop listening; who waits for an answer gets none."""
        self._socket.close(0)
        self._chronicle.close()
        if self._latest is not None:
            self._latest.close()


def _symbol_in(topic: str) -> str:
    return "" if topic in SHARD_TOPICS else topic.removeprefix(PREFIX).partition(".")[2]


def _covered(kind: str, found: Found) -> dict[str, Any]:
    return {
        "kind": kind,
        "from": found.first,
        "to": found.end,
        "records": found.records,
        "unavailable": found.unavailable,
        "as_of_ns": time.time_ns(),
    }


def _values_of(symbol: str, snapshot: Snapshot | None) -> dict[str, Any]:
    """The latest values as maps; None where there are none. `as_of`: pairs of ring and sequence."""
    values: dict[str, Any] = {
        "symbol": symbol,
        "last_trade": None,
        "quote": None,
        "day": None,
        "open_bars": [],
        "as_of": [],
    }
    if snapshot is not None:
        for name in ("last_trade", "quote", "day"):
            value = getattr(snapshot, name)
            values[name] = None if value is None else asdict(value)
        values["open_bars"] = [asdict(bar) for bar in snapshot.open_bars]
        values["as_of"] = sorted(snapshot.as_of.items())
    return values


def _id_of(body: bytes) -> Any:
    """The id that a request carries, even where the rest of it is garbage; 0 if none can be found."""
    try:
        found = _decode_any(body)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        return 0
    number = found.get("id", 0) if isinstance(found, dict) else 0
    return number if isinstance(number, int | str) else 0
