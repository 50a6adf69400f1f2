"""Segments: made whole or not at all, mapped with the access asked for, gone when unlinked and not before."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np
import pytest

from shm.errors import BadArgument, SegmentExists, SegmentMissing, ShmFull
from shm.segment import REGION_ALIGNMENT_BYTES, Segment, list_segments, segment_exists, segment_name, unlink_segment

SHM_FOLDER = Path("/dev/shm")
needs_folder = pytest.mark.skipif(not SHM_FOLDER.is_dir(), reason="shared memory is not a folder on this system")


def test_new_segment_is_zeroed_rounded_up_and_shared(engine_name: str) -> None:
    name = segment_name(engine_name, "stat")
    made = Segment.create(name, 5000)
    assert (made.size_bytes, len(made.buf), made.writable) == (REGION_ALIGNMENT_BYTES, REGION_ALIGNMENT_BYTES, True)
    assert not any(made.buf)
    seen = Segment.attach(name)
    made.buf[4999] = 7
    assert (seen.buf[4999], seen.buf.readonly) == (7, True)
    assert made.address != seen.address
    assert made.address % os.sysconf("SC_PAGE_SIZE") == 0
    made.close()
    seen.close()


def test_segment_takes_all_of_its_memory_when_it_is_made(engine_name: str) -> None:
    made = Segment.create(segment_name(engine_name, "stat"), 1 << 20)
    assert os.fstat(made.fd).st_blocks * 512 >= 1 << 20
    made.close()


@needs_folder
def test_full_shared_memory_is_an_error_at_once_and_leaves_nothing(engine_name: str) -> None:
    room = os.statvfs(SHM_FOLDER)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(ShmFull, match=r"no room for \d+ MiB of shared memory, /dev/shm has \d+ MiB free"):
        Segment.create(segment_name(engine_name, "last"), room.f_blocks * room.f_frsize + (1 << 20))
    assert list_segments(engine_name) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_taken_name_is_refused_and_its_holder_unharmed(engine_name: str) -> None:
    name = segment_name(engine_name, "inst")
    made = Segment.create(name, 1)
    made.buf[0] = 9
    with pytest.raises(SegmentExists, match=name):
        Segment.create(name, 1)
    assert Segment.attach(name).buf[0] == 9
    made.close()


@needs_folder
def test_mode_is_as_asked_whatever_the_umask(engine_name: str) -> None:
    before = os.umask(0o077)
    try:
        for what, mode in (("r0", 0o600), ("r1", 0o640), ("r2", 0o660)):
            segment = Segment.create(segment_name(engine_name, what), 1, mode=mode)
            assert stat.S_IMODE(os.fstat(segment.fd).st_mode) == mode
            segment.close()
    finally:
        os.umask(before)


def test_unlink_removes_the_name_and_leaves_the_memory_to_who_has_it(engine_name: str) -> None:
    name = segment_name(engine_name, "r15")
    made = Segment.create(name, 1)
    seen = Segment.attach(name)
    made.unlink()
    made.unlink()
    assert not segment_exists(name)
    assert not unlink_segment(name)
    made.buf[3] = 5
    assert seen.buf[3] == 5
    with pytest.raises(SegmentMissing, match="is the engine running under this name"):
        Segment.attach(name)
    made.close()
    seen.close()


def test_close_twice_leaves_arrays_usable_and_the_segment_there(engine_name: str) -> None:
    segment = Segment.create(segment_name(engine_name, "r0"), 1)
    array = np.frombuffer(segment.buf, dtype=np.uint8)
    segment.close()
    segment.close()
    assert array.sum() == 0
    assert len(segment.buf) == 0
    assert "closed" in repr(segment)
    assert segment_exists(segment.name)


def test_window_has_its_own_access(engine_name: str) -> None:
    made = Segment.create(segment_name(engine_name, "r0"), 3 * REGION_ALIGNMENT_BYTES)
    half = Segment.attach(made.name, write=True, mapped=False)
    assert (len(half.buf), half.address) == (0, 0)
    middle = half.window(REGION_ALIGNMENT_BYTES, REGION_ALIGNMENT_BYTES, write=True)
    rest = half.window(2 * REGION_ALIGNMENT_BYTES, REGION_ALIGNMENT_BYTES, write=False)
    assert (middle.readonly, rest.readonly) == (False, True)
    middle[0] = 3
    assert made.buf[REGION_ALIGNMENT_BYTES] == 3
    made.close()
    half.close()


def test_attached_segment_can_be_written_only_when_asked(engine_name: str) -> None:
    made = Segment.create(segment_name(engine_name, "r0"), 1)
    with pytest.raises(TypeError):
        Segment.attach(made.name).buf[0] = 1
    Segment.attach(made.name, write=True).buf[0] = 1
    assert made.buf[0] == 1
    made.close()


@needs_folder
def test_segment_without_size_is_being_created(engine_name: str) -> None:
    name = segment_name(engine_name, "r0")
    (SHM_FOLDER / name.strip("/")).touch()
    with pytest.raises(SegmentMissing, match="is being created"):
        Segment.attach(name)


def test_listing_shows_the_engines_own_segments_only(engine_name: str) -> None:
    other = engine_name + "-b"
    names = [segment_name(engine_name, what) for what in ("r0", "stat", "r10")]
    for name in names:
        Segment.create(name, 1).close()
    stranger = Segment.create(segment_name(other, "r0"), 1)
    try:
        assert list_segments(engine_name) == sorted(names)
        assert {*names, stranger.name} <= set(list_segments())
    finally:
        stranger.unlink()
        stranger.close()


@pytest.mark.parametrize("engine", ["", "a" * 17, "Upper", "dot.dot", "sl/ash", "new\nline", "ümlaut"])
def test_unusable_engine_name_is_refused(engine: str) -> None:
    with pytest.raises(BadArgument, match="engine name"):
        segment_name(engine, "r0")


def test_names_fit_the_shortest_limit_of_all_systems() -> None:
    assert len(segment_name("a" * 16, "topic")) <= 31
    with pytest.raises(BadArgument, match="at most 31"):
        segment_name("a" * 16, "far-too-long")


def test_segment_of_no_bytes_is_refused(engine_name: str) -> None:
    with pytest.raises(BadArgument, match="size_bytes is 0"):
        Segment.create(segment_name(engine_name, "r0"), 0)
