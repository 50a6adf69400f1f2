"""One writer and four readers of different speeds, each a process of its own: nothing torn, every record accounted for.

Every record carries its own proof (tests/records.py). Each reader checks that sequences go up without a hole but for
the gaps reported, and that what it read and what it lost add up to what was published. TICKENGINE_STRESS_RECORDS sets
how many are published (100 M by default: some 400 M are then read and checked, in about a minute on two cores),
TICKENGINE_SEED repeats a run.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from shm.ring import create_ring, list_readers, ring_info
from tests.children import Child

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RECORDS = int(os.environ.get("TICKENGINE_STRESS_RECORDS", "100_000_000"))

WRITER = """
    import random, sys
    from shm.ring import RingWriter
    from tests.records import PERIOD, sealed
    engine, total, largest, seed = sys.argv[1], *map(int, sys.argv[2:])
    chance = random.Random(seed)
    pool = sealed(PERIOD + largest)
    single = [one.tobytes() for one in pool[:PERIOD]]
    sizes = [chance.choice((1, 2, 3, 16, 17, largest - 1, largest)) for _ in range(997)]
    writer = RingWriter.open(engine, 0)
    print("ready")
    sys.stdin.readline()
    turn = 0
    while (left := total + 1 - writer.next_sequence) > 0:
        turn += 1
        at = (writer.next_sequence - 1) % PERIOD
        if turn % 64 == 0:
            for record in single[at : at + min(50, left)]:
                writer.publish(record)
        else:
            size = min(sizes[turn % 997], left)
            writer.publish_batch(pool[at : at + size])
    print(writer.next_sequence - 1)
"""

READER = """
    import json, sys
    import numpy as np
    from shm.layout import Flag, empty
    from shm.ring import RingReader
    from tests.records import broken
    engine, total, slots, rest, reliable = sys.argv[1], *map(int, sys.argv[2:])
    reader = RingReader.attach(engine, 0, reliable=bool(reliable), label=f"{slots} slots")
    expected, got, wrong, gaps, odd = reader.sequence, 0, 0, 0, []
    out = empty(slots)
    sequences = np.arange(slots, dtype=np.uint64)
    print("ready")
    while expected <= total:
        count = reader.read(out)
        if count == 0:
            if not reader.wait(60.0):
                odd.append(f"nothing came after {expected}")
                break
            continue
        first = int(out["sequence"][0])
        if reader.gap is not None:
            gaps += 1
            if reader.gap != (expected, first) or not out["flags"][0] & Flag.GAP_BEFORE:
                odd.append(f"gap {reader.gap}, expected from {expected}, first {first}")
            expected = reader.gap[1]
        if not np.array_equal(out["sequence"][:count] - np.uint64(expected), sequences[:count]):
            odd.append(f"sequences from {first} are not consecutive from {expected}")
        wrong += broken(out[:count])
        expected += count
        got += count
        for _ in range(rest):
            reader.poll()
    print(json.dumps({
        "label": reader.label, "read": got, "lost": reader.lost, "broken": wrong, "gaps": gaps, "odd": odd[:5],
        "overruns": reader.overruns_polling + reader.overruns_reading, "reading": reader.overruns_reading,
    }))
    sys.stdin.readline()
"""


def race(engine: str, total: int, seed: int, speeds: list[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Run one writer against a reader for each of `speeds` (slots a batch, polls of rest, reliable); their reports."""
    largest = ring_info(engine, 0).depth_slots // 4
    readers = [Child(READER, engine, total, *speed) for speed in speeds]
    try:
        assert [reader.hear() for reader in readers] == ["ready"] * len(readers)
        with Child(WRITER, engine, total, largest, seed) as writer:
            assert writer.hear() == "ready"
            writer.say("go")
            reports = [json.loads(reader.hear(500.0)) for reader in readers]
            assert int(writer.hear()) == total
        lines = {line.label: line for line in list_readers(engine, 0)}
        assert {report["label"]: report["lost"] for report in reports} == {
            label: line.lost for label, line in lines.items()
        }
    finally:
        for reader in readers:
            reader.__exit__()
    assert ring_info(engine, 0).published == total
    for report in reports:
        print(report)
    return reports


def test_readers_of_any_speed_get_whole_records_and_exact_gaps(engine_name: str, seed: int) -> None:
    create_ring(engine_name, 0, depth_slots=4096)
    speeds = [(4096, 0, 0), (512, 0, 0), (64, 0, 0), (1024, 2000, 0)]
    reports = race(engine_name, RECORDS, seed, speeds)
    for report in reports:
        assert (report["broken"], report["odd"]) == (0, [])
        assert report["read"] + report["lost"] == RECORDS
        assert report["gaps"] <= report["overruns"]
    assert any(report["lost"] for report in reports), "the readers were never overrun: the test has lost its point"


def test_paced_by_a_reliable_reader_nothing_is_lost_by_it(engine_name: str, seed: int) -> None:
    total = RECORDS
    create_ring(engine_name, 0, depth_slots=16384, block_s=3600.0)
    speeds = [(4096, 0, 1), (8192, 0, 0), (2048, 0, 0), (16384, 0, 0)]
    reports = race(engine_name, total, seed, speeds)
    for report in reports:
        assert (report["broken"], report["odd"]) == (0, [])
        assert report["read"] + report["lost"] == total
    assert (reports[0]["read"], reports[0]["gaps"]) == (total, 0)


def test_ring_so_small_that_the_writer_is_always_coming_round_returns_nothing_torn(engine_name: str, seed: int) -> None:
    total = RECORDS // 5
    create_ring(engine_name, 0, depth_slots=64)
    reports = race(engine_name, total, seed, [(64, 0, 0), (32, 0, 0), (1, 0, 0), (16, 0, 0)])
    for report in reports:
        assert (report["broken"], report["odd"]) == (0, [])
        assert report["read"] + report["lost"] == total
