"""The subscriber hands out exactly the topics asked for and accounts for every missing, doubled or foreign message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import zmq

from shm.layout import RecordType, empty
from workers.subscriber import Gap, Message, Subscriber, raw_endpoints
from workers.wire import pack_header

DEADLINE_S = 60.0


class Publisher:
    """A publisher that says what it is told: an XPUB socket, so that a test can wait for subscriptions to arrive."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket = context.socket(zmq.XPUB)
        self.socket.linger = 0
        self.socket.rcvtimeo = int(DEADLINE_S * 1000)
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    def wait_subscribed(self, count: int = 1) -> set[bytes]:
        return {self.socket.recv() for _ in range(count)}

    def send(self, topic: str, number: int, count: int = 1, *, ring: int = 2, publish_ns: int | None = None) -> None:
        records = empty(count)
        records["record_type"], records["ts_publish"] = RecordType.TICK, publish_ns or number
        records["sequence"] = range(number, number + count)
        self.socket.send_multipart([topic.encode(), pack_header(ring, count, number) + records.tobytes()])


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


@pytest.fixture
def publisher(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Publisher]:
    made = Publisher(context)
    yield made
    made.socket.close()


def take(subscriber: Subscriber) -> Message:
    message = subscriber.receive(DEADLINE_S)
    assert message is not None
    return message


def test_message_is_decoded_to_records(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["marketdata.tick.AAPL"]) as subscriber:
        publisher.wait_subscribed()
        publisher.send("marketdata.tick.AAPL", 5, 3, ring=4)

        message = take(subscriber)

    assert (message.topic, message.ring, message.topic_sequence, message.gap) == ("marketdata.tick.AAPL", 4, 5, None)
    assert message.records["sequence"].tolist() == [5, 6, 7]
    assert (subscriber.messages, subscriber.records) == (1, 3)


def test_topics_match_exactly_and_a_star_matches_a_prefix(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["marketdata.tick.A", "marketdata.quote.*"]) as subscriber:
        assert publisher.wait_subscribed(2) == {b"\x01marketdata.tick.A", b"\x01marketdata.quote."}
        for topic in ("tick.AAPL", "tick.A", "quote.A", "tick.A.B", "quote.AAPL"):
            publisher.send(f"marketdata.{topic}", 1)
        publisher.send("marketdata.tick.A", 2)

        got = [take(subscriber).topic for _ in range(4)]

    assert got == ["marketdata.tick.A", "marketdata.quote.A", "marketdata.quote.AAPL", "marketdata.tick.A"]


def test_gap_is_exact_and_joining_late_is_none(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["*"], heal=False) as subscriber:
        publisher.wait_subscribed()
        for topic, number, count in (
            ("a", 100, 10),
            ("b", 1, 1),
            ("a", 110, 1),
            ("a", 150, 2),
            ("b", 2, 1),
            ("a", 152, 1),
        ):
            publisher.send(topic, number, count)

        gaps = [take(subscriber).gap for _ in range(6)]

    assert gaps == [None, None, None, Gap("a", 111, 150), None, None]
    assert list(subscriber.gaps) == [Gap("a", 111, 150)]
    assert (subscriber.gap_count, subscriber.records_missed) == (1, 39)


def test_what_was_received_before_is_dropped_and_counted(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["a"]) as subscriber:
        publisher.wait_subscribed()
        publisher.send("a", 1, 5, publish_ns=10)
        publisher.send("a", 2, 3, publish_ns=10)  # all of it again
        publisher.send("a", 4, 4, publish_ns=10)  # 4 and 5 again, 6 and 7 are new
        publisher.send("a", 8, 1, publish_ns=11)

        got = [take(subscriber) for _ in range(3)]

    assert [m.records["sequence"].tolist() for m in got] == [[1, 2, 3, 4, 5], [6, 7], [8]]
    assert [m.topic_sequence for m in got] == [1, 6, 8]
    assert (subscriber.duplicates, subscriber.gap_count, subscriber.restarts) == (5, 0, 0)


