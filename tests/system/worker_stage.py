"""The segments of an engine with one fed ring, for tests that run workers on them without a control process."""

from __future__ import annotations

import signal
import subprocess
import sys

from shm.instruments import InstrumentTable
from shm.ring import RingWriter
from shm.status import ProcessState, ProcessView, StatusBlock
from tests.children import DEADLINE_S, ROOT, wait_until
from workers.spec import MODULES, WorkerSettings, encode

RING = 2


class WorkerStage:
    """Status block, instrument table, and ring 2, whose writer is this process; workers by label."""

    def __init__(self, engine: str, symbols: list[str], *, depth_slots: int = 65536) -> None:
        """Make the segments; `symbols` get the instrument ids 0, 1, ..."""
        self.engine = engine
        self.status = StatusBlock.create(engine)
        self.instruments = InstrumentTable.create(engine)
        for symbol in symbols:
            self.instruments.intern(symbol)
        self.writer = RingWriter.create(engine, RING, depth_slots=depth_slots)
        self._workers: dict[str, subprocess.Popen[bytes]] = {}

    def spawn(self, settings: WorkerSettings) -> subprocess.Popen[bytes]:
        """Start a worker."""
        worker = subprocess.Popen([sys.executable, "-m", MODULES[settings.role]], stdin=subprocess.PIPE, cwd=ROOT)
        self._workers[settings.label] = worker
        assert worker.stdin is not None
        worker.stdin.write(encode(settings))
        worker.stdin.flush()
        return worker

    def spawn_ready(self, settings: WorkerSettings) -> subprocess.Popen[bytes]:
        """Start a worker and wait until it is ready."""
        worker = self.spawn(settings)

        def ready() -> bool:
            assert worker.poll() is None, f"{settings.label} ended with {worker.returncode}"
            view = self.status.process(settings.label)
            return view is not None and view.pid == worker.pid and view.state == ProcessState.READY

        wait_until(ready, f"{settings.label} is ready")
        return worker

    def view_of(self, label: str) -> ProcessView | None:
        """What a worker says about itself."""
        return self.status.process(label)

    def kill_worker(self, label: str) -> None:
        """kill -9, and wait until it is gone."""
        worker = self._workers.pop(label)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        _close(worker)

    def wait_worker(self, label: str) -> int:
        """Wait for a worker's own end; returns its exit code."""
        worker = self._workers.pop(label)
        code = worker.wait(DEADLINE_S)
        _close(worker)
        return code

    def close(self) -> None:
        """End what runs still. The segments are removed by the fixture that made the engine's name."""
        for label in list(self._workers):
            self.kill_worker(label)
        self.writer.close()
        self.instruments.close()
        self.status.close()


def _close(worker: subprocess.Popen[bytes]) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
