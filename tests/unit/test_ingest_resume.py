"""The log that lets a killed ingest worker's successor go on without duplicate or loss: every place a kill can fall.

The killed worker is a real process on real segments; it ends itself by SIGKILL at the step in question.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, empty
from shm.ring import RingReader, RingWriter, create_ring, status_record
from shm.status import StatusBlock
from workers.resume import FeedPosition, Newest, ResumeLog, find_newest
from workers.spec import FeedSpec

ROOT = Path(__file__).resolve().parents[2]
RING = 2
FEED_ID = 5
RUN_NS = 1_760_000_000_000_000_000
SPEC = FeedSpec(feed_id=FEED_ID, name="capture", source="replay", options={"files": ["x"]})

# A worker that has published 300 records of the feed (positions 0 to 300), and is killed around the next 100. The other
# feed's record comes in between, so that positions and sequences differ.
KILLED = """
import os, signal, sys
import numpy as np
from shm.layout import empty
from shm.ring import RingWriter
from shm.status import StatusBlock
from tests.unit.test_ingest_resume import FEED_ID, RING, RUN_NS, SPEC, trades
from workers.resume import Entry, FeedPosition, ResumeLog

engine, step = sys.argv[1], sys.argv[2]
status = StatusBlock.attach(engine, write=True).register("ingest-0", "ingest")
writer = RingWriter.open(engine, RING)
log, position = ResumeLog(status), FeedPosition(status, SPEC, RUN_NS)

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def batch(start, end, published, dropped=0):
    log.begin(Entry(FEED_ID, writer.next_sequence, end - start - dropped, position.records, end, dropped))
    writer.publish_batch(trades(start + dropped, start + dropped + published))
    if published == end - start - dropped:
        position.records = end

before = position.recover(log, FEED_ID, engine, RING)
if step == "again":
    die()
if step == "second":
    batch(position.records, 400, 20, dropped=before)
    die()
batch(0, 300, 300)
writer.publish_batch(trades(9000, 9001, feed_id=1))
if step == "before":
    die()
if step.startswith("torn"):
    log._valid.set(0)
    entry = Entry(FEED_ID, writer.next_sequence, 100, 300, 400, 0)
    for counter, value in list(zip(log._fields, entry))[: int(step[4:])]:
        counter.set(value)
    die()
if step.startswith("published"):
    batch(300, 400, int(step[9:]))
    die()
"""


def trades(start: int, end: int, feed_id: int = FEED_ID) -> np.ndarray:
    """Records that carry their position in the feed as trade id."""
    made = empty(end - start)
    made["record_type"] = RecordType.TRADE
    made["feed_id"] = feed_id
    made["trade_id"] = np.arange(start, end)
    return made


@pytest.fixture
def block(engine_name: str) -> Iterator[StatusBlock]:
    block = StatusBlock.create(engine_name, process_slots=2)
    create_ring(engine_name, RING, depth_slots=4096)
    yield block
    block.close()


def kill_at(engine: str, step: str) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, engine, step], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL


def go_on(block: StatusBlock, engine: str, spec: FeedSpec = SPEC, run_ns: int = RUN_NS) -> tuple[int, int]:
    """What the successor finds: (position to go on from, how many of what follows to drop)."""
    status = block.register("ingest-0", "ingest")
    with RingWriter.open(engine, RING) as writer:
        assert writer.restarted
        position = FeedPosition(status, spec, run_ns)
        dropped = position.recover(ResumeLog(status), FEED_ID, engine, RING)
    return position.records, dropped


def published(engine: str) -> list[int]:
    """Positions of the feed's records in the ring, in order."""
    out = empty(4096)
    with RingReader.attach(engine, RING, start=1, register=False) as reader:
        records = out[: reader.read(out)]
    own = records[(records["record_type"] == RecordType.TRADE) & (records["feed_id"] == FEED_ID)]
    return [int(number) for number in own["trade_id"]]


STEPS = ["before", *(f"torn{fields}" for fields in range(7)), *(f"published{count}" for count in (0, 1, 50, 99, 100))]


@pytest.mark.parametrize("step", STEPS)
def test_successor_goes_on_exactly_where_the_ring_ends(block: StatusBlock, engine_name: str, step: str) -> None:
    kill_at(engine_name, step)
    position, dropped = go_on(block, engine_name)
    in_ring = published(engine_name)
    assert in_ring == list(range(position + dropped))
    assert position + dropped == 300 + (int(step[9:]) if step.startswith("published") else 0)


