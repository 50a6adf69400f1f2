"""Two processes that sleep after every record wake each other a great many times: no wake-up is ever missed.

Each waits without spinning for the other's record, answers, and sleeps again, so every hand-over runs through pair
SLEEP of shm/ring.h. A missed wake-up would leave both asleep until the wait ends without a record: the test fails.
"""

from __future__ import annotations

import pytest

from shm.layout import empty
from shm.ring import RingReader, RingWriter, ring_info
from tests.children import Child

pytestmark = pytest.mark.slow

HAND_OVERS = 20_000
WAIT_S = 20.0

ANSWER = """
    import sys
    from shm.layout import empty
    from shm.ring import RingReader, RingWriter

    engine, asymmetric, count, wait_s = sys.argv[1], sys.argv[2] == "True", int(sys.argv[3]), float(sys.argv[4])
    reader = RingReader.attach(engine, 2, start="oldest")
    reader.spin_ns = 0
    out, record = empty(4), bytes(128)
    with RingWriter.create(engine, 3, asymmetric=asymmetric) as writer:
        print("ready", flush=True)
        for number in range(count):
            if not reader.wait(wait_s):
                print("missed", number, flush=True)
                break
            assert reader.read(out) == 1
            writer.publish(record)
        else:
            print("done", flush=True)
        sys.stdin.readline()
"""


@pytest.mark.parametrize("asymmetric", [True, False], ids=["barrier of the sleeper", "fence of the writer"])
def test_sleepers_never_miss_a_record(engine_name: str, asymmetric: bool) -> None:
    with RingWriter.create(engine_name, 2, asymmetric=asymmetric) as writer:
        if not asymmetric:
            assert not ring_info(engine_name, 2).asymmetric
        child = Child(ANSWER, engine_name, asymmetric, HAND_OVERS, WAIT_S)
        try:
            assert child.hear() == "ready"
            out, record = empty(4), bytes(128)
            with RingReader.attach(engine_name, 3, start="oldest") as reader:
                reader.spin_ns = 0
                for number in range(HAND_OVERS):
                    writer.publish(record)
                    assert reader.wait(WAIT_S), f"hand-over {number}: asleep although there was a record"
                    assert reader.read(out) == 1
            assert child.hear() == "done"
        finally:
            child.kill()
        writer.unlink()
