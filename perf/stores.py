"""How fast does the journal get into a database?

    redis_store     records/s from the journal into Redis      peer: the plain client sending chunks made beforehand
    postgres_copy   rows/s from the journal into PostgreSQL    peer: psycopg copying rows made beforehand, same table

        journal --> follower (CRC) --> by symbol --> chunks, or rows of binary COPY --> server on a free port

Both sides end with the answer of the server that everything is stored; ours reads the journal, checks and sorts it and
keeps its cursor besides. Verified: the number of records in the store and its cursor. The servers are started here,
with their defaults (Redis without persistence); where they are not installed the row says so.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from perf.errors import Skipped, require
from perf.process import quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, free_port
from perf.ticks import ticks
from workers.journal import Journal
from workers.journal_follower import Batch, JournalFollower
from workers.store import Store

BLOCK: Final = 32768
INSTRUMENTS: Final = 200
ENGINE: Final = "perf"
_START_S: Final = 60.0


def redis_store(plan: Plan) -> Row:
    """Records a second from the journal into Redis."""
    try:
        from workers.redis_store import RedisStore, chunks_of, redis_module

        library = redis_module()
    except ValueError as reason:
        raise Skipped(str(reason)) from None
    blocks = plan.amount(30)
    with _redis() as (url, client), _journal(blocks) as folder:
        chunks = [chunk for batch in _batches(folder) for chunk in chunks_of(batch, ENGINE)]

        def ours_once() -> float:
            client.flushall()
            rate = _fill(RedisStore(url, ENGINE, hours=24, max_records=1 << 30), folder)
            ends = [client.xinfo_stream(key)["last-generated-id"] for key in client.keys("*:d:*")]
            stored = sum(int(end.split(b"-")[0]) for end in ends)
            require(stored == blocks * BLOCK, f"{stored} of {blocks * BLOCK} records are in Redis")
            return rate

        def theirs_once() -> float:
            client.flushall()
            per_trip = len(chunks) // blocks
            start = time.perf_counter()
            for first in range(0, len(chunks), per_trip):
                pipe = client.pipeline(transaction=True)
                for chunk in chunks[first : first + per_trip]:
                    pipe.execute_command("XADD", chunk.key, "*", b"r", chunk.body)
                pipe.execute()
            return blocks * BLOCK / (time.perf_counter() - start)

        ours, theirs = alternate(plan, ours_once, theirs_once)
        per_trip = len(chunks) // blocks
    note = f"{per_trip} chunks of {BLOCK // per_trip} records a transaction; redis-py {library.__version__}"
    target = Target(2e5, "higher")
    return compare("redis_store", "records/s", ours, "redis-py, chunks ready", theirs, target=target, note=note)


def postgres_copy(plan: Plan) -> Row:
    """Rows a second from the journal into PostgreSQL."""
    try:
        from workers.postgres_rows import COLUMNS, HEADER, TRAILER, RowWriter
        from workers.postgres_store import PostgresStore, psycopg_module

        psycopg = psycopg_module()
    except ValueError as reason:
        raise Skipped(str(reason)) from None
    blocks = plan.amount(20)
    copy_text = f"COPY market_data ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)"
    with _postgres() as dsn, _journal(blocks) as folder, psycopg.connect(dsn, autocommit=True) as connection:
        writer = RowWriter(ENGINE)
        ready = [b"".join(map(bytes, writer.pieces(batch))) for batch in _batches(folder)]
        connection.execute("SET synchronous_commit = off")

        def empty_tables() -> None:
            connection.execute("TRUNCATE market_data, tickengine_cursors")
            connection.execute("CHECKPOINT")

        def ours_once() -> float:
            if connection.execute("SELECT to_regclass('tickengine_cursors')").fetchone()[0] is not None:
                empty_tables()
            rate = _fill(PostgresStore(dsn, ENGINE, retention_days=365), folder)
            (stored,) = connection.execute("SELECT count(*) FROM market_data").fetchone()
            require(stored == blocks * BLOCK, f"{stored} of {blocks * BLOCK} rows are in the table")
            return rate

        def theirs_once() -> float:
            empty_tables()
            start = time.perf_counter()
            for rows in ready:
                with connection.cursor() as cursor, cursor.copy(copy_text) as copy:
                    copy.write(HEADER)
                    copy.write(rows)
                    copy.write(TRAILER)
            return blocks * BLOCK / (time.perf_counter() - start)

        ours, theirs = alternate(plan, ours_once, theirs_once)
        bytes_a_row = sum(map(len, ready)) // (blocks * BLOCK)
    note = f"{bytes_a_row} bytes a row sent; one connection; runs {ours.spread('{:.0f}', 1e3)} k/s"
    target = Target(3e5, "higher")
    return compare("postgres_copy", "rows/s", ours, "psycopg, rows ready", theirs, target=target, note=note)


def _fill(store: Store, folder: Path) -> float:
    """Everything in the journal into a store; records a second."""
    follower = JournalFollower(folder)
    count = 0
    with quiet_collector():
        follower.resume(store.connect())
        start = time.perf_counter()
        while batches := follower.read(BLOCK):
            store.store(batches, time.time_ns())
            count += sum(len(batch.records) for batch in batches)
        elapsed_s = time.perf_counter() - start
    cursors = store.connect()
    store.close()
    follower.close()
    require(list(cursors.values()) == [count + 1], f"the cursor is {cursors} after {count} records")
    return count / elapsed_s


def _batches(folder: Path) -> list[Batch]:
    follower = JournalFollower(folder)
    follower.resume({})
    found = []
    while batches := follower.read(BLOCK):
        found += batches
    follower.close()
    return found


@contextmanager
def _journal(blocks: int) -> Iterator[Path]:
    """A journal of ticks of one hour."""
    folder = Path(tempfile.mkdtemp(prefix="tickengine-perf-"))
    try:
        journal = Journal(folder, fsync="none", segment_bytes=64 << 20)
        journal.follow_symbols([f"S{number:04d}" for number in range(INSTRUMENTS)])
        journal.open_ring(RING, 1)
        chance = np.random.default_rng(1)
        records = ticks(BLOCK, INSTRUMENTS)
        now_ns = time.time_ns()
        for block in range(blocks):
            sequence = 1 + block * BLOCK + np.arange(BLOCK)
            records["sequence"] = records["source_sequence"] = records["trade_id"] = sequence
            records["ts_event"] = records["ts_receive"] = records["ts_publish"] = now_ns + sequence * 5000
            records["price"] = np.round(100 + chance.normal(size=BLOCK), 2)
            journal.append(RING, 1, 1, records, now_ns)
        journal.close()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _redis() -> Iterator[tuple[str, Any]]:
    """(URL, client) of a redis-server of our own."""
    import redis

    if shutil.which("redis-server") is None:
        raise Skipped("redis-server is not installed")
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with redis.Redis(port=port) as client, _server(["redis-server", *options], Path("/"), {}, client.ping):
        yield f"redis://127.0.0.1:{port}/0", client


@contextmanager
def _postgres() -> Iterator[str]:
    """Connection string of a PostgreSQL of our own; as root it runs as the user postgres."""
    import psycopg

    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    if not folders:
        raise Skipped("PostgreSQL is not installed")
    folder, port = Path(tempfile.mkdtemp(prefix="tkperf")), free_port()
    owner: dict[str, Any] = {}
    try:
        if not os.geteuid():
            user = pwd.getpwnam("postgres")
            os.chown(folder, user.pw_uid, user.pw_gid)
            owner = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        data, dsn = folder / "data", f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        make = [str(folders[0] / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"]
        subprocess.run(make, check=True, cwd=folder, stdout=subprocess.DEVNULL, **owner)
        serve = [str(folders[0] / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
        with _server(serve, folder, owner, lambda: psycopg.connect(dsn, connect_timeout=2).close()):
            yield dsn
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _server(command: list[str], folder: Path, owner: dict[str, Any], ask: Callable[[], Any]) -> Iterator[None]:
    """A server that runs, and answers when `ask` does not raise."""
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet, cwd=folder, **owner)
    try:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                ask()
                break
            except Exception as error:  # noqa: BLE001  # whatever its library raises while it starts
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Skipped(f"{Path(command[0]).name} did not start: {error}") from None
                time.sleep(0.02)
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
