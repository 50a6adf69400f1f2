"""The queue of a webhook subscription against a slow model: each message is delivered, waiting, or counted in a gap."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from workers.webhook_queue import Batch, DeliveryQueue, Message


def message(sequence: int, ring: int = 2, size: int = 20) -> Message:
    return Message(ring, sequence, json.dumps({"n": sequence}).encode().ljust(size), 0)


def sequences(batch: Batch) -> list[int]:
    return [item.sequence for item in batch.messages]


def test_a_batch_is_what_has_queued_up_to_the_limits() -> None:
    queue = DeliveryQueue(100, 10_000)
    for sequence in range(1, 8):
        queue.offer(message(sequence))
    assert sequences(queue.take(1, 3, 10_000)) == [1, 2, 3]
    assert len(queue) == 7
    queue.settle()
    batch = queue.take(2, 100, 45)
    assert sequences(batch) == [4, 5]
    assert [item["n"] for item in json.loads(batch.body)] == [4, 5]
    queue.settle()
    assert sequences(queue.take(3, 100, 1)) == [6], "one that is too large still goes"


def test_the_oldest_go_when_it_is_full_but_never_what_is_in_flight() -> None:
    queue = DeliveryQueue(3, 10_000)
    queue.offer(message(1))
    queue.take(1, 10, 10_000)
    assert [queue.offer(message(sequence)) for sequence in range(2, 7)] == [0, 0, 0, 1, 1]
    assert queue.unacked() == {2: (1, 4)}
    assert sequences(queue.settle()) == [1]
    batch = queue.take(2, 10, 10_000)
    assert sequences(batch) == [4, 5, 6]
    told = json.loads(batch.body)[0]
    assert told["topic"] == "marketdata.gap"
    assert told["payload"] == {"ring": 2, "from": 2, "to": 4, "count": 2, "reason": "queue full"}


def test_giving_up_tells_everything_that_was_not_acknowledged() -> None:
    queue = DeliveryQueue(2, 10_000)
    for sequence in range(1, 5):
        queue.offer(message(sequence))
    queue.take(1, 1, 10_000)
    queue.offer(message(9, ring=3))
    assert queue.give_up("parked") == 3
    assert {ring: tuple(span) for ring, span in queue.gap.spans.items()} == {2: (1, 5, 4), 3: (9, 10, 1)}
    assert not queue.unacked()
    assert queue.has_work, "the gap alone is worth a delivery"


def test_a_gap_that_nobody_could_count_stays_uncounted() -> None:
    queue = DeliveryQueue(2, 10_000)
    queue.gap.add(2, 10, 20, None, "overrun")
    queue.gap.add(2, 20, 21, 1, "parked")
    assert json.loads(queue.gap.bodies()[0])["payload"] == {
        "ring": 2,
        "from": 10,
        "to": 21,
        "count": None,
        "reason": "parked",
    }


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.integers(1, 40)),
        st.tuples(st.just("take"), st.integers(1, 5)),
        st.just(("settle", 0)),
        st.tuples(st.just("shed"), st.integers(1, 200)),
        st.just(("give up", 0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(steps=steps, max_messages=st.integers(1, 6), max_bytes=st.integers(20, 120))
def test_every_message_is_delivered_or_waiting_or_in_a_gap(
    steps: list[tuple[str, int]], max_messages: int, max_bytes: int
) -> None:
    queue = DeliveryQueue(max_messages, max_bytes)
    offered = dict.fromkeys((1, 2), 0)
    delivered: list[Message] = []
    told = 0
    number = 0
    for step, amount in steps:
        if step == "offer":
            ring = 1 + amount % 2
            offered[ring] += 1
            queue.offer(message(offered[ring], ring, amount))
        elif step == "take" and queue.in_flight is None and queue.has_work:
            number += 1
            queue.take(number, amount, max_bytes)
        elif step == "settle" and queue.in_flight is not None:
            batch = queue.settle()
            delivered += batch.messages
            told += sum(span.messages or 0 for span in batch.gap.spans.values())
        elif step == "shed":
            before = queue.size_bytes
            queue.shed(amount)
            assert queue.size_bytes <= max(0, before - amount)
        elif step == "give up":
            queue.give_up("parked")
        flying = queue.in_flight
        missing = sum(span.messages or 0 for span in queue.gap.spans.values())
        missing += sum(span.messages or 0 for span in flying.gap.spans.values()) if flying else 0
        assert len(delivered) + len(queue) + told + missing == sum(offered.values())
        waiting = len(queue) - (len(flying.messages) if flying else 0)
        assert waiting <= max_messages
        assert queue.size_bytes <= max_bytes or waiting == 1
        assert sum(count for _, count in queue.unacked().values()) == len(queue)
        for ring in (1, 2):
            came = [item.sequence for item in delivered if item.ring == ring]
            assert came == sorted(set(came))
