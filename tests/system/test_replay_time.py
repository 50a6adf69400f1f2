"""The past by time: out of journal and rings, each record once, and the live stream goes on behind it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RecordType
from shm.ring import RingReader
from tests.children import DEADLINE_S, ROOT, wait_until
from tests.journals import NOW, STREAM, trades, write
from tests.system.fanout_process import FanoutStage, ticks
from workers.journal_reader import JournalReader
from workers.replay_client import Answer, ReplayClient, ReplayError
from workers.spec import MODULES, RecorderSettings, encode
from workers.subscriber import Subscriber

SYMBOLS = ["A", "B", "C"]
A, B = "marketdata.tick.A", "marketdata.tick.B"


class Recorded:
    """A fan-out and a recorder on one ring, which holds far less than is published."""

    def __init__(self, engine: str, folder: Path, *, depth_slots: int = 4096, symbols: list[str] = SYMBOLS) -> None:
        self.stage = FanoutStage(engine, symbols, depth_slots=depth_slots)
        self.folder = folder
        self.published = 0
        self._recorder: subprocess.Popen[bytes] | None = None

    def record(self) -> None:
        """Start the recorder, as the control process would."""
        settings = RecorderSettings(
            engine=self.stage.engine, label="recorder", rings=(2,), folder=str(self.folder), flush_ms=20, seal=False
        )
        self._recorder = subprocess.Popen([sys.executable, "-m", MODULES["recorder"]], stdin=subprocess.PIPE, cwd=ROOT)
        assert self._recorder.stdin is not None
        self._recorder.stdin.write(encode(settings))
        self._recorder.stdin.flush()
        wait_until(lambda: self.stage.status.process("recorder") is not None, "the recorder is there")

    def start(self) -> None:
        self.stage.start(journal=str(self.folder / "journal"), start="oldest")

    def wait_recorded(self) -> None:
        def recorded() -> bool:
            view = self.stage.status.process("recorder")
            return view is not None and view.counters.get("recorded.2", 0) >= self.published

        wait_until(recorded, f"{self.published} records are in the journal")

    def publish(self, count: int, step: int = 1000) -> None:
        """Records of all symbols in turn, so slowly that neither fan-out nor recorder is overrun."""
        for _ in range(0, count, step):
            self.stage.writer.publish_batch(ticks((self.published + np.arange(step)) % len(SYMBOLS), self.published))
            self.published += step
            self.stage.wait_counter("records_read", self.published)
            if self._recorder is not None:
                self.wait_recorded()

    def client(self) -> ReplayClient:
        return ReplayClient(f"tcp://127.0.0.1:{self.stage.ports['replay']}", timeout_s=DEADLINE_S)

    def subscriber(self, topics: list[str], **options: Any) -> Subscriber:
        return Subscriber(
            f"tcp://127.0.0.1:{self.stage.ports['raw']}",
            topics,
            replay_endpoints=[f"tcp://127.0.0.1:{self.stage.ports['replay']}"],
            heal_timeout_s=DEADLINE_S,
            **options,
        )

    def close(self) -> None:
        if self._recorder is not None:
            self._recorder.kill()
            self._recorder.wait()
            assert self._recorder.stdin is not None
            self._recorder.stdin.close()
        self.stage.close()


Make = Callable[..., Recorded]


@pytest.fixture
def make(engine_name: str, tmp_path: Path) -> Iterator[Make]:
    with ExitStack() as stack:

        def made(**options: Any) -> Recorded:
            found = Recorded(engine_name, tmp_path, **options)
            stack.callback(found.close)
            return found

        yield made


def told(answers: list[Answer], topic: str, field: str = "source_sequence") -> list[int]:
    """A field of a topic's records, over all answers."""
    return [
        value
        for answer in answers
        for index, (_, records) in zip(answer.header["topics_of"], answer.frames, strict=True)
        if answer.header["topics"][index] == topic
        for value in records[field].tolist()
    ]


