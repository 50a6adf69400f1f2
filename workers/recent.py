"""The recent past: which records had these numbers in their topic, found in the rings, exactly.

Called by the replay service (workers/replay.py) inside the fan-out process. A fan-out keeps no copy of what it sent
and no index of it; all that it notes is the turn log (workers/topics.py): from which ring it took how many records, in
which order. A topic's last number is in the topic table, so the numbers follow by counting backwards:

    turn log, newest first     ring 2: 501..700    ring 3: 40..44    ring 2: 301..500    ...
    records of the topic                7 here            0 here             5 here
    last number 90             so these are 84..90                   and these 79..83

Counting ends where the wanted range begins, or where it can't go on: a record of a ring that may have the topic has
been overwritten, the log is at its end, or fan-out has met another ring under the same number. Everything before
that is unavailable, which is part of the answer. Rings that never had a record of the topic are passed over, so a busy
ring does not shorten the past of a quiet one.

`Past` is what the service needs of a store, so that a journal can stand in for what the rings no longer hold. All of
it here is a generator that yields after a slice of bounded work: fan-out goes on with its turns in between. Records are
copied first and believed afterwards, if the ring still holds the oldest of them (`RingReader.holds`, shm/ring.h). It
writes nothing and waits for nobody.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

import numpy as np

from shm.layout import NO_INSTRUMENT, RECORD_SIZE_BYTES, Flag, RecordType, Source, StatusCode, empty
from shm.ring import RingReader
from workers import topics
from workers.topics import INSTRUMENTS, SYMBOL_TOPICS, TopicTable, Turn
from workers.wire import pack_header

ANSWER_RECORDS: Final = 8192  # most records of one answer: 1 MiB
ANSWER_FRAMES: Final = 2048  # and most frames, where records of several rings alternate
FRAME_RECORDS: Final = 256
SLICE_RECORDS: Final = 16384  # heads looked at in a slice: some 0.2 ms
ENTRY_COST: Final = 128  # what an entry of the turn log counts for, in heads

Span = tuple[int, int]  # [from, to)

_WORDS: Final = RECORD_SIZE_BYTES // 8
_KEY_WORD: Final = 4  # instrument_id, record_type, source, flags
_FLAGS_BYTE: Final = 38
_KEY_MASK: Final = np.uint64(0xFF_FFFF_FFFF)
ANNOUNCEMENTS: Final = frozenset({topics.ANNOUNCED, *topics.OVERLOADED})  # entries that are no ring's
_CODES: Final = {topics.ERROR: StatusCode.REJECTED, topics.ALERT: StatusCode.LATENCY_ALERT}


@dataclass
class Found:
    """What a store has of a range.

    Attributes:
        first, end: the range that this is the whole answer for, [first, end); less than was asked for if that was too
            much for one answer, or had not been published yet.
        frames: header and records (workers.wire), ascending; of a topic with topic numbers, of a ring with sequences.
        records: how many these are.
        unavailable: ascending ranges within [first, end) that this store does not have.
        oldest_ns: ts_publish of the oldest record that was looked at; 0 if there was none.
    """

    first: int
    end: int
    frames: list[bytes] = field(default_factory=list)
    records: int = 0
    unavailable: list[Span] = field(default_factory=list)
    oldest_ns: int = 0


Search = Generator[None, None, Found]


class Past(Protocol):
    """A store of records that were published: the rings are one, a journal may be another."""

    def topic_range(self, topic: int, first: int, end: int) -> Search:
        """Records [first, end) of a topic, by its index (workers.topics)."""

    def ring_range(self, ring: int, first: int, end: int) -> Search:
        """Records [first, end) of a ring, of all shards."""


class _Piece(NamedTuple):
    """Found records of one ring, ascending; `turn` in place of a ring's records: one that fan-out made itself."""

    ring: int
    number: int  # of the first of them in its topic
    sequences: np.ndarray
    after_gap: int  # the sequence that was sent with Flag.GAP_BEFORE; 0 = none
    turn: Turn | None = None


