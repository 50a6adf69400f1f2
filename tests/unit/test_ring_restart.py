"""A ring outlives its writer; and whoever may not or can not use it is told why, with both sides named."""

from __future__ import annotations

import os
import struct

import pytest

from shm import _ring
from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentMissing
from shm.layout import RecordType, StatusCode, empty, schema_hash
from shm.ring import RingReader, RingWriter, create_ring, list_readers, ring_info
from shm.segment import Segment, segment_name
from tests.children import Child
from tests.records import broken, sealed

NOBODY = 65534

WRITER = """
    import sys
    from shm.ring import RingWriter
    from tests.records import sealed
    writer = RingWriter.create_or_open(sys.argv[1], 0, depth_slots=64)
    writer.publish_batch(sealed(int(sys.argv[2]), first=int(sys.argv[3])))
    print(writer.epoch)
    sys.stdin.readline()
"""


def test_writer_after_kill_goes_on_and_tells_the_readers_that_stayed(engine_name: str) -> None:
    with Child(WRITER, engine_name, 20, 0) as child:
        assert child.hear() == "1"
        reader = RingReader.attach(engine_name, 0, start="oldest")
        out = empty(64)
        assert reader.read(out, 15) == 15
        child.kill()
        info = ring_info(engine_name, 0)
        assert (info.writer_alive, info.writer_pid, info.published) == (False, child.pid, 20)
        assert reader.read(out, 3) == 3  # what was published can be read without any writer
        with RingWriter.open(engine_name, 0) as writer:
            assert (writer.restarted, writer.recovered_sequence, writer.epoch) == (True, 21, 2)
            writer.publish_batch(sealed(5, first=21))
        assert reader.read(out) == 2 + 1 + 5
        assert out["sequence"][:8].tolist() == list(range(19, 27))
        note = out[2]
        assert (note["record_type"], note["code"]) == (RecordType.STATUS, StatusCode.WRITER_RESTARTED)
        assert (note["from_sequence"], note["to_sequence"]) == (21, 22)
        assert str(child.pid) in note["text"].decode()
        assert broken(out[:2]) + broken(out[3:8]) == 0
        assert (reader.epoch, reader.lost, reader.gap) == (2, 0, None)
        reader.close()


def test_writer_that_closed_in_order_leaves_no_note(engine_name: str) -> None:
    for epoch in (1, 2, 3):
        with RingWriter.create_or_open(engine_name, 0, depth_slots=64) as writer:
            assert (writer.epoch, writer.restarted) == (epoch, False)
            assert writer.next_sequence == writer.recovered_sequence == epoch
            writer.publish(sealed(1))


def test_post_mortem_everything_is_still_there_to_be_read(engine_name: str) -> None:
    script = """
        import sys
        from shm.ring import RingReader
        reader = RingReader.attach(sys.argv[1], 0, label="victim", reliable=True)
        print("ready")
        sys.stdin.readline()
    """
    create_ring(engine_name, 0, depth_slots=64)
    with Child(script, engine_name) as victim:
        assert victim.hear() == "ready"
        with Child(WRITER, engine_name, 30, 0) as child:
            assert child.hear() == "1"
            child.kill()
        victim.kill()
    with RingReader.attach(engine_name, 0, start="oldest", register=False) as reader:
        out = empty(64)
        assert reader.read(out) == 30
        assert broken(out[:30]) == 0
    (seen,) = list_readers(engine_name, 0)
    assert (seen.label, seen.pid, seen.alive, seen.lag) == ("victim", victim.pid, False, 30)


