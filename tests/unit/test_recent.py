"""Searching the recent past against a slow model: every record that can be found, under its number, and no other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, RecordType, StatusCode, empty
from shm.ring import RingReader, RingWriter
from workers import recent, topics
from workers._route import Router
from workers.recent import Found, Recent, Search
from workers.topics import ALERT, BATCH, ERROR, STATUS, TopicTable, topic_index
from workers.wire import unpack_frame

DEPTH = 1024
SPECIAL = {int(StatusCode.REJECTED): ERROR, int(StatusCode.LATENCY_ALERT): ALERT}


class Shard:
    """A shard without its sockets: rings 2 and 3, the router, the search; and a list of what it has numbered."""

    def __init__(self, engine: str, shard: int, shards: int) -> None:
        self.shard, self.shards = shard, shards
        self.table = TopicTable.create(engine, shards=shards)
        self.writers = {ring: RingWriter.create(engine, ring, depth_slots=DEPTH) for ring in (2, 3)}
        self.readers = {ring: RingReader.attach(engine, ring, start=1) for ring in self.writers}
        self.numbered: dict[int, list[tuple[int, int]]] = defaultdict(list)  # topic -> (ring, sequence)
        self.order: dict[tuple[int, int], int] = {}  # of all records, other shards' too
        self.of_unknown_rings: set[int] = set()
        self.out = empty(DEPTH)
        self.restart()

    def restart(self) -> None:
        """What a new process does; it can't know which rings a topic had."""
        self.of_unknown_rings = set(self.numbered)
        self.router = Router(self.table, self.shard)
        self.recent = Recent(self.table, self.shard, self.readers, self.router.rings_of, "fanout-0")

    def turn(self, ring: int, records: np.ndarray) -> None:
        first = self.writers[ring].publish_batch(records)
        reader = self.readers[ring]
        count = reader.read(self.out)
        assert count == len(records)
        self.router.scan(self.out, count)
        self.router.route(ring, reader.sequence)
        for i, record in enumerate(records):
            instrument, kind = int(record["instrument_id"]), int(record["record_type"])
            self.order[ring, first + i] = len(self.order)
            owner = 0 if instrument == NO_INSTRUMENT else instrument % self.shards
            if owner == self.shard:
                code = int(record["code"])
                topic = SPECIAL.get(code, STATUS) if kind == RecordType.STATUS else topic_index(kind, instrument)
                for one in (topic, BATCH):
                    self.numbered[one].append((ring, first + i))

    def found_from(self, topic: int) -> int:
        """The first number after the last record that was overwritten in a ring that may have the topic."""
        known = self.numbered[topic]
        rings = {2, 3} if topic in self.of_unknown_rings else {ring for ring, _ in known}
        oldest = {ring: writer.next_sequence - DEPTH for ring, writer in self.writers.items()}
        lost = max(
            (place for (ring, sequence), place in self.order.items() if ring in rings and sequence < oldest[ring]),
            default=-1,
        )
        return 1 + sum(self.order[one] <= lost for one in known)

    def close(self) -> None:
        self.router.close()
        for end in (*self.readers.values(), *self.writers.values()):
            end.close()
        self.table.close()


@pytest.fixture
def make_shard(engine_name: str) -> Iterator[Callable[..., Shard]]:
    made: list[Shard] = []

    def make(shard: int = 0, shards: int = 1) -> Shard:
        made.append(Shard(engine_name, shard, shards))
        return made[-1]

    yield make
    for shard in made:
        shard.close()


def batch(rng: np.random.Generator, count: int) -> np.ndarray:
    records = empty(count)
    records["record_type"] = rng.choice([1, 2, 3, 7], count)
    records["instrument_id"] = rng.integers(0, 9, count)
    status = records["record_type"] == RecordType.STATUS
    records["instrument_id"][status & (rng.integers(0, 2, count) == 0)] = NO_INSTRUMENT
    records["code"][status] = rng.integers(1, 10, count)[status]
    return records


def run(search: Search, between: Callable[[], None] = lambda: None) -> Found:
    while True:
        try:
            next(search)
        except StopIteration as done:
            found: Found = done.value
            return found
        between()


def records_of(found: Found) -> list[tuple[int, int, int]]:
    """(number, ring, ring sequence) of each record."""
    got = []
    for frame in found.frames:
        header, records = unpack_frame(frame)
        for i, sequence in enumerate(records["sequence"].tolist()):
            got.append((header.topic_sequence + i, header.ring, sequence))
    assert len(got) == found.records
    return got


