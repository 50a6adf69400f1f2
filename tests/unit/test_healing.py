"""The order of a topic, with messages, answers and the clock in the test's hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, empty
from workers.healing import Gap, Healing, Message, Part, Topic
from workers.wire import Header

NAME = "marketdata.tick.A"


def part(number: int, count: int = 1, newest_ns: int = 0) -> Part:
    records = empty(count)
    records["sequence"] = range(number, number + count)
    records["ts_publish"] = newest_ns or number
    return Part(2, number, records, newest_ns or number + count - 1)


def frame(number: int, count: int) -> tuple[Header, np.ndarray]:
    return Header(1, 2, count, number), part(number, count).records


def answer(number: int, first: int, end: int, last: int, **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "kind": "range",
        "from": first,
        "to": end,
        "topic_sequence": last,
        "records": end - first,
        **more,
    }


class Topics:
    """A subscriber's order with one topic, and what it has handed out."""

    def __init__(self, *, can_ask: bool = True, join_records: int = 0, held_limit: int = 1000) -> None:
        self.healing = Healing([can_ask], join_records=join_records, held_limit=held_limit, timeout_s=3.0)
        self.topic: Topic = self.healing.topic(NAME, 0)
        self.messages: list[Message] = []
        self.asked: list[dict[str, Any]] = []

    def take(self, *args: int, now: float = 0.0) -> None:
        message = self.healing.take(self.topic, part(*args), now)
        self.messages += [message] if message is not None else []
        self._collect()

    def send(self, now: float = 0.0, *, connected: bool = True) -> None:
        for ask in self.healing.due(now):
            if connected:
                self.asked.append(ask.request(self.healing.join_records, 0))
            self.healing.sent(ask, len(self.asked) if connected else 0, now)
        self._collect()

    def answer(self, header: dict[str, Any], *frames: tuple[Header, np.ndarray], now: float = 0.0) -> None:
        self.healing.answer(0, header, list(frames), now)
        self._collect()

    def _collect(self) -> None:
        self.messages += self.healing.ready
        self.healing.ready.clear()

    @property
    def numbers(self) -> list[int]:
        return [m.topic_sequence + i for m in self.messages for i in range(len(m.records))]


def test_hole_is_asked_for_and_filled_before_the_newer_ones() -> None:
    one = Topics()
    one.take(1, 5)
    one.take(10, 2)
    one.take(12)
    assert one.numbers == [1, 2, 3, 4, 5]
    one.send()
    assert one.asked == [{"kind": "range", "topic": NAME, "from": 6, "to": 10}]

    one.answer(answer(1, 6, 10, 12), frame(6, 3), frame(9, 1))

    assert one.numbers == list(range(1, 13))
    assert (one.healing.healed, one.healing.gap_count, dict(one.healing.asks)) == (4, 0, {})
    assert one.topic.plain


def test_second_hole_behind_the_first_is_asked_for_next() -> None:
    one = Topics()
    for args in ((1,), (5,), (6,), (9,), (10,)):
        one.take(*args)
    one.send()
    one.answer(answer(1, 2, 5, 10), frame(2, 3))
    assert one.numbers == [1, 2, 3, 4, 5, 6]
    one.send()
    assert one.asked[1] == {"kind": "range", "topic": NAME, "from": 7, "to": 9}
    one.answer(answer(2, 7, 9, 10), frame(7, 2))
    assert one.numbers == list(range(1, 11))


def test_answer_that_is_not_all_is_followed_by_the_next_question() -> None:
    one = Topics()
    one.take(1)
    one.take(10)
    one.send()
    one.answer(answer(1, 2, 5, 10), frame(2, 3))
    one.send()
    assert one.asked[1] == {"kind": "range", "topic": NAME, "from": 5, "to": 10}
    one.answer(answer(2, 5, 10, 10), frame(5, 5))
    assert one.numbers == list(range(1, 11))


def test_what_is_gone_is_a_gap_with_its_exact_range_on_the_next_message() -> None:
    one = Topics()
    one.take(1)
    one.take(10)
    one.send()
    one.answer(answer(1, 2, 10, 10, unavailable=[[2, 7], [9, 10]]), frame(7, 2))

    assert one.numbers == [1, 7, 8, 10]
    assert [m.gap for m in one.messages] == [None, Gap(NAME, 2, 7), Gap(NAME, 9, 10)]
    assert (one.healing.gap_count, one.healing.records_missed, one.healing.healed) == (2, 6, 2)
    assert list(one.healing.gaps) == [Gap(NAME, 2, 7), Gap(NAME, 9, 10)]


@pytest.mark.parametrize(
    "header",
    [
        {"id": 1, "kind": "error", "code": "bad_request", "error": "topic"},
        answer(1, 2, 2, 1),  # an engine started anew, which has not come as far
        {"id": 1},
    ],
)
def test_answer_that_does_not_help_makes_the_hole_a_gap(header: dict[str, Any]) -> None:
    one = Topics()
    one.take(1)
    one.take(10)
    one.send()
    one.answer(header)
    assert one.numbers == [1, 10]
    assert one.messages[1].gap == Gap(NAME, 2, 10)


def test_unanswered_question_is_sent_again_and_given_up_in_time() -> None:
    one = Topics()
    one.take(1)
    one.take(10)
    one.send(0.0)
    one.send(0.4)
    assert len(one.asked) == 1
    one.send(0.6)
    assert len(one.asked) == 2
    one.answer(answer(1, 2, 10, 10), frame(2, 8))  # the first, which nobody awaits any more
    assert one.numbers == [1]
    one.send(3.1)
    assert (one.numbers, one.messages[1].gap) == ([1, 10], Gap(NAME, 2, 10))


