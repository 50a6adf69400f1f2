"""What fan-out keeps back and puts off: bounded, in order, counted; the time is the test's."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from shm.layout import Priority, RecordType, empty
from shm.status import ProcessStatus, StatusBlock
from workers import topics
from workers._route import JSON, RESOLVED, Router
from workers.overload import State
from workers.relief import CREDIT_NS, LATE_RECORDS, LATE_SLICE, MESSAGE_NS, PASS_NS, REST, Relief
from workers.topics import TopicTable

SECOND = 1_000_000_000
BURST = CREDIT_NS // MESSAGE_NS  # messages that are no overload yet
RING = 3


@pytest.fixture
def router(engine_name: str) -> Iterator[Router]:
    with TopicTable.create(engine_name) as table:
        made = Router(table, 0)
        made.wanted[:] = RESOLVED | JSON
        yield made
        made.close()


@pytest.fixture
def status(engine_name: str) -> Iterator[ProcessStatus]:
    block = StatusBlock.create(engine_name)
    yield block.register("fanout-0", "fanout", os.getpid())
    block.close()


Make = Callable[..., Relief]


@pytest.fixture
def make(router: Router, status: ProcessStatus) -> Make:
    return lambda **options: Relief(router, status, **options)


def quotes(count: int, first: int = 0) -> np.ndarray:
    records = empty(count)
    records["record_type"], records["priority"] = RecordType.QUOTE, Priority.NORMAL
    records["source_sequence"] = first + np.arange(count)
    return records


def numbers(relief: Relief) -> list[int]:
    found = []
    while (late := relief.take_late()) is not None:
        assert len(late.listed) <= LATE_SLICE
        records = np.frombuffer(late.records, empty(1).dtype)
        assert [number for _, _, number in late.listed] == records["source_sequence"][
            [index for index, _, _ in late.listed]
        ].tolist()
        found += [number for _, _, number in late.listed]
    return found


def put_off(relief: Relief, first: int, count: int) -> int:
    records = quotes(2 * count, 2 * first)  # every second one is wanted
    return relief.put_off([(2 * i, 7, 2 * (first + i)) for i in range(count)], RING, records)


def test_what_is_put_off_comes_back_in_order(make: Make) -> None:
    relief = make()
    assert not relief.busy
    assert put_off(relief, 0, 1000) == put_off(relief, 1000, 10) == 0
    assert relief.busy
    assert relief.pause_s(0) == 0.0
    assert numbers(relief) == [2 * i for i in range(1010)]
    relief.count()
    assert not relief.busy


def test_beyond_the_bound_the_oldest_go_and_are_counted(make: Make) -> None:
    relief = make()
    for part in range(20):
        put_off(relief, 4096 * part, 4096)
    kept = LATE_RECORDS // 4096 * 4096
    assert relief.dropped == 20 * 4096 - kept
    assert numbers(relief) == [2 * i for i in range(20 * 4096 - kept, 20 * 4096)]


def test_where_writers_are_held_back_nothing_is_given_up_or_kept_back(make: Make) -> None:
    relief = make(patient=True)
    for part in range(20):
        assert put_off(relief, 4096 * part, 4096) == 0
    assert relief.late_is_full
    assert len(numbers(relief)) == 20 * 4096
    assert relief.judge(1.0, 1 << 20, SECOND) == 0


def test_a_burst_is_no_overload_and_more_than_there_is_time_for_is(make: Make) -> None:
    relief = make()
    assert relief.judge(0.0, BURST - 1, SECOND) == 0
    for tenth in range(1, 50):  # nine tenths of what there is time for
        assert relief.judge(0.0, int(SECOND / 10 / MESSAGE_NS * 0.9) % BURST, SECOND + tenth * SECOND // 10) == 0
    assert relief.state is State.NORMAL
    assert relief.judge(0.0, BURST + 1, 7 * SECOND) == 1 << Priority.NORMAL | 1 << Priority.LOW
    assert relief.turn_records < topics.MAX_TURN_RECORDS


def test_what_a_message_costs_is_measured(make: Make) -> None:
    relief = make()
    for _ in range(20):
        relief.spent(1000, 1000 * MESSAGE_NS // 2)
    assert relief.judge(0.0, BURST * 3 // 2, SECOND) == 0
    assert relief.judge(0.0, BURST * 3 // 2, SECOND) != 0


def keep(relief: Relief, router: Router, records: np.ndarray, hold: int, now_ns: int) -> None:
    router.scan(records, len(records))
    router.route(RING, 0, hold=hold)
    relief.keep(records, RING, now_ns)


def test_passes_and_slices_leave_the_others_time(make: Make, router: Router, status: ProcessStatus) -> None:
    relief = make()
    hold = relief.judge(1.0, 0, SECOND)
    keep(relief, router, quotes(10), hold, SECOND)
    assert [number for _, _, number in relief.take_held(SECOND)] == [10]  # the newest of one topic
    relief.rest(SECOND, SECOND + 1000)
    keep(relief, router, quotes(10, 10), hold, SECOND + 1000)
    assert relief.take_held(SECOND + 1000) == []  # it rests
    assert relief.take_held(SECOND + 1000 + 1000 * REST) == []  # and no pass is due
    assert relief.pause_s(SECOND + PASS_NS // 2) == pytest.approx(PASS_NS / 2 / SECOND)
    assert [number for _, _, number in relief.take_held(SECOND + PASS_NS)] == [20]
    assert relief.take_held(SECOND + 2 * PASS_NS) == []
    relief.count()
    assert relief.pause_s(SECOND) is None
    counted = {name: status.counter(name).value for name in ("conflated_normal", "records_conflated", "records_shed")}
    assert counted == {"conflated_normal": 18, "records_conflated": 18, "records_shed": 0}


def test_subscribers_are_told_once_something_was_left_out_and_when_it_is_over(make: Make, router: Router) -> None:
    relief = make()
    hold = relief.judge(1.0, 0, SECOND)
    assert relief.news() is None  # nobody has missed anything
    keep(relief, router, quotes(3), hold, SECOND)
    assert relief.news() == (topics.CONFLATING, 2, 0)
    assert relief.news() is None
    now_ns = SECOND
    while relief.state is not State.NORMAL:
        now_ns += SECOND // 10
        relief.judge(0.0, 0, now_ns)
        relief.take_held(now_ns)
        if relief.state is State.PROBING:
            assert relief.news() is None
    assert relief.news() == (topics.RELIEVED, 2, 0)
