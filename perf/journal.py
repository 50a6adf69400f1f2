"""What does it cost to keep every record, and to find it again?

    journal_append    records/s appended, fsync every second      peer: the same bytes with plain file writes and fsyncs
    record_ring       records/s from a ring through the recorder  peer: the same
    journal_recovery  s to recover a journal of 10 M records      peer: reading the same file
    parquet_seal      records/s from the journal into Parquet     peer: pyarrow writing the same columns, ready-made
    parquet_hour      ms, one symbol's last hour                  peer: pyarrow reading that file and filtering
    parquet_day       ms, one symbol's day of 24 files            peer: the same over the 24 files

        blocks of 32768 records --> journal (CRC-32C, one pwritev a block) --> sealed by symbol and time --> one symbol

Everything lies in one scratch folder of the disk that holds the temporary files. Verified: the journal's last sequence;
counts and sums of what is read back; nothing lost by the recorder.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from perf.errors import Skipped, require
from perf.process import PATIENCE_S, Child, Pipe, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage
from perf.ticks import ticks
from shm.layout import RECORD_SIZE_BYTES, RecordType
from shm.ring import RingWriter
from workers.journal import Journal
from workers.journal_reader import list_segments
from workers.spec import RecorderSettings

BLOCK: Final = 32768
INSTRUMENTS: Final = 200
HOUR_NS: Final = 3_600_000_000_000
STREAM: Final = 1_700_000_000_000_000_000
COLUMNS: Final = ("ts_event", "price", "size")


@contextmanager
def _scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="tickengine-perf-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def append(plan: Plan) -> Row:
    """Records a second into the journal, with an fsync a second in its own thread."""
    blocks = plan.amount(320)
    ours, theirs = alternate(plan, lambda: _append_rate(blocks), lambda: _plain_rate(blocks))
    note = f"CRC, header and {BLOCK * RECORD_SIZE_BYTES >> 20} MiB a block; runs {ours.spread('{:.1f}', 1e6)} M/s"
    return compare("journal_append", "records/s", ours, "plain writes", theirs, target=Target(2e6, "higher"), note=note)


def record_ring(plan: Plan) -> Row:
    """Records a second from a ring through the recorder process into the journal, none lost."""
    batches = plan.amount(2000)
    ours, theirs = alternate(plan, lambda: _ring_rate(batches), lambda: _plain_rate(batches * 4096 // BLOCK))
    note = f"the writer is held back to the recorder's pace; runs {ours.spread('{:.1f}', 1e6)} M/s"
    return compare("record_ring", "records/s", ours, "plain writes", theirs, target=Target(2e6, "higher"), note=note)


def recovery(plan: Plan) -> Row:
    """Seconds until a journal of 10 M records in one segment is verified and can be gone on with."""
    blocks = plan.amount(306)
    with _scratch() as folder:
        _fill(folder, blocks)
        (segment,) = list_segments(folder)

        def recover() -> float:
            journal = Journal(folder, fsync="none")
            start = time.perf_counter()
            position = journal.open_ring(RING, STREAM)
            elapsed_s = time.perf_counter() - start
            journal.close()
            require(position == blocks * BLOCK + 1, f"recovered up to {position}")
            return elapsed_s

        def read() -> float:
            buffer = bytearray(BLOCK * RECORD_SIZE_BYTES)
            start = time.perf_counter()
            with segment.path.open("rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass
            return time.perf_counter() - start

        ours, theirs = alternate(plan, recover, read)
    note = f"{blocks * BLOCK / 1e6:.1f} M records, {segment.path.name}, in the page cache"
    return compare("journal_recovery", "s", ours, "reading it", theirs, target=Target(5.0, "lower"), note=note)


def seal(plan: Plan) -> Row:
    """Records a second from the journal into a part of the archive, sorted by symbol and time, on the disk."""
    pq = _pyarrow()
    from workers.archive import Archive
    from workers.history import History
    from workers.parquet import seal as seal_segments

    blocks = plan.amount(60)
    with _scratch() as folder:
        _fill(folder / "journal", blocks)
        names = [found.path.name for found in list_segments(folder / "journal")]
        shares: list[float] = []

        def ours_once() -> float:
            shutil.rmtree(folder / "parquet", ignore_errors=True)
            start = time.perf_counter()
            part = seal_segments(folder, names)
            elapsed_s = time.perf_counter() - start
            require(part is not None and part.manifest.files["tick"].rows == blocks * BLOCK, "records are missing")
            assert part is not None
            shares.append(part.size_bytes / part.manifest.raw_bytes)
            return blocks * BLOCK / elapsed_s

        ours_once()
        table = History(folder).table(RecordType.TICK)
        require(len(Archive(folder / "parquet").parts()) == 1, "not one part")

        def theirs_once() -> float:
            start = time.perf_counter()
            pq.write_table(table, folder / "peer.parquet", compression="zstd", compression_level=3)
            os.sync()
            return blocks * BLOCK / (time.perf_counter() - start)

        ours, theirs = alternate(plan, ours_once, theirs_once)
    note = f"{shares[-1] * 100:.1f} % of the raw bytes; the peer need not read, sort or make columns"
    peer = "pyarrow, ready columns"
    return compare("parquet_seal", "records/s", ours, peer, theirs, target=Target(1e6, "higher"), note=note)


def hour(plan: Plan) -> Row:
    """Milliseconds for time, price and size of one symbol's last hour."""
    return _look_up(plan, "parquet_hour", hours=1, target_ms=5.0)


