"""The reading side of a ring: batches into the caller's array, exact gaps, late attach, what others see of a reader."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest

from shm.errors import BadArgument, SegmentMissing, ShmFull
from shm.layout import RECORD, Flag, empty
from shm.ring import RingReader, RingWriter, create_ring, list_readers
from tests.children import wait_until
from tests.records import PERIOD, broken, sealed


def test_read_fills_the_callers_array_up_to_its_room_and_limit(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=256) as writer, RingReader.attach(engine_name, 0) as reader:
        out = empty(50)
        assert reader.read(out) == 0
        writer.publish_batch(sealed(120))
        assert (reader.read(out, 7), reader.read(out, 0), reader.read(out), reader.read(out, 1000)) == (7, 0, 50, 50)
        assert out["sequence"].tolist() == list(range(58, 108))
        assert broken(out) == 0
        assert (reader.sequence, reader.lag, reader.published) == (108, 13, 120)
        view = np.zeros(130, np.uint8)
        assert reader.read(view) == 1  # any writable bytes will do, aligned or not
        assert view[:8].view(np.uint64)[0] == 108
        assert reader.gap is None


def test_bad_arrays_are_named_clearly_and_the_reader_stays_usable(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(4))
        frozen = empty(4)
        frozen.flags.writeable = False
        short = bytearray(127)
        for out, words in (
            (frozen, "out must be contiguous memory.*read-only"),
            (empty(8)[::2], "out must be contiguous memory"),
            (np.zeros(64), "out has items of 8 bytes, a record has 128"),
            (short, "out has less than 128 bytes"),
            (short, "out has less than 128 bytes"),
            (b"x" * 128, "out must be contiguous memory"),
            (None, "out must be contiguous memory"),
        ):
            with pytest.raises(BadArgument, match=words):
                reader.read(out)
        assert reader.read(empty(4)) == 4


def test_iteration_gives_each_record_once_as_a_copy(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        records = sealed(10)
        records["text"][3] = b"status text of forty bytes, all of it!!!"
        writer.publish_batch(records)
        got = list(itertools.islice(iter(reader), 10))
        writer.publish_batch(sealed(40))
        assert [int(one["sequence"]) for one in got] == list(range(1, 11))
        assert got[3]["text"] == b"status text of forty bytes, all of it!!!"
        assert got[0].dtype == RECORD


def test_batches_end_after_the_timeout_and_go_on_later(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(10))
        assert [len(batch) for batch in reader.batches(0.0, slots=4)] == [4, 4, 2]
        writer.publish(sealed(1))
        assert [len(batch) for batch in reader.batches(0.0)] == [1]


def test_reader_reports_exact_gap_when_lapped_and_resumes_half_a_ring_behind(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(10))
        out = empty(64)
        assert reader.read(out, 4) == 4
        writer.publish_batch(sealed(200, first=10))
        assert reader.poll()
        assert reader.read(out) == 33
        assert reader.gap == (5, 210 - 32)
        assert (reader.lost, reader.overruns_polling, reader.overruns_reading) == (173, 1, 0)
        assert out["sequence"][:33].tolist() == list(range(178, 211))
        assert out["flags"][0] & Flag.GAP_BEFORE
        assert not (out["flags"][1:33] & Flag.GAP_BEFORE).any()
        out["flags"][0] = 0
        assert broken(out[:33]) == 0
        assert reader.read(out) == 0
        assert reader.gap is None
        assert 4 + 33 + reader.lost == writer.next_sequence - 1


def test_record_at_the_edge_of_the_ring_is_read_and_one_further_back_is_a_gap(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        for _ in range(64):
            writer.publish(sealed(1))
        out = empty(1)
        assert reader.read(out) == 1
        assert reader.gap is None
        writer.publish(bytes(128))
        writer.publish(bytes(128))
        assert reader.read(out) == 1
        assert reader.gap == (2, 34)


def test_overrun_while_copying_is_counted_apart_and_returns_nothing_torn(engine_name: str) -> None:
    depth = 1 << 14
    with RingWriter.create(engine_name, 0, depth_slots=depth) as writer, RingReader.attach(engine_name, 0) as reader:
        pool = sealed(PERIOD)
        writer.publish_batch(np.tile(pool.view(np.uint8), 5))
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                writer.publish_batch(pool)

        thread = threading.Thread(target=write)
        thread.start()
        out = empty(depth)
        returned = lost = 0
        start = reader.sequence
        try:

            def step_back_and_read() -> bool:
                nonlocal returned, lost, start
                behind = reader.published - depth + 256
                lost += behind - reader.sequence
                reader.seek(behind)
                count = reader.read(out)
                returned += count
                out["flags"][0] = 0
                assert broken(out[:count]) == 0
                assert (np.diff(out["sequence"][:count]) == 1).all()
                assert reader.gap is None or out["sequence"][0] == reader.gap[1]
                return reader.overruns_reading > 0 and reader.overruns_polling > 0

            wait_until(step_back_and_read, "a batch is overrun while it is copied")
        finally:
            stop.set()
            thread.join()
        assert returned + reader.lost + lost == reader.sequence - start


def test_late_reader_starts_at_the_newest_the_oldest_or_a_sequence(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer:
        first = {}
        out = empty(1)
        for start in ("newest", "oldest", 1):
            with RingReader.attach(engine_name, 0, start=start) as reader:
                assert reader.read(out) == 0
        writer.publish_batch(sealed(100))
        for start in ("newest", "oldest", 90, 101, 3):
            with RingReader.attach(engine_name, 0, start=start) as reader:
                first[start] = (reader.sequence, reader.read(out), reader.gap)
        assert first["newest"] == (101, 0, None)
        assert first["oldest"] == (101 - 48, 1, None)
        assert first[90] == (90, 1, None)
        assert first[101] == (101, 0, None)
        assert first[3] == (3, 1, (3, 68))
        for start in (0, -1, 102, True, "middle", 2.5):
            with pytest.raises(BadArgument, match="start is"):
                RingReader.attach(engine_name, 0, start=start)  # type: ignore[arg-type]
        assert list_readers(engine_name, 0) == []


def test_seek_goes_anywhere_in_the_ring(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(30))
        out = empty(64)
        for start, sequence in (("oldest", 1), (17, 17), ("newest", 31), (31, 31)):
            reader.seek(start)
            assert (reader.sequence, reader.read(out)) == (sequence, 31 - sequence)
            assert list_readers(engine_name, 0)[0].cursor == 31
        with pytest.raises(BadArgument, match=r"start is 32, the newest record of ring .* is 30"):
            reader.seek(32)


def test_record_that_is_stamped_but_not_announced_yet_can_be_sought_past(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    from shm.segment import Segment, segment_name

    with RingWriter.open(engine_name, 0) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(5))
        segment = Segment.attach(segment_name(engine_name, "r0"), write=True)
        segment.buf[256:264] = (3).to_bytes(8, "little")  # as between the stamps and `published` of a batch
        reader.seek(6)
        assert reader.sequence == 6
        with pytest.raises(BadArgument):
            reader.seek(7)
        segment.close()


def test_record_read_in_place_is_believed_only_while_the_ring_holds_it(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(10))
        assert int(reader.slots[7]["source_sequence"]) == 6
        assert reader.holds(7)
        assert not reader.holds(11)
        writer.publish_batch(sealed(64))
        assert not reader.holds(7)
        with pytest.raises(ValueError, match="read-only"):
            reader.slots["price"] = 1.0


def test_registered_reader_is_seen_with_its_lag_and_losses_until_it_closes(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer:
        reader = RingReader.attach(engine_name, 0, label="strategy äöü")
        other = RingReader.attach(engine_name, 0)
        writer.publish_batch(sealed(100))
        out = empty(8)
        reader.read(out)
        (seen, plain) = list_readers(engine_name, 0)
        assert (seen.label, seen.pid, seen.alive) == ("strategy äöü", os.getpid(), True)
        assert (seen.cursor, seen.lag, seen.lost) == (reader.sequence, reader.lag, reader.lost) == (76, 25, 67)
        assert (seen.overruns_polling, seen.overruns_reading, seen.reads) == (1, 0, 1)
        assert (seen.reliable, seen.demoted) == (False, False)
        assert plain.label == f"pid {os.getpid()}"
        reader.close()
        assert [one.index for one in list_readers(engine_name, 0)] == [1]
        other.close()
        assert list_readers(engine_name, 0) == []


def test_closed_reader_refuses_to_read_and_closes_twice(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    reader = RingReader.attach(engine_name, 0)
    reader.read(empty(1))
    reader.close()
    reader.close()
    for use in (lambda: reader.read(empty(1)), reader.poll, lambda: reader.wait(0), lambda: reader.seek("newest")):
        with pytest.raises(BadArgument, match="the reader is closed"):
            use()


def test_reader_table_has_63_lines_and_says_when_it_is_full(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    readers = [RingReader.attach(engine_name, 0) for _ in range(63)]
    with pytest.raises(ShmFull, match="all 63 reader lines"):
        RingReader.attach(engine_name, 0)
    with RingReader.attach(engine_name, 0, register=False) as unseen:
        assert not unseen.poll()
    readers.pop(20).close()
    with RingReader.attach(engine_name, 0):
        assert {one.index for one in list_readers(engine_name, 0)} == set(range(63))
    for reader in readers:
        reader.close()


def test_unregistered_reader_reads_without_being_seen(engine_name: str) -> None:
    with (
        RingWriter.create(engine_name, 0, depth_slots=64) as writer,
        RingReader.attach(engine_name, 0, register=False) as reader,
    ):
        assert list_readers(engine_name, 0) == []
        writer.publish_batch(sealed(5))
        assert reader.wait(0)
        assert reader.read(empty(8)) == 5


def test_reader_maps_header_and_slots_read_only(engine_name: str) -> None:
    if not os.path.exists("/proc/self/maps"):
        pytest.skip("no /proc/self/maps here")
    create_ring(engine_name, 0, depth_slots=256)
    with RingReader.attach(engine_name, 0) as reader, open("/proc/self/maps") as maps:
        mine = [line.split() for line in maps if reader.name.strip("/") in line]
    writable = [(int(line[2], 16), sum(_size(line[0]))) for line in mine if "w" in line[1]]
    assert mine
    assert writable == [(16384, 16384)]


def _size(span: str) -> tuple[int, int]:
    start, end = span.split("-")
    return -int(start, 16), int(end, 16)


def test_attach_to_nothing_says_so(engine_name: str) -> None:
    with pytest.raises(SegmentMissing, match="is the engine running under this name"):
        RingReader.attach(engine_name, 0)
