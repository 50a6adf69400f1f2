"""The status block: slots by label, numbers that survive a restart, views that everyone can read."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shm import _status
from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentExists, SegmentMissing, ShmFull, WriterBusy
from shm.histogram import HistogramView
from shm.segment import Segment, segment_name
from shm.status import ProcessState, RingEntry, StatusBlock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def block(engine_name: str) -> Iterator[StatusBlock]:
    made = StatusBlock.create(engine_name, process_slots=4)
    yield made
    made.close()
    made.unlink()


def test_what_a_process_says_is_seen_through_another_mapping(block: StatusBlock, engine_name: str) -> None:
    mine = block.register("ingest-0", "ingest", 4321, started_ns=1_000)
    mine.state = ProcessState.READY
    mine.heartbeat(5_000)
    mine.core = 3
    mine.placement = "pinned to core 3"
    mine.counter("records_published").add(7)
    mine.gauge("fill").set(0.25)
    mine.histogram("ring_latency").record(100)

    seen = StatusBlock.attach(engine_name).process("ingest-0")

    assert seen is not None
    assert (seen.label, seen.role, seen.pid, seen.alive) == ("ingest-0", "ingest", 4321, True)
    assert (seen.state, seen.heartbeat_ns, seen.started_ns) == (ProcessState.READY, 5_000, 1_000)
    assert (seen.core, seen.placement, seen.restarts) == (3, "pinned to core 3", 0)
    assert seen.counters == {"records_published": 7}
    assert seen.gauges == {"fill": 0.25}
    assert seen.histograms["ring_latency"].count == 1


def test_a_fresh_process_is_starting_unpinned_and_alive(block: StatusBlock) -> None:
    block.register("cache", "cache")
    [seen] = block.processes()
    assert (seen.state, seen.core, seen.placement, seen.pid) == (ProcessState.STARTING, -1, "", os.getpid())
    assert seen.alive
    assert seen.heartbeat_ns == seen.started_ns > 0


def test_the_same_label_takes_its_old_slot_and_its_counters_go_on(block: StatusBlock, engine_name: str) -> None:
    block.register("other", "fanout")
    first = block.register("ingest-0", "ingest")
    first.counter("a").add(1)
    first.counter("b").add(20)
    first.histogram("h").record(9)
    first.placement = "core 1"
    first.close()

    again = StatusBlock.attach(engine_name, write=True).register("ingest-0", "ingest", 99)
    again.counter("b").add(3)

    assert [view.label for view in block.processes()] == ["other", "ingest-0"]
    seen = block.processes()[1]
    assert seen.counters == {"a": 1, "b": 23}
    assert seen.histograms["h"].count == 1
    assert (seen.pid, seen.placement) == (99, "")


def test_a_label_of_a_living_process_can_not_be_taken(block: StatusBlock, engine_name: str) -> None:
    block.register("ingest-0", "ingest", 77)
    with pytest.raises(WriterBusy, match=r"ingest-0.*77"):
        StatusBlock.attach(engine_name, write=True).register("ingest-0", "ingest")


def test_a_killed_process_is_seen_as_dead_and_its_numbers_remain(block: StatusBlock, engine_name: str) -> None:
    code = (
        "import sys; from shm.status import StatusBlock\n"
        f"status = StatusBlock.attach({engine_name!r}, write=True).register('victim', 'ingest')\n"
        "status.counter('records_published').add(41)\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    before = block.process("victim")
    child.kill()
    child.communicate()

    after = block.process("victim")
    assert before is not None
    assert after is not None
    assert (before.alive, after.alive) == (True, False)
    assert after.counters == {"records_published": 41}
    assert block.register("victim", "ingest").counter("records_published").value == 41


def test_numbers_taken_from_a_closed_block_still_count_safely(engine_name: str) -> None:
    block = StatusBlock.create(engine_name)
    watcher = StatusBlock.attach(engine_name)
    mine = block.register("w", "ingest")
    counter, gauge, histogram = mine.counter("c"), mine.gauge("g"), mine.histogram("h")
    block.close()
    block.unlink()
    del block, mine

    counter.add(2)
    gauge.set(1.5)
    histogram.record(7)

    seen = watcher.process("w")
    assert seen is not None
    assert (seen.counters, seen.gauges, seen.alive) == ({"c": 2}, {"g": 1.5}, False)


def test_full_tables_are_clear_errors(block: StatusBlock) -> None:
    for index in range(4):
        block.register(f"p{index}", "x")
    with pytest.raises(ShmFull, match="all 4 process slots"):
        block.register("one more", "x")
    block.close()
    mine = block.register("p0", "x")
    for index in range(_status.COUNTERS):
        mine.counter(f"c{index}").add(index)
    with pytest.raises(ShmFull, match="all 1024"):
        mine.counter("one more")
    with pytest.raises(ShmFull, match="all 8"):
        [mine.histogram(f"h{index}") for index in range(9)]
    seen = block.process("p0")
    assert seen is not None
    assert seen.counters == {f"c{index}": index for index in range(1024)}


@pytest.mark.parametrize("name", ["", "x" * 48, "line\nbreak"])
def test_unusable_names_are_refused(block: StatusBlock, name: str) -> None:
    mine = block.register("p", "x")
    with pytest.raises(BadArgument):
        mine.counter(name)
    with pytest.raises(BadArgument):
        block.register(name, "x")


def test_names_that_begin_alike_are_different(block: StatusBlock) -> None:
    mine = block.register("p", "x")
    mine.counter("feed.1.records").add(1)
    mine.counter("feed.1.record").add(2)
    mine.counter("feed.1.records").add(4)
    seen = block.process("p")
    assert seen is not None
    assert seen.counters == {"feed.1.records": 5, "feed.1.record": 2}


def test_the_longest_names_and_labels_come_back_whole(block: StatusBlock) -> None:
    mine = block.register("L" * 31, "R" * 31)
    mine.counter("n" * 47).add()
    mine.counter("m" * 47).add()
    mine.placement = "ü" * 20  # 40 bytes: cut between characters
    [seen] = block.processes()
    assert (seen.label, seen.role, seen.placement) == ("L" * 31, "R" * 31, "ü" * 15)
    assert seen.counters == {"n" * 47: 1, "m" * 47: 1}


def test_counters_hold_nanoseconds_exactly(block: StatusBlock) -> None:
    counter = block.register("p", "x").counter("feed.1.last_update_ns")
    counter.set(1_763_700_000_123_456_789)
    assert counter.value == 1_763_700_000_123_456_789


def test_the_supervisor_writes_restarts_state_and_retires(block: StatusBlock) -> None:
    block.register("w", "x").close()
    assert block.set_restarts("w", 3)
    assert block.set_state("w", ProcessState.FAILED)
    assert not block.set_restarts("never seen", 1)
    [seen] = block.processes()
    assert (seen.restarts, seen.state, seen.alive) == (3, ProcessState.FAILED, False)
    assert block.retire("w")
    assert block.processes() == []
    assert [view.label for view in block.processes(retired=True)] == ["w"]
    block.register("w", "x")
    assert [view.restarts for view in block.processes()] == [3]


def test_engine_wide_fields_and_the_directory_of_rings(block: StatusBlock, engine_name: str) -> None:
    block.set_engine(control_pid=12, started_ns=34, config_digest=2**63 + 1)
    block.set_ring(0, "control", "control")
    block.set_ring(15, "ingest-13", "ingest")
    block.set_facts({"http": "http://127.0.0.1:8800"})
    block.set_shutdown()
    seen = StatusBlock.attach(engine_name)
    assert (seen.control_pid, seen.started_ns, seen.config_digest, seen.shutdown) == (12, 34, 2**63 + 1, True)
    assert seen.rings() == {0: RingEntry("control", "control"), 15: RingEntry("ingest-13", "ingest")}
    assert seen.facts == {"http": "http://127.0.0.1:8800"}
    block.set_facts({})
    assert seen.facts == {}
    with pytest.raises(BadArgument, match=r"0\.\.15"):
        block.set_ring(16, "x", "y")
    with pytest.raises(BadArgument, match="1024"):
        block.set_facts({"x": "y" * 1024})


def test_reading_needs_no_write_access_and_gives_none(block: StatusBlock, engine_name: str) -> None:
    reader = StatusBlock.attach(engine_name)
    with pytest.raises(NotAllowed, match="read-only"):
        reader.register("p", "x")
    block.register("p", "x")
    with pytest.raises(NotAllowed):
        reader.set_restarts("p", 1)


def test_create_or_attach_keeps_what_is_there(engine_name: str) -> None:
    first = StatusBlock.create_or_attach(engine_name)
    first.register("p", "x").counter("c").add(5)
    first.close()
    with pytest.raises(SegmentExists):
        StatusBlock.create(engine_name)
    second = StatusBlock.create_or_attach(engine_name)
    assert second.register("p", "x").counter("c").value == 5
    second.unlink()


def test_attach_says_what_is_wrong(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        StatusBlock.attach(engine_name)
    segment = Segment.create(segment_name(engine_name, "stat"), 8192)
    with pytest.raises(SegmentMissing, match="never completed"):
        StatusBlock.attach(engine_name)
    struct.pack_into("<QII", segment.buf, 0, _status.MAGIC, 99, 4)
    with pytest.raises(LayoutMismatch, match=r"version 99.*this build has .* version 1"):
        StatusBlock.attach(engine_name)
    struct.pack_into("<QIIQQ", segment.buf, 0, _status.MAGIC, _status.VERSION, 4, _status.PROCESS_BYTES, 1 << 20)
    with pytest.raises(LayoutMismatch, match="header says 1048576"):
        StatusBlock.attach(engine_name)


# ---- histograms


def test_bucket_edges_cover_every_value_once() -> None:
    uppers = _status.bucket_uppers()
    assert len(uppers) == _status.BUCKETS
    assert np.all(np.diff(uppers.astype(np.int64)) > 0)
    for bucket, upper in enumerate(uppers.tolist()):
        assert _status.bucket_of(upper) == bucket
        if bucket + 1 < _status.BUCKETS:
            assert _status.bucket_of(upper + 1) == bucket + 1
    assert uppers[-1] == 2**42 - 1
    assert _status.bucket_of(2**63) == _status.BUCKETS - 1


def test_percentiles_are_within_one_bucket_of_the_exact_ones(block: StatusBlock) -> None:
    durations = np.random.default_rng(7).lognormal(8, 2, 20_000).astype(np.int64)
    histogram = block.register("p", "x").histogram("ring_latency")
    histogram.record_many(durations)
    view = histogram.snapshot()
    assert (view.count, view.sum_ns) == (len(durations), durations.sum())
    assert (view.min, view.max) == (durations.min(), durations.max())
    for q in (0, 1, 50, 90, 99, 99.9, 100):
        exact = int(np.percentile(durations, q, method="inverted_cdf"))
        assert exact <= view.percentile(q) <= exact * (1 + 1 / 32) + 1


def test_record_and_record_many_agree(block: StatusBlock) -> None:
    mine = block.register("p", "x")
    values = np.array([0, 1, 63, 64, 65, 10**6, 2**42, 2**50, -5], dtype=np.int64)
    one, many = mine.histogram("one"), mine.histogram("many")
    for value in values.tolist():
        one.record(value)
    many.record_many(values[::-1])
    a, b = one.snapshot(), many.snapshot()
    assert np.array_equal(a.counts, b.counts)
    assert (a.sum_ns, a.min, a.max) == (b.sum_ns, b.min, b.max) == (1_000_193 + 2**42 + 2**50, 0, 2**50)
    assert a.percentile(100) == 2**50


def test_buckets_are_cumulative_and_end_at_the_count(block: StatusBlock) -> None:
    histogram = block.register("p", "x").histogram("h")
    histogram.record_many(np.array([5, 5, 5, 1000, 10**9], dtype=np.int64))
    view = histogram.snapshot()
    buckets = list(view.buckets())
    assert buckets[0] == (5, 3)
    assert [count for _, count in buckets] == [3, 4, 5]
    assert view.cumulative([4, 5, 999, 2_000, 2**42]) == [0, 3, 3, 4, 5]


def test_the_difference_of_two_views_is_the_window_between(block: StatusBlock) -> None:
    histogram = block.register("p", "x").histogram("h")
    histogram.record_many(np.array([10, 10**9], dtype=np.int64))
    before = histogram.snapshot()
    assert (before - before).count == 0
    histogram.record_many(np.array([1_000, 1_000, 1_000], dtype=np.int64))
    window = histogram.snapshot() - before
    assert (window.count, window.sum_ns) == (3, 3_000)
    assert window.min <= 1_000 <= window.max
    assert window.percentile(50) == pytest.approx(1_000, rel=1 / 32)
    both = window + before
    assert (both.count, both.min, both.max) == (5, 10, 10**9)


def test_an_empty_view_answers_zero() -> None:
    empty = HistogramView.empty()
    assert (empty.count, empty.min, empty.max, empty.mean, empty.percentile(99)) == (0, 0, 0, 0.0, 0)
    assert list(empty.buckets()) == []
    with pytest.raises(ValueError, match="outside"):
        empty.percentile(101)


# ---- the header by itself


@pytest.mark.parametrize("compiler", ["cc", "aarch64-linux-gnu-gcc"])
def test_the_header_is_plain_c11_on_its_own(tmp_path: Path, compiler: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source = tmp_path / "alone.c"
    source.write_text('#include "shm/status.h"\nint main(void) { return 0; }\n')
    command = [compiler, "-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{ROOT}", "-c", str(source)]
    done = subprocess.run([*command, "-o", str(tmp_path / "alone.o")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
