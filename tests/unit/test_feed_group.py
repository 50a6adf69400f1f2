"""A redundancy group in a worker: what it publishes for a switch, what it counts, what it takes over from the ring."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType, StatusCode, concatenate, empty
from shm.ring import RingReader, RingWriter, create_ring
from shm.status import ProcessStatus, StatusBlock
from tests.unit.test_ingest import Engine, engine, finish
from workers.feed import Publisher
from workers.feed_group import PICTURE_EVERY_NS, PICTURE_RECORDS, FeedGroup, Seat, restore_from_ring
from workers.redundancy import MAX_MEMBERS
from workers.spec import EXIT_BAD_SETTINGS, MAX_GROUP_FEEDS, FeedReport, FeedSpec, GroupReport, RedundancySettings

__all__ = ["engine"]
RING = 2
S = 1_000_000_000
NOW = 1_700_000_000 * S


def spec(number: int, rank: int) -> FeedSpec:
    return FeedSpec(feed_id=number, name=f"f{number}", source="simulated", group="g", rank=rank)


def trades(feed_id: int, *events: int, instrument: int = 3) -> np.ndarray:
    """Event n happened n ns after NOW."""
    records = empty(len(events))
    records["record_type"] = RecordType.TRADE
    records["instrument_id"] = instrument
    records["feed_id"] = feed_id
    records["ts_event"] = NOW + np.array(events)
    return records


class Worker:
    """A ring, a slot of a status block, and one group of two feeds in it."""

    def __init__(self, name: str, settings: RedundancySettings | None = None) -> None:
        self.name = name
        self.block = StatusBlock.create(name, process_slots=2)
        create_ring(name, RING, depth_slots=256)
        self.writer = RingWriter.open(name, RING)
        self.status: ProcessStatus = self.block.register("ingest-0", "ingest")
        self.publisher = Publisher(self.writer, self.status)
        self.group = FeedGroup("g", settings or RedundancySettings(), self.status)
        self.seats: list[Seat] = [self.group.join(spec(number, number)) for number in (1, 2)]
        self.now_ns = NOW
        for seat in self.seats:
            seat.up(self.now_ns)
        self.step()

    def step(self) -> GroupReport | None:
        return self.group.step(self.now_ns, self.publisher, lambda number: f"I{number}")

    def counter(self, name: str) -> int:
        return self.status.counter(name).value

    def published(self) -> np.ndarray:
        with RingReader.attach(self.name, RING, start=1, register=False) as reader:
            out = empty(256)
            return out[: reader.read(out)]

    def close(self) -> None:
        self.writer.close()
        self.block.close()


@pytest.fixture
def worker(engine_name: str) -> Iterator[Worker]:
    worker = Worker(engine_name)
    yield worker
    worker.close()


def test_a_switch_is_told_before_the_backlog_that_comes_in_batches_the_ring_takes(worker: Worker) -> None:
    seat, spare = worker.seats
    assert seat.filter(trades(1, 1, 2), 2, worker.now_ns) == 2
    assert spare.filter(trades(2, *range(1, 103)), 102, worker.now_ns) == 0
    lost = FeedReport(feed_id=1, state="recovering", why="closed by the venue: 1000 bye")
    seat.note(lost, worker.now_ns)
    report = worker.step()
    records = worker.published()
    (switched,) = records[records["record_type"] == RecordType.STATUS]
    assert switched["code"] == StatusCode.FEED_SWITCHED
    assert (switched["from_sequence"], switched["to_sequence"], switched["feed_id"]) == (1, 2, 2)
    assert switched["instrument_id"] == NO_INSTRUMENT
    assert switched["text"] == b"lost: closed by the venue: 1000 bye"
    assert records["record_type"][0] == RecordType.STATUS
    told = records[records["record_type"] == RecordType.TRADE]
    assert (told["ts_event"] - NOW).tolist() == list(range(3, 103))
    assert (told["flags"] & np.uint16(Flag.BACKFILLED) != 0).all()
    assert (told["feed_id"] == 2).all()
    assert report is not None
    assert [(one.feed_id, one.role, one.condition) for one in report.members] == [
        (1, "standby", "out"),
        (2, "active", "proving"),
    ]
    assert (report.switches, report.last_switch) == (1, "lost: closed by the venue: 1000 bye")
    assert report.members[1].withheld == 102
    assert worker.counter("standby_records") == 102
    assert worker.counter("standby_backfilled") == 100
    assert worker.counter("feed_switches") == 1
    assert worker.counter("records_published") == 101


def test_what_the_backlog_could_not_hold_is_a_gap(engine_name: str) -> None:
    worker = Worker(engine_name, RedundancySettings(backlog_records=64))
    try:
        worker.seats[0].filter(trades(1, 1), 1, worker.now_ns)
        worker.seats[1].filter(trades(2, *range(1, 102)), 101, worker.now_ns)
        worker.seats[0].down(worker.now_ns, "x")
        worker.step()
        records = worker.published()
        assert records["code"][:2].tolist() == [StatusCode.FEED_SWITCHED, StatusCode.GAP]
        assert records["flags"][2] & int(Flag.GAP_BEFORE)
        assert len(records) == 2 + 64
        assert worker.counter("standby_lost") == 36
    finally:
        worker.close()


def book(feed_id: int, prices: int, *, instrument: int = 3, size: float = 1.0) -> np.ndarray:
    """So many bids."""
    records = empty(prices)
    records["record_type"] = RecordType.LEVEL2
    records["instrument_id"] = instrument
    records["feed_id"] = feed_id
    records["ts_event"] = NOW + 5
    records["side"], records["price"], records["size"] = 1, np.arange(1, prices + 1), size
    records["action"], records["level"] = Action.MODIFY, 0xFFFF
    return records


def test_books_follow_a_switch_after_the_backlog_and_not_all_at_once(worker: Worker) -> None:
    seat, spare = worker.seats
    for instrument, levels in ((3, 60), (4, PICTURE_RECORDS), (5, 10)):
        seat.filter(book(1, 1, instrument=instrument), 1, worker.now_ns)
        spare.filter(book(2, levels, instrument=instrument), levels, worker.now_ns)
    spare.filter(trades(2, 9), 1, worker.now_ns)
    seat.down(worker.now_ns, "x")
    worker.step()
    found = worker.published()
    assert found["record_type"].tolist() == [RecordType.STATUS, RecordType.TRADE, *[RecordType.LEVEL2] * 61]
    assert found["action"][2] == Action.CLEAR
    assert found["flags"][2] == Flag.SNAPSHOT | Flag.GAP_BEFORE
    assert found["price"][3:].tolist() == list(range(60, 0, -1))
    assert (worker.counter("standby_books"), worker.counter("standby_backfilled")) == (61, 1)
    assert worker.counter("records_published") == len(found)
    assert worker.group.due_ns == worker.now_ns + PICTURE_EVERY_NS
    worker.step()
    assert worker.counter("standby_books") == 61
    worker.now_ns += PICTURE_EVERY_NS
    worker.step()
    assert worker.counter("standby_books") == 61 + PICTURE_RECORDS + 1  # longer than a turn's share: alone
    worker.now_ns += PICTURE_EVERY_NS
    worker.step()
    assert worker.counter("standby_books") == 61 + PICTURE_RECORDS + 1 + 11
    assert worker.group.redundancy.board.due == 0
    assert spare.filter(book(2, 1), 1, worker.now_ns) == 1


def test_a_feed_that_is_silent_keeps_its_books_and_one_that_is_lost_does_not(worker: Worker) -> None:
    seat, spare = worker.seats
    seat.filter(book(1, 1), 1, worker.now_ns)
    spare.filter(book(2, 2), 2, worker.now_ns)
    spare.note(FeedReport(feed_id=2, state="stale", why="silent"), worker.now_ns)
    spare.note(FeedReport(feed_id=2, state="live", why="delivers"), worker.now_ns)
    seat.down(worker.now_ns, "x")
    worker.step()
    assert worker.counter("standby_books") == 3
    seat.up(worker.now_ns)
    seat.note(FeedReport(feed_id=1, state="live", why="delivers"), worker.now_ns)
    seat.filter(book(1, 5), 5, worker.now_ns)
    seat.note(FeedReport(feed_id=1, state="recovering", why="closed"), worker.now_ns)
    seat.up(worker.now_ns)
    spare.down(worker.now_ns, "x")
    worker.now_ns += PICTURE_EVERY_NS
    worker.step()
    assert worker.counter("standby_books") == 3 + 1
    assert worker.published()["flags"][-1] & int(Flag.INCOMPLETE)


def test_a_book_that_is_told_before_its_feed_is_up_is_kept(worker: Worker) -> None:
    seat, spare = worker.seats
    seat.filter(book(1, 1), 1, worker.now_ns)
    spare.note(FeedReport(feed_id=2, state="live", why="delivers"), worker.now_ns)
    spare.note(FeedReport(feed_id=2, state="recovering", why="closed"), worker.now_ns)
    clear = book(2, 1)
    clear["action"], clear["flags"] = Action.CLEAR, Flag.SNAPSHOT
    spare.filter(clear, 1, worker.now_ns)
    for state in ("connecting", "subscribing"):
        spare.note(FeedReport(feed_id=2, state=state, why=""), worker.now_ns)
    spare.filter(book(2, 2), 2, worker.now_ns)
    spare.note(FeedReport(feed_id=2, state="live", why="delivers"), worker.now_ns)
    seat.down(worker.now_ns, "x")
    worker.step()
    assert worker.counter("standby_books") == 3
    assert not worker.published()["flags"][-1] & int(Flag.INCOMPLETE)


def test_levels_without_room_are_counted(engine_name: str) -> None:
    worker = Worker(engine_name, RedundancySettings(book_mb=1))
    try:
        for first in range(0, 40_000, 100):
            records = book(2, 100)
            records["price"] += first
            worker.seats[1].filter(records, 100, worker.now_ns)
        worker.now_ns += S
        worker.step()
        assert worker.counter("standby_levels_lost") == 40_000 - 32_768 * 3 // 4
    finally:
        worker.close()


def test_exceptions_are_named_in_the_report(worker: Worker) -> None:
    seat, spare = worker.seats
    report = None
    for event in range(10):
        worker.now_ns += S // 2
        seat.filter(trades(1, event * S), 1, worker.now_ns)
        spare.filter(trades(2, event * S), 1, worker.now_ns)
        spare.filter(trades(2, event * S, instrument=9), 1, worker.now_ns)
        report = worker.step() or report
    assert report is not None
    assert [(one.symbols, one.without) for one in report.members] == [((), ("I9",)), (("I9",), ())]
    told = worker.published()
    (switched,) = told[told["record_type"] == RecordType.STATUS]
    assert switched["instrument_id"] == 9
    backlog = told[(told["instrument_id"] == 9) & (told["record_type"] == RecordType.TRADE)]
    assert ((backlog["ts_event"] - NOW) // S).tolist() == list(range(7))


def test_a_report_comes_when_something_has_changed_and_every_second(worker: Worker) -> None:
    assert worker.step() is None
    worker.now_ns += S
    assert worker.step() is not None
    worker.now_ns += S // 100
    worker.seats[1].down(worker.now_ns, "x")
    assert worker.step() is not None
    assert worker.step() is None


def test_what_the_ring_has_is_not_published_again(worker: Worker) -> None:
    batches = [trades(1, 1, 2), trades(7, 50), trades(2, 3, 4)]
    worker.writer.publish_batch(concatenate(batches))
    successor = FeedGroup("g", RedundancySettings(), worker.status)
    seat = successor.join(spec(1, 0))
    successor.join(spec(2, 1))
    restore_from_ring([successor], worker.name, RING, worker.now_ns)
    seat.up(worker.now_ns)
    records = trades(1, 2, 3, 4, 5, 6)
    assert seat.filter(records, 5, worker.now_ns) == 2
    assert (records["ts_event"][:2] - NOW).tolist() == [5, 6]


def test_a_ring_that_can_not_be_read_is_no_reason_not_to_start(worker: Worker) -> None:
    restore_from_ring([worker.group], worker.name, RING + 1, worker.now_ns)
    assert worker.seats[0].filter(trades(1, 1), 1, worker.now_ns) == 1


def test_a_group_ends_with_its_last_feed(worker: Worker) -> None:
    assert worker.group.due_ns is not None
    assert not worker.group.leave(1, worker.now_ns)
    assert worker.group.due_ns is None
    assert worker.group.leave(2, worker.now_ns)


def test_the_control_process_knows_how_many_there_may_be() -> None:
    assert MAX_GROUP_FEEDS == MAX_MEMBERS


def test_one_of_two_feeds_of_a_worker_is_published_and_both_are_counted(engine: Engine) -> None:
    options = {"rate": 2000, "instruments": 4}
    feeds = [
        FeedSpec(feed_id=number, name=f"f{number}", source="simulated", options=options, group="g", rank=9 - number)
        for number in (1, 2)
    ]
    engine.start(*feeds)
    with engine.reader() as reader:
        records = engine.records(reader, 1000)
    market = records[records["record_type"] != RecordType.STATUS]
    assert set(market["feed_id"].tolist()) == {2}
    assert engine.counter("feed.1.records") > 0
    assert engine.counter("feed.2.records") > 0


def test_a_replay_can_not_be_in_a_group(engine: Engine) -> None:
    capture = FeedSpec(feed_id=1, name="old", source="replay", options={"files": ["x.dbn"]}, group="g")
    code, said = finish(engine.start(capture))
    assert code == EXIT_BAD_SETTINGS
    assert "feed old: group: a feed of source 'replay' can't be in one" in said