@pytest.mark.parametrize(("shard", "shards", "restarts"), [(0, 1, False), (0, 3, False), (2, 3, False), (0, 1, True)])
def test_ranges_of_every_topic_are_those_of_the_model(
    make_shard: Callable[..., Shard], shard: int, shards: int, restarts: bool
) -> None:
    rng = np.random.default_rng(shards + 10 * shard)
    stage = make_shard(shard, shards)
    for turn in range(150):
        stage.turn(int(rng.choice([2, 2, 2, 3])), batch(rng, int(rng.integers(1, 60))))
        if restarts and turn == 60:
            stage.router.close()
            stage.restart()
        if turn % 10:
            continue
        for topic in rng.choice(list(stage.numbered), 5).tolist():
            known = stage.numbered[topic]
            first, end = sorted(rng.integers(1, len(known) + 3, 2).tolist())
            found = run(stage.recent.topic_range(topic, first, end))
            end = min(end, len(known) + 1)
            held = stage.found_from(topic)
            got = records_of(found)
            start = min(max(first, held), max(end, first))
            assert got == [(n, *known[n - 1]) for n in range(start, end)]
            assert found.unavailable == ([(first, start)] if start > first else [])
            assert (found.first, found.end) == (first, max(end, first))


def test_quiet_ring_is_searched_beyond_what_a_busy_one_holds(make_shard: Callable[..., Shard]) -> None:
    stage = make_shard()
    bars = empty(10)
    bars["record_type"], bars["instrument_id"] = RecordType.BAR, 4
    stage.turn(3, bars)
    ticks = empty(500)
    ticks["record_type"], ticks["instrument_id"] = RecordType.TICK, 4
    for _ in range(6):
        stage.turn(2, ticks)
        stage.turn(3, bars[:1])

    found = run(stage.recent.topic_range(topic_index(RecordType.BAR, 4), 1, 100))
    gone = run(stage.recent.topic_range(BATCH, 1, 100))

    assert records_of(found) == [(n, 3, n) for n in range(1, 17)]
    assert (gone.unavailable, gone.frames) == ([(1, 100)], [])


def test_search_that_is_overtaken_by_the_writer_stays_exact(
    make_shard: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two slices the ring goes on: what was located and then overwritten is unavailable, by number."""
    monkeypatch.setattr(recent, "SLICE_RECORDS", 64)
    monkeypatch.setattr(recent, "ENTRY_COST", 1)
    rng = np.random.default_rng(5)
    stage = make_shard()
    for _ in range(30):
        stage.turn(2, batch(rng, 50))
    last = len(stage.numbered[BATCH])
    found = run(stage.recent.topic_range(BATCH, 1, last + 1), lambda: stage.turn(2, batch(rng, 7)))
    overtaken = len(stage.numbered[BATCH]) - last
    assert overtaken > 0
    got = records_of(found)
    assert all((ring, sequence) == stage.numbered[BATCH][n - 1] for n, ring, sequence in got)
    gone = [n for first, end in found.unavailable for n in range(first, end)]
    assert sorted(gone + [n for n, _, _ in got]) == list(range(1, last + 1))
    assert found.unavailable[0][1] > last + 1 - DEPTH


def test_answer_ends_where_it_is_full_and_the_next_goes_on_there(
    make_shard: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent, "ANSWER_RECORDS", 100)
    monkeypatch.setattr(recent, "SLICE_RECORDS", 32)
    rng = np.random.default_rng(6)
    stage = make_shard()
    for _ in range(20):
        stage.turn(int(rng.choice([2, 3])), batch(rng, 40))
    got: list[tuple[int, int, int]] = []
    at = 1
    while at < 801:
        found = run(stage.recent.topic_range(BATCH, at, 801))
        assert 0 < found.records <= 100
        got += records_of(found)
        at = found.end
    assert got == [(n, *stage.numbered[BATCH][n - 1]) for n in range(1, 801)]


def test_log_that_came_round_ends_the_past(make_shard: Callable[..., Shard], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many entries as the log has are of use, and not one more."""
    stage = make_shard()
    one = empty(1)
    one["record_type"] = RecordType.TICK
    for turn in range(40):
        stage.turn(2 + turn % 2, one)
    monkeypatch.setattr(topics, "TURNS", 16)
    monkeypatch.setattr(stage.table, "turn", lambda shard, entry: _turn(stage.table, shard, entry))

    found = run(stage.recent.topic_range(BATCH, 1, 41))

    assert [n for n, _, _ in records_of(found)] == list(range(25, 41))
    assert found.unavailable == [(1, 25)]


def _turn(table: TopicTable, shard: int, entry: int) -> topics.Turn:
    """`TopicTable.turn` with the real length of the log."""
    at = table.turns_word(shard) + entry * topics.TURN_WORDS
    first, meta, end, time_ns = table.words[at : at + topics.TURN_WORDS].tolist()
    return topics.Turn(meta >> 56, meta >> 48 & 0xFF, first, meta & ((1 << 48) - 1), end, time_ns)


def test_turns_of_one_ring_that_follow_each_other_share_an_entry(make_shard: Callable[..., Shard]) -> None:
    stage = make_shard()
    records = empty(5)
    records["record_type"] = RecordType.TICK
    before = stage.table.turns_made(0)
    for ring in (2, 2, 2, 3, 2):
        stage.turn(ring, records)

    entries = [stage.table.turn(0, entry) for entry in range(before, stage.table.turns_made(0))]
    assert [(e.kind, e.ring, e.first, e.records) for e in entries] == [
        (topics.NUMBERED, 2, 1, 15),
        (topics.NUMBERED, 3, 1, 5),
        (topics.NUMBERED, 2, 16, 5),
    ]
