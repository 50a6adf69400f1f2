"""The real fan-out worker on segments of its own, for tests: started, killed, started again, watched."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from shm.layout import RecordType, empty
from shm.status import ProcessView
from tests.children import wait_until
from tests.ports import free_ports
from tests.system.worker_stage import RING, WorkerStage
from workers.spec import FanoutSettings


def ticks(instrument_ids: np.ndarray, first_number: int = 0) -> np.ndarray:
    """A tick for each of `instrument_ids`; `source_sequence` counts them from `first_number`."""
    records = empty(len(instrument_ids))
    records["record_type"], records["instrument_id"] = RecordType.TICK, instrument_ids
    records["source_sequence"] = first_number + np.arange(len(instrument_ids))
    records["ts_event"] = 1_709_303_400_000_000_000 + records["source_sequence"].astype(np.int64)
    records["price"] = 100.0 + records["source_sequence"] / 64
    return records


class FanoutStage(WorkerStage):
    """An engine's segments, and fan-out workers on them."""

    def __init__(self, engine: str, symbols: list[str], *, depth_slots: int = 65536) -> None:
        """Make the segments; `symbols` get the instrument ids 0, 1, ..."""
        super().__init__(engine, symbols, depth_slots=depth_slots)
        # Of each kind the first of a few in a row: shards count up from it.
        self.ports: dict[str, int] = {kind: free_ports(4) for kind in ("raw", "msgpack", "json", "replay")}

    def start(self, shard: int = 0, **settings: Any) -> subprocess.Popen[bytes]:
        """Start the worker of a shard and wait until it is ready; its endpoints stay the same over restarts."""
        chosen: dict[str, Any] = {
            "engine": self.engine,
            "label": f"fanout-{shard}",
            "shard": shard,
            "rings": (RING,),
            "raw_port": self.ports["raw"],
            "msgpack_port": self.ports["msgpack"],
            "json_port": self.ports["json"],
            "replay_port": self.ports["replay"],
            **settings,
        }
        return self.spawn_ready(FanoutSettings(**chosen))

    def view(self, shard: int = 0) -> ProcessView | None:
        """What the worker of a shard says about itself."""
        return self.view_of(f"fanout-{shard}")

    def counter(self, name: str, shard: int = 0) -> int:
        """One of its counters, now."""
        view = self.view(shard)
        return 0 if view is None else view.counters.get(name, 0)

    def wait_counter(self, name: str, value: int, shard: int = 0) -> None:
        """Wait until a counter has at least that value."""
        wait_until(lambda: self.counter(name, shard) >= value, f"{name} reaches {value}")

    def kill(self, shard: int = 0) -> None:
        """kill -9, and wait until it is gone."""
        self.kill_worker(f"fanout-{shard}")

    def wait_end(self, shard: int = 0) -> int:
        """Wait for the worker's own end; returns its exit code."""
        return self.wait_worker(f"fanout-{shard}")


MakeStage = Callable[..., FanoutStage]


@contextmanager
def fanout_stages(engine: str, symbols: list[str]) -> Iterator[MakeStage]:
    """A maker of stages, `symbols` theirs unless it is given others; all of them are closed at the end."""
    with ExitStack() as stack:

        def make(symbols: list[str] = symbols, **options: int) -> FanoutStage:
            made = FanoutStage(engine, symbols, **options)
            stack.callback(made.close)
            return made

        yield make