def test_a_second_kill_before_anything_is_published_changes_nothing(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    kill_at(engine_name, "again")
    kill_at(engine_name, "again")
    assert go_on(block, engine_name) == (300, 50)


def test_a_second_kill_within_the_rest_of_the_same_batch(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    kill_at(engine_name, "second")  # publishes 20 more of the 50 that were left
    position, dropped = go_on(block, engine_name)
    assert (position, dropped) == (300, 70)
    assert published(engine_name) == list(range(370))


def test_an_overrun_batch_was_complete(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published100")
    with RingWriter.open(engine_name, RING) as writer:
        for _ in range(5):
            writer.publish_batch(trades(0, 1000, feed_id=1))
    status = block.register("ingest-0", "ingest")
    position = FeedPosition(status, SPEC, RUN_NS)
    assert position.recover(ResumeLog(status), FEED_ID, engine_name, RING) == 0
    assert position.records == 400


def test_another_run_or_other_settings_begin_from_the_start(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    assert go_on(block, engine_name, run_ns=RUN_NS + 1) == (0, 0)


def test_other_settings_of_the_feed_begin_from_the_start(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    other = FeedSpec(feed_id=FEED_ID, name="capture", source="replay", options={"files": ["y"]})
    assert go_on(block, engine_name, spec=other) == (0, 0)


def test_a_new_identity_can_not_revive_an_old_entry(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    status = block.register("ingest-0", "ingest")
    RingWriter.open(engine_name, RING).close()
    for _ in range(2):  # the second time the new identity is known already
        position = FeedPosition(status, SPEC, RUN_NS + 1)
        assert position.recover(ResumeLog(status), FEED_ID, engine_name, RING) == 0
        assert position.records == 0


def test_the_entry_of_another_feed_is_left_alone(block: StatusBlock, engine_name: str) -> None:
    kill_at(engine_name, "published50")
    status = block.register("ingest-0", "ingest")
    RingWriter.open(engine_name, RING).close()
    other = FeedSpec(feed_id=6, name="other", source="replay", options={"files": ["x"]})
    assert FeedPosition(status, other, RUN_NS).recover(ResumeLog(status), 6, engine_name, RING) == 0
    assert ResumeLog(status).entry() is not None


def messages(*numbers: int, last: bool = True, feed_id: int = FEED_ID, received_ns: int = 1000) -> np.ndarray:
    """Records of venue messages: one of each number, the last one of it where `last`."""
    records = empty(len(numbers))
    records["record_type"] = RecordType.QUOTE
    records["feed_id"] = feed_id
    records["source_sequence"] = numbers
    records["ts_receive"] = received_ns
    ends = [n + 1 == len(numbers) or numbers[n + 1] != numbers[n] for n in range(len(numbers))]
    records["flags"][np.array(ends)] = Flag.LAST_OF_BATCH
    if not last:
        records["flags"][-1] = 0
    return records


def test_the_newest_message_of_a_live_feed_is_found_with_how_much_of_it_there_is(engine_name: str) -> None:
    with RingWriter.create(engine_name, RING, depth_slots=1 << 15) as writer:

        def newest(published_ns: int = 0, received_ns: int = 0, feed_id: int = FEED_ID) -> Newest | None:
            return find_newest(engine_name, RING, feed_id, published_ns, received_ns)

        assert newest() is None
        writer.publish_batch(messages(7, 7, 8, 8, 8))
        assert newest() == Newest(8, 3, True)
        writer.publish_batch(messages(9, 9, last=False))
        writer.publish(status_record(StatusCode.FEED_DOWN, feed_id=FEED_ID))
        for _ in range(5):
            writer.publish_batch(messages(*range(100, 4100), feed_id=FEED_ID + 1))
        assert newest() == Newest(9, 2, False)
        assert newest(feed_id=FEED_ID + 1) == Newest(4099, 1, True)
        assert newest(received_ns=1001) is None
        between = time.time_ns()
        assert newest(published_ns=between) is None
        writer.publish_batch(messages(3))
        assert newest(published_ns=between) == Newest(3, 1, True)
