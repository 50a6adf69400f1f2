"""The life of a webhook subscription, with time and chance passed in, and what of it a successor finds."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shm.ledger import DeliveryState, Ledger, Slot
from workers.spec import SubscriptionSpec
from workers.webhook_queue import Message
from workers.webhook_subscription import Limits, Subscription

SECOND = 10**9
LIMITS = Limits(
    queue_messages=10, queue_bytes=10_000, batch_messages=5, batch_bytes=10_000, park_after=4, parked_ns=60 * SECOND
)
SPEC = SubscriptionSpec(
    key=5, subscription_id="sub_5", topics=("marketdata.trade.*",), callback_url="http://x/", secret="s" * 16
)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.open(tmp_path / "ledger")
    yield made
    made.close()


def subscribe(ledger: Ledger, **changes: Any) -> Subscription:
    spec = SubscriptionSpec(**{**{f: getattr(SPEC, f) for f in SPEC.__struct_fields__}, **changes})
    return Subscription(spec, ledger.claim(spec.key), LIMITS, (1, 2), random.Random(1))


def message(sequence: int) -> Message:
    return Message(2, sequence, b'{"n":%d}' % sequence, 0)


def fail(subscription: Subscription, now_ns: int, failure: int = 500, retry_after_ns: int = 0) -> int:
    return subscription.failed(subscription.begin(), failure, retry_after_ns, now_ns)


def test_a_failed_batch_is_tried_again_at_once_then_later_and_later(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    subscription.offer(message(1))
    first = subscription.begin()
    assert not subscription.ready
    subscription.failed(first, 500, 0, 1000 * SECOND)
    assert subscription.next_attempt_ns == 1000 * SECOND
    subscription.offer(message(2))
    waits = []
    now_ns = 1000 * SECOND
    for _ in range(2):
        subscription.wake(now_ns)
        assert subscription.ready
        assert subscription.begin() is first, "the same batch, whatever has queued since"
        subscription.failed(first, 500, 0, now_ns)
        waits.append(subscription.next_attempt_ns - now_ns)
        subscription.wake(subscription.next_attempt_ns - 1)
        assert not subscription.ready
        now_ns = subscription.next_attempt_ns
    assert SECOND // 4 <= waits[0] <= SECOND // 2 <= waits[1] <= SECOND
    subscription.wake(now_ns)
    subscription.acknowledged(subscription.begin(), now_ns)
    assert subscription.state is DeliveryState.DELIVERING
    view = ledger.view(5)
    assert view is not None
    assert (view.delivered, view.failed, view.failures_in_a_row, view.queued) == (1, 3, 0, 1)


def test_retry_after_is_a_lower_bound_and_bounded_itself(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    subscription.offer(message(1))
    fail(subscription, 0, 429, 100 * SECOND)
    assert subscription.next_attempt_ns == 100 * SECOND
    subscription.wake(100 * SECOND)
    fail(subscription, 100 * SECOND, 503, 10**6 * SECOND)
    assert subscription.next_attempt_ns == 3700 * SECOND


def test_parked_it_counts_and_one_attempt_decides(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    for sequence in (1, 2):
        subscription.offer(message(sequence))
    lost = 0
    for _ in range(4):
        subscription.wake(10**18)
        lost += fail(subscription, 10**9)
    assert subscription.state is DeliveryState.PARKED
    assert lost == 2
    assert subscription.offer(message(3)) == 1
    assert not subscription.ready
    subscription.wake(61 * SECOND)
    batch = subscription.begin()
    assert json.loads(batch.body)[0]["payload"] == {"ring": 2, "from": 1, "to": 4, "count": 3, "reason": "parked"}
    subscription.failed(batch, 500, 0, 61 * SECOND)
    assert subscription.state is DeliveryState.PARKED, "one failure parks it again"
    subscription.offer(message(4))
    subscription.wake(200 * SECOND)
    batch = subscription.begin()
    assert json.loads(batch.body)[0]["payload"]["to"] == 5
    subscription.acknowledged(batch, 0)
    assert subscription.state is DeliveryState.DELIVERING
    assert not subscription.queue.gap


def test_gone_parks_at_once(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    subscription.offer(message(1))
    assert fail(subscription, 0, 410) == 1
    assert subscription.state is DeliveryState.PARKED


def test_its_owner_unparks_pauses_and_goes_on(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    subscription.offer(message(1))
    fail(subscription, 0, 410)
    subscription.change(SPEC, unpark=True)
    assert subscription.ready
    batch = subscription.begin()
    assert subscription.change(subscribe(ledger, paused=True).spec, unpark=False) == 0
    assert subscription.state is DeliveryState.PAUSED
    subscription.acknowledged(batch, 0)
    assert subscription.state is DeliveryState.PAUSED, "an answer that comes late changes nothing"
    subscription.change(SPEC, unpark=True)
    assert subscription.ready, "the gap is still to be told"


def test_a_successor_begins_where_nothing_is_acknowledged_and_tells_the_gap(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    for sequence in range(1, 21):
        subscription.offer(message(sequence))
    subscription.save()
    assert subscription.unacked(2) == 11, "ten were lost to the bound"
    batch = subscription.begin()
    subscription.save()
    successor = subscribe(ledger)
    assert successor.unacked(2) == 11
    assert tuple(successor.queue.gap.spans[2]) == (1, 11, 10)
    subscription.acknowledged(batch, 0)
    successor = subscribe(ledger)
    assert successor.unacked(2) == 16
    assert not successor.queue.gap
    assert ledger.claim(5).get(Slot.DELIVERY) == 1


def test_what_is_read_a_second_time_stays_unacknowledged_until_it_is_queued(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    subscription.floors[2] = 9
    subscription.read_again(2, 5, 30)
    subscription.save()
    assert subscription.unacked(2) == 10, "what is before its floor is none of its own"
    assert subscription.offer(message(9)) == 0
    assert not len(subscription.queue)
    subscription.offer(message(12))
    subscription.read_again(2, 13, 30)
    subscription.acknowledged(subscription.begin(), 0)
    assert subscription.unacked(2) == 13
    subscription.read_again(2, 31, 30)
    subscription.save()
    assert subscription.unacked(2) == 0


def test_a_ring_made_anew_makes_a_gap_of_what_was_queued(ledger: Ledger) -> None:
    subscription = subscribe(ledger)
    for sequence in (3, 4, 8):
        subscription.offer(message(sequence))
    subscription.save()
    successor = subscribe(ledger)
    assert successor.ring_is_gone(2, 9) == 3
    assert successor.ring_is_gone(1, 0) == 0
    told = json.loads(successor.begin().body)
    assert told[0]["payload"] == {"ring": 2, "from": 3, "to": 10, "count": 3, "reason": "engine restarted"}
    assert successor.unacked(2) == 0
