"""How old is a record when a reader in another process holds it?

    latency_native    a reader in C (perf/latency_reader.c) that spins                        peer: iceoryx2 (Python)
    latency_python    `while not reader.poll(): pass; reader.read(out)` in Python             peer: iceoryx2 (Python)

        CPU 0                                                        CPU 1
        writer, Python: one record each 10 us, spinning between      reader, spinning
        publish: ts_publish := clock; copy; stamp  ------ ring --->  poll; copy; clock - ts_publish
        send_copy(payload with the clock)  -------- iceoryx2 ------> receive; clock - sent

The clock is CLOCK_REALTIME on both sides, and nothing is subtracted: a figure contains the rest of `publish` after the
time stamp, the hand-over of the record's two cache lines, and one call of the clock. The note tells what the clock
costs, and the machine's limit, taken in the same run: one cache line handed from CPU 0 to CPU 1
(perf/machine_limits.c).

Verified: every record arrives, in order, with the contents that were sent; otherwise the benchmark fails. The histogram
of all counted rounds goes to perf/out/latency_native.svg and latency_python.svg.
"""

from __future__ import annotations

import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from perf import native, peers_iceoryx2
from perf.errors import RoleFailed, Skipped, require
from perf.plot import write_histogram
from perf.process import Child, Pipe, cores, cpu, pinned, quiet_collector, scratch_engine
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.ticks import ticks
from shm._ring import now_ns
from shm.layout import empty
from shm.ring import RingReader, RingWriter
from shm.segment import segment_name

PACE_NS = 10_000
WARM_UP = 1000  # records at the start of each round that are not counted
PEER_RATIO = 8.0
OUT_FOLDER = Path(__file__).parent / "out"

OneWay = Callable[[int], np.ndarray]  # how many records -> how long each took, ns


def with_native_reader(plan: Plan) -> Row:
    """Median one-way time to a reader in C, ns."""
    return _one_way(plan, "latency_native", _to_native, Target(250, "lower"))


def with_python_reader(plan: Plan) -> Row:
    """Median one-way time to a reader in Python, ns."""
    return _one_way(plan, "latency_python", _to_python, Target(400, "lower"))


def _one_way(plan: Plan, name: str, ours: OneWay, target: Target) -> Row:
    if cores() < 2:
        raise Skipped("one core: writer and reader would take turns, and the figure would be the scheduler's")
    count = plan.amount(50_000) + WARM_UP
    taken: dict[str, list[np.ndarray]] = {"tickengine": [], "iceoryx2 Python": []}

    def measure(subject: str, one_way: OneWay) -> float:
        taken_ns = one_way(count)[WARM_UP:]
        taken[subject].append(taken_ns)
        return float(np.median(taken_ns))

    preempted = _preemptions()
    with pinned(0):
        mine, theirs, limit = alternate(
            plan,
            lambda: measure("tickengine", ours),
            lambda: measure("iceoryx2 Python", lambda n: peers_iceoryx2.one_way_ns(n, PACE_NS)),
            lambda: _limits_ns()[0],
        )
    counted = {subject: np.concatenate(rounds[1:]) for subject, rounds in taken.items() if len(rounds) > 1}
    plot = OUT_FOLDER / f"{name}.svg"
    write_histogram(plot, f"{name}: one record each {PACE_NS / 1000:.0f} µs, spinning reader", counted)
    p99, p999, worst = np.percentile(counted["tickengine"], [99, 99.9, 100])
    early = int((counted["tickengine"] < 0).sum())
    clocks = f"; {early} read before they were sent: the clocks of the cores differ" if early else ""
    note = (
        f"p99 {p99:.0f}, p99.9 {p999:.0f}, worst {worst:,.0f} ns of {len(counted['tickengine']):,}; "
        f"runs {mine.spread('{:.0f}')}; a cache line takes {limit.median:.0f} ns, the clock {_limits_ns()[1]:.0f} ns; "
        f"other processes took a core away {_preemptions() - preempted} times; "
        f"histogram perf/out/{plot.name}{clocks}"
    )
    return compare(name, "ns", mine, "iceoryx2 Python", theirs, target=target, note=note)


def _preemptions() -> int:
    """How often this process and those that it has ended lost their core to another one."""
    return sum(resource.getrusage(who).ru_nivcsw for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _write_paced(writer: RingWriter, count: int) -> None:
    """Publish `count` records whose source_sequence counts up from 1, one each PACE_NS."""
    records = ticks(count)
    single = [records[i : i + 1].tobytes() for i in range(count)]
    publish, clock = writer.publish, time.perf_counter_ns
    with quiet_collector():
        for record in single:
            due = clock() + PACE_NS  # a writer that lost its core for a while does not catch up in a burst
            while clock() < due:
                pass
            publish(record)


def _to_native(count: int) -> np.ndarray:
    reader = native.program("latency_reader.c")
    with (
        scratch_engine() as engine,
        RingWriter.create(engine, 2) as writer,
        tempfile.NamedTemporaryFile(suffix=".ns") as file,
    ):
        command = [reader, segment_name(engine, "r2"), str(count), str(cpu(1)), file.name]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                if process.stdout.readline().strip() != "ready":
                    raise RoleFailed(f"the native reader could not attach, exit status {process.wait(5)}")
                _write_paced(writer, count)
                status = process.wait(30)
            finally:
                process.kill()
        require(status == 0, {3: "overrun", 4: "a wrong record"}.get(status, f"native reader: exit status {status}"))
        return np.fromfile(file.name, dtype=np.int64)


def _to_python(count: int) -> np.ndarray:
    with (
        scratch_engine() as engine,
        RingWriter.create(engine, 2) as writer,
        Child(_spin, engine, count, index=1) as reader,
    ):
        require(reader.hear() == "ready", "the reader did not start")
        _write_paced(writer, count)
        taken: np.ndarray = reader.hear()
    return taken


def _spin(pipe: Pipe, engine: str, count: int) -> None:
    out = empty(1)
    taken = np.zeros(count, dtype=np.int64)
    number, sent_ns = out["source_sequence"], out["ts_publish"]
    with RingReader.attach(engine, 2, label="perf") as reader, quiet_collector():
        poll, read = reader.poll, reader.read
        pipe.say("ready")
        for i in range(count):
            while not poll():
                pass
            got = read(out)
            read_ns = now_ns()
            require(got == 1 and int(number[0]) == i + 1, f"record {i + 1} was due, got {number[0]}")
            taken[i] = read_ns - int(sent_ns[0])
        require(reader.lost == 0, f"{reader.lost} records lost")
    pipe.say(taken)


def _limits_ns() -> tuple[float, float]:
    """What the machine takes: (a cache line from CPU 0 to CPU 1, one reading of the clock), ns."""
    command = [native.program("machine_limits.c"), "200000", str(cpu(0)), str(cpu(1))]
    line, clock = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return int(line) / 10, int(clock) / 10
