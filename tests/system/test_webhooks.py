"""Webhooks: every message at least once and in order, whatever the receiver and the worker go through."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.ledger import DeliveryState, Failure
from shm.ring import RingWriter
from tests.children import wait_until
from tests.system.gateway_process import halts, quotes
from tests.system.receiver import Receiver
from tests.system.webhooks_process import WebhookStage, subscription
from tests.system.worker_stage import RING

pytestmark = pytest.mark.slow

SYMBOLS = ["AAPL", "MSFT", "TSLA", "NVDA"]


@pytest.fixture
def stage(engine_name: str, tmp_path: Path) -> Iterator[WebhookStage]:
    made = WebhookStage(engine_name, tmp_path, SYMBOLS)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def publish(stage: WebhookStage, count: int, first_number: int = 0) -> None:
    """Quotes of all symbols in turn."""
    stage.writer.publish_batch(quotes(np.arange(count) % len(SYMBOLS), first_number))


def delivered_to(stage: WebhookStage, count: int) -> None:
    """Wait until more than `count` messages are acknowledged."""
    wait_until(lambda: stage.delivery().delivered > count, f"{count} messages")


def in_order(sequences: list[int]) -> list[int]:
    """Each once, by first arrival; fails if these are not in order."""
    once = list(dict.fromkeys(sequences))
    assert once == sorted(once)
    return once


def test_messages_arrive_signed_once_and_in_order(stage: WebhookStage, receiver: Receiver) -> None:
    stage.serve(subscription(receiver.url))
    publish(stage, 3000)
    wait_until(lambda: len(receiver.sequences()) >= 3000, "all messages")
    assert receiver.sequences() == list(range(1, 3001))
    assert all(delivery.signed for delivery in receiver.deliveries)
    assert [d.number for d in receiver.deliveries] == list(range(1, len(receiver.deliveries) + 1))
    assert max(len(d.messages) for d in receiver.deliveries) <= 500
    first = receiver.accepted()[0]
    assert first["topic"] == "marketdata.quote.AAPL"
    assert first["payload"]["symbol"] == "AAPL"
    assert (first["payload"]["ring"], first["payload"]["sequence"]) == (2, 1)
    assert first["payload"]["data"]["bid"] == 0.0
    wait_until(lambda: stage.delivery().delivered == 3000 and not stage.delivery().queued, "the ledger")
    assert stage.delivery().failed == stage.delivery().lost == 0


def test_only_what_was_subscribed_to_comes(stage: WebhookStage, receiver: Receiver) -> None:
    stage.serve(
        subscription(receiver.url, 1, topics=("marketdata.quote.AAPL", "marketdata.trade.MSFT")),
        subscription(receiver.url, 2, topics=("marketdata.*.N*",)),
        subscription(receiver.url, 3, paused=True),
    )
    publish(stage, 400)
    wait_until(lambda: len(receiver.sequences()) >= 200, "all messages")
    found = {(d.subscription, m["payload"]["symbol"]) for d in receiver.deliveries for m in d.messages}
    assert found == {("sub_1", "AAPL"), ("sub_2", "NVDA")}
    assert stage.delivery(3).state is DeliveryState.PAUSED


def test_trading_status_comes_for_the_symbols_that_want_it(stage: WebhookStage, receiver: Receiver) -> None:
    stage.serve(
        subscription(receiver.url, 1, topics=("marketdata.status.MSFT", "marketdata.trade.MSFT")),
        subscription(receiver.url, 2, topics=("marketdata.*.TSLA",)),
        subscription(receiver.url, 3, topics=("marketdata.quote.*",)),
    )
    publish(stage, 4)
    stage.writer.publish_batch(halts(np.arange(len(SYMBOLS))))
    publish(stage, 4)
    wait_until(lambda: len(receiver.sequences()) >= 1 + 3 + 8, "all messages")
    found = [(d.subscription, m) for d in receiver.deliveries for m in d.messages]
    told = [(key, m["payload"]["symbol"]) for key, m in found if m["payload"]["data_type"] == "status"]
    assert sorted(told) == [("sub_1", "MSFT"), ("sub_2", "TSLA")]
    (message,) = [m for key, m in found if key == "sub_1"]
    assert message["topic"] == "marketdata.feed.status"
    assert message["payload"]["data"]["state"] == "halted"


@pytest.mark.parametrize("word", ["500", "503", "404", "close", "garbage", "429 0", "redirect http://127.0.0.1:9/"])
def test_what_fails_is_repeated_with_nothing_between(stage: WebhookStage, receiver: Receiver, word: str) -> None:
    receiver.script.extend([word, "ok", word, word])
    stage.serve(subscription(receiver.url))
    publish(stage, 1200)
    wait_until(lambda: len(receiver.sequences()) >= 1200, "all messages")
    assert receiver.sequences() == list(range(1, 1201))
    for failed, repeated in itertools.pairwise(receiver.deliveries):
        if failed.answer != "ok":
            assert (repeated.number, repeated.messages) == (failed.number, failed.messages)
    wait_until(lambda: stage.delivery().delivered == 1200, "the ledger")
    assert stage.delivery().failed == 3
    assert stage.delivery().failures_in_a_row == 0


def test_an_answer_that_breaks_off_after_its_head_counts(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.script.append("half")
    stage.serve(subscription(receiver.url))
    publish(stage, 600)
    wait_until(lambda: len(receiver.sequences()) >= 600, "all messages")
    assert receiver.sequences() == list(range(1, 601))


def test_a_receiver_that_stalls_is_given_up_and_harms_no_other(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.script.append("stall")
    with Receiver() as other:
        stage.serve(subscription(receiver.url, 1), subscription(other.url, 2), timeout_s=3.0)
        publish(stage, 800)
        wait_until(lambda: len(other.sequences()) >= 800, "the other's messages")
        assert not receiver.sequences(), "the other one was served while this one stalled"
        wait_until(lambda: len(receiver.sequences()) >= 800, "its messages")
    assert stage.delivery(1).failed == 1
    assert receiver.deliveries[0].messages == receiver.deliveries[1].messages
    assert receiver.sequences() == list(range(1, 801))


def test_a_redirect_to_loopback_is_not_followed(stage: WebhookStage, receiver: Receiver) -> None:
    with Receiver("127.0.0.2") as inner:
        receiver.script.append(f"redirect {inner.url}")
        stage.serve(subscription(receiver.url), allow_private=True)
        publish(stage, 10)
        wait_until(lambda: len(receiver.sequences()) >= 10, "all messages")
        assert not inner.connections
    assert stage.delivery().failed == 1


def test_an_address_that_is_not_allowed_is_never_connected_to(stage: WebhookStage, receiver: Receiver) -> None:
    with Receiver("127.0.0.2") as inner:
        port = inner.url.rpartition(":")[2]
        stage.serve(
            subscription(inner.url, 1),
            subscription(f"http://127.2:{port}", 2),
            subscription(f"http://[::ffff:127.0.0.2]:{port}", 3),
            subscription(receiver.url, 4),
        )
        publish(stage, 10)
        wait_until(lambda: all(stage.delivery(key).failures_in_a_row >= 2 for key in (1, 2, 3)), "three attempts")
        wait_until(lambda: len(receiver.sequences()) >= 10, "the allowed one")
        assert not inner.connections
        assert {stage.delivery(key).last_failure for key in (1, 3)} == {Failure.REFUSED_TARGET}


def test_retry_after_is_obeyed(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.script.append("429 2000")
    stage.serve(subscription(receiver.url))
    publish(stage, 10)
    wait_until(lambda: stage.delivery().failed == 1, "the refusal")
    view = stage.delivery()
    assert view.state is DeliveryState.WAITING
    assert view.next_attempt_ns > time.time_ns() + 1000 * 10**9
    assert len(receiver.deliveries) == 1


def test_after_many_failures_it_is_parked_and_told_what_it_missed(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.otherwise = "500"
    stage.serve(subscription(receiver.url), park_after=3, parked_s=1.0)
    publish(stage, 100)
    wait_until(lambda: stage.delivery().state is DeliveryState.PARKED, "parked")
    position = stage.reader_position()
    publish(stage, 50)
    wait_until(lambda: stage.reader_position() > position, "records while it is parked")
    receiver.otherwise = "ok"
    wait_until(receiver.gaps, "the gap")
    publish(stage, 20)
    wait_until(lambda: 170 in receiver.sequences(), "what came after")
    gap = receiver.gaps()[0]
    assert len(receiver.gaps()) == 1
    assert (gap["ring"], gap["from"]) == (2, 1)
    assert gap["count"] == gap["to"] - gap["from"] == stage.delivery().lost
    assert gap["reason"] == "parked"
    assert receiver.sequences() == list(range(gap["to"], 171)), "everything after the gap, and nothing else"


def test_a_slow_receiver_loses_the_oldest_and_is_told_which(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.script.append("stall")
    stage.serve(subscription(receiver.url), queue_messages=100, batch_messages=50)
    publish(stage, 10)
    wait_until(lambda: receiver.deliveries, "the delivery that stalls")
    taken = len(receiver.deliveries[0].messages)
    publish(stage, 1000)
    wait_until(lambda: stage.delivery().lost == 910 - taken, "the queue overflows")
    receiver.release.set()
    wait_until(lambda: 1010 in receiver.sequences(), "the newest")
    gaps = receiver.gaps()
    assert [(gap["from"], gap["to"], gap["count"]) for gap in gaps] == [(taken + 1, 911, 910 - taken)]
    assert gaps[0]["reason"] == "queue full"
    assert receiver.sequences() == [*range(1, taken + 1), *range(911, 1011)]


def test_low_priority_gives_way_when_memory_is_short(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.otherwise = "stall"
    stage.serve(
        subscription(receiver.url, 1, priority="low"),
        subscription(receiver.url, 2, priority="high"),
        total_bytes=200_000,
    )
    publish(stage, 1)
    wait_until(lambda: len(receiver.deliveries) == 2, "both stall")
    publish(stage, 600)
    wait_until(lambda: stage.delivery(1).lost > 0 and stage.number("webhook_bytes_queued") <= 200_000, "shortened")
    assert stage.delivery(2).lost == 0
    assert stage.delivery(2).queued == 601


@pytest.mark.parametrize("moment", ["in flight", "waiting"])
def test_a_killed_worker_loses_nothing(stage: WebhookStage, receiver: Receiver, moment: str) -> None:
    receiver.script.extend(["ok", "ok", "stall" if moment == "in flight" else "500"])
    receiver.otherwise = "stall" if moment == "in flight" else "500"
    spec = subscription(receiver.url)
    stage.serve(spec, batch_messages=100)
    publish(stage, 1000)
    wait_until(lambda: len(receiver.deliveries) >= 3 and stage.delivery().delivered == 200, "two deliveries")
    wait_until(lambda: stage.reader_position() > 1000, "all is read")
    stage.kill_worker("webhooks")
    publish(stage, 500)
    receiver.release.set()
    receiver.otherwise = "ok"
    stage.serve(spec, batch_messages=100)
    publish(stage, 500)
    wait_until(lambda: receiver.sequences() and receiver.sequences()[-1] == 2000, "the last message")
    assert in_order(receiver.sequences()) == list(range(1, 2001))
    assert len(receiver.sequences()) == 2000, "nothing that was acknowledged comes again"
    assert not receiver.gaps()
    numbers = [d.number for d in receiver.deliveries if d.answer == "ok"]
    assert numbers == sorted(set(numbers)), "the successor's deliveries have numbers of their own"


def test_killed_again_and_again_nothing_is_lost(stage: WebhookStage, receiver: Receiver) -> None:
    spec = subscription(receiver.url)
    for turn in range(4):
        stage.serve(spec, batch_messages=20)
        publish(stage, 1500, turn * 1500)
        delivered_to(stage, turn * 500)
        stage.kill_worker("webhooks")
    stage.serve(spec)
    wait_until(lambda: receiver.sequences()[-1] == 6000, "the last message")
    assert in_order(receiver.sequences()) == list(range(1, 6001))
    assert not receiver.gaps()


def test_what_the_ring_lost_during_a_kill_is_told(engine_name: str, tmp_path: Path, receiver: Receiver) -> None:
    stage = WebhookStage(engine_name, tmp_path, SYMBOLS, depth_slots=1024)
    try:
        spec = subscription(receiver.url)
        receiver.script.append("ok")
        stage.serve(spec)
        publish(stage, 100)
        wait_until(lambda: stage.delivery().delivered == 100 and not stage.delivery().queued, "the first hundred")
        stage.kill_worker("webhooks")
        for _ in range(30):
            publish(stage, 100)
        stage.serve(spec)
        wait_until(lambda: receiver.sequences()[-1] == 3100, "the last message")
        (gap,) = receiver.gaps()
        assert (gap["from"], gap["count"], gap["reason"]) == (101, None, "overrun")
        assert receiver.sequences() == [*range(1, 101), *range(gap["to"], 3101)]
    finally:
        stage.close()


def test_what_was_queued_at_a_stop_is_told_by_the_next_engine(stage: WebhookStage, receiver: Receiver) -> None:
    receiver.otherwise = "503"
    spec = subscription(receiver.url)
    worker = stage.serve(spec)
    publish(stage, 50)
    wait_until(lambda: stage.delivery().queued == 50 and stage.delivery().failed > 1, "fifty in vain")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait() == 0
    stage.kill_worker("webhooks")
    stage.writer.close()
    stage.writer.unlink()
    stage.writer = RingWriter.create(stage.engine, RING)
    receiver.otherwise = "ok"
    publish(stage, 20)
    stage.serve(spec)
    wait_until(lambda: 20 in receiver.sequences(), "what the new ring has")
    (gap,) = receiver.gaps()
    assert (gap["from"], gap["to"], gap["count"], gap["reason"]) == (1, 51, 50, "engine restarted")
    assert receiver.sequences() == list(range(1, 21))
    assert stage.delivery().lost == 50


def test_asleep_it_is_attached_to_nothing(stage: WebhookStage) -> None:
    stage.serve()
    publish(stage, 100)
    assert stage.reader_position() == 0
    assert not stage.path.exists()
