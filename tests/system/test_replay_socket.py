"""The replay socket: what was published is found again by its numbers, exactly, and what is gone is named exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from shm.layout import NO_INSTRUMENT, RECORD, Flag, RecordType, StatusCode, empty
from shm.ring import RingWriter
from tests.children import DEADLINE_S, wait_until
from tests.system.fanout_process import FanoutStage, MakeStage, fanout_stages, ticks
from workers.replay_client import Answer, ReplayClient, ReplayError
from workers.subscriber import Subscriber
from workers.wire import unpack_frame

SYMBOLS = ["A", "AAPL", "ES.FUT"]
A = "marketdata.tick.A"


@pytest.fixture
def make_stage(engine_name: str) -> Iterator[MakeStage]:
    with fanout_stages(engine_name, SYMBOLS) as make:
        yield make


def client(stage: FanoutStage) -> ReplayClient:
    return ReplayClient(f"tcp://127.0.0.1:{stage.ports['replay']}", timeout_s=DEADLINE_S)


def numbers(answer: Answer, field: str = "source_sequence") -> list[tuple[int, int]]:
    """(topic sequence, a field) of each record of an answer."""
    return [
        (header.topic_sequence + i, value)
        for header, records in answer.frames
        for i, value in enumerate(records[field].tolist())
    ]


def publish(stage: FanoutStage, records: np.ndarray, step: int) -> None:
    """Publish in pieces, each a turn of fan-out or more."""
    before = stage.counter("records_read")
    for start in range(0, len(records), step):
        stage.writer.publish_batch(records[start : start + step])
        stage.wait_counter("records_read", before + min(start + step, len(records)))


def test_range_by_topic_sequence_is_exactly_what_was_sent(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", [A], heal=False) as subscriber, client(stage) as replay:
        stage.wait_counter("subscriptions", 1)
        publish(stage, ticks(np.arange(3000) % 3), 700)
        sent: list[bytes] = []
        while len(sent) < 1000:
            message = subscriber.receive(DEADLINE_S)
            assert message is not None
            sent += [record.tobytes() for record in message.records]

        answer = replay.range(A, 100, 901)

    got = [record.tobytes() for _, records in answer.frames for record in records]
    assert got == sent[99:900]
    assert answer.header["from"], answer.header["to"] == (100, 901)
    assert (answer.unavailable, answer.header["topic_sequence"], answer.header["records"]) == ([], 1000, 801)
    assert stage.counter("replay_requests") == 1
    stage.wait_counter("replay_records", 801)


def test_what_is_not_published_yet_is_not_unavailable(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.zeros(10, int)), 10)
    with client(stage) as replay:
        answer = replay.range(A, 8, 50)
        nothing = replay.range(A, 11, 50)

    assert numbers(answer) == [(8, 7), (9, 8), (10, 9)]
    assert (answer.header["to"], answer.header["topic_sequence"], answer.unavailable) == (11, 10, [])
    assert (nothing.header["from"], nothing.header["to"], nothing.frames) == (11, 11, [])


def test_what_the_ring_no_longer_holds_is_unavailable_to_the_record(make_stage: MakeStage) -> None:
    stage = make_stage(depth_slots=1024)
    stage.start()
    publish(stage, ticks(np.arange(5000) % 2), 200)
    with client(stage) as replay:
        answer = replay.range(A, 1, 2501)
        gone = replay.range(A, 5, 900)

    held = 1024 // 2  # of symbol A
    assert answer.unavailable == [(1, 2501 - held)]
    assert numbers(answer) == [(n, 2 * (n - 1)) for n in range(2501 - held, 2501)]
    assert (gone.unavailable, gone.frames, gone.header["to"]) == ([(5, 900)], [], 900)


def test_large_range_comes_in_answers_that_join_exactly(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.arange(30_000) % 3), 5000)
    got: list[tuple[int, int]] = []
    with client(stage) as replay:
        first, answers = 1, 0
        while first < 30_001:
            answer = replay.range("marketdata.batch", first, 30_001)
            assert answer.header["from"] == first
            assert answer.unavailable == []
            got += numbers(answer)
            first, answers = answer.header["to"], answers + 1

    assert got == [(n, n - 1) for n in range(1, 30_001)]
    assert answers == 4


def test_numbers_hold_over_several_rings_in_the_order_of_sending(make_stage: MakeStage, engine_name: str) -> None:
    """Two rings have records of one topic, taken in turns: only the turn log knows the order."""
    stage = make_stage(depth_slots=4096)
    rng = np.random.default_rng(11)
    with RingWriter.create(engine_name, 3, depth_slots=4096) as other:
        stage.start(rings=(2, 3))
        topic = "marketdata.batch"
        with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", [A, topic], heal=False) as subscriber:
            stage.wait_counter("subscriptions", 2)
            sent: dict[str, list[tuple[int, int, int]]] = {A: [], topic: []}
            published = 0
            while published < 3000:
                count = int(rng.integers(1, 40))
                writer = stage.writer if rng.integers(2) else other
                writer.publish_batch(ticks(np.arange(count) % 2, published))
                published += count
            while len(sent[topic]) < published:
                message = subscriber.receive(DEADLINE_S)
                assert message is not None
                first = message.topic_sequence
                sent[message.topic] += [
                    (first + i, message.ring, n) for i, n in enumerate(message.records["sequence"].tolist())
                ]
        with client(stage) as replay:
            for name in (A, topic):
                answer = replay.range(name, 1, published + 1)
                found = [
                    (header.topic_sequence + i, header.ring, n)
                    for header, records in answer.frames
                    for i, n in enumerate(records["sequence"].tolist())
                ]
                assert found == sent[name]
                assert answer.unavailable == []


def test_busy_ring_does_not_shorten_the_past_of_a_quiet_one(make_stage: MakeStage, engine_name: str) -> None:
    stage = make_stage(depth_slots=1024)
    with RingWriter.create(engine_name, 3, depth_slots=1024) as quiet:
        stage.start(rings=(2, 3))
        quiet.publish_batch(ticks(np.full(20, 1)))
        stage.wait_counter("records_read", 20)
        publish(stage, ticks(np.zeros(5000, int)), 250)
        with client(stage) as replay:
            answer = replay.range("marketdata.tick.AAPL", 1, 21)

    assert numbers(answer) == [(n, n - 1) for n in range(1, 21)]


def test_numbers_survive_kill_9_of_the_fanout(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.arange(600) % 3), 100)
    stage.kill()
    stage.writer.publish_batch(ticks(np.arange(600) % 3, 600))
    stage.start()
    stage.wait_counter("records_read", 1200)
    with client(stage) as replay:
        answer = replay.range(A, 1, 401)

    assert numbers(answer) == [(n, 3 * (n - 1)) for n in range(1, 401)]
    assert answer.unavailable == []


def test_ring_that_was_made_anew_ends_the_past(make_stage: MakeStage, engine_name: str) -> None:
    stage = make_stage()
    stage.start(start="oldest")
    publish(stage, ticks(np.zeros(50, int)), 50)
    stage.kill()
    stage.writer.unlink()
    stage.writer.close()
    stage.writer = RingWriter.create(engine_name, 2)
    stage.writer.publish_batch(ticks(np.zeros(30, int), 1000))
    stage.start(start="oldest")
    stage.wait_counter("records_read", 80)
    with client(stage) as replay:
        answer = replay.range(A, 1, 81)

    assert answer.unavailable == [(1, 51)]
    assert numbers(answer) == [(51 + i, 1000 + i) for i in range(30)]


def test_fanouts_own_gap_record_can_be_had_again(make_stage: MakeStage) -> None:
    """It stands in no ring; and the record behind the gap carries its flag as it did when it was sent."""
    stage = make_stage(depth_slots=1024)
    stage.start()
    publish(stage, ticks(np.zeros(10, int)), 10)
    stage.kill()
    stage.writer.publish_batch(ticks(np.zeros(3000, int), 10))
    topics = ["marketdata.feed.status", A]
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", topics, heal=False) as subscriber, client(stage) as replay:
        # The overrun is met before anybody can subscribe: what was sent is told by the numbers alone.
        stage.start()
        stage.wait_counter("gaps", 1)
        stage.wait_counter("subscriptions", 2)
        status = replay.range(topics[0], 1, 2)
        behind = replay.range(A, 1, 4000)
        assert subscriber.receive(0) is None

    (header, records), *rest = status.frames
    assert (rest, header.topic_sequence, len(records)) == ([], 1, 1)
    assert records["code"].tolist() == [StatusCode.GAP]
    assert records["from_sequence"].tolist() == [11]
    first = behind.frames[0][1][0]
    assert int(first["sequence"]) == int(records["to_sequence"][0])
    assert first["flags"] & Flag.GAP_BEFORE
    assert behind.frames[0][0].topic_sequence == 11
    assert behind.unavailable == [(1, 11)]


def test_status_topics_are_told_apart_by_code(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    records = empty(4)
    records["record_type"], records["instrument_id"] = RecordType.STATUS, NO_INSTRUMENT
    records["code"] = [StatusCode.FEED_UP, StatusCode.LATENCY_ALERT, StatusCode.REJECTED, StatusCode.FEED_DOWN]
    publish(stage, records, 4)
    with client(stage) as replay:
        got = {
            topic: numbers(replay.range(f"marketdata.{topic}", 1, 10), "code")
            for topic in ("feed.status", "latency.alert", "error")
        }

    assert got == {
        "feed.status": [(1, StatusCode.FEED_UP), (2, StatusCode.FEED_DOWN)],
        "latency.alert": [(1, StatusCode.LATENCY_ALERT)],
        "error": [(1, StatusCode.REJECTED)],
    }


def test_range_by_ring_sequence(make_stage: MakeStage) -> None:
    stage = make_stage(depth_slots=1024)
    stage.start()
    publish(stage, ticks(np.arange(2000) % 3), 200)
    with client(stage) as replay:
        answer = replay.ring(2, 900, 1101)

    assert answer.unavailable == [(900, 977)]
    assert numbers(answer, "sequence") == [(n, n) for n in range(977, 1101)]
    assert (answer.header["to"], answer.header["published"]) == (1101, 2000)


def test_snapshot_says_the_number_from_which_the_stream_goes_on(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.arange(300) % 3), 70)
    with client(stage) as replay:
        answer = replay.snapshot(A, limit=10)
        bare = replay.snapshot("marketdata.batch")

    assert answer.header["topic_sequence"] == 100
    assert numbers(answer) == [(n, 3 * (n - 1)) for n in range(91, 101)]
    assert (answer.header["symbol"], answer.header["quote"]) == ("A", None)
    assert (bare.header["topic_sequence"], bare.frames) == (300, [])


def test_replay_listens_on_ipc_too_and_a_subscriber_finds_it(
    make_stage: MakeStage, tmp_path: Path, engine_name: str
) -> None:
    stage = make_stage()
    stage.start(ipc_dir=str(tmp_path))
    publish(stage, ticks(np.zeros(10, int)), 10)
    with Subscriber(f"ipc://{tmp_path}/{engine_name}.raw.0", [A], join_records=4) as subscriber:
        message = subscriber.receive(DEADLINE_S)
        assert message is not None
        assert (message.topic_sequence, message.records["source_sequence"].tolist()) == (7, [6, 7, 8, 9])
        assert subscriber.joined == 4


def test_shards_answer_for_their_own_symbols_alone(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start(1, shards=2, raw_port=stage.ports["raw"], replay_port=stage.ports["replay"] - 1)
    publish_all = ticks(np.arange(300) % 3)
    stage.writer.publish_batch(publish_all)
    stage.wait_counter("records_read", 300, 1)
    with client(stage) as replay:
        assert len(numbers(replay.range("marketdata.tick.AAPL", 1, 101))) == 100
        assert [n for _, n in numbers(replay.range("marketdata.batch", 1, 200))] == list(range(1, 300, 3))
        with pytest.raises(ReplayError, match="'A' is on shard 0, this is shard 1") as refused:
            replay.range(A, 1, 2)
    assert refused.value.code == "other_shard"


@pytest.fixture
def dealer() -> Iterator[zmq.Socket[bytes]]:
    """What a user has who knows nothing of this project."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger, socket.rcvtimeo = 0, int(DEADLINE_S * 1000)
        yield socket


