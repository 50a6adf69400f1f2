"""The cache as a process of an engine: ready, counting, replaced after a kill, drained at a stop."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import pytest

from shm.latest import LatestTable
from shm.layout import Flag, RecordType, empty
from shm.ring import RingReader, RingWriter, create_ring
from shm.status import ProcessState, StatusBlock
from tests.children import ROOT, wait_until
from tests.ticks import SECOND, START, brief
from workers.spec import EXIT_BAD_SETTINGS, EXIT_CLEAN, EXIT_SHM, CacheSettings, encode


class Processes:
    """Segments of an engine and its cache processes, each started as the control process starts them."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.block = StatusBlock.create(engine, process_slots=4)
        self.table = LatestTable.create(engine, instruments=64, depth_records=200, pool_records=20_000)
        for ring in (0, 1):
            create_ring(engine, ring, depth_slots=4096)
        self.writer = RingWriter.create(engine, 2, depth_slots=1 << 16)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, **changes: object) -> subprocess.Popen[bytes]:
        settings = CacheSettings(**({"engine": self.engine, "label": "cache", "rings": (0, 2)} | changes))  # type: ignore[arg-type]
        process = subprocess.Popen([sys.executable, "-m", "workers.cache"], stdin=subprocess.PIPE, cwd=ROOT)
        assert process.stdin is not None
        process.stdin.write(encode(settings))
        process.stdin.flush()
        self.started.append(process)
        return process

    def wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        def ready() -> bool:
            views = [view for view in self.block.processes() if view.pid == process.pid]
            return bool(views) and views[0].state is ProcessState.READY

        wait_until(ready, "the cache is ready")

    def counters(self) -> dict[str, int]:
        return self.block.processes()[0].counters

    def publish(self, first: int, count: int) -> None:
        """Trades number first .. first + count - 1, one each millisecond, over ten instruments."""
        numbers = np.arange(first, first + count)
        records = empty(count)
        records["instrument_id"] = numbers % 10
        records["record_type"] = RecordType.TRADE
        records["flags"] = Flag.REPLAYED
        records["ts_event"] = START + numbers * 1_000_000
        records["price"] = numbers
        records["size"] = 1
        self.writer.publish_batch(records)

    def wait_applied(self) -> None:
        wait_until(lambda: self.table.as_of().get(2, 0) == self.writer.next_sequence - 1, "all records are applied")


@pytest.fixture
def processes(engine_name: str) -> Iterator[Processes]:
    made = Processes(engine_name)
    yield made
    for process in made.started:
        if process.poll() is None:
            process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    made.writer.close()
    made.table.close()
    made.block.close()


def bars_of(engine: str) -> np.ndarray:
    with RingReader.attach(engine, 1, start="oldest", register=False) as reader:
        out = empty(4096)
        found = out[: reader.read(out)]
        return found[found["record_type"] == RecordType.BAR]


def test_it_applies_counts_and_drains_at_sigterm(processes: Processes) -> None:
    process = processes.start()
    processes.wait_ready(process)
    processes.publish(0, 25_500)
    processes.wait_applied()
    processes.publish(25_500, 5_000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CLEAN
    assert processes.table.as_of()[2] == 30_500
    bars = bars_of(processes.engine)
    seconds = bars[(bars["instrument_id"] == 3) & (bars["interval_s"] == 1)]
    assert [brief(bar)[1] for bar in seconds] == list(range(31))
    assert [int(bar["trade_count"]) for bar in seconds] == [100] * 30 + [50]
    assert [bool(bar["flags"] & Flag.INCOMPLETE) for bar in seconds] == [False] * 30 + [True]
    counters = processes.counters()
    assert (counters["records_read"], counters["records_lost"], counters["gaps"]) == (30_500, 0, 0)
    assert counters["bars_published"] == len(bars) == 31 * 10 + 10
    assert counters["records_applied"] == 30_500 + len(bars)
    assert processes.block.processes()[0].state is ProcessState.STOPPED
    assert processes.block.processes()[0].histograms["ring_latency"].count > 0


def test_a_killed_cache_is_replaced_without_loss_or_repetition(processes: Processes) -> None:
    total = 0
    for _ in range(3):
        process = processes.start()
        processes.wait_ready(process)
        processes.publish(total, 10_250)
        total += 10_250
        process.kill()
        process.wait()
    process = processes.start()
    processes.wait_applied()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CLEAN
    bars = bars_of(processes.engine)
    keys = {(int(bar["instrument_id"]), int(bar["interval_s"]), int(bar["ts_event"])) for bar in bars}
    assert len(keys) == len(bars) == 31 * 10 + 10
    assert bars[bars["interval_s"] == 60]["trade_count"].sum() == total
    for instrument in range(10):
        day = processes.table.snapshot(instrument).day  # type: ignore[union-attr]
        assert day is not None
        assert day.trade_count == total // 10
        prices = processes.table.history(instrument, 200, RecordType.TRADE)["price"]
        assert prices.tolist() == list(range(total - 2000 + instrument, total, 10))


def test_it_ends_when_the_control_process_is_gone(processes: Processes) -> None:
    process = processes.start()
    processes.wait_ready(process)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(60) == EXIT_CLEAN


def test_settings_that_do_not_fit_the_table_and_a_second_cache_are_refused(processes: Processes) -> None:
    assert processes.start(bar_intervals_s=(1, 5)).wait(60) == EXIT_BAD_SETTINGS
    assert processes.start(rings=(1, 2)).wait(60) == EXIT_BAD_SETTINGS
    first = processes.start()
    processes.wait_ready(first)
    assert processes.start(label="cache-2").wait(60) == EXIT_SHM
    assert first.poll() is None


def test_an_idle_cache_closes_the_bars_of_a_silent_live_feed_by_itself(processes: Processes) -> None:
    process = processes.start(bar_close_delay_s=0.05)
    processes.wait_ready(process)
    record = empty(1)
    record["record_type"] = RecordType.TRADE
    record["price"] = record["size"] = 1
    record["ts_event"] = record["ts_receive"] = time.time_ns()
    processes.writer.publish(record)

    def seconds() -> np.ndarray:  # a minute may end at the same time
        bars = bars_of(processes.engine)
        return bars[bars["interval_s"] == 1]

    wait_until(lambda: len(seconds()) > 0, "the bar of one second closes")
    (bar,) = seconds()
    assert bar["trade_count"] == 1
    assert bar["ts_event"] == int(record["ts_event"][0]) // SECOND * SECOND
