"""A journal, a store behind it and mirror processes between them, for tests: driven by hand, without an engine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shm.layout import RecordType, concatenate, empty
from shm.status import ProcessState, ProcessView, StatusBlock
from tests.children import ROOT, wait_until
from tests.journals import NOW, STREAM, symbols
from tests.servers import PostgresServer, RedisServer
from workers.journal import Journal
from workers.mirror import make_store
from workers.spec import MirrorSettings, encode
from workers.store import Store
from workers.tier import Key, Tier, Wanted

RING = 2
SYMBOLS = tuple(symbols())


class Mirroring:
    """One engine's journal, which the test writes, and its mirror."""

    def __init__(self, engine: str, folder: Path, server: RedisServer | PostgresServer) -> None:
        self.engine = engine
        self.folder = folder
        self.server = server
        self.kind = "redis" if isinstance(server, RedisServer) else "postgres"
        self.journal = Journal(folder / "journal", fsync="none", segment_bytes=1 << 20)
        self.journal.follow_symbols(SYMBOLS)
        self.journal.open_ring(RING, STREAM)
        self.next = 1
        self.block: StatusBlock | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self._tier: Tier | None = None

    def settings(self, **changes: Any) -> MirrorSettings:
        """Of the mirror."""
        values: dict[str, Any] = {
            "engine": self.engine,
            "label": f"mirror-{self.kind}",
            "folder": str(self.folder),
            "store": self.kind,
            "address": self.server.address,
            "flush_ms": 0.0,
            "hours": 1e6,  # the records of tests are old
            "max_records_per_symbol": 10_000_000,
        }
        return MirrorSettings(**(values | changes))

    def store(self, **changes: Any) -> Store:
        """The store's writing side, in this process."""
        return make_store(self.settings(**changes))

    def append(self, records: np.ndarray, ring: int = RING, stream: int = STREAM, now_ns: int = NOW) -> None:
        """One block more; sequences go on by themselves."""
        records["sequence"] = np.arange(self.next, self.next + len(records))
        self.journal.append(ring, stream, 1, records, now_ns)
        self.next += len(records)

    def start(self, **changes: Any) -> subprocess.Popen[bytes]:
        """Start a mirror process, and wait until it is ready."""
        if self.block is None:
            self.block = StatusBlock.create(self.engine, process_slots=4)
        process = subprocess.Popen([sys.executable, "-m", "workers.mirror"], stdin=subprocess.PIPE, cwd=ROOT)
        self.process = process
        assert process.stdin is not None
        process.stdin.write(encode(self.settings(**changes)))
        process.stdin.flush()

        def ready() -> bool:
            assert process.poll() is None, f"the mirror ended with status {process.returncode}"
            return self.view.pid == process.pid and self.view.state is ProcessState.READY

        wait_until(lambda: self.block is not None and self.block.processes() and ready(), "the mirror is ready")
        return process

    def kill(self) -> None:
        """kill -9 of the mirror."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process = None

    @property
    def view(self) -> ProcessView:
        """What the mirror says about itself."""
        assert self.block is not None
        return self.block.processes()[0]

    def wait_stored(self) -> None:
        """Until the mirror says that it has stored the last record."""
        wait_until(lambda: self.view.counters.get(f"stored.{RING}", 0) == self.next - 1, "everything is stored")

    def tier(self, timeout_s: float = 2.0) -> Tier:
        """The store's reading side."""
        if self._tier is not None:
            self._tier.close()
        if self.kind == "redis":
            from workers.redis_tier import RedisTier

            self._tier = RedisTier(self.server.address, self.engine, timeout_s)
        else:
            from workers.postgres_tier import PostgresTier

            self._tier = PostgresTier(self.server.address, self.engine, timeout_s)
        return self._tier

    def raw(self) -> np.ndarray:
        """Every record in the store as it lies there, doubles included, by ring sequence."""
        if isinstance(self.server, RedisServer):
            from workers.redis_layout import unpack_entry

            client = self.server.client()
            found = [
                unpack_entry(entry, fields)[2]
                for key in client.keys(f"tickengine:{{{self.engine}}}:d:*")
                for entry, fields in client.xrange(key)
            ]
        else:
            from workers.postgres_rows import records_of

            text = "SELECT metadata->>'packed' FROM market_data WHERE starts_with(metadata->>'origin', %s)"
            found = [records_of(row[0] for row in self.server.query(text, f"{self.engine}/"))]
        records = concatenate(found) if found else empty(0)
        return records[np.argsort(records["sequence"], kind="stable")]

    def close(self) -> None:
        """End the mirror, let go of everything."""
        if self.process is not None:
            self.kill()
        if self._tier is not None:
            self._tier.close()
        self.journal.close()
        if self.block is not None:
            self.block.close()


def slowly(records: np.ndarray, names: tuple[str, ...], wanted: Wanted) -> list[int]:
    """Sequences that a tier must answer, found record by record."""
    chosen = []
    for record in records:
        key = Key(int(record["ts_event"]), int(record["ts_publish"]), int(record["sequence"]))
        instrument = int(record["instrument_id"])
        if (names[instrument] if instrument < len(names) else "") != wanted.symbol:
            continue
        if wanted.kind is not None and RecordType(int(record["record_type"])) is not wanted.kind:
            continue
        if wanted.from_ns is not None and key.ts_event < wanted.from_ns:
            continue
        if wanted.to_ns is not None and key.ts_event >= wanted.to_ns:
            continue
        if wanted.before is not None and key >= wanted.before:
            continue
        chosen.append(key)
    return [key.sequence for key in sorted(chosen)[-wanted.limit :]]
