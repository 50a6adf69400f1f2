"""The writing side of a ring: what a published record looks like, what can be published, who may publish."""

from __future__ import annotations

import numpy as np
import pytest

from shm.errors import BadArgument, SegmentExists, SegmentMissing, WriterBusy
from shm.layout import RECORD, Flag, RecordType, StatusCode, concatenate, empty
from shm.ring import RingReader, RingWriter, create_ring, ring_info, status_record
from shm.segment import list_segments
from tests.children import Child
from tests.records import broken, sealed


def test_single_publish_stamps_sequence_and_time_in_the_ring_and_leaves_the_callers_record_alone(
    engine_name: str,
) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        records = sealed(3)
        before = records.tobytes()
        assert [writer.publish(record) for record in (records[:1], records[1].tobytes(), records[2])] == [1, 2, 3]
        assert records.tobytes() == before
        out = empty(8)
        assert reader.read(out) == 3
        assert out["sequence"][:3].tolist() == [1, 2, 3]
        assert broken(out[:3]) == 0
        assert (np.diff(out["ts_publish"][:3]) >= 0).all()
        assert abs(int(out["ts_publish"][0]) - ring_info(engine_name, 0).created_ns) < 60 * 10**9


@pytest.mark.parametrize("count", [1, 15, 16, 17, 64, 65, 1000])
def test_batch_of_any_size_arrives_whole_and_in_order(engine_name: str, count: int) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        assert writer.publish_batch(sealed(count)) == 1
        assert writer.next_sequence == count + 1
        assert ring_info(engine_name, 0).published == count
        out = empty(64)
        got = reader.read(out)
        assert got == (count if count <= 64 else 33)
        assert out["sequence"][:got].tolist() == list(range(count - got + 1, count + 1))
        out["flags"][0] = 0
        assert broken(out[:got]) == 0


def test_batch_publishes_as_many_as_count_says_and_nothing_for_none(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer:
        records = sealed(10)
        assert writer.publish_batch(records, 4) == 1
        assert writer.publish_batch(records, 0) == 0
        assert writer.publish_batch(records[:0]) == 0
        assert writer.publish_batch(records[4:6].tobytes()) == 5
        assert writer.publish_batch(memoryview(records[6:].tobytes())) == 7
        assert writer.next_sequence == 11


def test_bad_buffers_are_named_clearly(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer:
        records = sealed(8)
        for record, words in (
            (b"short", "record has 5 bytes, a record has 128"),
            (bytes(256), "record has 256 bytes"),
            (bytearray(127), "record has 127 bytes"),
            (records[:2], "record has 256 bytes"),
            (7, "record must be contiguous memory"),
            (None, "record must be contiguous memory"),
        ):
            with pytest.raises(BadArgument, match=words):
                writer.publish(record)
        for batch, words in (
            (records[::2], "records must be contiguous memory"),
            (np.zeros(4), "records have 8 bytes each"),
            (bytes(130), "records have 130 bytes in all"),
            ([records], "records must be contiguous memory"),
        ):
            with pytest.raises(BadArgument, match=words):
                writer.publish_batch(batch)
        with pytest.raises(BadArgument, match="count is 9, but records holds 8"):
            writer.publish_batch(records, 9)
        assert writer.next_sequence == 1
        assert writer.publish(records[0]) == 1


def test_concatenated_batches_keep_the_record_layout() -> None:
    records = sealed(6)
    records["text"][1] = b"a status text beyond every field of a tick"[:40]
    joined = concatenate([records[:2], records[2:]])
    assert joined.dtype == RECORD
    assert joined.tobytes() == records.tobytes()


def test_closed_writer_refuses_to_publish_and_closes_twice(engine_name: str) -> None:
    writer = RingWriter.create(engine_name, 0, depth_slots=64)
    writer.publish(bytes(128))
    writer.close()
    writer.close()
    for publish, argument in ((writer.publish, bytes(128)), (writer.publish_batch, sealed(2))):
        with pytest.raises(BadArgument, match="the writer is closed"):
            publish(argument)
    writer.unlink()
    writer.unlink()
    assert list_segments(engine_name) == []


def test_ring_has_one_writer_and_the_second_learns_who_it_is(engine_name: str) -> None:
    script = """
        import sys
        from shm.ring import RingWriter
        writer = RingWriter.create(sys.argv[1], 4, depth_slots=64)
        print("ready")
        sys.stdin.readline()
        writer.close()
        print("closed")
        sys.stdin.readline()
    """
    with Child(script, engine_name) as child:
        assert child.hear() == "ready"
        with pytest.raises(WriterBusy, match=f"process {child.pid}"):
            RingWriter.open(engine_name, 4)
        assert ring_info(engine_name, 4).writer_alive
        child.say("close")
        assert child.hear() == "closed"
        assert not ring_info(engine_name, 4).writer_alive
        with RingWriter.open(engine_name, 4) as writer:
            with pytest.raises(WriterBusy):
                RingWriter.open(engine_name, 4)
            assert (writer.epoch, writer.restarted) == (2, False)


def test_create_and_open_say_what_is_there_and_what_is_not(engine_name: str) -> None:
    with pytest.raises(SegmentMissing, match=engine_name):
        RingWriter.open(engine_name, 5)
    create_ring(engine_name, 5, depth_slots=64)
    with pytest.raises(SegmentExists, match=engine_name):
        create_ring(engine_name, 5, depth_slots=64)
    with RingWriter.create_or_open(engine_name, 5, depth_slots=1024) as writer:
        assert (writer.depth_slots, writer.epoch, writer.restarted) == (64, 1, False)
    with RingWriter.create_or_open(engine_name, 6, depth_slots=1024) as writer:
        assert writer.depth_slots == 1024
    assert len(list_segments(engine_name)) == 2


@pytest.mark.parametrize("options", [{"depth_slots": 0}, {"depth_slots": 8}, {"depth_slots": 100}, {"ring_id": 16}])
def test_unusable_ring_options_are_refused_and_leave_nothing(engine_name: str, options: dict[str, int]) -> None:
    arguments = {"ring_id": 0, "depth_slots": 64, **options}
    with pytest.raises(BadArgument, match=f"{next(iter(options))} is {next(iter(options.values()))}"):
        create_ring(engine_name, arguments["ring_id"], depth_slots=arguments["depth_slots"])
    assert list_segments(engine_name) == []


def test_header_says_what_the_ring_is(engine_name: str) -> None:
    with RingWriter.create(engine_name, 7, depth_slots=128, wakeups=False) as writer:
        info = ring_info(engine_name, 7)
        assert (info.name, info.ring_id, info.depth_slots) == (writer.name, 7, 128)
        assert (info.wakeups, info.epoch, info.published, info.writer_alive) == (False, 1, 0, True)
        assert info.size_bytes >= 32768 + 128 * 128
        assert info.created_ns <= info.writer_started_ns
    info = ring_info(engine_name, 7)
    assert (info.writer_pid, info.writer_alive) == (0, False)


def test_status_record_cuts_its_text_at_a_character() -> None:
    record = np.frombuffer(
        status_record(StatusCode.GAP, from_sequence=5, to_sequence=9, text="ä" * 19 + "xé", ts_event=7), RECORD
    )[0]
    assert record["text"].decode() == "ä" * 19 + "x"
    assert (record["record_type"], record["code"]) == (RecordType.STATUS, StatusCode.GAP)
    assert (record["from_sequence"], record["to_sequence"], record["ts_event"]) == (5, 9, 7)
    assert record["ts_receive"] > 0
    assert record["flags"] == Flag.LAST_OF_BATCH
