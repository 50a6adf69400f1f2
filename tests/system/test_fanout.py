"""Fan-out as its subscribers see it: real rings, real processes, real sockets."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq

from shm.layout import NO_INSTRUMENT, RECORD, Flag, RecordType, Source, StatusCode, empty
from shm.message import payload
from shm.status import ProcessState
from tests.children import DEADLINE_S, wait_until
from tests.ports import free_port
from tests.system.fanout_process import MakeStage, fanout_stages, ticks
from workers.subscriber import Message, Subscriber
from workers.topics import BATCH, TopicTable, topic_index

SYMBOLS = ["A", "AAPL", "ES.FUT", "BTC-USD", "Ünï"]


@pytest.fixture
def make_stage(engine_name: str) -> Iterator[MakeStage]:
    with fanout_stages(engine_name, SYMBOLS) as make:
        yield make


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as made:
        yield made


def plain_subscriber(context: zmq.Context[zmq.Socket[bytes]], port: int, *topics: str) -> zmq.Socket[bytes]:
    """What a user has who knows nothing of this project: a SUB socket."""
    socket = context.socket(zmq.SUB)
    socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, 0, int(DEADLINE_S * 1000)
    for topic in topics:
        socket.setsockopt(zmq.SUBSCRIBE, topic.encode())
    socket.connect(f"tcp://127.0.0.1:{port}")
    return socket


def take(subscriber: Subscriber) -> Message:
    message = subscriber.receive(DEADLINE_S)
    assert message is not None
    return message


def take_records(subscriber: Subscriber, count: int) -> list[Message]:
    got: list[Message] = []
    while sum(len(message.records) for message in got) < count:
        got.append(take(subscriber))
    return got


def test_plain_subscriber_receives_what_was_published(
    make_stage: MakeStage, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stage = make_stage()
    stage.start()
    socket = plain_subscriber(context, stage.ports["raw"], "marketdata.tick.")
    stage.wait_counter("subscriptions", 1)
    published = ticks(np.arange(3000) % 5)
    for start in range(0, 3000, 700):
        stage.writer.publish_batch(published[start : start + 700])

    got: dict[bytes, list[np.ndarray]] = {}
    while sum(len(batch) for batches in got.values() for batch in batches) < 3000:
        topic, frame = socket.recv_multipart()
        version, ring = np.frombuffer(frame, "<u2", 2).tolist()
        (count,) = np.frombuffer(frame, "<u4", 1, 4).tolist()
        (number,) = np.frombuffer(frame, "<u8", 1, 8).tolist()
        records = np.frombuffer(frame, RECORD, offset=16)
        assert (version, ring, count) == (1, 2, len(records))
        assert number == 1 + sum(map(len, got.setdefault(topic, [])))
        got[topic].append(records)
    socket.close()

    assert set(got) == {f"marketdata.tick.{symbol}".encode() for symbol in SYMBOLS}
    for instrument, symbol in enumerate(SYMBOLS):
        mine = np.concatenate([b.view((np.uint8, 128)) for b in got[f"marketdata.tick.{symbol}".encode()]])
        expected = published[instrument::5].view((np.uint8, 128)).copy()
        expected[:, 0:8], expected[:, 24:32] = mine[:, 0:8], mine[:, 24:32]  # the ring's: sequence and ts_publish
        assert np.array_equal(mine, expected)


def test_batch_topic_carries_every_record_in_ring_order(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    records = ticks(np.arange(5000) % 5)
    records["record_type"][::7] = RecordType.QUOTE
    records["record_type"][::50], records["instrument_id"][::50] = RecordType.STATUS, NO_INSTRUMENT
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.batch"]) as subscriber:
        stage.wait_counter("subscriptions", 1)
        stage.writer.publish_batch(records)
        got = take_records(subscriber, 5000)

    assert np.concatenate([m.records["sequence"] for m in got]).tolist() == list(range(1, 5001))
    assert got[0].topic_sequence == 1
    assert subscriber.gap_count == 0


def test_json_and_msgpack_messages_are_those_of_the_interface(
    make_stage: MakeStage, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stage = make_stage()
    stage.start()
    json = plain_subscriber(context, stage.ports["json"], "marketdata.tick.AAPL")
    msgpack = plain_subscriber(context, stage.ports["msgpack"], "marketdata.tick.AAPL")
    stage.wait_counter("subscriptions", 2)
    one = ticks(np.array([1]), 77)
    one["ts_receive"], one["source"] = one["ts_event"] + 2_500_000, Source.INTERNAL
    one["size"], one["side"], one["flags"] = 10.0, 1, Flag.LATE
    stage.writer.publish_batch(one)

    for socket, decode in ((json, msgspec.json.decode), (msgpack, msgspec.msgpack.decode)):
        topic, frame = socket.recv_multipart()
        assert topic == b"marketdata.tick.AAPL"
        assert decode(frame) == {
            "topic": "marketdata.tick.AAPL",
            "payload": {
                "symbol": "AAPL",
                "data_type": "tick",
                "data": {
                    "timestamp": "2024-03-01T14:30:00.000000Z",
                    "price": 100.0 + 77 / 64,
                    "size": 10.0,
                    "exchange": None,
                    "trade_id": None,
                    "side": "buy",
                },
                "latency_ms": 2.5,
                "source": "internal",
                "sequence": 1,
                "flags": ["LATE"],
                "topic_sequence": 1,
            },
        }
        socket.close()


def test_nothing_is_sent_or_encoded_for_topics_that_nobody_has(
    make_stage: MakeStage, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stage = make_stage()
    stage.start()
    stage.writer.publish_batch(ticks(np.arange(1000) % 5))
    stage.wait_counter("records_read", 1000)
    assert (stage.counter("messages_sent"), stage.counter("messages_encoded")) == (0, 0)

    socket = plain_subscriber(context, stage.ports["json"], "marketdata.tick.ES.FUT")
    stage.wait_counter("subscriptions", 1)
    stage.writer.publish_batch(ticks(np.arange(1000) % 5))
    got = [msgspec.json.decode(socket.recv_multipart()[1])["payload"] for _ in range(200)]
    stage.wait_counter("messages_sent", 200)
    assert (stage.counter("messages_sent"), stage.counter("messages_encoded")) == (200, 200)
    assert [p["topic_sequence"] for p in got] == list(range(201, 401))

    socket.close()
    wait_until(lambda: stage.counter("subscriptions") == 0, "the subscription is gone")
    stage.writer.publish_batch(ticks(np.arange(1000) % 5))
    stage.wait_counter("records_read", 3000)
    assert stage.counter("messages_encoded") == 200


def test_subscriber_gets_the_exact_topic_and_symbols_that_came_later(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    with Subscriber(
        f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.tick.A", "marketdata.tick.LATER"]
    ) as subscriber:
        stage.wait_counter("subscriptions", 2)
        later = stage.instruments.intern("LATER")
        stage.writer.publish_batch(ticks(np.array([1, 0, later, 2, 0])))
        got = take_records(subscriber, 3)

    found = sorted((m.topic, n) for m in got for n in m.records["source_sequence"].tolist())
    assert found == [("marketdata.tick.A", 1), ("marketdata.tick.A", 4), ("marketdata.tick.LATER", 2)]


def test_status_records_go_to_the_topics_of_their_code(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    records = empty(3)
    records["record_type"], records["instrument_id"] = RecordType.STATUS, NO_INSTRUMENT
    records["code"] = [StatusCode.FEED_UP, StatusCode.LATENCY_ALERT, StatusCode.REJECTED]
    topics = ["marketdata.feed.status", "marketdata.latency.alert", "marketdata.error"]
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", topics) as subscriber:
        stage.wait_counter("subscriptions", 3)
        stage.writer.publish_batch(records)
        got = {m.topic: m.records["code"].tolist() for m in take_records(subscriber, 3)}

    assert got == {
        topics[0]: [StatusCode.FEED_UP],
        topics[1]: [StatusCode.LATENCY_ALERT],
        topics[2]: [StatusCode.REJECTED],
    }


def test_killed_fanout_sends_nothing_twice_and_its_losses_are_exact_holes(
    make_stage: MakeStage, engine_name: str
) -> None:
    """kill -9 in mid-stream, three times. Each record's number in its topic is known beforehand: it must hold.

    Each life has to bring the subscriber most of what is published in it, however slow the machine: the next step waits
    for what has arrived. Only what is sent in the last steps before a kill, and while nobody serves, may go missing.
    """
    lives, paced, unpaced, dark = 4, 12_000, 2_000, 100  # records of each life: waited for, not waited for, after it
    stage = make_stage([f"S{i}" for i in range(50)])
    rng = np.random.default_rng(7)
    published = ticks(rng.integers(0, 50, lives * (paced + unpaced + dark)))
    seen: Counter[int] = Counter()
    number_of = np.zeros(len(published), np.int64)
    for index, instrument in enumerate(published["instrument_id"].tolist()):
        seen[instrument] += 1
        number_of[index] = seen[instrument]
    received: list[Message] = []
    sent = arrived = 0
    of_life = []
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.tick.*"], heal=False) as subscriber:

        def receive_until(condition: Callable[[], bool], what: str) -> None:
            """Receiving is also what lets a SUB socket send its subscriptions again to a publisher that came back."""

            def step() -> bool:
                nonlocal arrived
                while (message := subscriber.receive(0)) is not None:
                    received.append(message)
                    arrived += len(message.records)
                return condition()

            wait_until(step, what)

        def publish(count: int) -> None:
            nonlocal sent
            stage.writer.publish_batch(published[sent : sent + count])
            sent += count

        for life in range(lives):
            stage.start()
            receive_until(lambda: stage.counter("subscriptions") == 1, "subscribed again")
            first, before, arrived = sent, len(received), 0
            while sent < first + paced:
                publish(min(int(rng.integers(1, 300)), first + paced - sent))
                behind = sent - first - 2_000  # not the newest of any topic: a turn sends topic after topic
                if behind > 0:
                    receive_until(lambda: arrived >= behind, "the subscriber keeps up")  # noqa: B023
            while sent < first + paced + unpaced:
                publish(min(int(rng.integers(1, 300)), first + paced + unpaced - sent))
            if life < lives - 1:
                stage.kill()
                publish(dark)
            of_life.append(sum(len(message.records) for message in received[before:]))
        # One more of each, after the last kill, so that the holes before them show.
        published = published[:sent]
        stage.writer.publish_batch(ticks(np.arange(50), 1_000_000))
        ends = {f"marketdata.tick.S{i}" for i in range(50)}
        while ends:
            received.append(take(subscriber))
            if received[-1].records["source_sequence"][-1] >= 1_000_000:
                ends.remove(received[-1].topic)
    assert min(of_life) >= paced - 2_300, "what was waited for has come"
    missed, gaps = subscriber.records_missed, list(subscriber.gaps)

    got = [
        (int(index), message.topic_sequence + offset)
        for message in received
        for offset, index in enumerate(message.records["source_sequence"].tolist())
        if index < 1_000_000
    ]
    assert len({index for index, _ in got}) == len(got), "a record came twice"
    assert all(number == number_of[index] for index, number in got), "a number is not its record's"
    assert missed == sent - len(got)
    holes = {(gap.topic, n) for gap in gaps for n in range(gap.from_sequence, gap.to_sequence)}
    all_numbers = {
        (f"marketdata.tick.S{i}", int(n))
        for i, n in zip(published["instrument_id"].tolist(), number_of[:sent].tolist(), strict=True)
    }
    got_numbers = {(f"marketdata.tick.S{published['instrument_id'][index]}", number) for index, number in got}
    assert holes == all_numbers - got_numbers
    assert subscriber.duplicates == 0
    with TopicTable.attach(engine_name) as table:
        assert table.sequence(BATCH, 0) == sent + 50


def test_overrun_of_fanout_itself_is_announced_with_ring_and_range(make_stage: MakeStage) -> None:
    stage = make_stage(depth_slots=1024)
    worker = stage.start()
    with Subscriber(
        f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.feed.status", "marketdata.batch"]
    ) as subscriber:
        stage.wait_counter("subscriptions", 2)
        stage.writer.publish_batch(ticks(np.arange(10) % 5))
        take_records(subscriber, 10)
        os.kill(worker.pid, signal.SIGSTOP)
        for _ in range(5):
            stage.writer.publish_batch(ticks(np.arange(1000) % 5))
        os.kill(worker.pid, signal.SIGCONT)

        announced = take(subscriber)
        after = take(subscriber)

    assert (announced.topic, announced.ring) == ("marketdata.feed.status", 2)
    (status,) = announced.records
    assert (status["code"], status["from_sequence"]) == (StatusCode.GAP, 11)
    assert after.records["sequence"][0] == status["to_sequence"]
    assert after.records["flags"][0] & Flag.GAP_BEFORE
    assert payload(status, None)["data"]["text"] == "ring 2 overran fanout-0"
    assert stage.counter("gaps") == 1
    assert stage.counter("records_lost") == status["to_sequence"] - 11


def test_shards_divide_the_instruments_among_them(make_stage: MakeStage) -> None:
    stage = make_stage([f"S{i}" for i in range(10)])
    # shard N listens on port + N: two ports in a row are not free by luck only
    for _ in range(20):
        try:
            stage.start(0, shards=2, msgpack_port=0, json_port=0)
            stage.start(1, shards=2, msgpack_port=0, json_port=0)
            break
        except AssertionError:
            stage.ports["raw"] = free_port()
    base = stage.ports["raw"]
    endpoints = [f"tcp://127.0.0.1:{base + shard}" for shard in range(2)]
    with Subscriber(endpoints, ["*"]) as subscriber:
        stage.wait_counter("subscriptions", 1, 0)
        stage.wait_counter("subscriptions", 1, 1)
        stage.writer.publish_batch(ticks(np.arange(2000) % 10))
        got = take_records(subscriber, 4000)  # each record in its own topic and in its shard's batch topic

    counts = Counter(n for m in got if m.topic != "marketdata.batch" for n in m.records["source_sequence"].tolist())
    assert counts == Counter(range(2000))
    batches = [m.records["instrument_id"] % 2 for m in got if m.topic == "marketdata.batch"]
    assert sum(map(len, batches)) == 2000
    assert all(len(set(shard.tolist())) == 1 for shard in batches)
    assert subscriber.gap_count == 0


def test_sigterm_sends_what_the_ring_still_holds(make_stage: MakeStage) -> None:
    stage = make_stage()
    worker = stage.start()
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.batch"]) as subscriber:
        stage.wait_counter("subscriptions", 1)
        os.kill(worker.pid, signal.SIGSTOP)
        stage.writer.publish_batch(ticks(np.arange(20_000) % 5))
        os.kill(worker.pid, signal.SIGTERM)
        os.kill(worker.pid, signal.SIGCONT)
        got = take_records(subscriber, 20_000)

    assert stage.wait_end() == 0
    assert sum(len(m.records) for m in got) == 20_000
    view = stage.view()
    assert view is not None
    assert view.state == ProcessState.STOPPED


def test_stuck_subscriber_loses_messages_and_another_loses_none(
    make_stage: MakeStage, context: zmq.Context[zmq.Socket[bytes]]
) -> None:
    stage = make_stage()
    stage.start(send_hwm=20)
    stuck = context.socket(zmq.SUB)
    stuck.linger, stuck.rcvhwm, stuck.rcvbuf = 0, 1, 8192
    stuck.setsockopt(zmq.SUBSCRIBE, b"marketdata.batch")
    stuck.connect(f"tcp://127.0.0.1:{stage.ports['raw']}")
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.batch"]) as subscriber:
        stage.wait_counter("subscriptions", 2)
        published = 0
        while not stage.counter("messages_dropped"):
            assert published < 4_000_000, "hundreds of MB sent to somebody who reads nothing, and nothing dropped"
            stage.writer.publish_batch(ticks(np.arange(512) % 5))
            published += 512
            take_records(subscriber, 512)
        for _ in range(50):
            stage.writer.publish_batch(ticks(np.arange(512) % 5))
            take_records(subscriber, 512)
        assert (subscriber.gap_count, subscriber.records) == (0, published + 50 * 512)
    stuck.close()


def test_ring_that_was_made_anew_is_read_from_its_start(make_stage: MakeStage, engine_name: str) -> None:
    from shm.ring import RingWriter

    stage = make_stage()
    stage.start(start="oldest")
    stage.writer.publish_batch(ticks(np.arange(100) % 5))
    stage.wait_counter("records_read", 100)
    stage.kill()
    stage.writer.unlink()
    stage.writer.close()
    stage.writer = RingWriter.create(engine_name, 2)
    stage.writer.publish_batch(ticks(np.arange(300) % 5))

    stage.start(start="oldest")
    stage.wait_counter("records_read", 400)

    with TopicTable.attach(engine_name) as table:
        assert table.sequence(topic_index(RecordType.TICK, 0)) == 80


def test_fanout_listens_on_ipc_too(make_stage: MakeStage, tmp_path: Path, engine_name: str) -> None:
    stage = make_stage()
    stage.start(ipc_dir=str(tmp_path))
    with Subscriber(f"ipc://{tmp_path}/{engine_name}.raw.0", ["marketdata.tick.A"]) as subscriber:
        stage.wait_counter("subscriptions", 1)
        stage.writer.publish_batch(ticks(np.array([0])))
        assert take(subscriber).records["source_sequence"].tolist() == [0]


def test_numbers_of_shards_that_do_not_fit_the_table_are_refused(make_stage: MakeStage, engine_name: str) -> None:
    stage = make_stage()
    TopicTable.create(engine_name, shards=3).close()
    with pytest.raises(AssertionError, match="ended with 3"):
        stage.start()


def test_port_that_is_taken_ends_the_worker_with_a_message(
    make_stage: MakeStage, context: zmq.Context[zmq.Socket[bytes]], capfd: pytest.CaptureFixture[str]
) -> None:
    stage = make_stage()
    holder = context.socket(zmq.REP)
    stage.ports["json"] = holder.bind_to_random_port("tcp://127.0.0.1")

    with pytest.raises(AssertionError, match="ended with 1"):
        stage.start()

    assert f"can not listen on tcp://127.0.0.1:{stage.ports['json']}: Address already in use" in capfd.readouterr().err
    holder.close()


def test_subscriber_that_is_slow_for_a_while_loses_nothing_in_a_reliable_replay(make_stage: MakeStage) -> None:
    """`reliable`: with all queues full, fan-out waits for its subscriber, and the records wait in the ring."""
    stage = make_stage()
    stage.start(reliable=True, send_hwm=10)
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.batch"], receive_hwm=10) as subscriber:
        stage.wait_counter("subscriptions", 1)
        for _ in range(5):
            stage.writer.publish_batch(ticks(np.arange(60_000) % 5))
            take_records(subscriber, 60_000)

    assert (subscriber.gap_count, stage.counter("messages_dropped"), stage.counter("records_lost")) == (0, 0, 0)
