"""Routing against a slow model: the right records in the right frames, in order, numbered without a hole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import pytest

from shm.errors import BadArgument
from shm.layout import NO_INSTRUMENT, Flag, Priority, RecordType, StatusCode, empty
from workers import topics
from workers._route import JSON, MSGPACK, RAW, RESOLVED, Router
from workers.topics import ALERT, BATCH, ERROR, STATUS, TopicTable, topic_index
from workers.wire import unpack_frame

TURN = 512
SPECIAL = {int(StatusCode.REJECTED): ERROR, int(StatusCode.LATENCY_ALERT): ALERT}


@pytest.fixture
def table(engine_name: str) -> Iterator[TopicTable]:
    made = TopicTable.create(engine_name, shards=3, turn_records=TURN)
    yield made
    made.close()


def batch(rng: np.random.Generator, count: int, *, instruments: int = 20, first: int = 1) -> np.ndarray:
    records = empty(count)
    records["sequence"] = np.arange(first, first + count)
    records["record_type"] = rng.integers(1, 8, count)
    records["instrument_id"] = rng.integers(0, instruments, count)
    is_status = records["record_type"] == RecordType.STATUS
    records["code"][is_status] = rng.integers(0, 11, count)[is_status]
    records["price"][~is_status] = rng.random(count)[~is_status]
    return records


def cursor(table: TopicTable, shard: int, ring: int) -> int:
    return int(table.words[table.block_word(shard) + ring])


def model_topic(record: np.void) -> int:
    if record["record_type"] == RecordType.STATUS:
        return SPECIAL.get(int(record["code"]), STATUS)
    return topic_index(int(record["record_type"]), int(record["instrument_id"]))


def collect(router: Router, got: dict[int, list[tuple[int, int]]], ring: int, frame_records: int) -> None:
    """Append (topic number, ring sequence) of every record in the frames of the turn, per topic."""
    for topic, frame in router.frames():
        header, records = unpack_frame(frame)
        assert header.ring == ring
        assert 1 <= header.record_count <= frame_records
        got[topic] += zip(
            range(header.topic_sequence, header.topic_sequence + header.record_count),
            records["sequence"].tolist(),
            strict=True,
        )


@pytest.mark.parametrize("frame_records", [1, 3, 64, 1000])
@pytest.mark.parametrize("shard", [0, 2])
def test_every_record_is_in_its_topic_once_in_order_and_numbered(
    table: TopicTable, shard: int, frame_records: int
) -> None:
    rng = np.random.default_rng(frame_records)
    router = Router(table, shard, frame_records=frame_records)
    router.wanted[:] = RESOLVED | RAW
    got: dict[int, list[tuple[int, int]]] = defaultdict(list)
    expected: dict[int, list[tuple[int, int]]] = defaultdict(list)
    first = 1
    for count in (1, 2, 64, 65, TURN, 7):
        records = batch(rng, count, first=first)
        before = records.copy()
        assert router.scan(records, count) == 0
        router.route(5, first + count)
        collect(router, got, 5, frame_records)
        assert np.array_equal(records.view(np.uint8), before.view(np.uint8))
        for record in records:
            if record["instrument_id"] % 3 == shard:
                for topic in (model_topic(record), BATCH):
                    expected[topic].append((len(expected[topic]) + 1, int(record["sequence"])))
        first += count

    assert got == expected
    assert cursor(table, shard, 5) == first
    assert all(table.sequence(topic, shard) == len(numbers) for topic, numbers in expected.items())
    assert table.logged(shard) == 0
    router.close()


def test_records_are_carried_unchanged(table: TopicTable) -> None:
    router = Router(table, 0)
    router.wanted[:] = RESOLVED | RAW
    records = batch(np.random.default_rng(1), 100, instruments=1)
    records.view(np.uint8)[:] = np.random.default_rng(2).integers(0, 256, 100 * 128)
    records["record_type"], records["instrument_id"] = RecordType.TICK, 3
    router.scan(records, 100)
    router.route(0, 101)

    (topic, frame), (last, whole) = router.frames()

    assert (topic, last) == (topic_index(RecordType.TICK, 3), BATCH)
    assert bytes(frame[16:]) == bytes(whole[16:]) == records.tobytes()
    router.close()


def test_topics_that_nobody_wants_are_numbered_and_not_laid_out(table: TopicTable) -> None:
    router = Router(table, 0)
    records = empty(4)
    records["record_type"], records["instrument_id"] = RecordType.TICK, [0, 3, 0, 3]
    wanted, unwanted = topic_index(RecordType.TICK, 3), topic_index(RecordType.TICK, 0)
    router.wanted[wanted], router.wanted[unwanted] = RESOLVED | RAW, RESOLVED
    router.scan(records, 4)

    assert router.route(1, 5) == 1
    assert [topic for topic, _ in router.frames()] == [wanted]
    assert table.sequence(unwanted) == table.sequence(wanted) == 2
    assert table.sequence(BATCH, 0) == 4
    router.close()


def test_unresolved_topics_are_named_until_somebody_decides(table: TopicTable) -> None:
    router = Router(table, 0)
    records = empty(3)
    records["record_type"], records["instrument_id"] = RecordType.QUOTE, [3, 6, 3]
    expected = [topic_index(RecordType.QUOTE, 3), topic_index(RecordType.QUOTE, 6)]

    assert router.scan(records, 3) == 2
    assert router.unresolved() == expected
    router.wanted[expected[0]] = RESOLVED
    assert router.scan(records, 3) == 1
    assert router.unresolved() == expected[1:]
    assert router.route(0, 4) == 0
    router.close()


def test_encoded_records_are_listed_in_ring_order_with_their_numbers(table: TopicTable) -> None:
    router = Router(table, 0)
    tick, quote = topic_index(RecordType.TICK, 3), topic_index(RecordType.QUOTE, 3)
    records = empty(4)
    records["instrument_id"], records["record_type"] = 3, [1, 2, 1, 2]
    router.wanted[tick], router.wanted[quote] = RESOLVED | JSON, RESOLVED | MSGPACK | RAW
    router.scan(records, 4)

    assert router.route(0, 5) == 1
    assert router.encode_list() == [(0, tick, 1), (1, quote, 1), (2, tick, 2), (3, quote, 2)]
    router.close()


def test_records_of_no_instrument_belong_to_shard_0(table: TopicTable) -> None:
    records = empty(2)
    records["record_type"], records["instrument_id"] = RecordType.STATUS, NO_INSTRUMENT
    records["code"] = StatusCode.FEED_UP
    for shard in range(3):
        router = Router(table, shard)
        router.scan(records, 2)
        router.route(0, 3)
        assert table.sequence(STATUS, shard) == table.sequence(BATCH, shard) == (2 if shard == 0 else 0)
        router.close()


def test_records_that_no_topic_has_are_counted_and_stay_in_the_batch_topic(table: TopicTable) -> None:
    router = Router(table, 0)
    router.wanted[:] = RESOLVED | RAW
    records = empty(3)
    records["record_type"], records["instrument_id"] = [0, 8, 1], [0, 0, 65538]  # 65538 % 3 == 0
    router.scan(records, 3)

    assert router.route(0, 4) == 1
    assert [topic for topic, _ in router.frames()] == [BATCH]
    assert router.unroutable == 3
    router.close()


def test_announcements_have_a_number_but_no_place_in_the_batch_topic(table: TopicTable) -> None:
    router = Router(table, 0)
    router.wanted[:] = RESOLVED | RAW
    own = empty(1)
    own["record_type"], own["instrument_id"], own["code"] = RecordType.STATUS, 0, StatusCode.GAP
    router.scan(own, 1)

    assert router.route(4, 57, announce=topics.ANNOUNCED) == 1
    assert [topic for topic, _ in router.frames()] == [STATUS]
    assert (table.sequence(STATUS, 0), table.sequence(BATCH, 0), cursor(table, 0, 4)) == (1, 0, 57)
    router.close()


def test_scan_that_was_not_routed_leaves_no_trace(table: TopicTable) -> None:
    router = Router(table, 0)
    router.wanted[:] = RESOLVED | RAW
    records = empty(6)
    records["record_type"], records["instrument_id"] = RecordType.TICK, [0, 3, 6, 9, 12, 15]
    router.scan(records, 6)
    router.scan(records[:1], 1)

    router.route(0, 2)
    router.scan(records, 6)
    router.route(0, 8)

    assert [table.sequence(topic_index(RecordType.TICK, i)) for i in (0, 3, 15)] == [2, 1, 1]
    router.close()


def test_valid_log_of_a_killed_process_is_applied_once(table: TopicTable) -> None:
    """A kill after the log was declared valid: the next process finishes the commit, and so does the one after it."""
    block, topic = table.block_word(1), topic_index(RecordType.TICK, 1)
    entries = [block + 2, 500, table.topics_word + topic, 40, block + topics.SHARD_TOPIC_WORD, 499]
    table.words[block + topics.LOG_WORD : block + topics.LOG_WORD + 6] = entries
    for _ in range(2):
        table.words[block + topics.LOGGED_WORD] = 3
        Router(table, 1).close()

        assert (cursor(table, 1, 2), table.sequence(topic), table.sequence(BATCH, 1)) == (500, 40, 499)
        assert table.logged(1) == 0


def test_log_that_was_never_declared_valid_is_ignored(table: TopicTable) -> None:
    block = table.block_word(0)
    table.words[block + topics.LOG_WORD : block + topics.LOG_WORD + 2] = [block + 2, 500]

    Router(table, 0).close()

    assert cursor(table, 0, 2) == 0


def test_calls_that_can_not_work_are_refused(table: TopicTable) -> None:
    router = Router(table, 0)
    with pytest.raises(BadArgument, match="route without scan"):
        router.route(0, 1)
    with pytest.raises(BadArgument, match=f"count is {TURN + 1}"):
        router.scan(empty(TURN + 1), TURN + 1)
    with pytest.raises(BadArgument, match="count is 2"):
        router.scan(empty(1), 2)
    with pytest.raises(BadArgument, match="128 bytes"):
        router.scan(np.zeros(256, np.uint8), 2)
    router.scan(empty(1), 1)
    with pytest.raises(BadArgument, match="ring is 16"):
        router.route(16, 1)
    router.close()
    with pytest.raises(BadArgument, match="closed"):
        router.scan(empty(1), 1)


HOLD = 1 << Priority.NORMAL | 1 << Priority.LOW


def test_kept_back_tiers_are_numbered_listed_and_not_sent(table: TopicTable) -> None:
    router, rng = Router(table, 0, frame_records=4), np.random.default_rng(5)
    router.wanted[:] = RESOLVED | RAW | JSON
    router.wanted[topic_index(RecordType.QUOTE, 3)] = RESOLVED  # wanted by nobody: nothing to keep
    for turn in range(20):
        records = batch(rng, 300, first=1 + 300 * turn)
        records["priority"] = rng.integers(0, 4, 300)  # 3: as the lowest
        hold = [HOLD, 1 << Priority.LOW, 0][turn % 3]
        mine = [i for i in range(300) if int(records["instrument_id"][i]) % 3 == 0]
        of = {i: model_topic(records[i]) for i in mine}
        tier = {t: min(int(records["priority"][i]) for i in mine if of[i] == t) for t in of.values()}
        number = {t: table.sequence(t, 0) for t in of.values()}
        held, sent = [], []
        for i in mine:
            number[of[i]] += 1
            may = records["record_type"][i] in (RecordType.QUOTE, RecordType.BAR, RecordType.LEVEL2)
            if may and hold >> min(tier[of[i]], 2) & 1:
                held += [(i, of[i], number[of[i]])] * (of[i] != topic_index(RecordType.QUOTE, 3))
            elif of[i] != topic_index(RecordType.QUOTE, 3):
                sent.append((i, of[i], number[of[i]]))

        router.scan(records, 300)
        assert router.encoded_records == len(held) + len(sent)
        router.route(2, 301 + 300 * turn, hold=hold)
        got = zip(router.held_index, router.held_topic, router.held_number, strict=True)
        assert [tuple(map(int, entry)) for entry in got][: router.held_count] == held
        assert router.encode_list() == sent
        frames: dict[int, list[tuple[int, int]]] = defaultdict(list)
        collect(router, frames, 2, 4)
        assert [s for _, s in frames.pop(BATCH)] == records["sequence"][mine].tolist()  # the batch topic stays whole
        assert sorted((t, n) for t, found in frames.items() for n, _ in found) == sorted((t, n) for _, t, n in sent)
        assert {t: table.sequence(t, 0) for t in number} == number
    router.close()


def test_a_topic_that_waits_stays_behind_and_a_shed_one_says_so_once(table: TopicTable) -> None:
    router = Router(table, 0, frame_records=2)
    router.wanted[:] = RESOLVED | RAW | JSON
    waits, shed = topic_index(RecordType.QUOTE, 0), topic_index(RecordType.BAR, 3)
    router.marks[waits], router.marks[shed] = 2, 1
    records = empty(9)
    records["record_type"] = [RecordType.TRADE, RecordType.QUOTE, RecordType.BAR] * 3
    records["instrument_id"] = [0, 0, 3] * 3
    for turn, flagged in enumerate(([3], [])):
        records["flags"], records["sequence"] = 0, np.arange(1, 10) + 9 * turn
        router.scan(records, 9)
        router.route(1, 10 + 9 * turn)
        assert router.held_topic[: router.held_count].tolist() == [waits] * 3
        told = [
            (topic, int(record["sequence"]) - 9 * turn)
            for topic, frame in router.frames()
            for record in unpack_frame(frame)[1]
            if record["flags"] & Flag.GAP_BEFORE
        ]
        assert told == [(shed, at) for at in flagged]  # raw: the topic alone, not the batch
        assert (np.flatnonzero(records["flags"] & Flag.GAP_BEFORE) + 1).tolist() == flagged  # what is encoded
        assert (router.marks[waits], router.marks[shed]) == (2, 0)
    router.close()
