"""The whole engine stopped, killed and started again while data comes in: what was acknowledged is there, once.

A thread posts numbered points as fast as they are taken and notes what was acknowledged; a simulated feed runs beside
it. A request that was cut off may have been taken or not, and is sent again: the only points that may be there twice
are those of such requests, as a client that retries must expect.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import signal
import threading
import urllib.error
from collections import Counter
from pathlib import Path

import pytest

from shm.layout import RecordType
from tests.ports import free_ports
from tests.system.engine_process import EngineProcess, wait_for
from workers.journal_reader import JournalReader

pytestmark = pytest.mark.slow

POINTS = 200  # a request
SYMBOL = "LOADED"


class Poster:
    """Posts numbered trades until told to stop; survives an engine that is away."""

    def __init__(self) -> None:
        self.engine: EngineProcess | None = None
        self.acknowledged: set[int] = set()
        self.doubtful: set[int] = set()
        self.next_number = 1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Poster:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            engine = self.engine
            if engine is None:
                self._stop.wait(0.01)
                continue
            numbers = range(self.next_number, self.next_number + POINTS)
            points = [
                {
                    "symbol": SYMBOL,
                    "data_type": "trade",
                    "source": "internal",
                    "data": {"price": 1.0, "size": 1.0, "trade_id": str(n)},
                }
                for n in numbers
            ]
            try:
                status, answer = engine.send("POST", "/data/ingest", {"data": points})
            except (urllib.error.URLError, http.client.HTTPException, OSError, json.JSONDecodeError):
                self.doubtful.update(numbers)
                self._stop.wait(0.01)
                continue
            if status == 200 and answer["count"] == POINTS:
                self.acknowledged.update(numbers)
                self.next_number += POINTS
            else:
                assert status in (429, 503), answer
                self.doubtful.update(numbers)
                self._stop.wait(0.01)


def test_points_acknowledged_before_a_stop_or_a_kill_of_the_engine_are_recorded_once(
    engine_name: str, tmp_path: Path
) -> None:
    data, base = tmp_path / "data", free_ports()
    small = tmp_path / "small.toml"  # a ring that a recorder which is being started again would be lapped in
    small.write_text("[rings]\ndepth_slots = 4096\n")
    options = ("--simulate", "--data-dir", str(data), "--config", str(small))
    with Poster() as poster:
        for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
            with EngineProcess(engine_name, tmp_path, *options, base=base) as engine:
                engine.wait_ready()
                recorder = engine.pids()["recorder"]
                had = len(poster.acknowledged)
                poster.engine = engine
                wait_for("points taken in", lambda had=had: len(poster.acknowledged) >= had + 20 * POINTS)
                os.kill(recorder, signal.SIGKILL)
                had = len(poster.acknowledged)
                wait_for("points taken in again", lambda had=had: len(poster.acknowledged) >= had + 40 * POINTS)
                workers = engine.workers()
                engine.stop(end)
                poster.engine = None
                wait_for("its workers have ended", lambda workers=workers: not any(w.is_running() for w in workers))

    numbers: Counter[int] = Counter()
    rings: dict[tuple[int, int], list[tuple[int, int]]] = {}
    reader = JournalReader(data / engine_name / "journal")
    for block in reader.blocks():
        assert not block.is_gap
        header = block.header
        rings.setdefault((header.ring_id, header.stream), []).append((header.first_sequence, header.next_sequence))
        mine = block.records[block.records["record_type"] == RecordType.TRADE]
        for table_id, number in zip(mine["instrument_id"].tolist(), mine["trade_id"].tolist(), strict=True):
            if reader.symbol(header.table, table_id) == SYMBOL:
                numbers[number] += 1

    assert poster.acknowledged <= set(numbers), "acknowledged and not recorded"
    twice = {number for number, count in numbers.items() if count > 1}
    assert twice <= poster.doubtful, "recorded twice without having been sent twice"
    for spans in rings.values():  # no hole and no double in any ring, over all restarts
        spans.sort()
        assert spans[0][0] == 1
        assert all(earlier[1] == later[0] for earlier, later in itertools.pairwise(spans))