def test_all_of_a_topic_comes_once_in_order_out_of_journal_and_ring(make: Make) -> None:
    recorded = make()
    recorded.record()
    recorded.start()
    recorded.publish(60_000)
    with recorded.client() as replay:
        answers = list(replay.since([A, B], 0))
        times = [time_ns for answer in answers for _, r in answer.frames for time_ns in r["ts_publish"].tolist()]
    assert told(answers, A) == list(range(0, 60_000, 3))
    assert told(answers, B) == list(range(1, 60_000, 3))
    assert len(answers) > 4
    assert all(answer.header["records"] <= 8192 for answer in answers)
    assert answers[-1].header["topic_sequences"] == [20_000, 20_000]
    assert [answer.header["unavailable"] for answer in answers] == [[]] * len(answers)
    bounds = [
        (min(r["ts_publish"].min() for _, r in a.frames), max(r["ts_publish"].max() for _, r in a.frames))
        for a in answers
        if a.frames
    ]
    assert all(before[1] <= after[0] for before, after in pairwise(bounds))
    assert len(times) == 40_000


def test_a_range_of_time_has_exactly_its_records(make: Make) -> None:
    recorded = make()
    recorded.record()
    recorded.start()
    recorded.publish(20_000)
    blocks = JournalReader(recorded.folder / "journal").blocks()
    times_ns = np.concatenate([block.records["ts_publish"] for block in blocks])
    assert len(times_ns) == 20_000
    for low, high in [(0, 1), (3000, 17_000), (19_000, 19_999), (5, 5)]:
        from_ns, to_ns = int(times_ns[low]), int(times_ns[high])
        with recorded.client() as replay:
            answers = list(replay.since([A], from_ns, to_ns))
        expected = np.flatnonzero((times_ns >= from_ns) & (times_ns < to_ns))
        assert told(answers, A) == [n for n in expected.tolist() if n % 3 == 0]
        assert answers[-1].header["since_ns"] == from_ns
    with recorded.client() as replay:
        answers = list(replay.since(["marketdata.batch"], int(times_ns[0])))
    assert told(answers, "marketdata.batch", "sequence") == list(range(1, 20_001))


