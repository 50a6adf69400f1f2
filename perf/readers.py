"""Does a reader keep up with the writer, and do readers slow it down?

    read_concurrent     records a second from a batch writer to one batch reader, nothing lost    peer: faster-fifo
    readers_slowdown    how much more CPU time a record costs the writer when four readers follow
    idle_rings          how much longer a reader takes for a record when it looks after four idle rings too

        CPU 0                                              CPU 1 (read_concurrent)
        writer process                                     reader process
        publish_batch(1024) ---> ring of 65,536 slots ---> read(out of 4096), reliable

        CPU 0                                              CPUs 1, 2, 3 ... in turn (readers_slowdown)
        writer process                                     four reader processes
        publish(bytes)      ---> ring of 65,536 slots ---> read(out of 4096), lossy, as fast as they can

read_concurrent: the reader is a reliable one, so the writer waits for it whenever it is a whole ring ahead: the rate is
the slower side's. Timed by the reader from its first to its last record. Verified: no gap, no loss, not demoted, first
and last sequence of every read, every record of each 64th read.

readers_slowdown: the writer's own CPU time is taken (its thread's CPU clock), not wall time, so that a reader that
competes for the writer's core costs nothing, but the cache lines that readers pull away from it cost what they cost.
With two cores the four readers share the one that the writer does not use. In the note: the same for a ring without
wake-ups, where the writer has no fence to wait at, and for a writer of batches of 1024 at the speed of memory.
Verified: read + lost = published, for each reader.

idle_rings: one process publishes 4096 records into one ring and reads them, the read alone timed; a turn reads that
ring alone, or that ring and four others into which nothing comes. That is the least a reader can do with a record: one
that also routes or stores it sees a tenth of the percentage. Verified: every record is read, the others give none.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack

from perf import peers_queues
from perf.errors import BenchmarkFailed, require
from perf.process import Child, Pipe, cores, pinned, quiet_collector, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.ticks import check_ticks, ticks
from shm.layout import empty
from shm.ring import RingReader, RingSet, RingWriter, create_ring

BATCH = 1024
READ = 4096
READERS = 4
IDLE = 4
SLOWDOWN_TARGET = Target(10.0, "lower")


def concurrent(plan: Plan) -> Row:
    """Records a second from one process to another, reader and writer in batches."""
    batches = plan.amount(30_000)
    items = plan.amount(200_000)
    ours, fifo, queue = alternate(
        plan,
        lambda: _concurrent_rate(batches),
        lambda: peers_queues.faster_fifo_rate(items),
        lambda: peers_queues.multiprocessing_rate(items // 4),
    )
    note = f"runs {ours.spread('{:.0f}', 1e6)} M/s; multiprocessing.Queue {queue.median:,.0f}/s"
    target = Target(60e6, "higher")
    return compare("read_concurrent", "records/s", ours, "faster-fifo, 1024 a call", fifo, target=target, note=note)


def _concurrent_rate(batches: int) -> float:
    with scratch_engine() as engine:
        create_ring(engine, 2, block_s=20.0)
        writing = Child(_write_batches, engine, batches, index=0)
        with Child(_follow, engine, batches, index=1) as reader, writing as writer:
            for child in (reader, writer):
                require(child.hear() == "ready", "a role did not start")
            writer.tell("go")
            count, elapsed_ns = reader.hear()
            writer.hear()
    return float(count / elapsed_ns * 1e9)


def _follow(pipe: Pipe, engine: str, batches: int) -> None:
    total = batches * BATCH
    out = empty(READ)
    with RingReader.attach(engine, 2, label="perf", reliable=True) as reader, quiet_collector():
        sequences = out["sequence"]
        pipe.say("ready")
        expected, reads, start_ns, first_count = 1, 0, 0, 0
        while expected <= total:
            got = reader.read(out)
            if not got:
                continue
            if reads == 0:
                start_ns, first_count = time.perf_counter_ns(), got
            if sequences[0] != expected or sequences[got - 1] != expected + got - 1:
                raise BenchmarkFailed(
                    f"record {expected} was due, got {sequences[0]}..{sequences[got - 1]}, {reader.gap}"
                )
            if reads % 64 == 0:
                check_ticks(out[:got], expected, BATCH)
            expected += got
            reads += 1
        elapsed_ns = time.perf_counter_ns() - start_ns
        require(reader.lost == 0 and not reader.demoted, f"{reader.lost} records lost")
    pipe.say((total - first_count, elapsed_ns))


def _write_batches(pipe: Pipe, engine: str, batches: int) -> None:
    records = ticks(BATCH)
    with RingWriter.open(engine, 2) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        start_ns = time.thread_time_ns()
        for _ in range(batches):
            writer.publish_batch(records)
        pipe.say(time.thread_time_ns() - start_ns)
        pipe.hear()  # the ring stays until everybody has read it


def slowdown(plan: Plan) -> Row:
    """How many percent more CPU time a record costs the writer when four readers follow."""
    singles, batches = plan.amount(2_000_000, least=1_000_000), plan.amount(20_000)
    alone, followed, alone_no_bell, followed_no_bell, batch_alone, batch_followed = alternate(
        plan,
        lambda: _writer_ns(_write_singles, singles, 1, 0),
        lambda: _writer_ns(_write_singles, singles, 1, READERS),
        lambda: _writer_ns(_write_singles, singles, 1, 0, wakeups=False),
        lambda: _writer_ns(_write_singles, singles, 1, READERS, wakeups=False),
        lambda: _writer_ns(_write_batches, batches, BATCH, 0),
        lambda: _writer_ns(_write_batches, batches, BATCH, READERS),
    )
    others = cores() - 1
    where = (
        "a core each" if others >= READERS else f"on {others} core(s), not the writer's" if others else "on its core"
    )
    note = (
        f"writer's CPU time a record, readers {where}: {alone.median:.0f} -> {followed.median:.0f} ns; ring without "
        f"wake-ups {alone_no_bell.median:.0f} -> {followed_no_bell.median:.0f} ns; batches at full speed "
        f"{batch_alone.median:.1f} -> {batch_followed.median:.1f} ns"
    )
    slower = (followed.median / alone.median - 1) * 100
    return Row(
        "readers_slowdown",
        slower,
        "%",
        peer="no readers",
        peer_value=0.0,
        ratio=alone.median / followed.median,
        runs=len(alone.values),
        note=note,
        target=SLOWDOWN_TARGET,
        met=SLOWDOWN_TARGET.met_by(slower),
    )


def _writer_ns(role: Callable[..., None], calls: int, batch: int, readers: int, *, wakeups: bool = True) -> float:
    """CPU time a record of the writer, ns, while `readers` follow; `role` publishes `batch` records a call."""
    count = calls * batch
    others = max(1, cores() - 1)
    with scratch_engine() as engine, ExitStack() as cast:
        create_ring(engine, 2, wakeups=wakeups)
        followers = [cast.enter_context(Child(_chase, engine, index=1 + i % others)) for i in range(readers)]
        writer = cast.enter_context(Child(role, engine, calls, index=0))
        for child in (*followers, writer):
            require(child.hear() == "ready", f"{child.name} did not start")
        writer.tell("go")
        spent_ns: int = writer.hear()
        for follower in followers:
            follower.tell(count)
            require(follower.hear() > 0, "a reader read nothing")
    return spent_ns / count


def idle_rings(plan: Plan) -> Row:
    """How many percent longer a reader of one busy ring takes a record if it reads four idle rings as well."""
    turns = plan.amount(4000)
    with pinned(0), quiet_collector():
        five, one = alternate(plan, lambda: _turn_ns(turns, IDLE), lambda: _turn_ns(turns, 0))
    more = (five.median / one.median - 1) * 100
    note = (
        f"{one.median:.2f} -> {five.median:.2f} ns a record in turns of {READ}: "
        f"{(five.median - one.median) * READ / IDLE:.0f} ns for each look at an idle ring"
    )
    target = Target(5.0, "lower")
    ratio = one.median / five.median
    return Row("idle_rings", more, "%", "one ring", 0.0, ratio, len(five.values), note, target, target.met_by(more))


def _turn_ns(turns: int, idle: int) -> float:
    """Time a record of reading, ns: `turns` turns of READ records, with `idle` more rings to look at."""
    records, out = ticks(READ), empty(READ)
    with scratch_engine() as engine, ExitStack() as stack:
        writers = [stack.enter_context(RingWriter.create(engine, 2 + ring)) for ring in range(1 + idle)]
        readers = RingSet(stack.enter_context(RingReader.attach(engine, 2 + ring)) for ring in range(1 + idle))
        publish, clock = writers[0].publish_batch, time.perf_counter_ns
        spent_ns = got = 0
        for _ in range(turns):
            publish(records)
            start_ns = clock()
            for reader in readers:
                got += reader.read(out)
            spent_ns += clock() - start_ns
        require(got == readers[0].sequence - 1 == turns * READ, f"read {got} of {turns * READ}")
    return spent_ns / got


def _write_singles(pipe: Pipe, engine: str, count: int) -> None:
    record = ticks(1).tobytes()
    with RingWriter.open(engine, 2) as writer, quiet_collector():
        publish = writer.publish
        pipe.say("ready")
        pipe.hear()
        start_ns = time.thread_time_ns()
        for _ in range(count):
            publish(record)
        pipe.say(time.thread_time_ns() - start_ns)
        pipe.hear()


def _chase(pipe: Pipe, engine: str) -> None:
    """Read as fast as possible until told how many there were; then read the rest and account for all of them."""
    out = empty(READ)
    with RingReader.attach(engine, 2, label="perf") as reader, quiet_collector():
        sequences = out["sequence"]
        pipe.say("ready")
        expected, read, turn, total = 1, 0, 0, -1
        while total < 0 or expected <= total:
            got = reader.read(out)
            turn += 1
            if got:
                first = reader.gap[1] if reader.gap else expected
                require(sequences[0] == first and sequences[got - 1] == first + got - 1, "a read is not contiguous")
                expected = first + got
                read += got
            elif turn % 64 == 0 and total < 0 and pipe.heard():
                total = pipe.hear()
        require(read + reader.lost == total, f"read {read}, lost {reader.lost}, published {total}")
    pipe.say(read)