def test_line_of_a_dead_reader_is_given_to_the_next_one(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    with Child(
        "import sys; from shm.ring import RingReader; r = RingReader.attach(sys.argv[1], 0, label='dead'); "
        "print(1); sys.stdin.readline()",
        engine_name,
    ) as child:
        child.hear()
        child.kill()
    with RingReader.attach(engine_name, 0, label="alive"):
        assert [(one.index, one.label) for one in list_readers(engine_name, 0)] == [(0, "alive")]


@pytest.mark.parametrize(
    ("offset", "value", "words"),
    [
        (0, b"OTHERMAG", "magic is 0x47414d524548544f, this build has 0x31474e4952454b54"),
        (8, struct.pack("<I", 2), "version is 0x2, this build has 0x1"),
        (12, struct.pack("<I", 64), "record size is 0x40, this build has 0x80"),
        (16, struct.pack("<Q", 0xABC), f"schema hash is 0xabc, this build has {schema_hash():#x}"),
        (24, struct.pack("<Q", 100), "depth is 100, this build knows powers of two"),
        (24, struct.pack("<Q", 0), "depth is 0, this build knows"),
        (24, struct.pack("<Q", 1 << 57), "this build knows powers of two from 16 to 67108864"),
        (24, struct.pack("<Q", 1 << 20), "1048576 slots need 134250496 bytes, the segment has 49152"),
    ],
)
def test_ring_of_another_layout_is_refused_naming_both_sides(
    engine_name: str, offset: int, value: bytes, words: str
) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    segment = Segment.attach(segment_name(engine_name, "r0"), write=True)
    segment.buf[offset : offset + len(value)] = value
    segment.close()
    for use in (
        lambda: RingReader.attach(engine_name, 0),
        lambda: RingReader.attach(engine_name, 0, register=False),
        lambda: RingWriter.open(engine_name, 0),
        lambda: ring_info(engine_name, 0),
        lambda: list_readers(engine_name, 0),
    ):
        with pytest.raises(LayoutMismatch, match=words):
            use()


def test_ring_that_is_being_made_is_missing_not_broken(engine_name: str) -> None:
    segment = Segment.create(segment_name(engine_name, "r0"), 65536)
    for use in (lambda: RingReader.attach(engine_name, 0), lambda: RingWriter.open(engine_name, 0)):
        with pytest.raises(SegmentMissing, match="being created"):
            use()
    _ring.format_ring(segment.buf, 0, 64, True, 10**8)
    segment.close()
    RingReader.attach(engine_name, 0).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
class TestOtherUser:
    """What a process without the rights meets."""

    def ask(self, engine: str, expression: str) -> str:
        script = f"""
            import os, sys
            from shm.errors import ShmError
            from shm.layout import empty
            from shm.ring import RingReader, RingWriter, list_readers, ring_info
            engine = sys.argv[1]
            os.setgroups([])
            os.setgid({NOBODY})
            os.setuid({NOBODY})
            try:
                print({expression})
            except ShmError as error:
                print(type(error).__name__, error)
        """
        with Child(script, engine) as child:
            return child.hear()

    def test_private_ring_can_not_be_opened_by_another_user(self, engine_name: str) -> None:
        create_ring(engine_name, 0, depth_slots=64)
        for expression in ("RingReader.attach(engine, 0)", "RingWriter.open(engine, 0)", "ring_info(engine, 0)"):
            answer = self.ask(engine_name, expression)
            assert answer.startswith(NotAllowed.__name__), answer
            assert f"user id {NOBODY}" in answer

    def test_group_may_read_a_ring_of_mode_0640_but_not_write_or_hold_it(self, engine_name: str) -> None:
        with RingWriter.create(engine_name, 0, depth_slots=64, mode=0o640, group=NOBODY) as writer:
            writer.publish_batch(sealed(5))
            read = "(r := RingReader.attach(engine, 0, start=1)).wait(60), r.read(empty(8)), list_readers(engine, 0)"
            assert self.ask(engine_name, f"({read})") == "(True, 5, [])"
            assert "writer_alive=True" in self.ask(engine_name, "ring_info(engine, 0)")
            reliable = self.ask(engine_name, "RingReader.attach(engine, 0, reliable=True)")
            assert reliable.startswith("NotAllowed")
            assert "cursor" in reliable
            assert self.ask(engine_name, "RingWriter.open(engine, 0)").startswith("NotAllowed")

    def test_group_may_register_in_a_ring_of_mode_0660(self, engine_name: str) -> None:
        create_ring(engine_name, 0, depth_slots=64, mode=0o660, group=NOBODY)
        count = "(lambda r: len(list_readers(engine, 0)))(RingReader.attach(engine, 0, reliable=True))"
        assert self.ask(engine_name, count) == "1"

    def test_unknown_group_is_named_and_leaves_nothing(self, engine_name: str) -> None:
        with pytest.raises(BadArgument, match="group 'no-such-group' does not exist"):
            create_ring(engine_name, 0, depth_slots=64, group="no-such-group")
        with pytest.raises(SegmentMissing):
            ring_info(engine_name, 0)
