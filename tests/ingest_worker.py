"""An ingest worker as a real process, with the segments that a control process makes for it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shm.instruments import InstrumentTable
from shm.layout import concatenate, empty
from shm.ring import RingReader, create_ring
from shm.status import ProcessState, ProcessView, StatusBlock
from workers.spec import (
    FeedSpec,
    IngestSettings,
    encode,
)

ROOT = Path(__file__).resolve().parents[1]


RING = 2
DEADLINE_S = 60


def until(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def simulated(feed_id: int = 1, **options: Any) -> FeedSpec:
    return FeedSpec(feed_id=feed_id, name=f"sim-{feed_id}", source="simulated", options=options)


class Engine:
    """The segments that a control process makes, and ingest workers started as it starts them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.block = StatusBlock.create(name, process_slots=4)
        self.block.set_engine(control_pid=os.getpid(), started_ns=time.time_ns())
        self.instruments = InstrumentTable.create(name)
        create_ring(name, RING, depth_slots=131_072)
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, *feeds: FeedSpec, **settings: Any) -> subprocess.Popen[bytes]:
        line = encode(IngestSettings(engine=self.name, label="ingest-0", ring_id=RING, feeds=feeds, **settings))
        return self.start_with(line)

    def start_with(self, line: bytes) -> subprocess.Popen[bytes]:
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers.ingest"],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
        self.workers.append(worker)
        assert worker.stdin is not None
        worker.stdin.write(line)
        worker.stdin.flush()
        return worker

    def view(self) -> ProcessView:
        view = self.block.process("ingest-0")
        assert view is not None
        return view

    def counter(self, name: str) -> int:
        """0 as long as the worker has not registered or not made it."""
        view = self.block.process("ingest-0")
        return view.counters.get(name, 0) if view else 0

    def state(self) -> ProcessState | None:
        view = self.block.process("ingest-0")
        return view.state if view else None

    def is_ready(self, pid: int) -> bool:
        view = self.block.process("ingest-0")
        return view is not None and view.pid == pid and view.state == ProcessState.READY

    def reader(self) -> RingReader:
        return RingReader.attach(self.name, RING, start=1, register=False)

    def records(self, reader: RingReader, count: int) -> np.ndarray:
        """At least `count` more records."""
        batches: list[np.ndarray] = []
        deadline = time.monotonic() + DEADLINE_S
        while sum(map(len, batches)) < count:
            out = empty(4096)
            batches.append(out[: reader.read(out)])
            assert time.monotonic() < deadline, f"{count} records not within {DEADLINE_S} s"
            reader.wait(0.05)
        return concatenate(batches)

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
            worker.wait()
            for pipe in (worker.stdin, worker.stderr):
                if pipe is not None:
                    pipe.close()
        self.block.close()


def finish(worker: subprocess.Popen[bytes]) -> tuple[int, str]:
    """Wait for the end without closing its standard input; exit code and what it logged."""
    code = worker.wait(DEADLINE_S)
    assert worker.stderr is not None
    return code, worker.stderr.read().decode()
