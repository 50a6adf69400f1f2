"""kill -9 of a writer at each step of publish, and of writers and readers anywhere: nobody else stops, nothing is torn.

Readers attached throughout may see: every record that was stamped before the kill, whole and once; nothing of a record
that was not; then the new writer's status record and all that follows, without a hole. They may not see a torn record,
a repeated or a missing sequence, or a gap that is not exactly what `gap` and `lost` say.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode, empty
from shm.ring import RingReader, RingWriter, create_ring, list_readers, ring_info
from tests.children import Child, wait_until
from tests.records import PERIOD, broken, sealed
from tests.stress.stops import STEPS

pytestmark = pytest.mark.slow

DEPTH = 64
BEFORE = 100
BATCH = 16

STOPPING_WRITER = """
    import sys
    from shm import _ring
    from shm.ring import RingWriter
    from tests.records import sealed
    engine, before, count, step = sys.argv[1], *map(int, sys.argv[2:])
    writer = RingWriter.open(engine, 0)
    writer.publish_batch(sealed(before))
    print("ready")
    sys.stdin.readline()
    records = sealed(max(count, 1), first=before)
    _ring.set_stop(step)
    if count:
        writer.publish_batch(records)
    else:
        writer.publish(records)
"""


class Follower:
    """A reader that checks all that it gets: whole records, each sequence once, gaps exactly as reported."""

    def __init__(self, engine: str, *, start: str | int = "newest", slots: int = DEPTH) -> None:
        self.reader = RingReader.attach(engine, 0, start=start)
        self.first = self.expected = self.reader.sequence
        self.got = 0
        self.notes: list[np.void] = []
        self._out = empty(slots)

    def follow(self) -> int:
        """Read and check one batch; returns how many records it had."""
        count = self.reader.read(self._out)
        if count == 0:
            return 0
        batch = self._out[:count]
        marked = np.flatnonzero(batch["flags"] & Flag.GAP_BEFORE).tolist()
        if self.reader.gap is None:
            assert marked == []
        else:
            assert marked == [0]
            assert self.reader.gap == (self.expected, int(batch["sequence"][0]))
            self.expected = self.reader.gap[1]
        assert batch["sequence"].tolist() == list(range(self.expected, self.expected + count))
        notes = batch["record_type"] == RecordType.STATUS
        self.notes += [one.copy() for one in batch[notes]]
        assert broken(np.ascontiguousarray(batch[~notes])) == 0
        self.expected += count
        self.got += count
        assert self.got + self.reader.lost == self.expected - self.first
        return count

    def follow_all(self) -> int:
        """Read until there is nothing new; returns how many records came."""
        total = 0
        while count := self.follow():
            total += count
        return total


@pytest.mark.parametrize("count", [0, BATCH], ids=["single", "batch"])
@pytest.mark.parametrize("step", STEPS)
def test_writer_killed_at_each_step_loses_only_what_was_never_stamped(
    engine_name: str, stops_build: Path, step: int, count: int
) -> None:
    create_ring(engine_name, 0, depth_slots=DEPTH)
    with Child(STOPPING_WRITER, engine_name, BEFORE, count, step, path=stops_build) as child:
        assert child.hear() == "ready"
        stamped = {5: count // 2, 6: count or 1, 7: count or 1}.get(step, 0)
        at_end = Follower(engine_name)
        lagging = Follower(engine_name, start=BEFORE + 1 - DEPTH)
        half = Follower(engine_name, start=BEFORE + 1 - DEPTH // 2)
        child.say("go")
        child.wait_until_stopped()
        # While the writer stands in the middle of publish, readers go on with what is whole.
        assert at_end.follow_all() == stamped
        child.kill()
    assert (at_end.reader.poll(), ring_info(engine_name, 0).writer_alive) == (False, False)
    assert ring_info(engine_name, 0).published == BEFORE + (stamped if step == 7 else 0)
    whole = DEPTH if step == 1 else None
    read = lagging.follow_all()
    assert whole is None or read == whole
    assert lagging.reader.lost == (0 if step == 1 else DEPTH // 2 - 1 + (stamped if step == 7 else 0))

    with RingWriter.open(engine_name, 0) as writer:
        assert (writer.restarted, writer.recovered_sequence) == (True, BEFORE + stamped + 1)
        assert writer.epoch == 2
        late = Follower(engine_name, start="oldest")
        for number in range(20):
            if count:
                writer.publish_batch(sealed(7, first=writer.next_sequence - 1))
            else:
                for _ in range(7):
                    writer.publish(sealed(1, first=writer.next_sequence - 1))
            at_end.follow_all()
            if number % 4 == 0:
                lagging.follow_all()
        half.follow_all()
        last = writer.next_sequence - 1
    assert last == BEFORE + stamped + 1 + 140
    for follower in (at_end, lagging, half, late):
        follower.follow_all()
        assert follower.expected == last + 1
        follower.reader.close()
    assert (at_end.reader.lost, at_end.got) == (0, stamped + 1 + 140)
    assert [(one["code"], one["sequence"]) for one in at_end.notes] == [
        (StatusCode.WRITER_RESTARTED, BEFORE + stamped + 1)
    ]


def test_writers_killed_one_after_another_leave_one_unbroken_stream(engine_name: str, seed: int) -> None:
    script = """
        import random, sys
        from shm.ring import RingWriter
        from tests.records import PERIOD, sealed
        chance = random.Random(int(sys.argv[2]))
        pool = sealed(2 * PERIOD)
        writer = RingWriter.open(sys.argv[1], 0)
        print(writer.recovered_sequence)
        while True:
            at = (writer.next_sequence - 1) % PERIOD
            if chance.random() < 0.3:
                writer.publish(pool[at])
            else:
                writer.publish_batch(pool[at : at + chance.randrange(1, 300)])
    """
    chance = random.Random(seed)
    create_ring(engine_name, 0, depth_slots=1024)
    followers = [Follower(engine_name, slots=slots) for slots in (1024, 64)]
    recovered = []
    for _ in range(12):
        with Child(script, engine_name, chance.getrandbits(32)) as child:
            recovered.append(int(child.hear()))
            turns = chance.randrange(1, 400)
            while turns > 0:
                turns -= sum(follower.follow() > 0 for follower in followers)
            child.kill()
        assert recovered[-1] <= followers[0].reader.published + 1
    with RingWriter.open(engine_name, 0) as writer:
        last = writer.next_sequence - 1
    for follower in followers:
        follower.follow_all()
        assert follower.expected == last + 1
        assert follower.reader.epoch == 13
        assert {int(one["sequence"]) for one in follower.notes} <= {*recovered[1:], last}
        follower.reader.close()
    assert recovered == sorted(set(recovered))


def test_readers_killed_anywhere_never_stop_the_writer(engine_name: str, seed: int) -> None:
    script = """
        import random, sys
        from shm.layout import empty
        from shm.ring import RingReader
        chance = random.Random(int(sys.argv[2]))
        reader = RingReader.attach(sys.argv[1], 0, reliable=True, label=sys.argv[3])
        print("ready")
        out = empty(64)
        while True:
            if reader.read(out, chance.randrange(65)) == 0:
                reader.wait(1.0)
            assert reader.lost == 0
    """
    chance = random.Random(seed)
    pool = sealed(2 * PERIOD)
    with RingWriter.create(engine_name, 0, depth_slots=DEPTH, block_s=3600.0) as writer:
        witness = Follower(engine_name)
        for victims in range(8):
            with (
                Child(script, engine_name, seed + victims, "victim") as one,
                Child(script, engine_name, 1, "other") as two,
            ):
                assert (one.hear(), two.hear()) == ("ready", "ready")
                for _ in range(chance.randrange(1, 200)):
                    at = (writer.next_sequence - 1) % PERIOD
                    writer.publish_batch(pool[at : at + chance.randrange(1, 100)])
                    witness.follow()
                one.kill()
                before = writer.next_sequence
                for _ in range(20):
                    at = (writer.next_sequence - 1) % PERIOD
                    writer.publish_batch(pool[at : at + 50])
                    witness.follow()
                assert writer.next_sequence == before + 1000
                assert two.process.poll() is None, "the reader that lives has lost nothing"
                (alive,) = [line for line in list_readers(engine_name, 0) if line.reliable and line.alive]
                assert (alive.label, alive.lost, alive.demoted) == ("other", 0, False)
        wait_until(lambda: witness.follow_all() == 0)
        assert witness.expected == writer.next_sequence
        assert not any(line.demoted for line in list_readers(engine_name, 0))
