"""The historian as a process: questions over its socket, bounded, in time, and an orderly end."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from shm.layout import RECORD
from shm.status import ProcessState, StatusBlock
from tests.children import ROOT, wait_until
from tests.journals import NOW, STREAM, trades
from workers.journal import Journal
from workers.spec import EXIT_CLEAN, Found, HistorianSettings, Question, decode_found, encode, encode_question

pytestmark = pytest.mark.slow

PATIENCE_MS = 30_000


class Asking:
    """A historian over a journal of 100 trades of one symbol, and a socket to it."""

    def __init__(self, engine: str, folder: Path, **changes: Any) -> None:
        journal = Journal(folder / "journal", fsync="none")
        journal.follow_symbols(["X"])
        journal.append(2, STREAM, 1, trades(1, 100, instruments=1), NOW)
        journal.close()
        self._runtime = tempfile.TemporaryDirectory(prefix="tk")  # pytest's own folders are too long for Unix sockets
        endpoint = f"ipc://{self._runtime.name}/historian"
        self.block = StatusBlock.create(engine, process_slots=2)
        settings = HistorianSettings(engine=engine, label="historian", endpoint=endpoint, folder=str(folder), **changes)
        self.process = subprocess.Popen([sys.executable, "-m", "workers.historian"], stdin=subprocess.PIPE, cwd=ROOT)
        assert self.process.stdin is not None
        self.process.stdin.write(encode(settings))
        self.process.stdin.flush()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.connect(endpoint)

        def ready() -> bool:
            assert self.process.poll() is None, f"the historian ended with status {self.process.returncode}"
            return any(process.state is ProcessState.READY for process in self.block.processes())

        wait_until(ready, "the historian is ready")

    @property
    def counters(self) -> dict[str, int]:
        return self.block.processes()[0].counters

    def send(self, **fields: Any) -> None:
        given = {"symbol": "X", "limit": 10, "deadline_ns": time.monotonic_ns() + 60_000_000_000}
        self._socket.send(encode_question(Question(**(given | fields))))

    def send_raw(self, frame: bytes) -> None:
        self._socket.send(frame)

    def receive(self) -> tuple[Found, np.ndarray]:
        assert self._socket.poll(PATIENCE_MS), "no answer"
        head, body = self._socket.recv_multipart()
        return decode_found(head), np.frombuffer(body, RECORD)

    def close(self) -> None:
        self._context.destroy()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.block.close()
        self._runtime.cleanup()


@pytest.fixture
def asking(engine_name: str, tmp_path: Path) -> Iterator[Asking]:
    made = Asking(engine_name, tmp_path / "data", max_waiting=1)
    yield made
    made.close()


def test_l1s_records_are_merged_with_the_stores(asking: Asking) -> None:
    newer = trades(96, 10, instruments=1)
    asking.send(number=7, newer=newer.tobytes(), limit=20)
    found, records = asking.receive()
    assert (found.number, found.count, found.gave, found.missing) == (7, 20, ("L1", "L2"), ())
    assert records["sequence"].tolist() == list(range(86, 106))
    assert found.oldest == (NOW + 86_000, NOW + 86_500, 86)
    asking.send(before=found.oldest, kind=4)
    assert asking.receive()[1]["sequence"].tolist() == list(range(76, 86))
    asking.send(symbol="NONE", probe=True)
    assert not asking.receive()[0].known
    asking.send(kind=1, probe=True)  # no tick, but the symbol is known
    found, records = asking.receive()
    assert (found.known, found.count, found.oldest) == (True, 0, None)


def test_too_many_questions_are_refused_as_busy_and_late_ones_dropped(asking: Asking) -> None:
    for number in range(1, 8):  # what the recorder never writes keeps it busy, for a while
        asking.send(number=number, left_l1_ns=1 << 62, applied={2: 1 << 40})
    answers = [asking.receive()[0] for _ in range(7)]
    busy = [found for found in answers if found.busy]
    assert len(busy) >= 5
    assert all(found.refused for found in busy)
    for found in answers:
        if not found.busy:
            assert found.count == 10
            assert found.missing == ("L2 journal: the recorder has not written yet what ring 2 had",)
    asking.send(deadline_ns=time.monotonic_ns() - 1)
    asking.send_raw(b"no question")
    wait_until(lambda: asking.counters.get("questions_expired", 0) == 1, "the late one is counted")
    asking.send(number=9)
    assert asking.receive()[0].number == 9
    assert asking.counters["questions_refused"] == len(busy)


def test_it_ends_in_order(asking: Asking) -> None:
    asking.send()
    asking.receive()
    asking.process.send_signal(signal.SIGTERM)
    assert asking.process.wait(30) == EXIT_CLEAN


def test_it_ends_with_the_control_process(asking: Asking) -> None:
    assert asking.process.stdin is not None
    asking.process.stdin.close()
    assert asking.process.wait(30) == EXIT_CLEAN