def test_question_waits_for_a_connection_and_for_a_busy_engine() -> None:
    one = Topics()
    one.take(1)
    one.take(3)
    one.send(connected=False)
    assert one.asked == []
    one.send(0.1)
    one.answer({"id": 1, "kind": "error", "code": "busy", "error": "later"}, now=0.1)
    one.send(0.2)
    one.answer(answer(2, 2, 3, 3), frame(2, 1))
    assert one.numbers == [1, 2, 3]


def test_no_more_is_held_than_allowed() -> None:
    one = Topics(held_limit=10)
    one.take(1)
    one.take(5, 8)
    one.take(13, 8)
    assert one.numbers == [1, *range(5, 21)]
    assert one.messages[1].gap == Gap(NAME, 2, 5)
    assert not one.healing.asks


def test_without_somebody_to_ask_a_hole_is_a_gap_at_once() -> None:
    one = Topics(can_ask=False)
    one.take(1)
    one.take(4)
    one.take(3, 3, 4)
    assert one.numbers == [1, 4, 5]
    assert [m.gap for m in one.messages] == [None, Gap(NAME, 2, 4), None]
    assert one.healing.duplicates == 2


def test_joining_hands_out_the_past_and_goes_on_after_it() -> None:
    one = Topics(join_records=3)
    one.healing.join(one.topic, 0.0)
    one.send()
    assert one.asked == [{"kind": "snapshot", "topic": NAME, "limit": 3}]
    one.take(9, 2)  # the stream is ahead of the answer, and overlaps with it
    one.take(11)
    one.answer(answer(1, 8, 11, 10, as_of_ns=10**9), frame(8, 3))
    one.take(12)

    assert one.numbers == [8, 9, 10, 11, 12]
    assert (one.healing.joined, one.healing.overlapped, one.healing.healed) == (3, 2, 0)
    assert one.healing.duplicates == 0


def test_what_comes_twice_in_the_stream_is_a_duplicate_also_where_joining_had_it() -> None:
    one = Topics(join_records=3)
    one.healing.join(one.topic, 0.0)
    one.send()
    one.take(9, 2)
    one.answer(answer(1, 8, 11, 10, as_of_ns=10**9), frame(8, 3))
    one.take(10)  # known from the stream, too
    one.take(10, 2)  # the same, and the next one behind it
    one.take(11)

    assert one.numbers == [8, 9, 10, 11]
    assert (one.healing.overlapped, one.healing.duplicates) == (2, 3)


def test_what_comes_between_snapshot_and_stream_is_asked_for() -> None:
    one = Topics(join_records=2)
    one.healing.join(one.topic, 0.0)
    one.send()
    one.answer(answer(1, 9, 11, 10), frame(9, 2))
    one.take(14)
    one.send()
    one.answer(answer(2, 11, 14, 14), frame(11, 3))
    assert one.numbers == [9, 10, 11, 12, 13, 14]


def test_topic_of_a_symbol_that_nobody_knows_begins_with_its_first_record() -> None:
    one = Topics(join_records=5)
    one.healing.join(one.topic, 0.0)
    one.send()
    one.answer({"id": 1, "kind": "error", "code": "unknown_symbol", "error": "topic"})
    one.take(3)
    one.send()
    one.answer(answer(2, 1, 3, 3), frame(1, 2))
    assert one.numbers == [1, 2, 3]


def test_topic_whose_past_can_not_be_had_begins_with_the_first_message() -> None:
    one = Topics(join_records=5)
    one.take(7)
    one.send(0.0, connected=False)
    one.send(4.0, connected=False)
    one.take(8)
    assert one.numbers == [7, 8]
    assert one.healing.gap_count == 0


def test_no_more_questions_are_under_way_than_an_engine_serves() -> None:
    healing = Healing([True], join_records=1, held_limit=100, timeout_s=3.0)
    for index in range(50):
        healing.join(healing.topic(f"marketdata.tick.S{index}", 0), 0.0)
    asks = healing.due(0.0)
    for number, ask in enumerate(asks, 1):
        healing.sent(ask, number, 0.0)
    assert len(asks) == 16
    assert healing.due(0.01) == []
    for number in range(1, 5):
        healing.answer(0, answer(number, 1, 2, 1), [frame(1, 1)], 0.1)
    assert len(healing.due(0.2)) == 4


@pytest.mark.parametrize(
    ("kind", "flags", "asked"),
    [
        (RecordType.QUOTE, Flag.GAP_BEFORE, False),
        (RecordType.LEVEL2, Flag.GAP_BEFORE | Flag.SNAPSHOT, False),
        (RecordType.BAR, Flag.GAP_BEFORE, False),
        (RecordType.QUOTE, 0, True),
        (RecordType.TRADE, Flag.GAP_BEFORE, True),
    ],
)
def test_hole_that_an_overloaded_fan_out_made_is_a_gap_and_not_asked_for(
    kind: RecordType, flags: int, asked: bool
) -> None:
    one = Topics()
    one.take(1)
    after = part(10)
    after.records["record_type"], after.records["flags"] = kind, flags
    message = one.healing.take(one.topic, after, 0.0)
    assert bool(one.healing.asks) is asked
    if not asked:
        assert message is not None
        assert message.gap == Gap(NAME, 2, 10)
        assert one.healing.records_missed == 8
