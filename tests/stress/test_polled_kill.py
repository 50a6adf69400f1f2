"""kill -9 of an ingest worker at random moments while it polls: each observation is in the ring once, none is missing.

The vendor's list grows with every answer, by more than a batch of the worker's: kills fall between asking, decoding,
publishing and writing down.
"""

from __future__ import annotations

import random
import time
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, empty
from shm.ring import RingReader
from tests.children import wait_until
from tests.system.worker_stage import RING, WorkerStage
from tests.vendor_server import Reply, VendorServer, fred_body, fred_row
from workers.spec import FeedSpec, IngestSettings

KILLS = 8
MORE = 150  # observations that each answer has more than the one before
ANSWERS = 30
FIRST_DAY = date(1900, 1, 1)


def observations(engine: str) -> np.ndarray:
    """What the ring holds of the feed."""
    out = empty(1 << 16)
    with RingReader.attach(engine, RING, start=1, register=False) as reader:
        count = reader.read(out)
        assert reader.gap is None
    return out[:count][out["record_type"][:count] == RecordType.TICK]


@pytest.mark.slow
def test_after_kills_at_any_moment_each_observation_is_there_once(
    engine_name: str, tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FRED_API_KEY", "KEY")
    chance = random.Random(seed)
    rows = [fred_row(str(FIRST_DAY + timedelta(days=number)), str(number)) for number in range(MORE * ANSWERS)]
    script = [Reply(fred_body(rows[: MORE * (number + 1)])) for number in range(ANSWERS)]
    stage = WorkerStage(engine_name, [])
    stage.writer.close()
    with VendorServer({"DGS10": script}) as vendor:
        spec = FeedSpec(
            feed_id=7,
            name="polled",
            source="fred",
            symbols=("DGS10",),
            options={"url": vendor.base, "poll_s": 0.02, "per_second": 0, "per_minute": 0},
        )
        settings = IngestSettings(
            engine=engine_name,
            label="ingest-0",
            ring_id=RING,
            feeds=(spec,),
            batch_slots=64,
            folder=str(tmp_path / "data" / engine_name),
        )
        try:
            for _ in range(KILLS):
                asked = vendor.counts["DGS10"] + chance.randrange(4)
                stage.spawn(settings)
                wait_until(lambda asked=asked: vendor.counts["DGS10"] > asked, "asked again")
                time.sleep(chance.random() * 0.05)  # not to wait for anything: any moment will do
                stage.kill_worker("ingest-0")
            stage.spawn(settings)
            wait_until(lambda: len(observations(engine_name)) >= len(rows), "all observations")
            asked = vendor.counts["DGS10"]
            wait_until(lambda: vendor.counts["DGS10"] > asked + 2, "asked again, all being there")
            stage.kill_worker("ingest-0")
        finally:
            stage.close()
    found = observations(engine_name)
    assert found["price"].tolist() == [float(row["value"]) for row in rows]
    assert not (found["flags"] & np.uint16(Flag.CORRECTED)).any()