def test_numbers_that_start_anew_with_younger_records_are_an_engine_started_anew(publisher: Publisher) -> None:
    with Subscriber(publisher.endpoint, ["a"]) as subscriber:
        publisher.wait_subscribed()
        publisher.send("a", 900, 1, publish_ns=5000)
        publisher.send("a", 1, 2, publish_ns=6000)
        publisher.send("a", 3, 1, publish_ns=6001)

        got = [take(subscriber).topic_sequence for _ in range(3)]

    assert got == [900, 1, 3]
    assert (subscriber.restarts, subscriber.duplicates, subscriber.gap_count) == (1, 0, 0)


def test_malformed_messages_are_counted_and_the_next_ones_arrive(publisher: Publisher) -> None:
    frame = pack_header(0, 1, 1) + bytes(128)
    malformed = [
        [b"a"],
        [b"a", b"short"],
        [b"a", frame[:-1]],
        [b"a", b"\x02" + frame[1:]],
        [b"a", pack_header(0, 0, 1)],
        [b"a", b"{}", b"and", b"more"],
    ]
    with Subscriber(publisher.endpoint, ["a"]) as subscriber:
        publisher.wait_subscribed()
        for frames in malformed:
            publisher.socket.send_multipart(frames)
        publisher.send("a", 7)

        assert take(subscriber).topic_sequence == 7
    assert subscriber.malformed == len(malformed)


def test_shards_number_the_same_topic_by_themselves(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    publishers = [Publisher(context) for _ in range(3)]
    with Subscriber([p.endpoint for p in publishers], ["marketdata.batch"]) as subscriber:
        for publisher in publishers:
            publisher.wait_subscribed()
        for number in range(1, 5):
            for offset, publisher in enumerate(publishers):
                publisher.send("marketdata.batch", 1000 * offset + number)
        got = [take(subscriber).topic_sequence for _ in range(12)]

    assert sorted(got) == sorted(1000 * offset + number for offset in range(3) for number in range(1, 5))
    assert subscriber.gap_count == 0
    for publisher in publishers:
        publisher.socket.close()


@pytest.mark.parametrize("endpoints", [1, 2])
def test_receive_returns_none_when_nothing_comes(context: zmq.Context[zmq.Socket[bytes]], endpoints: int) -> None:
    publishers = [Publisher(context) for _ in range(endpoints)]
    with Subscriber([p.endpoint for p in publishers], ["a"]) as subscriber:
        assert subscriber.receive(0) is None
        assert subscriber.receive(0.01) is None
        assert list(subscriber.batches(0.01)) == []
        for publisher in publishers:
            publisher.wait_subscribed()
        publishers[-1].send("a", 1)
        assert [m.topic_sequence for m in subscriber.batches(1.0)] == [1]
    for publisher in publishers:
        publisher.socket.close()


@pytest.mark.parametrize(
    ("endpoints", "topics", "complaint"),
    [([], ["a"], "endpoints is empty"), ("tcp://127.0.0.1:1", [], "topics is empty"), ("x", "a", "list of topics")],
)
def test_arguments_that_can_not_work_are_refused(endpoints: list[str], topics: list[str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Subscriber(endpoints, topics)


def test_shards_have_consecutive_ports() -> None:
    assert raw_endpoints(2) == ["tcp://127.0.0.1:8801", "tcp://127.0.0.1:8802"]
    assert raw_endpoints(1, host="10.0.0.1", port=9000) == ["tcp://10.0.0.1:9000"]


def test_import_needs_no_engine() -> None:
    """A subscriber on another host: no shared memory, no message encoder, no native module."""
    code = "import sys, workers.subscriber as s; print(*sorted(m for m in sys.modules if m.split('.')[0] in %r))"
    heavy = ("posix_ipc", "msgspec", "psutil", "engine", "shm", "workers")
    done = subprocess.run([sys.executable, "-c", code % (heavy,)], capture_output=True, text=True, check=True)

    assert done.stdout.split() == [
        "shm",
        "shm.layout",
        "workers",
        "workers.healing",
        "workers.subscriber",
        "workers.wire",
    ]
