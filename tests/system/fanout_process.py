"""The real fan-out worker on segments of its own, for tests: started, killed, started again, watched."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from typing import Any

import numpy as np

from shm.instruments import InstrumentTable
from shm.layout import RecordType, empty
from shm.ring import RingWriter
from shm.status import ProcessState, ProcessView, StatusBlock
from tests.children import DEADLINE_S, ROOT, wait_until
from workers.spec import MODULES, FanoutSettings, encode


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ticks(instrument_ids: np.ndarray, first_number: int = 0) -> np.ndarray:
    """A tick for each of `instrument_ids`; `source_sequence` counts them from `first_number`."""
    records = empty(len(instrument_ids))
    records["record_type"], records["instrument_id"] = RecordType.TICK, instrument_ids
    records["source_sequence"] = first_number + np.arange(len(instrument_ids))
    records["ts_event"] = 1_709_303_400_000_000_000 + records["source_sequence"].astype(np.int64)
    records["price"] = 100.0 + records["source_sequence"] / 64
    return records


class FanoutStage:
    """The segments of an engine with one ring, number 2, whose writer is this process; and fan-out workers on it."""

    def __init__(self, engine: str, symbols: list[str], *, depth_slots: int = 65536) -> None:
        """Make the segments; `symbols` get the instrument ids 0, 1, ..."""
        self.engine = engine
        self.status = StatusBlock.create(engine)
        self.instruments = InstrumentTable.create(engine)
        for symbol in symbols:
            self.instruments.intern(symbol)
        self.writer = RingWriter.create(engine, 2, depth_slots=depth_slots)
        self.ports: dict[str, int] = {kind: free_port() for kind in ("raw", "msgpack", "json", "replay")}
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, shard: int = 0, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the worker of a shard and wait until it is ready; its endpoints stay the same over restarts."""
        chosen: dict[str, Any] = {
            "engine": self.engine,
            "label": f"fanout-{shard}",
            "shard": shard,
            "rings": (2,),
            "raw_port": self.ports["raw"],
            "msgpack_port": self.ports["msgpack"],
            "json_port": self.ports["json"],
            "replay_port": self.ports["replay"],
            **settings,
        }
        worker = subprocess.Popen([sys.executable, "-m", MODULES["fanout"]], stdin=subprocess.PIPE, cwd=ROOT)
        self._workers[shard] = worker
        assert worker.stdin is not None
        worker.stdin.write(encode(FanoutSettings(**chosen)))
        worker.stdin.flush()

        def ready() -> bool:
            assert worker.poll() is None, f"the worker ended with {worker.returncode}"
            view = self.view(shard)
            return view is not None and view.pid == worker.pid and view.state == ProcessState.READY

        wait_until(ready, "fan-out is ready")
        return worker

    def view(self, shard: int = 0) -> ProcessView | None:
        """What the worker of a shard says about itself."""
        return self.status.process(f"fanout-{shard}")

    def counter(self, name: str, shard: int = 0) -> int:
        """One of its counters, now."""
        view = self.view(shard)
        return 0 if view is None else view.counters.get(name, 0)

    def wait_counter(self, name: str, value: int, shard: int = 0) -> None:
        """Wait until a counter has at least that value."""
        wait_until(lambda: self.counter(name, shard) >= value, f"{name} reaches {value}")

    def kill(self, shard: int = 0) -> None:
        """kill -9, and wait until it is gone."""
        worker = self._workers.pop(shard)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        _close(worker)

    def wait_end(self, shard: int = 0) -> int:
        """Wait for the worker's own end; returns its exit code."""
        worker = self._workers.pop(shard)
        code = worker.wait(DEADLINE_S)
        _close(worker)
        return code

    def close(self) -> None:
        """End what runs still. The segments are removed by the fixture that made the engine's name."""
        for shard in list(self._workers):
            self.kill(shard)
        self.writer.close()
        self.instruments.close()
        self.status.close()


def _close(worker: subprocess.Popen[bytes]) -> None:
    if worker.stdin is not None:
        worker.stdin.close()
