"""The past by time: what was published since, out of the journal, and out of the rings where they still have it.

Called by the replay service (workers/replay.py) inside the fan-out process. For each ring there is a place, a stream
(when the ring was made) and a sequence, from which reading goes on:

    journal  | block | block | block | gap | block |            one after another, by workers/journal_fetch.py
    ring                          |- oldest ... published -|    as soon as it holds the place: no disk is needed
                                       ^ fan-out has come to here: the numbers of topics are those of this moment

The seam is a sequence, so nothing comes twice and nothing is left out; what neither has is named. Rings are read in
step, so that an answer is in the order of `ts_publish`, and its records are those that no later answer can precede.
An answer is bounded, in records and in what it looks at; its places are where the next one begins.

Times are `ts_publish`, when a record was published by this engine: the venue's own times repeat and go back. Records of
before the engine's last start are found by their symbols, whose numbers may have been others; in answers they carry
today's. Everything is a generator that yields after a slice of work, or DISK while the disk is looked at. It
numbers nothing: what a record's number in its topic was can't be known from the journal.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from shm.layout import RECORD_SIZE_BYTES
from shm.ring import RingReader
from workers.journal_fetch import Begin, JournalFetch, Piece, Place
from workers.recent import ANSWER_FRAMES, FRAME_RECORDS, Found, Recent, first_held
from workers.topics import BATCH, INSTRUMENTS, SYMBOL_TOPICS, TopicTable
from workers.wire import pack_header

DISK: Final = "waiting for the disk"
SLICE_RECORDS: Final = 8192  # heads looked at in a slice: some 0.1 ms
SCAN_RECORDS: Final = 1 << 18  # and for one answer, 32 MiB
ANSWER_RECORDS: Final = 2048  # of an answer: it is made in one go, some 0.3 ms
BEHIND_S: Final = 2.0  # how long the recorder may need to write what a ring has lost already

_WORDS: Final = RECORD_SIZE_BYTES // 8
_INSTRUMENT_BYTE: Final = 32
_PUBLISH_WORD: Final = 3
_PAGE_COST: Final = 256  # what a look at the disk counts for, in heads
_AGAIN_S: Final = 0.05
_FOREVER: Final = 1 << 62

Places = dict[int, Place]
Step = str | None  # what a generator here yields: DISK, or nothing in particular
_T = TypeVar("_T")


class TooOld(Exception):
    """A time that the rings no longer hold, in an engine without a journal."""


@dataclass
class Told:
    """Part of the past.

    Attributes:
        frames: header (topic sequence 0: not known) and records; each of one topic and ring.
        topics_of: of each frame, the index of its topic in the question.
        records: how many these are.
        next: where the next part begins, for each ring; None if this is all up to now, or up to the end asked for.
        numbers: then, the last number of each topic: a stream that goes on at the next one has no gap and no double.
        unavailable: (ring, from, to): sequences that neither journal nor rings have.
        since_ns: the past is complete from here on; later than asked for if so much is not kept.
    """

    frames: list[bytes] = field(default_factory=list)
    topics_of: list[int] = field(default_factory=list)
    records: int = 0
    next: Places | None = None
    numbers: list[int] = field(default_factory=list)
    unavailable: list[tuple[int, int, int]] = field(default_factory=list)
    since_ns: int = 0


class _Question(NamedTuple):
    """What is asked for: topics by index, [from_ns, to_ns), and the symbols with their numbers of today."""

    topics: list[int]
    from_ns: int
    to_ns: int
    symbols: dict[str, int]


@dataclass
class _Lane:
    """One ring, while an answer is made. `hits` are times, streams, topics and records of what was found."""

    ring: int
    place: Place
    end: int  # where fan-out is, in today's stream
    time_ns: int = 0  # the youngest ts_publish that was looked at
    done: bool = False
    piece: Piece | None = None  # of the journal, with what is still to be looked at
    hits: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = field(default_factory=list)

    def look_ahead(self, times_ns: np.ndarray) -> np.ndarray:
        """These times with none before an earlier one: a clock that was set back must not undo an order."""
        ahead = np.maximum.accumulate(times_ns)
        np.maximum(ahead, self.time_ns, out=ahead)
        self.time_ns = int(ahead[-1])
        return ahead


class Chronicle:
    """Rings and journal of an engine as one past, for one shard."""

    def __init__(
        self,
        recent: Recent,
        readers: Mapping[int, RingReader],
        streams: Mapping[int, int],
        *,
        table: TopicTable,
        shard: int,
        journal: str,
    ) -> None:
        """Use what fan-out has; owns the journal's thread alone.

        Args:
            streams: when each ring was made, ns.
            journal: the recorder's journal folder; empty = there is none.
        """
        self._recent, self._readers, self._streams = recent, readers, streams
        self._table, self._shard = table, shard
        self._fetch = JournalFetch(Path(journal)) if journal else None

    @property
    def has_journal(self) -> bool:
        """Whether there is more than the rings."""
        return self._fetch is not None

    def told(
        self, wanted: Sequence[tuple[int, str]], from_ns: int, to_ns: int, places: Places | None
    ) -> Generator[Step, None, Told]:
        """Records of topics published in [from_ns, to_ns), as many as an answer takes.

        Args:
            wanted: index (workers.topics) and symbol of each topic; "" for those without one.
            to_ns: 0 = up to now.
            places: the `next` of the answer before; None to begin.

        Raises:
            TooOld: no journal, and the rings no longer go back to `from_ns`; the message says how far they do.
        """
        asked = _Question([index for index, _ in wanted], from_ns, to_ns or _FOREVER, dict(_numbers(wanted)))
        told = Told(since_ns=from_ns)
        if places is None:
            today = any(index == BATCH for index, _ in wanted)  # of everything, instruments can't be translated
            places = yield from self._begin(from_ns, told, today_only=today)
        # Both at the same moment, between two turns of fan-out: the numbers are those of records before these ends.
        ends = {ring: reader.sequence for ring, reader in self._readers.items()}
        numbers = [self._table.sequence(index, self._shard) for index, _ in wanted]
        lanes = [_Lane(ring, places.get(ring, Place(self._streams[ring], 1)), ends[ring]) for ring in sorted(ends)]
        yield from self._scan(lanes, asked, told)
        complete = self._compose(lanes, told)
        if complete:
            told.numbers = numbers
        else:
            told.next = {lane.ring: lane.place for lane in lanes}
        return told

    def ring_range(self, ring: int, first: int, end: int) -> Generator[Step, None, Found | None]:
        """Records [first, end) of a ring as it is today, from the journal; None if that does not have the first."""
        if self._fetch is None:
            return None
        found, place = Found(first, first), Place(self._streams[ring], first)
        while place.sequence < end and found.records < ANSWER_RECORDS:
            piece = yield from _result(self._fetch.piece(ring, place, 0, {}))
            if piece is None or piece.next.stream != place.stream:
                break
            if piece.first > place.sequence:
                found.unavailable.append((place.sequence, min(piece.first, end)))
            records = piece.records[: max(0, min(end - piece.first, ANSWER_RECORDS - found.records))]
            for start in range(0, len(records), FRAME_RECORDS):
                part = records[start : start + FRAME_RECORDS]
                found.frames.append(pack_header(ring, len(part), piece.first + start) + part.tobytes())
            found.records += len(records)
            whole = len(records) == len(piece.records)
            place = Place(place.stream, piece.next.sequence if whole else piece.first + len(records))
            yield None
        found.end = min(place.sequence, end)
        return found if found.end > first else None

    def close(self) -> None:
        """End the thread that reads."""
        if self._fetch is not None:
            self._fetch.close()

    def _begin(self, from_ns: int, told: Told, *, today_only: bool) -> Generator[Step, None, Places]:
        """Where each ring's records of this time are; fills in since when the past is complete."""
        places: Places = {}
        for ring, reader in self._readers.items():
            begin: Begin | None = None
            if self._fetch is not None:
                begin = yield from _result(self._fetch.begin(ring, from_ns))
            stream, oldest = self._streams[ring], self._recent.oldest(reader)
            rows = self._recent.rows(ring)
            ring_since_ns = stream if oldest == 1 else int(rows[oldest % len(rows), _PUBLISH_WORD])
            if begin is None or (ring_since_ns <= from_ns and begin.place.stream <= stream):
                begin = Begin(Place(stream, oldest), max(from_ns, ring_since_ns))
                if self._fetch is None and oldest > 1 and ring_since_ns > from_ns:
                    raise TooOld(
                        f"ring {ring} holds records since {ring_since_ns} only, and there is no journal of older ones "
                        "([storage] enabled is off)"
                    )
            if today_only and begin.place.stream != stream:
                begin = Begin(Place(stream, 1), max(from_ns, stream))
            places[ring] = begin.place
            told.since_ns = max(told.since_ns, begin.since_ns)
        return places

    def _scan(self, lanes: list[_Lane], asked: _Question, told: Told) -> Generator[Step, None, None]:
        """Look at the ring that is behind in time, again and again, until there is enough for an answer."""
        looked = found = 0
        while looked < SCAN_RECORDS and found < ANSWER_RECORDS:
            behind = [lane for lane in lanes if not lane.done]
            if not behind:
                return
            lane = min(behind, key=lambda lane: lane.time_ns)
            if lane.piece is None and not self._in_ring(lane):
                yield from self._turn_page(lane, asked, told)
                looked += _PAGE_COST
                continue
            if lane.done:
                continue
            if lane.piece is not None:
                heads, hits = self._look_at_piece(lane, asked)
            else:
                heads, hits = self._look_at_ring(lane, asked, told)
            looked, found = looked + heads, found + hits
            if lane.time_ns >= asked.to_ns:
                lane.done = True
            yield None

    def _in_ring(self, lane: _Lane) -> bool:
        """Whether the ring itself has the lane's place; marks the lane done if that is where fan-out is."""
        if lane.place.stream != self._streams[lane.ring]:
            return False
        lane.done = lane.place.sequence >= lane.end
        return lane.done or lane.place.sequence >= self._recent.oldest(self._readers[lane.ring])

    def _turn_page(self, lane: _Lane, asked: _Question, told: Told) -> Generator[Step, None, None]:
        """The journal's next piece; where it has none, on to today's ring, and what is in neither is unavailable."""
        stream, deadline = self._streams[lane.ring], time.monotonic() + BEHIND_S
        while True:
            piece = None
            if self._fetch is not None:
                piece = yield from _result(self._fetch.piece(lane.ring, lane.place, asked.from_ns, asked.symbols))
            if piece is not None and piece.next.stream <= stream:
                if piece.next.stream == lane.place.stream and piece.first > lane.place.sequence:
                    _lose(told, lane.ring, lane.place.sequence, piece.first)
                if len(piece.records):
                    lane.piece = piece
                lane.place = Place(piece.next.stream, piece.next.sequence - len(piece.records))
                return
            if lane.place.stream != stream:
                lane.place = Place(stream, 1)
                return
            if self._fetch is None or time.monotonic() > deadline:
                oldest = min(self._recent.oldest(self._readers[lane.ring]), lane.end)
                if oldest > lane.place.sequence:
                    _lose(told, lane.ring, lane.place.sequence, oldest)
                    lane.place = Place(stream, oldest)
                return
            until = time.monotonic() + _AGAIN_S  # what the ring has lost already the recorder has not written yet
            while time.monotonic() < until:
                yield DISK

    def _look_at_piece(self, lane: _Lane, asked: _Question) -> tuple[int, int]:
        """Look through a slice of the journal's piece: (heads looked at, records found)."""
        piece = lane.piece
        assert piece is not None
        limit = lane.end if piece.next.stream == self._streams[lane.ring] else _FOREVER
        start = lane.place.sequence - piece.first
        until = min(start + SLICE_RECORDS, len(piece.records), limit - piece.first)
        if until <= start:  # fan-out has not come so far
            lane.piece, lane.done = None, True
            return 0, 0
        rows = piece.records[start:until].view(np.uint64).reshape(-1, _WORDS)
        count = self._keep(lane, asked, rows, [_renumbered(index, piece.ids) for index in asked.topics])
        lane.place = Place(lane.place.stream, piece.first + until)
        if until == len(piece.records):
            lane.piece = None
        return len(rows), count

    def _look_at_ring(self, lane: _Lane, asked: _Question, told: Told) -> tuple[int, int]:
        """Look through a slice of the ring: (heads looked at, records found)."""
        reader, first = self._readers[lane.ring], lane.place.sequence
        slots = self._recent.rows(lane.ring)
        at = first % len(slots)
        count = min(SLICE_RECORDS, lane.end - first, len(slots) - at)
        before_ns, kept = lane.time_ns, len(lane.hits)
        hits = self._keep(lane, asked, slots[at : at + count], asked.topics, first)
        lost = first_held(reader, range(first, first + count))
        if lost:  # overwritten while it was copied: the whole slice again, from the journal or further on
            del lane.hits[kept:]
            lane.time_ns = before_ns
            if self._fetch is None:
                _lose(told, lane.ring, first, first + lost)
                lane.place = Place(lane.place.stream, first + lost)
            return count, 0
        lane.place = Place(lane.place.stream, first + count)
        return count, hits

    def _keep(self, lane: _Lane, asked: _Question, rows: np.ndarray, then: list[int], first: int = 0) -> int:
        """Copy what is wanted of some rows (shape (n, 16), uint64), and note it with its time and topic.

        `then` are the topics' indices by the numbers that instruments had in these rows, -1 = it had none.

        `first` is the sequence of the first row, where the rows do not say so themselves (a ring's marks).
        """
        times_ns = rows[:, _PUBLISH_WORD].astype(np.int64)
        inside = (times_ns >= asked.from_ns) & (times_ns < asked.to_ns)
        ahead = lane.look_ahead(times_ns)
        topic_of = np.full(len(rows), -1, np.int32)
        for position, index in enumerate(then):
            if index >= 0:
                topic_of[self._recent.matches(index, rows) & inside & (topic_of < 0)] = position
        hits = np.flatnonzero(topic_of >= 0)
        if len(hits):
            copies = rows[hits]
            if first:
                copies[:, 0] = hits.astype(np.uint64) + np.uint64(first)
            if asked.topics != then:
                numbers = copies.view(np.uint8)[:, _INSTRUMENT_BYTE : _INSTRUMENT_BYTE + 4].copy().view("<u4")
                for position, (now, before) in enumerate(zip(asked.topics, then, strict=True)):
                    if now != before:
                        numbers[topic_of[hits] == position] = now % INSTRUMENTS
                copies.view(np.uint8)[:, _INSTRUMENT_BYTE : _INSTRUMENT_BYTE + 4] = numbers.view(np.uint8)
            streams = np.full(len(hits), lane.place.stream, np.int64)
            lane.hits.append((ahead[hits], streams, topic_of[hits], copies))
        return len(hits)

    @staticmethod
    def _compose(lanes: list[_Lane], told: Told) -> bool:
        """Make the answer's frames out of what was found; sets places back to what is left out. True if nothing is."""
        settled_ns = min((lane.time_ns for lane in lanes if not lane.done), default=_FOREVER)
        found = [
            (times, np.full(len(times), lane.ring), streams, topic_of, rows)
            for lane in lanes
            for times, streams, topic_of, rows in lane.hits
        ]
        complete = all(lane.done for lane in lanes)
        if not found:
            return complete
        times_ns, rings, streams, topic_of, rows = (np.concatenate(column) for column in zip(*found, strict=True))
        order = np.argsort(times_ns, kind="stable")  # which keeps each ring's own order
        count = min(int(np.searchsorted(times_ns[order], settled_ns, "right")), ANSWER_RECORDS)
        while True:
            chosen = order[:count]
            chosen = chosen[np.argsort(topic_of[chosen], kind="stable")]
            cuts = _cuts(topic_of[chosen], rings[chosen])
            if len(cuts) <= ANSWER_FRAMES:
                break
            count //= 2
        for start, end in zip(cuts, [*cuts[1:], count], strict=True):
            piece = rows[chosen[start:end]]
            told.frames.append(pack_header(int(rings[chosen[start]]), len(piece), 0) + piece.tobytes())
            told.topics_of.append(int(topic_of[chosen[start]]))
        told.records = count
        left = order[count:]
        for lane in lanes:
            rest = left[rings[left] == lane.ring]
            if len(rest):
                lane.place = Place(int(streams[rest[0]]), int(rows[rest[0], 0]))
        return complete and not len(left)


