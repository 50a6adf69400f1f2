"""kill -9 of the recorder at random moments: what it reported as recorded is in the journal, once, bit by bit.

The ring's writer goes on all the time, at a pace that the ring outlasts the kills; so nothing may be missing either,
and a gap would have to be told.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from shm.layout import RecordType
from tests.children import Child
from tests.recorders import RING, Recording
from tests.records import broken

KILLS = 25

WRITER = f"""
import select
import sys
from shm.ring import RingWriter
from tests.records import PERIOD, sealed
pool = sealed()
with RingWriter.open(sys.argv[1], {RING}) as writer:
    print("ready")
    number = (writer.next_sequence - 1) % PERIOD
    while not select.select([sys.stdin], [], [], 0.001)[0]:
        count = min(97, PERIOD - number)
        writer.publish_batch(pool[number:number + count])
        number = (number + count) % PERIOD
    print(writer.next_sequence - 1)
"""


@pytest.mark.slow
def test_after_kills_at_any_moment_every_reported_record_is_there_once(engine_name: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("TICKENGINE_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    chance = random.Random(seed)
    recording = Recording(engine_name, tmp_path, depth_slots=1 << 19)
    recording.writer.close()
    try:
        with Child(WRITER, engine_name) as writer:
            assert writer.hear() == "ready"
            reported = 0
            for _ in range(KILLS):
                process = recording.start(segment_bytes=1 << 20, flush_ms=chance.choice([0.0, 1.0, 20.0]))
                time.sleep(chance.random() * 0.05)  # not to wait for anything: any moment will do
                recording.kill(process)
                assert recording.recorded >= reported
                reported = recording.recorded
                sequences = recording.records()["sequence"]
                assert len(sequences) >= reported
                assert np.array_equal(sequences, np.arange(1, len(sequences) + 1))
            recording.start()
            writer.say("stop")
            last = int(writer.hear())
        deadline = time.monotonic() + 60
        while recording.recorded < last:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        records = recording.records()
        assert np.array_equal(records["sequence"], np.arange(1, last + 1))
        assert not np.any(records["record_type"] == RecordType.STATUS)
        assert broken(records) == 0
        assert not [block for block in recording.blocks() if block.is_gap]
    finally:
        recording.close()
