"""The mirror as a process: what the journal has gets into the store through every fault of either and of itself."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.children import wait_until
from tests.journals import NOW, STREAM, trades
from tests.mirrors import RING, SYMBOLS, Mirroring
from tests.servers import PostgresServer, RedisServer
from workers.journal_follower import JournalFollower
from workers.journal_reader import list_segments
from workers.spec import EXIT_CLEAN
from workers.tier import TierDown, Wanted

ANY = Wanted(SYMBOLS[1], None, None, None, None, 10)


@pytest.fixture(params=["redis", "postgres", "timescale"])
def mirroring(request: pytest.FixtureRequest, engine_name: str, tmp_path: Path) -> Iterator[Mirroring]:
    """With a server of its own, not started."""
    server = RedisServer() if request.param == "redis" else PostgresServer(timescale=request.param == "timescale")
    made = Mirroring(engine_name, tmp_path, server)
    yield made
    made.close()
    server.close()


def stored_once(mirroring: Mirroring) -> None:
    """Every record of the journal is in the store, once, bit by bit."""
    raw = mirroring.raw()
    assert np.array_equal(raw["sequence"], np.arange(1, mirroring.next))
    assert np.array_equal(raw["trade_id"], raw["sequence"])


def test_a_store_that_comes_late_gets_everything(mirroring: Mirroring) -> None:
    mirroring.append(trades(1, 1000))
    mirroring.start()
    wait_until(lambda: mirroring.view.counters.get("store_errors", 0) > 0, "it is told that there is no store")
    wait_until(lambda: mirroring.view.gauges.get("lag_records", 0) >= 1000, "it says how far behind it is")
    assert mirroring.view.gauges["store_down"] == 1
    assert mirroring.view.gauges["lag_seconds"] > 0
    mirroring.server.start()
    mirroring.wait_stored()
    wait_until(lambda: not mirroring.view.gauges["lag_records"], "it says that it has caught up")
    wait_until(lambda: not mirroring.view.gauges["store_down"], "it says that the store is there")
    assert mirroring.view.counters["records_stored"] == 1000
    stored_once(mirroring)


def test_a_store_killed_under_load_has_each_record_once_when_it_is_back(mirroring: Mirroring) -> None:
    mirroring.server.start()
    mirroring.start(max_batch_records=256)
    chance = random.Random(3)
    for _ in range(3):
        for _ in range(20):
            mirroring.append(trades(mirroring.next, chance.randint(1, 300)))
        target = mirroring.view.counters.get(f"stored.{RING}", 0) + chance.randint(1, 2000)
        wait_until(
            lambda target=target: mirroring.view.counters.get(f"stored.{RING}", 0) >= min(target, mirroring.next - 1),
            "it has stored some",
        )
        mirroring.server.kill()
        for _ in range(20):
            mirroring.append(trades(mirroring.next, chance.randint(1, 300)))
        mirroring.server.start()
        mirroring.wait_stored()
    stored_once(mirroring)
    assert mirroring.view.counters["reconnects"] >= 3
    assert mirroring.view.counters["records_lost"] == 0
    assert mirroring.process is not None
    mirroring.process.send_signal(signal.SIGTERM)
    assert mirroring.process.wait(30) == EXIT_CLEAN


def test_a_store_that_stands_still_is_waited_for_and_readers_are_told(mirroring: Mirroring) -> None:
    mirroring.server.start()
    mirroring.append(trades(1, 100))
    mirroring.start(timeout_s=1.0)
    mirroring.wait_stored()
    tier = mirroring.tier(timeout_s=0.5)
    assert len(tier.read(ANY)) == 10
    mirroring.server.pause()
    try:
        mirroring.append(trades(101, 5000))
        with pytest.raises(TierDown):
            tier.read(ANY)
        wait_until(lambda: mirroring.view.counters.get("store_errors", 0) > 0, "it breaks the call off")
        assert time.time_ns() - mirroring.view.heartbeat_ns < 10**9  # its main loop has turned all the time
    finally:
        mirroring.server.go_on()
    mirroring.wait_stored()
    stored_once(mirroring)
    assert len(mirroring.tier(timeout_s=30).read(ANY)) == 10


def test_a_mirror_that_finds_everything_stored_says_so(mirroring: Mirroring) -> None:
    mirroring.server.start()
    mirroring.append(trades(1, 100))
    store = mirroring.store()
    follower = JournalFollower(mirroring.folder / "journal")
    follower.resume(store.connect())
    store.store(follower.read(1000), NOW)  # by a mirror that died before it could tell
    store.close()
    mirroring.start()
    mirroring.wait_stored()
    assert mirroring.view.counters["records_stored"] == 0


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_each_record_in_the_store_once(mirroring: Mirroring) -> None:
    seed = int(os.environ.get("TICKENGINE_SEED", time.time_ns() % 1_000_000))
    print(f"seed {seed}")
    chance = random.Random(seed)
    mirroring.server.start()
    done = threading.Event()

    def write() -> None:  # the recorder goes on all the time
        while not done.is_set() and mirroring.next < 150_000:
            mirroring.append(trades(mirroring.next, chance.randint(1, 2000)))
            done.wait(0.002)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(8):
            mirroring.start(max_batch_records=chance.choice([1, 500, 20_000]))
            time.sleep(chance.random() * 0.3)  # not to wait for anything: any moment will do
            mirroring.kill()
    finally:
        done.set()
        writer.join()
    mirroring.start()
    mirroring.wait_stored()
    stored_once(mirroring)


def test_what_the_journal_removed_first_is_counted(mirroring: Mirroring) -> None:
    mirroring.server.start()
    mirroring.append(trades(1, 100))
    mirroring.start()
    mirroring.wait_stored()
    mirroring.kill()
    for _ in range(4):
        mirroring.append(trades(mirroring.next, 9000))  # a segment each
    segments = list_segments(mirroring.folder / "journal")
    for segment in segments[:-1]:
        segment.path.unlink()
    mirroring.start()
    mirroring.wait_stored()
    left = segments[-1].name.first_sequence
    assert left > 9000
    wait_until(lambda: mirroring.view.counters.get("records_lost", 0) == left - 101, "the loss is counted")
    assert mirroring.raw()["sequence"].tolist() == [*range(1, 101), *range(left, mirroring.next)]


def test_holes_that_the_ring_left_are_passed_and_counted(mirroring: Mirroring) -> None:
    mirroring.server.start()
    mirroring.append(trades(1, 100))
    mirroring.journal.append_gap(RING, STREAM, 1, (101, 151), NOW)
    mirroring.next = 151
    mirroring.append(trades(151, 50))
    mirroring.start()
    mirroring.wait_stored()
    assert mirroring.raw()["sequence"].tolist() == [*range(1, 101), *range(151, 201)]
    wait_until(lambda: mirroring.view.counters.get("gaps", 0) == 1, "the gap is counted")
    assert mirroring.view.counters["records_lost"] == 0


def test_a_full_redis_is_told_and_filled_up_once_there_is_room(engine_name: str, tmp_path: Path) -> None:
    server = RedisServer("--maxmemory", "4mb", "--maxmemory-policy", "noeviction")
    server.start()
    made = Mirroring(engine_name, tmp_path, server)
    try:
        made.start(max_batch_records=2000)
        for _ in range(10):
            made.append(trades(made.next, 5000))
        wait_until(lambda: made.view.counters.get("store_errors", 0) > 0, "it is told that Redis is full")
        server.client().config_set("maxmemory", 0)
        made.wait_stored()
        stored_once(made)
    finally:
        made.close()
        server.close()


def test_a_password_opens_redis_and_is_in_no_output(
    engine_name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    server = RedisServer("--requirepass", "hush hush")
    server.start()
    made = Mirroring(engine_name, tmp_path, server)
    try:
        made.append(trades(1, 100))
        made.start(password="wrong guess")
        wait_until(lambda: made.view.counters.get("store_errors", 0) > 0, "it is refused")
        made.kill()
        made.start(password="hush hush")
        made.wait_stored()
    finally:
        made.close()
        server.close()
    told = capfd.readouterr()
    assert "Redis" in told.err
    assert "hush" not in told.err + told.out
    assert "wrong" not in told.err + told.out