def ask(socket: zmq.Socket[bytes], *frames: bytes) -> dict[str, Any]:
    socket.send_multipart(frames)
    found: dict[str, Any] = msgspec.msgpack.decode(socket.recv_multipart()[0])
    return found


def test_garbage_is_answered_with_an_error_that_names_the_field(
    make_stage: MakeStage, dealer: zmq.Socket[bytes]
) -> None:
    stage = make_stage()
    stage.start()
    dealer.connect(f"tcp://127.0.0.1:{stage.ports['replay']}")
    good: dict[str, Any] = {"kind": "range", "id": "mine", "topic": A, "from": 1, "to": 2}
    cases = [
        ({**good, "from": "x"}, "$.from", "mine"),
        ({**good, "from": -1}, "$.from", "mine"),
        ({**good, "to": 0}, "from is 1", "mine"),
        ({**good, "topic": "nonsense"}, "topic is 'nonsense'", "mine"),
        ({**good, "topic": "marketdata.tick.NOBODY"}, "topic: no record of symbol 'NOBODY'", "mine"),
        ({**good, "more": 1}, "unknown field `more`", "mine"),
        ({**good, "kind": "everything"}, "$.kind", "mine"),
        ({"kind": "range", "id": 5, "from": 1, "to": 2}, "`topic`", 5),
        ({"kind": "ring", "ring": 9, "from": 1, "to": 2}, "ring is 9", 0),
        ({"kind": "snapshot"}, "topic, symbol", 0),
        ({"kind": "snapshot", "topic": A, "limit": 1 << 40}, "$.limit", 0),
        ([], "Expected `object`", 0),
    ]
    for request, complaint, number in cases:
        answer = ask(dealer, msgspec.msgpack.encode(request))
        assert (answer["kind"], answer["id"]) == ("error", number), request
        assert complaint in answer["error"], request
    for frames in (
        (b"\xff\xfe",),
        (b"",),
        (b"a", b"b", b"c"),
        (b"\x81\xa2id\xc4\x01\x00",),
        (b"\xd9\xff" + b"x" * 255,),
    ):
        assert ask(dealer, *frames)["code"] == "bad_request"
    dealer.send(bytes(100_000))  # ends the connection, not the service; ZeroMQ connects again

    def answered() -> bool:
        dealer.send(msgspec.msgpack.encode(good))
        return bool(dealer.poll(200)) and msgspec.msgpack.decode(dealer.recv_multipart()[0])["kind"] == "range"

    publish(stage, ticks(np.zeros(3, int)), 3)
    wait_until(answered, "the service goes on")
    assert stage.counter("replay_refused") == len(cases) + 5


