"""A fan-out that gets more than it can send: trades arrive, the rest is conflated and shed, said and counted."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq

from shm.layout import Action, Flag, Priority, RecordType, empty
from tests.children import DEADLINE_S
from tests.system.fanout_process import FanoutStage, MakeStage, fanout_stages
from workers.subscriber import Subscriber

SYMBOLS = [f"S{number:03d}" for number in range(600)]
LEVELS = 40
BATCH = 8192
TIERS = {"trade": Priority.HIGH, "quote": Priority.NORMAL, "level2": Priority.LOW}


@pytest.fixture
def make_stage(engine_name: str) -> Iterator[MakeStage]:
    with fanout_stages(engine_name, SYMBOLS) as make:
        yield make


def market(rng: np.random.Generator, first: int) -> np.ndarray:
    """BATCH records, one in a hundred a trade; `source_sequence` counts them from `first`."""
    records = empty(BATCH)
    kind = rng.choice([RecordType.TRADE, RecordType.QUOTE, RecordType.LEVEL2], BATCH, p=[0.01, 0.49, 0.5])
    records["record_type"], records["instrument_id"] = kind, rng.integers(0, len(SYMBOLS), BATCH)
    records["priority"] = np.array([0, 0, Priority.NORMAL, 0, Priority.HIGH, Priority.LOW], np.uint8)[kind]
    records["source_sequence"] = first + np.arange(BATCH)
    levels = kind == RecordType.LEVEL2
    records["level"][levels] = rng.integers(0, LEVELS, BATCH)[levels]
    records["depth"][levels], records["action"][levels] = LEVELS, Action.MODIFY
    records["side"][levels] = 1 + rng.integers(0, 2, BATCH)[levels]
    return records


def write_ahead(stage: FanoutStage, batches: Callable[[int], np.ndarray], total: int) -> None:
    """As fast as fan-out reads: the ring is kept nearly full, and never overrun."""
    for written in range(0, total, BATCH):
        records = batches(written)
        stage.wait_counter("records_read", written + 2 * BATCH - 65536)
        stage.writer.publish_batch(records)


def test_every_trade_arrives_and_the_counters_add_up(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start(send_hwm=1_000_000)
    rng = np.random.default_rng(11)
    total = 120 * BATCH
    published: Counter[int] = Counter()
    trades: dict[str, list[int]] = {symbol: [] for symbol in SYMBOLS}

    def batches(first: int) -> np.ndarray:
        records = market(rng, first)
        published.update(records["priority"].tolist())
        is_trade = records["record_type"] == RecordType.TRADE
        for instrument, number in zip(
            records["instrument_id"][is_trade], records["source_sequence"][is_trade], strict=True
        ):
            trades[SYMBOLS[instrument]].append(int(number))
        return records

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.SUB)
    socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, 0, int(DEADLINE_S * 1000)
    socket.setsockopt(zmq.SUBSCRIBE, b"marketdata.")
    socket.connect(f"tcp://127.0.0.1:{stage.ports['json']}")
    writing = threading.Thread(target=write_ahead, args=(stage, batches, total))
    try:
        stage.wait_counter("subscriptions", 1)
        writing.start()
        got, delivered = [], Counter[int]()
        told: list[tuple[str, int, int]] = []
        numbers: dict[str, int] = {}
        while not told or not told[-1][0].startswith("relieved"):
            message = msgspec.json.decode(socket.recv_multipart()[1])
            topic, payload = message["topic"], message["payload"]
            if payload["data_type"] == "status":
                assert topic == "marketdata.feed.status"
                assert payload["data"]["code"] == "overload"
                told.append((payload["data"]["text"], payload["data"]["from"], payload["data"]["to"]))
                continue
            number, before = payload["topic_sequence"], numbers.get(topic, 0)
            assert number > before
            assert ("GAP_BEFORE" in payload["flags"]) is (number != before + 1)
            numbers[topic] = number
            delivered[TIERS[payload["data_type"]]] += 1
            if payload["data_type"] == "trade":
                got.append((payload["symbol"], number, before))
    finally:
        if writing.ident is not None:
            writing.join()
        socket.close()
        context.term()

    view = stage.view()
    assert view is not None
    counters = view.counters
    assert (counters["records_lost"], counters["messages_dropped"]) == (0, 0)
    assert all(number == before + 1 for _, number, before in got)  # no trade is missing, and none is out of order
    assert Counter(symbol for symbol, _, _ in got) == Counter({s: len(t) for s, t in trades.items() if t})
    for tier, name in ((Priority.NORMAL, "normal"), (Priority.LOW, "low")):
        left_out = counters[f"conflated_{name}"] + counters[f"shed_{name}"]
        assert published[tier] == delivered[tier] + left_out
    assert delivered[Priority.HIGH] == published[Priority.HIGH]
    assert counters["shed_normal"] == 0
    assert counters["shed_low"] > 0  # more levels than there is room for
    assert counters["conflated_normal"] > 0
    assert counters["records_conflated"] + counters["records_shed"] == total - delivered.total()
    words = [text for text, _, _ in told]
    assert words[0] == "conflating fanout-0"
    assert "shedding fanout-0" in words
    assert words[-1] == "relieved fanout-0"
    assert (view.gauges["overload"], view.gauges["records_waiting"]) == (0.0, 0.0)


def quotes(count: int, instruments: int) -> np.ndarray:
    records = empty(count)
    records["record_type"], records["priority"] = RecordType.QUOTE, Priority.NORMAL
    records["instrument_id"] = np.arange(count) % instruments
    records["bid"] = np.arange(count)
    return records


def take_all(socket: zmq.Socket[bytes], until: Callable[[list[Any]], bool]) -> list[Any]:
    got: list[Any] = []
    while not until(got):
        got.append(msgspec.json.decode(socket.recv_multipart()[1])["payload"])
    return got


def test_subscriber_hears_of_the_hole_and_asks_for_nothing(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    with (
        Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.quote.S001"], heal=True) as subscriber,
        zmq.Context() as context,
    ):
        json = context.socket(zmq.SUB)  # who makes it too much: every quote as JSON
        json.linger, json.rcvhwm = 0, 0
        json.setsockopt(zmq.SUBSCRIBE, b"marketdata.quote.")
        json.connect(f"tcp://127.0.0.1:{stage.ports['json']}")
        stage.wait_counter("subscriptions", 2)
        count = 20_000
        stage.writer.publish_batch(quotes(10, 10))
        first = subscriber.receive(DEADLINE_S)
        assert first is not None
        messages = [first]
        stage.writer.publish_batch(quotes(count // 2, 10))
        stage.writer.publish_batch(quotes(count // 2, 10))
        while messages[-1].topic_sequence + len(messages[-1].records) <= count // 10 + 1:
            message = subscriber.receive(DEADLINE_S)
            assert message is not None
            messages.append(message)
        json.close()

        last = messages[-1].records[-1]
        assert last["bid"] == count // 2 - 10 + 1  # the newest is never left out
        assert subscriber.gap_count == sum(message.gap is not None for message in messages) > 0
        assert all(int(m.records["flags"][0]) & Flag.GAP_BEFORE for m in messages if m.gap is not None)
        assert sum(len(message.records) for message in messages) + subscriber.records_missed == 1 + count // 10
        assert subscriber.healed == 0
    assert stage.counter("replay_requests") == 0


def test_announcements_can_be_replayed(make_stage: MakeStage) -> None:
    from workers.replay_client import ReplayClient

    stage = make_stage()
    stage.start()
    with zmq.Context() as context:
        socket = context.socket(zmq.SUB)
        socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, 0, int(DEADLINE_S * 1000)
        socket.setsockopt(zmq.SUBSCRIBE, b"marketdata.")
        socket.connect(f"tcp://127.0.0.1:{stage.ports['json']}")
        stage.wait_counter("subscriptions", 1)
        stage.writer.publish_batch(quotes(10_000, 10))
        got = take_all(socket, lambda found: bool(found) and found[-1]["data"].get("text") == "relieved fanout-0")
        socket.close()
    told = [payload["data"] for payload in got if payload["data_type"] == "status"]
    assert [data["text"] for data in told] == ["conflating fanout-0", "relieved fanout-0"]
    assert told[-1]["from"] == stage.counter("records_conflated")

    with ReplayClient(f"tcp://127.0.0.1:{stage.ports['replay']}") as client:
        frames = client.range("marketdata.feed.status", 1, 3).frames
    records = np.concatenate([records for _, records in frames])
    assert records["text"].tolist() == [data["text"].encode() for data in told]
    assert records["from_sequence"].tolist() == [data["from"] for data in told]
    assert records["to_sequence"].tolist() == [data["to"] for data in told]


def test_a_fan_out_that_keeps_up_leaves_nothing_out(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start()
    with Subscriber(f"tcp://127.0.0.1:{stage.ports['raw']}", ["marketdata.quote.*"]) as subscriber:
        stage.wait_counter("subscriptions", 1)
        got = 0
        for _ in range(50):
            stage.writer.publish_batch(quotes(1000, 600))
            wanted = got + 1000
            while got < wanted:
                message = subscriber.receive(DEADLINE_S)
                assert message is not None
                got += len(message.records)
        assert subscriber.gap_count == 0
    assert stage.counter("records_conflated") == stage.counter("records_shed") == 0


def test_more_trades_than_one_turn_can_encode_arrive_in_order(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage.start(send_hwm=1_000_000)
    count = 30_000
    records = empty(count)
    records["record_type"], records["instrument_id"] = RecordType.TRADE, np.arange(count) % 7
    records["price"] = np.arange(count)
    with zmq.Context() as context:
        socket = context.socket(zmq.SUB)
        socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, 0, int(DEADLINE_S * 1000)
        socket.setsockopt(zmq.SUBSCRIBE, b"marketdata.trade.")
        socket.connect(f"tcp://127.0.0.1:{stage.ports['json']}")
        stage.wait_counter("subscriptions", 1)
        stage.writer.publish_batch(records[: count // 2])
        stage.writer.publish_batch(records[count // 2 :])
        got = take_all(socket, lambda found: len(found) == count)
        socket.close()
    assert [payload["data"]["price"] for payload in got] == list(range(count))
    assert stage.counter("messages_dropped") == stage.counter("records_conflated") == 0