def _numbers(wanted: Sequence[tuple[int, str]]) -> Iterator[tuple[str, int]]:
    for index, symbol in wanted:
        if index < SYMBOL_TOPICS:
            yield symbol, index % INSTRUMENTS


def _cuts(topic_of: np.ndarray, rings: np.ndarray) -> list[int]:
    """Where frames begin: at each change of topic or ring, and after FRAME_RECORDS at the latest."""
    if not len(topic_of):
        return []
    changes = np.flatnonzero((topic_of[1:] != topic_of[:-1]) | (rings[1:] != rings[:-1])) + 1
    runs = [0, *changes.tolist(), len(topic_of)]
    return [at for start, end in pairwise(runs) for at in range(start, end, FRAME_RECORDS)]


def _renumbered(index: int, ids: dict[int, int]) -> int:
    """A topic's index by the instrument numbers of a block; -1 if its symbol was not known then."""
    if index >= SYMBOL_TOPICS or index % INSTRUMENTS not in ids:
        return index
    before = ids[index % INSTRUMENTS]
    return index - index % INSTRUMENTS + before if before >= 0 else -1


def _lose(told: Told, ring: int, first: int, end: int) -> None:
    told.unavailable.append((ring, first, end))


def _result(future: Future[_T]) -> Generator[Step, None, _T]:
    """Wait for the disk without holding anybody up."""
    while not future.done():
        yield DISK
    return future.result()
