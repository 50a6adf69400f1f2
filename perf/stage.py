"""A stage for workers: the segments of an engine, and workers started as its control process starts them.

Used where a benchmark measures a worker by itself (fan-out, cache) with records of its own making. The worker is the
real one: `python -m workers.NAME`, settings on standard input, ready when the status block says so. For the whole
engine see perf/footprint.py.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from perf.errors import RoleFailed
from perf.process import Pipe, quiet_collector, scratch_engine
from perf.ticks import ticks
from shm.instruments import InstrumentTable
from shm.ring import RingWriter, create_ring
from shm.status import ProcessState, StatusBlock
from workers.spec import MODULES, WorkerSettings, encode

RING = 2
_START_S = 20.0
_ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def write_held_back(
    pipe: Pipe, engine: str, taken: Any, count: int, *, batch: int, instruments: int, window: int
) -> None:
    """A writer's role: `count` ticks, `batch` a call, at most `window` ahead of `taken`, the receiver's count."""
    records = ticks(batch, instruments)
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        sent = 0
        while sent < count:
            while sent - min(taken.value, sent) > window:
                time.sleep(0.0002)
            some = min(batch, count - sent)
            writer.publish_batch(records, some)
            sent += some
        pipe.hear()  # the ring's writer stays until all is over


class Stage:
    """Segments of an engine with one ring (number 2) and `symbols`, and its workers. A context manager.

    The ring's writer waits up to `block_s` for a reliable reader: what is measured is what gets through without loss.
    """

    def __init__(self, symbols: int, *, depth_slots: int = 65536, block_s: float = 20.0) -> None:
        self._stack = ExitStack()
        self._workers: list[subprocess.Popen[bytes]] = []
        try:
            self.engine = self._stack.enter_context(scratch_engine())
            self.status = StatusBlock.create(self.engine)
            self._stack.callback(self.status.close)
            instruments = InstrumentTable.create(self.engine)
            self._stack.callback(instruments.close)
            self.symbols = [f"S{number:04d}" for number in range(symbols)]
            for symbol in self.symbols:
                instruments.intern(symbol)
            create_ring(self.engine, RING, depth_slots=depth_slots, block_s=block_s)
        except BaseException:
            self._stack.close()
            raise

    def start(self, settings: WorkerSettings, *, quiet: bool = False) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is ready. `quiet`: what it logs is what is being measured, a line each."""
        command = [sys.executable, "-m", MODULES[settings.role]]
        log = subprocess.DEVNULL if quiet else None
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=log, cwd=_ROOT)
        self._workers.append(worker)
        assert worker.stdin is not None
        worker.stdin.write(encode(settings))
        worker.stdin.flush()
        deadline = time.monotonic() + _START_S
        while not any(p.label == settings.label and p.state == ProcessState.READY for p in self.status.processes()):
            if worker.poll() is not None:
                raise RoleFailed(f"workers.{settings.role} ended, exit code {worker.returncode}")
            if time.monotonic() > deadline:
                raise RoleFailed(f"workers.{settings.role} was not ready within {_START_S:.0f} s")
            time.sleep(0.005)
        return worker

    def close(self) -> None:
        """End the workers (their standard input ends, as if the control process had gone) and remove the segments."""
        for worker in self._workers:
            if worker.stdin is not None:
                worker.stdin.close()
        for worker in self._workers:
            try:
                worker.wait(5)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait()
        self._workers.clear()
        self._stack.close()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
