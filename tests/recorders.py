"""A recorder process beside a test, as the control process would start it, and what its journal then holds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shm.instruments import InstrumentTable
from shm.layout import concatenate, empty
from shm.ring import RingWriter
from shm.status import ProcessState, StatusBlock
from tests.children import ROOT, wait_until
from workers.journal_reader import Block, JournalReader
from workers.spec import RecorderSettings, encode

RING = 2


class Recording:
    """Segments of an engine with one ring, and recorder processes that write to `folder`."""

    def __init__(self, engine: str, folder: Path, *, depth_slots: int = 1 << 14, **ring: Any) -> None:
        self.engine = engine
        self.folder = folder
        self.block = StatusBlock.create(engine, process_slots=4)
        self.instruments = InstrumentTable.create(engine)
        self.writer = RingWriter.create(engine, RING, depth_slots=depth_slots, **ring)
        self.started: list[subprocess.Popen[bytes]] = []

    def start(self, **changes: Any) -> subprocess.Popen[bytes]:
        """Start a recorder and wait until it is ready."""
        settings: dict[str, Any] = {
            "engine": self.engine,
            "label": "recorder",
            "rings": (RING,),
            "folder": str(self.folder),
            "flush_ms": 1.0,
            "seal": False,
        }
        line = encode(RecorderSettings(**(settings | changes)))
        process = subprocess.Popen([sys.executable, "-m", "workers.recorder"], stdin=subprocess.PIPE, cwd=ROOT)
        self.started.append(process)
        assert process.stdin is not None
        process.stdin.write(line)
        process.stdin.flush()

        def ready() -> bool:
            assert process.poll() is None, f"the recorder ended with status {process.returncode}"
            return any(p.pid == process.pid and p.state is ProcessState.READY for p in self.block.processes())

        wait_until(ready, "the recorder is ready")
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """kill -9."""
        process.kill()
        process.wait()

    @property
    def counters(self) -> dict[str, int]:
        """The recorder's counters in the status block."""
        return self.block.processes()[0].counters

    @property
    def recorded(self) -> int:
        """The sequence that the recorder reports as recorded."""
        return self.counters.get(f"recorded.{RING}", 0)

    def wait_recorded(self) -> None:
        """Until everything published is reported as recorded."""
        wait_until(lambda: self.recorded == self.writer.next_sequence - 1, "everything is recorded")

    def stalled(self) -> bool:
        """Whether the recorder says that it can't write."""
        return bool(self.block.processes()[0].gauges.get("journal_stalled"))

    def blocks(self) -> list[Block]:
        """What the journal holds of the ring."""
        return list(JournalReader(self.folder / "journal").blocks(ring_id=RING))

    def records(self) -> np.ndarray:
        """All records of the journal, gaps left out."""
        found = [block.records for block in self.blocks() if not block.is_gap]
        return concatenate(found) if found else empty(0)

    def close(self) -> None:
        """End what runs, let go of the segments."""
        for process in self.started:
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()
        self.writer.close()
        self.instruments.close()
        self.block.close()
