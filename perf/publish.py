"""How fast can one Python process put records into a ring?

    publish_single   RingWriter.publish(bytes), one call a record       peer: iceoryx2 (Python), send_copy of 128 bytes
    publish_batch    RingWriter.publish_batch of 1024 records a call    peer: memcpy of the same bytes, as much memory

        this process, pinned
        128 bytes ------------> publish ------------+
                                                    v
        1024 records ---------> publish_batch --> ring of 65,536 slots (8 MiB), wake-ups on, nobody reads

Verified each round: the ring's newest sequence is the number of records published, and what the ring still holds is
contiguous and whole.
"""

from __future__ import annotations

import time
from itertools import repeat

import numpy as np

from perf import peers_iceoryx2
from perf.errors import require
from perf.process import pinned, quiet_collector, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.ticks import check_ticks, ticks
from shm.layout import RECORD_SIZE_BYTES
from shm.ring import DEFAULT_DEPTH_SLOTS, RingReader, RingWriter

BATCH = 1024


def single(plan: Plan) -> Row:
    """Records a second, one call each."""
    count = plan.amount(3_000_000)
    peer_count = plan.amount(200_000)
    with pinned(0), quiet_collector():
        ours, theirs = alternate(
            plan, lambda: _publish_single(count), lambda: peers_iceoryx2.publish_rate(peer_count, RECORD_SIZE_BYTES)
        )
    note = f"{1e9 / ours.median:.0f} ns a call, time stamp included; runs {ours.spread('{:.1f}', 1e6)} M/s"
    target = Target(10e6, "higher")
    return compare("publish_single", "records/s", ours, "iceoryx2 Python publish", theirs, target=target, note=note)


def batch(plan: Plan) -> Row:
    """Records a second, 1024 a call."""
    calls = plan.amount(40_000)
    with pinned(0), quiet_collector():
        ours, theirs = alternate(plan, lambda: _publish_batch(calls), lambda: _copy_rate(calls))
    gigabytes = ours.median * RECORD_SIZE_BYTES / 1e9
    note = f"{gigabytes:.0f} GB/s; runs {ours.spread('{:.0f}', 1e6)} M/s"
    return compare(
        "publish_batch",
        "records/s",
        ours,
        "memcpy of the same bytes",
        theirs,
        target=Target(100e6, "higher"),
        ratio_target=0.6,
        note=note,
    )


def _publish_single(count: int) -> float:
    record = ticks(1).tobytes()
    with scratch_engine() as engine, RingWriter.create(engine, 2) as writer:
        publish = writer.publish
        start = time.perf_counter_ns()
        for _ in repeat(None, count):
            publish(record)
        elapsed_ns = time.perf_counter_ns() - start
        _verify(engine, writer, count, 1)
    return count / elapsed_ns * 1e9


def _publish_batch(calls: int) -> float:
    records = ticks(BATCH)
    with scratch_engine() as engine, RingWriter.create(engine, 2) as writer:
        publish_batch = writer.publish_batch
        start = time.perf_counter_ns()
        for _ in repeat(None, calls):
            publish_batch(records)
        elapsed_ns = time.perf_counter_ns() - start
        _verify(engine, writer, calls * BATCH, BATCH)
    return calls * BATCH / elapsed_ns * 1e9


def _verify(engine: str, writer: RingWriter, count: int, batch: int) -> None:
    require(writer.next_sequence == count + 1, f"published {count}, the next sequence is {writer.next_sequence}")
    with RingReader.attach(engine, 2, start="oldest", register=False) as reader:
        first = reader.sequence
        held = np.zeros(writer.depth_slots, dtype=reader.slots.dtype)
        got = reader.read(held)
        require(reader.gap is None and got == count + 1 - first, f"read {got} of {count + 1 - first} records")
        check_ticks(held[:got], first, batch)


def _copy_rate(calls: int) -> float:
    """Records a second if nothing is done but copying 1024 of them at a time over as much memory as the ring has."""
    source = ticks(BATCH).view(np.uint8)
    memory = np.zeros((DEFAULT_DEPTH_SLOTS // BATCH, len(source)), dtype=np.uint8)
    windows = list(memory)
    laps = max(1, calls // len(windows))
    start = time.perf_counter_ns()
    for _ in repeat(None, laps):
        for window in windows:
            window[:] = source
    elapsed_ns = time.perf_counter_ns() - start
    require(bool((memory == source).all()), "memcpy went wrong")
    return laps * len(windows) * BATCH / elapsed_ns * 1e9