class Recent:
    """The rings as a store of the recent past, by the numbers of one shard."""

    def __init__(
        self, table: TopicTable, shard: int, readers: Mapping[int, RingReader], rings_of: np.ndarray, label: str
    ) -> None:
        """Use the shard's table, readers of its rings by ring id, and `Router.rings_of`; owns none of them.

        `label` is the fan-out's: its GAP records carry it.
        """
        self._table = table
        self._shard, self._shards = shard, table.shards
        self._readers = readers
        self._rings_of = rings_of
        self._label = label
        self._slots = {
            ring: reader.slots.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES) for ring, reader in readers.items()
        }
        self._words = {ring: slots.view(np.uint64).reshape(-1, _WORDS) for ring, slots in self._slots.items()}

    def topic_range(self, topic: int, first: int, end: int) -> Search:
        """Records [first, end) of a topic, by its index; the older ones if they are too many for an answer."""
        last = self._table.sequence(topic, self._shard)
        first = max(first, 1)
        end = max(min(end, last + 1), first)
        found = Found(first, end)
        pieces: deque[_Piece] = deque()
        lowest = yield from self._locate(topic, last, pieces, found)
        if lowest > first:
            found.unavailable.append((first, min(lowest, end)))
        at = min(lowest, end)
        for piece in pieces:
            if found.records >= ANSWER_RECORDS or len(found.frames) >= ANSWER_FRAMES:
                found.end = at
                break
            at = self._copy(piece, ANSWER_RECORDS - found.records, found)
            yield
        else:
            found.end = max(at, found.first)
        return found

    def ring_range(self, ring: int, first: int, end: int) -> Search:
        """Records [first, end) of a ring, whatever their topics; frames carry ring sequences as numbers."""
        reader = self._readers[ring]
        first = max(first, 1)
        end = max(min(end, reader.published + 1), first)
        found = Found(first, end)
        held = min(max(first, self.oldest(reader)), end)
        if held > first:
            found.unavailable.append((first, held))
        found.end = min(end, held + ANSWER_RECORDS)
        at = held
        while at < found.end:
            until = min(found.end, at + SLICE_RECORDS // 8)
            self._copy(_Piece(ring, at, np.arange(at, until, dtype=np.uint64), 0), until - at, found)
            at = until
            yield
        return found

    def _locate(self, topic: int, last: int, pieces: deque[_Piece], found: Found) -> Generator[None, None, int]:
        """Fill `pieces` with where records [found.first, found.end) are; returns the lowest number that was found.

        Keeps the oldest ANSWER_RECORDS of them and somewhat more: younger ones are another answer's.
        """
        first, end = found.first, found.end
        number, entry, kept, cost = last + 1, self._table.turns_made(self._shard) - 1, 0, 0
        while number > first and entry >= 0:
            if entry < self._table.turns_made(self._shard) - topics.TURNS:
                break  # fan-out has gone on meanwhile, and its log come round
            turn = self._table.turn(self._shard, entry)
            entry -= 1
            cost += ENTRY_COST
            if cost >= SLICE_RECORDS:
                cost = 0
                yield
            has_topic = int(self._rings_of[topic]) >> turn.ring & 1
            if turn.kind == topics.CUT or (turn.kind == topics.BROKEN and has_topic):
                break
            if turn.kind == topics.BROKEN or (turn.kind not in ANNOUNCEMENTS and not has_topic):
                continue
            if turn.kind in ANNOUNCEMENTS:
                if topic == topics.STATUS:
                    number -= 1
                    if first <= number < end:
                        pieces.appendleft(_Piece(turn.ring, number, np.zeros(1, np.uint64), 0, turn))
                        kept += 1
                continue
            after_gap = turn.first if turn.kind == topics.AFTER_GAP else 0
            until = turn.first + turn.records
            while until > turn.first and number > first:
                start = max(turn.first, until - SLICE_RECORDS)
                held, sequences = self._look(topic, turn.ring, start, until, found)
                most = number - first
                if len(sequences) > most:
                    sequences = sequences[len(sequences) - most :]
                number -= len(sequences)
                wanted = sequences[: max(0, end - number)]
                if len(wanted):
                    pieces.appendleft(_Piece(turn.ring, number, wanted, after_gap))
                    kept += len(wanted)
                    while kept - len(pieces[-1].sequences) >= ANSWER_RECORDS:
                        kept -= len(pieces.pop().sequences)
                cost += until - start
                if cost >= SLICE_RECORDS:
                    cost = 0
                    yield
                if held > start:
                    return number
                until = start
        return number

    def _look(self, topic: int, ring: int, start: int, until: int, found: Found) -> tuple[int, np.ndarray]:
        """(first sequence that the ring still holds, sequences from there to `until` that have the topic)."""
        reader, words = self._readers.get(ring), self._words.get(ring)
        if reader is None or words is None:
            return until, np.zeros(0, np.uint64)
        start = max(start, self.oldest(reader))
        if start >= until:
            return until, np.zeros(0, np.uint64)
        at, to = start % len(words), until % len(words)
        rows = words[at:to] if at < to else np.concatenate((words[at:, :9], words[:to, :9]))
        hits = np.flatnonzero(self.matches(topic, rows)) + start
        times_ns = rows[:, 3].copy()
        held = first_held(reader, range(start, until))
        if held < until - start:
            oldest_ns = int(times_ns[held])
            found.oldest_ns = min(found.oldest_ns or oldest_ns, oldest_ns)
        return start + held, hits[hits >= start + held].astype(np.uint64)

    def matches(self, topic: int, rows: np.ndarray) -> np.ndarray:
        """Which of the record heads in `rows` (shape (n, 9+), uint64) are the topic's; as Router.scan decides."""
        key = rows[:, _KEY_WORD] & _KEY_MASK
        if topic < SYMBOL_TOPICS:
            kind, instrument = topic // INSTRUMENTS + 1, topic % INSTRUMENTS
            return np.asarray(key == np.uint64(kind << 32 | instrument))
        mine = np.ones(len(rows), bool)
        if self._shards > 1:
            instrument_ids = key & np.uint64(0xFFFF_FFFF)
            mine = instrument_ids % np.uint64(self._shards) == np.uint64(self._shard)
            mine[instrument_ids == np.uint64(NO_INSTRUMENT)] = self._shard == 0
        if topic == topics.BATCH:
            return mine
        mine &= key >> np.uint64(32) == np.uint64(RecordType.STATUS)
        codes = rows[:, 8] & np.uint64(0xFFFF_FFFF)
        if topic in _CODES:
            return np.asarray(mine & (codes == np.uint64(_CODES[topic])))
        for code in _CODES.values():
            mine &= codes != np.uint64(code)
        return mine

    def rows(self, ring: int) -> np.ndarray:
        """The slots of a ring as they are, shape (depth, 16), uint64: copy, and believe what `first_held` says."""
        return self._words[ring]

    def _copy(self, piece: _Piece, limit: int, found: Found) -> int:
        """Add up to `limit` records of a piece to the answer; returns the number after the last that was dealt with."""
        if piece.turn is not None:
            turn = piece.turn
            counts = turn.first, turn.end
            if turn.kind == topics.ANNOUNCED:
                record = gap_record(turn.ring, self._shard, self._label, counts, turn.time_ns)
            else:
                record = overload_record(turn.kind, self._shard, self._label, counts, turn.time_ns)
            found.frames.append(pack_header(piece.ring, 1, piece.number) + record.tobytes())
            found.records += 1
            return piece.number + 1
        reader, slots = self._readers[piece.ring], self._slots[piece.ring]
        sequences, number = piece.sequences[:limit], piece.number
        rows = slots[sequences % np.uint64(len(slots))]
        lost = first_held(reader, sequences)
        if lost:
            _add_span(found.unavailable, number, number + lost)
            sequences, rows, number = sequences[lost:], rows[lost:], number + lost
        if len(sequences):
            # Not the slots' words 0: a later lap's mark may stand there already.
            rows.view(np.uint64)[:, 0] = sequences
            if piece.after_gap and int(sequences[0]) <= piece.after_gap <= int(sequences[-1]):
                row = int(np.searchsorted(sequences, np.uint64(piece.after_gap)))
                if int(sequences[row]) == piece.after_gap:
                    rows[row, _FLAGS_BYTE : _FLAGS_BYTE + 2].view("<u2")[0] |= int(Flag.GAP_BEFORE)
            for start in range(0, len(rows), FRAME_RECORDS):
                part = rows[start : start + FRAME_RECORDS]
                found.frames.append(pack_header(piece.ring, len(part), number + start) + part.tobytes())
            found.records += len(rows)
        return number + len(sequences)

    @staticmethod
    def oldest(reader: RingReader) -> int:
        """The oldest sequence that the ring may still hold."""
        return max(1, reader.published + 1 - reader.depth_slots)


def first_held(reader: RingReader, sequences: Sequence[int] | np.ndarray) -> int:
    """How many of these ascending sequences the ring no longer holds: what was copied of the others is whole.

    Slots are overwritten in order, so all are held from the first on that is.
    """
    low, high = 0, len(sequences)
    if high and reader.holds(int(sequences[0])):
        return 0
    while low < high:
        middle = (low + high) // 2
        if reader.holds(int(sequences[middle])):
            high = middle
        else:
            low = middle + 1
    return low


def _add_span(spans: list[Span], start: int, end: int) -> None:
    """Add a range behind the others, or to the last of them if it goes on there."""
    if spans and spans[-1][1] == start:
        spans[-1] = spans[-1][0], end
    else:
        spans.append((start, end))


def gap_record(ring: int, shard: int, label: str, lost: Span, now_ns: int) -> np.ndarray:
    """The status record by which a fan-out tells which sequences of a ring it lost: shape (1,), dtype RECORD."""
    return _own_record(StatusCode.GAP, shard, f"ring {ring} overran {label}", lost, now_ns)


def overload_record(kind: int, shard: int, label: str, counts: Span, now_ns: int) -> np.ndarray:
    """The status record by which a fan-out tells that it conflates, sheds, or no longer does: shape (1,), dtype RECORD.

    Args:
        kind: one of topics.OVERLOADED.
        counts: how many records were conflated and shed since the overload began.
    """
    word = {topics.CONFLATING: "conflating", topics.SHEDDING: "shedding", topics.RELIEVED: "relieved"}[kind]
    return _own_record(StatusCode.OVERLOAD, shard, f"{word} {label}", counts, now_ns)


def _own_record(code: StatusCode, shard: int, text: str, numbers: Span, now_ns: int) -> np.ndarray:
    record = empty(1)
    record["ts_event"] = record["ts_receive"] = record["ts_publish"] = now_ns
    record["instrument_id"] = shard  # any instrument of this shard: the router asks whose record it is
    record["record_type"], record["source"] = RecordType.STATUS, Source.INTERNAL
    record["code"], record["from_sequence"], record["to_sequence"] = code, *numbers
    record["text"] = text.encode()[:40]
    return record
