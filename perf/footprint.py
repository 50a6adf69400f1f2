"""What does the engine take when it does little: memory, time to start, processor time?

    memory_per_record    bytes of the latest-value table a record that it holds, when it is full     limit: 128 + 25 %
    control_rss          resident memory of the control process of a running engine, MB
    start_time           from the command to the first record in a ring, s
    idle_cpu             processor time of all processes of an engine without a feed, % of one core

        this process --> table --> Applier (workers/_cache), ticks of more instruments than the table has history for
        this process --> python -m tools run --simulate (or a configuration without feeds) --> control and its workers

The engine is the real one, under a name and on ports of its own. control_rss: simulated feed, after 3 s and a round of
HTTP requests. start_time: ts_publish of the first market record of the first ingest ring, minus the time just before
the process was started; peer: an interpreter that does nothing but import numpy and zmq, to show the share of Python
itself. idle_cpu: user and system time of all its processes over 10 s (3 s if quick), from 2 s after the start on.

Verified: the table's histories hold the newest records in order; the engine says that it is ready, publishes contiguous
records (idle: none but its own status records), and ends with status 0, leaving no segment behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from perf.errors import RoleFailed, require
from perf.process import scratch_engine
from perf.report import Row, Target
from perf.rounds import Plan, Series, alternate
from perf.stage import free_port
from perf.ticks import ticks
from shm.errors import ShmError
from shm.layout import RecordType, empty
from shm.ring import RingReader, ring_info
from shm.segment import list_segments

FEED_RING = 2
RUN_S = 60.0
_ROOT = Path(__file__).resolve().parent.parent
_MB = 1e6


def memory_per_record(_: Plan) -> Row:
    """Bytes of L1 a record, when it is full."""
    from engine.byte_size import parse_bytes
    from engine.store_settings import CacheSection
    from shm.latest import LatestTable
    from workers._cache import Applier

    section = CacheSection()
    pool_records = parse_bytes(section.max_l1_memory) // 128
    instruments = pool_records // section.records_per_instrument + 64
    with scratch_engine() as engine:
        table = LatestTable.create(
            engine,
            instruments=section.max_symbols,
            depth_records=section.records_per_instrument,
            pool_records=pool_records,
            bar_intervals_s=section.bar_intervals_s,
        )
        applier = Applier(table.segment.buf, pid=os.getpid(), bar_ring_id=1, grace_ns=0)
        records = ticks(instruments, instruments)
        rounds = section.records_per_instrument + 10
        for number in range(rounds):
            records["sequence"] = np.arange(number * instruments + 1, (number + 1) * instruments + 1)
            records["ts_publish"] = records["ts_receive"] = records["ts_event"] = 10**18 + number
            applied = 0
            while applied < instruments:
                applied += applier.apply(FEED_RING, records, applied, instruments)
            applier.commit()
        applier.set_complete(FEED_RING, rounds * instruments)
        stats = table.stats()
        newest = table.history(7, 100)["sequence"]
        wanted = np.arange(rounds)[-len(newest) :] * instruments + 8
        require(len(newest) > 0 and np.array_equal(newest, wanted), "a history is not its instrument's newest records")
        applier.close()
        table.close()
    entry_bytes = (stats.segment_bytes - stats.records_room * 128) / stats.instruments_room
    note = (
        f"{stats.records_held:,} records of {instruments} instruments in {stats.segment_bytes / _MB:.0f} MB with the "
        f"engine's defaults, entries for {section.max_symbols:,} symbols of {entry_bytes:,.0f} bytes included"
    )
    return _limit(
        "memory_per_record",
        Series([stats.bytes_per_record]),
        "bytes",
        160,
        note=note,
        peer="a record",
        peer_value=128.0,
    )


def control_rss(plan: Plan) -> Row:
    """Resident memory of the control process, MB."""
    import psutil

    def measure() -> float:
        with running("--simulate") as engine:
            time.sleep(3)
            for path in ("health", "metrics", "metrics/prometheus", "processes", "readers", "symbols"):
                engine.get(path)
            memory = psutil.Process(engine.process.pid).memory_info()
            shared.append(memory.shared / _MB)
            return float(memory.rss / _MB)

    shared: list[float] = []
    (ours,) = alternate(Plan(1 if plan.quick else min(plan.runs, 3)), measure)
    note = (
        f"simulated feed, HTTP asked; of it {shared[-1]:.0f} MB are shared: the engine's segments, libraries; "
        f"runs {ours.spread()} MB"
    )
    return _limit("control_rss", ours, "MB", 100, note=note)


def start_time(plan: Plan) -> Row:
    """Seconds from the command to the first record."""

    def measure() -> float:
        begin_ns = time.time_ns()
        with running("--simulate") as engine:
            return (engine.first_record_ns() - begin_ns) / 1e9

    def bare() -> float:
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", "import numpy, zmq"], check=True)
        return time.monotonic() - start

    ours, theirs = alternate(plan, measure, bare)
    note = f"runs {ours.spread('{:.2f}')} s"
    peer = "python -c 'import numpy, zmq'"
    return _limit("start_time", ours, "s", 2.0, note=note, peer=peer, peer_value=theirs.median)


def idle_cpu(plan: Plan) -> Row:
    """Percent of a core that an idle engine takes."""
    import psutil

    window_s = 3.0 if plan.quick else 10.0

    def measure() -> float:
        with tempfile.NamedTemporaryFile("w", suffix=".toml") as config:
            config.write("[simulate]\nenabled = false\n")
            config.flush()
            with running("--config", config.name) as engine:
                time.sleep(2)
                control = psutil.Process(engine.process.pid)
                everybody = [control, *control.children(recursive=True)]
                start, before = time.monotonic(), [_spent_s(one) for one in everybody]
                time.sleep(window_s)
                spent_s = sum(_spent_s(one) for one in everybody) - sum(before)
                shares = [
                    f"{one.name()} {(_spent_s(one) - b) / window_s:.1%}"
                    for one, b in zip(everybody, before, strict=True)
                ]
                notes.append(", ".join(shares))
                return spent_s / (time.monotonic() - start) * 100

    notes: list[str] = []
    (ours,) = alternate(Plan(1 if plan.quick else min(plan.runs, 2)), measure)
    return _limit("idle_cpu", ours, "% of a core", 2.0, note=f"{window_s:.0f} s; {notes[-1]}")


def _spent_s(process: object) -> float:
    times = process.cpu_times()  # type: ignore[attr-defined]
    return float(times.user + times.system)


def _limit(
    name: str, ours: Series, unit: str, limit: float, *, note: str, peer: str = "", peer_value: float | None = None
) -> Row:
    target = Target(limit, "lower")
    ratio = peer_value / ours.median if peer_value is not None else None
    met = target.met_by(ours.median)
    return Row(name, ours.median, unit, peer, peer_value, ratio, len(ours.values), note, target, met)


class RunningEngine:
    """A running engine."""

    def __init__(self, name: str, options: tuple[str, ...], folder: str) -> None:
        self.name = name
        self.http_port = free_port()
        command = [sys.executable, "-m", "tools", "run", "--name", name, "--http-port", str(self.http_port)]
        command += ["--zmq-port", str(_free_base()), "--data-dir", folder, *options]
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the engine
        self.process = subprocess.Popen(command, cwd=_ROOT, stdout=self.log, stderr=subprocess.STDOUT)

    def get(self, path: str) -> bytes:
        """Body of a GET."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/{path}", timeout=10) as answer:
            return bytes(answer.read())

    def wait_ready(self) -> None:
        """Wait until /ready answers 200."""
        deadline = time.monotonic() + RUN_S
        while True:
            self.check()
            try:
                self.get("ready")
            except OSError:
                require(time.monotonic() < deadline, f"the engine was not ready within {RUN_S:.0f} s\n{self.output()}")
                time.sleep(0.02)
            else:
                return

    def first_record_ns(self) -> int:
        """ts_publish of the first record of the first ingest ring that is no status; waits for it."""
        deadline = time.monotonic() + RUN_S
        while True:
            self.check()
            try:
                if ring_info(self.name, FEED_RING).published:
                    with RingReader.attach(self.name, FEED_RING, start=1, register=False) as reader:
                        out = empty(64)
                        got = reader.read(out)
                        require(got > 0 and reader.gap is None, "record 1 is gone")
                    contiguous = out["sequence"][:got] == np.arange(1, got + 1)
                    require(bool(contiguous.all()), "records are not contiguous")
                    market = out["ts_publish"][:got][out["record_type"][:got] != RecordType.STATUS]
                    if len(market):
                        return int(market[0])
            except ShmError:
                pass  # not made yet
            require(time.monotonic() < deadline, f"no record within {RUN_S:.0f} s\n{self.output()}")
            time.sleep(0.002)

    def check(self) -> None:
        """Raise RoleFailed if the engine has ended."""
        if self.process.poll() is not None:
            raise RoleFailed(f"the engine ended, status {self.process.returncode}\n{self.output()}")

    def output(self) -> str:
        """The end of what it has printed."""
        self.log.seek(0)
        return self.log.read().decode(errors="replace")[-2000:]

    def stop(self) -> None:
        """Stop it in order."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RoleFailed(f"the engine did not stop\n{self.output()}") from None
        require(status == 0, f"the engine ended with status {status}\n{self.output()}")
        require(not list_segments(self.name), f"segments were left behind: {list_segments(self.name)}")


@contextmanager
def running(*options: str) -> Iterator[RunningEngine]:
    """An engine that is ready, for as long as the block lasts."""
    with scratch_engine() as name, tempfile.TemporaryDirectory(prefix="tickengine-perf-") as folder:
        engine = RunningEngine(name, options, folder)
        try:
            engine.wait_ready()
            yield engine
            engine.stop()
        finally:
            if engine.process.poll() is None:
                engine.process.kill()
                engine.process.wait()
            engine.log.close()


def _free_base() -> int:
    """A base port whose offsets 1, 11, 21 and 31 are likely to be free too: ports are given out far apart."""
    return min(free_port(), 64_000)