def day(plan: Plan) -> Row:
    """Milliseconds for time, price and size of one symbol's day."""
    return _look_up(plan, "parquet_day", hours=24, target_ms=50.0)


def _look_up(plan: Plan, name: str, *, hours: int, target_ms: float) -> Row:
    pq = _pyarrow()
    from workers.history import History
    from workers.parquet import seal as seal_segments

    per_hour = plan.amount(10)  # blocks
    first_ns = (time.time_ns() // HOUR_NS - hours) * HOUR_NS
    with _scratch() as folder:
        for number in range(hours):
            _fill(folder / "journal", per_hour, first_ns + number * HOUR_NS, number)
        by_hour: dict[int, list[str]] = {}
        for found in list_segments(folder / "journal"):
            by_hour.setdefault(found.name.hour, []).append(found.path.name)
        for names in by_hour.values():
            seal_segments(folder, names)
        history = History(folder)
        wanted = per_hour * BLOCK * hours // INSTRUMENTS
        bounds = {"from_ns": first_ns, "to_ns": first_ns + hours * HOUR_NS}

        def ours_once() -> float:
            start = time.perf_counter()
            table = history.table(RecordType.TICK, symbol="S0077", columns=COLUMNS, **bounds)
            elapsed_s = time.perf_counter() - start
            require(abs(table.num_rows - wanted) <= hours, f"{table.num_rows} rows, {wanted} were recorded")
            return elapsed_s * 1e3

        files = [str(path) for path in history.files_of(history.sources()[0], RecordType.TICK, None, None)]
        require(len(files) == hours, f"{len(files)} files for {hours} hours")

        def theirs_once() -> float:
            start = time.perf_counter()
            for file in files:
                pq.read_table(file, columns=["symbol", *COLUMNS], filters=[("symbol", "==", "S0077")])
            return (time.perf_counter() - start) * 1e3

        ours, theirs = alternate(plan, ours_once, theirs_once)
    note = f"{wanted} of {per_hour * BLOCK * hours} records, {INSTRUMENTS} symbols, {hours} files; times, price, size"
    return compare(name, "ms", ours, "pyarrow read_table", theirs, target=Target(target_ms, "lower"), note=note)


def _pyarrow() -> ModuleType:
    try:
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise Skipped("pyarrow is not installed") from None
    found: Any = pq
    return found  # type: ignore[no-any-return]


def _fill(folder: Path, blocks: int, first_ns: int | None = None, number: int = 0) -> None:
    """A journal of ticks, an hour long, in one segment; `number` of the hour from which sequences follow."""
    start_ns = time.time_ns() // HOUR_NS * HOUR_NS if first_ns is None else first_ns
    step_ns = HOUR_NS // (blocks * BLOCK)
    journal = Journal(folder, fsync="none", segment_bytes=1 << 40)
    journal.follow_symbols([f"S{number:04d}" for number in range(INSTRUMENTS)])
    journal.open_ring(RING, STREAM)
    records = ticks(BLOCK, INSTRUMENTS)
    chance = np.random.default_rng(1)
    sequence = number * blocks * BLOCK + 1
    for block in range(blocks):
        times = start_ns + (block * BLOCK + np.arange(BLOCK)) * step_ns
        records["sequence"] = np.arange(sequence, sequence + BLOCK)
        records["instrument_id"] = (np.arange(BLOCK) + block * BLOCK) % INSTRUMENTS
        records["ts_event"] = records["ts_receive"] = records["ts_publish"] = times
        records["price"] = np.round(100 + chance.normal(size=BLOCK), 2)
        journal.append(RING, STREAM, 1, records, start_ns)
        sequence += BLOCK
    journal.close()


def _append_rate(blocks: int) -> float:
    records = ticks(BLOCK, INSTRUMENTS)
    records["sequence"] = np.arange(1, BLOCK + 1)
    with _scratch() as folder, quiet_collector():
        journal = Journal(folder, fsync="interval", segment_bytes=64 << 20)
        start = time.perf_counter_ns()
        for _ in range(blocks):
            now_ns = time.time_ns()
            journal.append(RING, STREAM, 1, records, now_ns)
            journal.sync(now_ns)
            records["sequence"] += np.uint64(BLOCK)
        elapsed_ns = time.perf_counter_ns() - start
        journal.close()
        again = Journal(folder, fsync="none")
        position = again.open_ring(RING, STREAM)
        again.close()
        require(position == blocks * BLOCK + 1, f"the journal ends at {position}")
    return blocks * BLOCK / elapsed_ns * 1e9


def _plain_rate(blocks: int) -> float:
    """The same bytes into one file, in the same pieces, with an fsync a second in between."""
    payload = ticks(BLOCK, INSTRUMENTS).view(np.uint8).data
    with _scratch() as folder, (folder / "plain").open("wb", buffering=0) as file, quiet_collector():
        start = time.perf_counter_ns()
        next_ns = start + 10**9
        for _ in range(blocks):
            file.write(payload)
            if time.perf_counter_ns() >= next_ns:
                os.fsync(file.fileno())
                next_ns = time.perf_counter_ns() + 10**9
        elapsed_ns = time.perf_counter_ns() - start
    return blocks * BLOCK / elapsed_ns * 1e9


def _ring_rate(batches: int) -> float:
    count = batches * 4096
    with _scratch() as folder, Stage(INSTRUMENTS) as stage:
        stage.start(
            RecorderSettings(
                engine=stage.engine,
                label="recorder",
                rings=(RING,),
                folder=str(folder),
                seal=False,
                reliable=True,
                log_level="warning",
            )
        )
        (view,) = [process for process in stage.status.processes() if process.label == "recorder"]
        with Child(_write, stage.engine, batches) as writer:
            require(writer.hear() == "ready", "the writer did not start")
            writer.tell("go")
            start = time.perf_counter_ns()
            deadline = time.monotonic() + PATIENCE_S
            while view.counters.get(f"recorded.{RING}", 0) < count:
                require(time.monotonic() < deadline, "the recorder does not get to the end")
                time.sleep(0.002)
                (view,) = [process for process in stage.status.processes() if process.label == "recorder"]
            elapsed_ns = time.perf_counter_ns() - start
        require(view.counters.get("records_lost", 0) == 0, f"{view.counters.get('records_lost')} records were lost")
    return count / elapsed_ns * 1e9


def _write(pipe: Pipe, engine: str, batches: int) -> None:
    records = ticks(4096, INSTRUMENTS)
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        for _ in range(batches):
            writer.publish_batch(records)
        pipe.hear()