def test_req_socket_can_ask_too(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.zeros(3, int)), 3)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger, socket.rcvtimeo = 0, int(DEADLINE_S * 1000)
        socket.connect(f"tcp://127.0.0.1:{stage.ports['replay']}")
        for _ in range(2):
            socket.send(msgspec.msgpack.encode({"kind": "range", "topic": A, "from": 1, "to": 4}))
            header, frame = socket.recv_multipart()
            assert msgspec.msgpack.decode(header)["records"] == 3
            assert np.frombuffer(frame, RECORD, offset=16)["source_sequence"].tolist() == [0, 1, 2]


def test_more_requests_than_may_wait_are_refused_and_counted(make_stage: MakeStage, dealer: zmq.Socket[bytes]) -> None:
    stage = make_stage()
    stage.start()
    publish(stage, ticks(np.arange(60_000) % 3), 20_000)
    dealer.sndhwm = dealer.rcvhwm = 0
    dealer.connect(f"tcp://127.0.0.1:{stage.ports['replay']}")
    count = 3000
    for number in range(count):
        dealer.send(
            msgspec.msgpack.encode({"kind": "range", "id": number, "topic": "marketdata.tick.AAPL", "from": 1, "to": 9})
        )
    served: list[int] = []
    busy: list[int] = []

    def all_dealt_with() -> bool:
        while dealer.poll(0):
            header, *frames = dealer.recv_multipart()
            found = msgspec.msgpack.decode(header)
            if found["kind"] == "error":
                assert found["code"] == "busy"
                busy.append(found["id"])
            else:
                assert len(unpack_frame(frames[0])[1]) == 8
                served.append(found["id"])
        return len(served) + stage.counter("replay_refused") == count

    wait_until(all_dealt_with, "each request is served, or counted as refused")
    assert len(set(served + busy)) == len(served + busy)
    assert served
    assert len(busy) <= stage.counter("replay_refused")
    assert stage.counter("replay_requests") == count
