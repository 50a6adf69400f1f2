"""The recorder as a process: records, resumes, tells its losses, and stands a full disk."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.children import wait_until
from tests.journals import trades
from tests.recorders import RING, Recording
from workers.journal import Journal
from workers.journal_reader import JournalReader
from workers.spec import EXIT_CLEAN


@pytest.fixture
def recording(engine_name: str, tmp_path: Path) -> Iterator[Recording]:
    made = Recording(engine_name, tmp_path / "data")
    yield made
    made.close()


def test_everything_published_is_recorded_once_and_readable_without_the_engine(recording: Recording) -> None:
    for symbol in ("AAPL", "MSFT", "IBM"):
        recording.instruments.intern(symbol)
    recording.writer.publish_batch(trades(1, 100, instruments=3))
    process = recording.start()
    for first in range(101, 20_000, 1000):
        recording.writer.publish_batch(trades(first, 1000, instruments=4))
        if first == 5101:
            recording.instruments.intern("NVDA")
        recording.wait_recorded()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CLEAN
    records = recording.records()
    assert records["sequence"].tolist() == records["trade_id"].tolist() == list(range(1, 20_101))
    counters = recording.counters
    assert counters["records_stored"] == counters["records_read"] == 20_100
    assert (counters["gaps"], counters["records_lost"]) == (0, 0)
    reader = JournalReader(recording.folder / "journal")
    assert [reader.symbol(1, instrument) for instrument in range(5)] == ["AAPL", "MSFT", "IBM", "NVDA", ""]


@pytest.mark.parametrize("fsync", ["none", "interval", "always"])
def test_every_policy_records_what_it_reports(recording: Recording, fsync: str) -> None:
    process = recording.start(fsync=fsync, fsync_interval_s=0.01)
    for first in range(1, 5000, 500):
        recording.writer.publish_batch(trades(first, 500))
        recording.wait_recorded()
        assert len(recording.records()) == first + 499
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == EXIT_CLEAN
    assert bool(recording.block.processes()[0].histograms["fsync"].count) == (fsync != "none")


def test_what_the_ring_lost_becomes_a_gap(recording: Recording) -> None:
    process = recording.start()
    recording.writer.publish_batch(trades(1, 500))
    recording.wait_recorded()
    recording.kill(process)
    for first in range(501, 40_501, 4000):  # more than twice round the ring
        recording.writer.publish_batch(trades(first, 4000))
    recording.start()
    recording.wait_recorded()
    blocks = recording.blocks()
    gaps = [(block.header.first_sequence, block.header.next_sequence) for block in blocks if block.is_gap]
    assert len(gaps) == 1
    assert gaps[0][0] == 501
    wanted = [*range(1, 501), *range(gaps[0][1], 40_501)]
    assert recording.records()["sequence"].tolist() == wanted
    wait_until(lambda: recording.counters.get("gaps", 0) == 1, "the gap is counted")
    assert recording.counters["records_lost"] == gaps[0][1] - 501


def test_a_folder_held_by_another_recorder_is_waited_for_without_loss(recording: Recording) -> None:
    other = Journal(recording.folder / "journal")
    recording.start()
    assert recording.stalled()
    recording.writer.publish_batch(trades(1, 50))
    other.close()
    recording.wait_recorded()
    assert recording.records()["sequence"].tolist() == list(range(1, 51))
    wait_until(lambda: not recording.stalled(), "it says that it records again")


def test_a_full_disk_is_told_and_recording_goes_on_where_it_stood(engine_name: str, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root")
    recording = Recording(engine_name, disk, depth_slots=1 << 12)
    try:
        process = recording.start(retention_hours=0, max_journal_bytes=0)
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(600_000))
        recording.writer.publish_batch(trades(1, 2000))
        recording.wait_recorded()
        recording.writer.publish_batch(trades(2001, 2000))  # 256 KB: does not fit any more
        wait_until(recording.stalled, "it says that it can not write")
        assert recording.counters["store_errors"] > 0
        held = recording.recorded
        assert 2000 <= held < 4000
        assert recording.records()["sequence"].tolist() == list(range(1, held + 1))
        assert process.poll() is None
        ballast.unlink()
        recording.wait_recorded()
        assert recording.records()["sequence"].tolist() == list(range(1, 4001))
        wait_until(lambda: not recording.stalled(), "it says that it records again")
        assert recording.counters["records_lost"] == 0
        assert process.poll() is None
    finally:
        recording.close()
        subprocess.run(["umount", str(disk)], check=True)


def test_a_new_ring_of_the_same_number_begins_a_new_stream(recording: Recording, engine_name: str) -> None:
    process = recording.start()
    recording.writer.publish_batch(trades(1, 10))
    recording.wait_recorded()
    recording.kill(process)
    recording.writer.close()
    recording.writer.unlink()
    recording.writer = type(recording.writer).create(engine_name, RING, depth_slots=1 << 12)
    recording.writer.publish_batch(trades(1, 4))
    recording.start()
    recording.wait_recorded()
    by_stream: dict[int, list[int]] = {}
    for block in recording.blocks():
        by_stream.setdefault(block.header.stream, []).extend(block.records["sequence"].tolist())
    assert list(by_stream.values()) == [list(range(1, 11)), [1, 2, 3, 4]]
