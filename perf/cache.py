"""How many records a second does the cache take into latest values, histories and bars?

    cache_apply    ticks of 1000 instruments, one cache process     peer: Python, a dict of last values and deques

        writer process           python -m workers.cache
        publish_batch --> ring 2 --> read, apply, build bars of 1 s and 60 s --> latest table; bars --> ring 1

The cache reads as a reliable reader: the writer is held back to its pace. Timed from the first publish until the table
says that it is complete up to the last record. The ticks advance by 1 ms of venue time a batch of 4000, so bars close.

Verified: the table is complete up to the last sequence, the cache lost nothing, and each instrument looked at has its
last tick and a gapless history.
"""

from __future__ import annotations

import time
from collections import deque

import numpy as np

from perf.errors import require
from perf.process import PATIENCE_S, Child, Pipe, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage
from perf.ticks import ticks
from shm.latest import LatestTable
from shm.layout import RECORD_SIZE_BYTES
from shm.ring import RingWriter, create_ring
from workers.spec import CacheSettings

INSTRUMENTS = 1000
BATCH = 4000
BAR_RING = 1


def apply(plan: Plan) -> Row:
    """Records a second into the latest table."""
    batches, peer_records = plan.amount(1500), plan.amount(400_000)
    ours, theirs = alternate(plan, lambda: _rate(batches), lambda: _python_rate(peer_records))
    note = f"{1e9 / ours.median:.0f} ns a record; runs {ours.spread('{:.1f}', 1e6)} M/s"
    target = Target(5e6, "higher")
    return compare("cache_apply", "records/s", ours, "dict and deques in Python", theirs, target=target, note=note)


def _rate(batches: int) -> float:
    count = batches * BATCH
    with Stage(INSTRUMENTS) as stage, LatestTable.create(stage.engine, instruments=INSTRUMENTS) as table:
        create_ring(stage.engine, BAR_RING)
        stage.start(
            CacheSettings(engine=stage.engine, label="cache", rings=(RING,), reliable=True, log_level="warning")
        )
        with Child(_write, stage.engine, batches) as writer:
            require(writer.hear() == "ready", "the writer did not start")
            writer.tell("go")
            start = time.perf_counter_ns()
            deadline = time.monotonic() + PATIENCE_S
            while table.as_of().get(RING, 0) < count:
                require(time.monotonic() < deadline, f"the cache is complete up to {table.as_of()} only")
                time.sleep(0.001)
            elapsed_ns = time.perf_counter_ns() - start
        _verify(stage, table, batches)
    return count / elapsed_ns * 1e9


def _verify(stage: Stage, table: LatestTable, batches: int) -> None:
    (cache,) = [process for process in stage.status.processes() if process.label == "cache"]
    require(cache.counters.get("records_lost", 0) == 0, f"the cache lost {cache.counters.get('records_lost')} records")
    for instrument in (0, 1, INSTRUMENTS // 2, INSTRUMENTS - 1):
        snapshot = table.snapshot(instrument)
        require(snapshot is not None and snapshot.last_trade is not None, f"nothing of instrument {instrument}")
        assert snapshot is not None
        assert snapshot.last_trade is not None
        last = batches * BATCH - INSTRUMENTS + instrument + 1  # its sequence in the ring
        require(snapshot.last_trade.sequence == last, f"instrument {instrument}: the last tick is another one")
        kept = table.history(instrument, 100, 1)["sequence"]
        wanted = last - INSTRUMENTS * np.arange(len(kept))[::-1]
        require(len(kept) > 0 and np.array_equal(kept, wanted), f"instrument {instrument}: a hole in its history")


def _write(pipe: Pipe, engine: str, batches: int) -> None:
    records = ticks(BATCH, INSTRUMENTS)
    begin_ns = time.time_ns() - batches * 1_000_000
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        for number in range(batches):
            records["ts_event"] = records["ts_receive"] = begin_ns + number * 1_000_000
            writer.publish_batch(records)
        pipe.hear()


def _python_rate(count: int) -> float:
    """The same without bars, in plain Python: last record by instrument, and its newest 1000 in a deque."""
    records = ticks(BATCH, INSTRUMENTS)
    raw, ids = records.tobytes(), records["instrument_id"].tolist()
    last: dict[int, bytes] = {}
    histories: dict[int, deque[bytes]] = {i: deque(maxlen=1000) for i in range(INSTRUMENTS)}
    start = time.perf_counter_ns()
    for _ in range(count // BATCH):
        for offset, instrument in zip(range(0, len(raw), RECORD_SIZE_BYTES), ids, strict=True):
            cell = raw[offset : offset + RECORD_SIZE_BYTES]
            last[instrument] = cell
            histories[instrument].append(cell)
    elapsed_ns = time.perf_counter_ns() - start
    require(len(last) == INSTRUMENTS, "not every instrument was seen")
    return count / elapsed_ns * 1e9