def test_a_subscriber_joins_in_the_past_and_goes_on_live_without_gap_or_double(make: Make) -> None:
    """While it catches up over several answers, records go on being published faster than it takes them."""
    recorded = make(depth_slots=1 << 15)
    recorded.record()
    recorded.start()
    recorded.publish(100_000, 5000)
    ended = threading.Event()

    def go_on() -> None:
        recorded.publish(60_000, 500)
        ended.set()

    publisher = threading.Thread(target=go_on)
    publisher.start()
    try:
        with recorded.subscriber([A], join_from_ns=1) as subscriber:
            got: list[int] = []
            while not ended.is_set() or len(got) < -(-recorded.published // 3):
                message = subscriber.receive(0.05)
                got += message.records["source_sequence"].tolist() if message is not None else []
    finally:
        publisher.join()
    assert got == list(range(0, recorded.published, 3))
    assert (subscriber.gap_count, len(subscriber.past_gaps)) == (0, 0)
    assert subscriber.joined >= 100_000 // 3
    assert 1 < subscriber.since_ns[A] < time.time_ns()


def test_without_a_journal_the_rings_answer_as_far_as_they_go_and_then_refuse(make: Make) -> None:
    recorded = make()
    recorded.stage.start(start="oldest")
    recorded.publish(2000)
    with recorded.client() as replay:
        assert told(list(replay.since([A], 0)), A) == list(range(0, 2000, 3))
        recorded.publish(10_000)
        middle = RingReader.attach(recorded.stage.engine, 2, start="oldest")
        out = np.zeros(1, middle.slots.dtype)
        middle.seek(recorded.published - 2000)
        assert middle.read(out) == 1
        middle.close()
        recent = told(list(replay.since([A], int(out["ts_publish"][0]))), A)
        assert recent == [n for n in range(recent[0], 12_000) if n % 3 == 0]
        assert len(recent) >= 2000 // 3
        with pytest.raises(ReplayError, match="no journal") as refusal:
            list(replay.since([A], 0))
    assert refusal.value.code == "no_journal"
    with recorded.subscriber([A], join_from_ns=1) as subscriber:
        with pytest.raises(ReplayError, match=r"marketdata\.tick\.A: from_ns is 1"):
            subscriber.receive(DEADLINE_S)
        recorded.stage.wait_counter("subscriptions", 1)
        recorded.publish(1000)
        message = subscriber.receive(DEADLINE_S)
        assert message is not None
        assert message.records["source_sequence"][0] == 12_000


def test_a_ring_range_beyond_the_ring_comes_from_the_journal(make: Make) -> None:
    recorded = make()
    recorded.record()
    recorded.start()
    recorded.publish(30_000)
    got: list[int] = []
    with recorded.client() as replay:
        first = 1
        while first <= 30_000:
            answer = replay.ring(2, first, 30_001)
            assert answer.unavailable == []
            assert answer.header["from"] == first
            got += [n for _, records in answer.frames for n in records["sequence"].tolist()]
            first = answer.header["to"]
    assert got == list(range(1, 30_001))


def test_an_earlier_run_is_found_by_symbol_and_carries_todays_number(make: Make) -> None:
    recorded = make(symbols=["S5", "other", "S0"])  # in the journal they are 1, -, 0
    write(recorded.folder / "journal", trades(1, 5000), trades(5001, 2000))
    recorded.start()
    with recorded.client() as replay:
        answers = list(replay.since(["marketdata.trade.S5", "marketdata.trade.S0"], NOW))
        some = list(replay.since(["marketdata.trade.S5"], NOW + 1000 * 1000, NOW + 2000 * 1000))
    assert told(answers, "marketdata.trade.S5", "trade_id") == [n for n in range(1, 7001) if n % 7 == 1]
    assert told(answers, "marketdata.trade.S0", "trade_id") == [n for n in range(1, 7001) if n % 7 == 0]
    assert set(told(answers, "marketdata.trade.S5", "instrument_id")) == {0}
    assert set(told(answers, "marketdata.trade.S0", "instrument_id")) == {2}
    assert set(told(answers, "marketdata.trade.S0", "record_type")) == {RecordType.TRADE}
    assert told(some, "marketdata.trade.S5", "trade_id") == [n for n in range(1000, 2000) if n % 7 == 1]
    assert answers[0].header["since_ns"] == NOW
    assert STREAM < NOW


def test_what_the_recorder_was_overrun_by_is_named(make: Make) -> None:
    recorded = make(depth_slots=4096)
    recorded.record()
    recorded.start()
    recorded.publish(3000)
    assert recorded._recorder is not None
    recorded._recorder.kill()
    recorded._recorder.wait()
    assert recorded._recorder.stdin is not None
    recorded._recorder.stdin.close()
    recorded._recorder = None
    recorded.publish(10_000)  # the ring forgets a part that nobody has written down
    recorded.record()
    recorded.publish(3000)
    with recorded.client() as replay:
        answers = list(replay.since([A], 0))
    gaps = [gap for answer in answers for gap in answer.header["unavailable"]]
    assert len(gaps) == 1
    ring, first, end = gaps[0]
    assert (ring, first) == (2, 3001)
    assert told(answers, A, "sequence") == [n for n in range(1, 16_001) if (n - 1) % 3 == 0 and not first <= n < end]


def test_what_is_asked_wrongly_is_named(make: Make) -> None:
    recorded = make()
    recorded.start()
    with recorded.client() as replay:
        for request, words in [
            ({"topics": []}, "topics"),
            ({"topics": ["marketdata.tick.X"]}, "unknown|X"),
            ({"from_ns": -1}, "from_ns"),
            ({"from_ns": 10, "to_ns": 5}, "to_ns is 5"),
            ({"next": [[9, 1, 1]]}, "ring 9"),
        ]:
            with pytest.raises(ReplayError, match=words):
                replay.ask({"kind": "time", "topics": [A], "from_ns": 0, **request})
