"""Late join as a user of a whole engine has it: default endpoints, latest values, history, a killed fan-out."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from tests.system.engine_process import DEADLINE_S, EngineProcess, wait_for
from workers.replay_client import Answer, ReplayClient
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(engine_name: str, tmp_path: Path) -> Iterator[EngineProcess]:
    """A simulating engine that is ready."""
    with EngineProcess(engine_name, tmp_path, "--simulate") as started:
        yield started.wait_ready()


@pytest.fixture
def symbol(engine: EngineProcess) -> str:
    """The first symbol of the simulated market."""
    with LatestTable.attach(engine.name) as latest:
        wait_for("latest values", lambda: latest.snapshot(0))
    table = InstrumentTable.attach(engine.name)
    found = table.symbol(0)
    table.close()
    return found


def test_snapshot_has_latest_values_and_records_that_join_the_stream(engine: EngineProcess, symbol: str) -> None:
    topic = f"marketdata.quote.{symbol}"
    with ReplayClient(f"tcp://127.0.0.1:{engine.base + 31}", timeout_s=DEADLINE_S) as replay:

        def full() -> Answer | None:
            found = replay.snapshot(topic, limit=5)
            return found if found.header["quote"] and found.header["records"] == 5 else None

        answer = wait_for("five quotes", full)
        last = answer.header["topic_sequence"]
        again = replay.range(topic, last - 4, last + 1)
        of_symbol = replay.snapshot(symbol=symbol, limit=10)

    header = answer.frames[0][0]
    assert header.topic_sequence == last - 4
    assert [frame[1].tobytes() for frame in answer.frames] == [frame[1].tobytes() for frame in again.frames]
    assert (answer.header["symbol"], answer.header["history"]) == (symbol, 0)
    assert set(answer.header["quote"]) >= {"bid", "ask", "ts_event"}
    assert 2 in dict(answer.header["as_of"])
    assert [h.topic_sequence for h, _ in of_symbol.frames] == [0]
    assert 1 <= len(of_symbol.frames[0][1]) == of_symbol.header["history"] <= 10
    assert set(of_symbol.frames[0][1]["instrument_id"].tolist()) == {0}


def test_subscriber_joins_late_and_outlives_a_killed_fanout(engine: EngineProcess, symbol: str) -> None:
    """With nothing but the raw endpoint given: the replay endpoint is found, the hole of the kill is filled."""
    topic = f"marketdata.quote.{symbol}"
    raw = f"tcp://127.0.0.1:{engine.base + 1}"
    with Subscriber(raw, [topic], join_records=20, heal_timeout_s=DEADLINE_S) as late:
        numbers: list[int] = []

        def receive(count: int) -> None:
            while len(numbers) < count:
                message = late.receive(DEADLINE_S)
                assert message is not None
                assert message.gap is None
                numbers.extend(range(message.topic_sequence, message.topic_sequence + len(message.records)))

        receive(30)
        before = engine.pids()["fanout-0"]
        os.kill(before, signal.SIGKILL)
        wait_for("a new process", lambda: engine.pids().get("fanout-0", before) != before)
        receive(60)

    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    assert late.joined > 0
    assert (late.gap_count, late.duplicates, late.restarts) == (0, 0, 0)
    assert late.overlapped <= late.joined  # sent and asked for at the same moment: in the answer and in the stream
