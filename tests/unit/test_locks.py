"""Locks that die with their process."""

from __future__ import annotations

import gc

import pytest

from shm.errors import SegmentMissing, ShmError
from shm.locks import ByteLock, is_held, unlink_abandoned
from shm.segment import Segment, segment_exists, segment_name
from tests.children import Child


@pytest.fixture
def name(engine_name: str) -> str:
    segment = Segment.create(segment_name(engine_name, "stat"), 1)
    segment.close()
    return segment.name


def test_lock_is_exclusive_also_within_one_process(name: str) -> None:
    first, second = ByteLock(name, 3), ByteLock(name, 3)
    assert first.try_acquire()
    assert not first.try_acquire()
    assert not second.try_acquire()
    assert (first.held, second.held, is_held(name, 3)) == (True, False, True)
    first.release()
    first.release()
    assert not is_held(name, 3)
    assert second.try_acquire()
    second.release()


def test_locks_of_other_numbers_are_independent(name: str) -> None:
    with ByteLock(name, 0), ByteLock(name, 1), ByteLock(name, 1 << 40):
        assert [is_held(name, index) for index in (0, 1, 2, 1 << 40)] == [True, True, False, True]


def test_asking_does_not_take_the_lock(name: str) -> None:
    assert not is_held(name, 0)
    assert not is_held(name, 0)
    with ByteLock(name, 0):
        assert is_held(name, 0)


def test_lock_dies_with_its_process(name: str) -> None:
    script = """
        import sys
        from shm.locks import ByteLock
        lock = ByteLock(sys.argv[1], 5)
        print(lock.try_acquire())
        sys.stdin.readline()
    """
    with Child(script, name) as child:
        assert child.hear() == "True"
        lock = ByteLock(name, 5)
        assert is_held(name, 5)
        assert not lock.try_acquire()
        child.kill()
        assert not is_held(name, 5)
        assert lock.try_acquire()
        lock.release()


def test_lock_dies_with_its_object(name: str) -> None:
    lock = ByteLock(name, 0)
    assert lock.try_acquire()
    del lock
    gc.collect()
    assert not is_held(name, 0)


def test_waiting_for_a_lock_ends_with_an_error_that_names_it(name: str) -> None:
    with ByteLock(name, 7), pytest.raises(ShmError, match=f"lock 7 of segment {name}"):
        ByteLock(name, 7).acquire(timeout_s=0.01)
    with ByteLock(name, 7) as lock:
        assert lock.held


def test_lock_of_a_missing_segment_says_so(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        ByteLock(segment_name(engine_name, "r0"), 0).try_acquire()


def test_abandoned_segment_is_removed_only_if_nobody_holds_its_lock_and_it_is_still_of_no_use(name: str) -> None:
    with ByteLock(name, 7):
        assert not unlink_abandoned(name, 7, lambda: True)
    assert unlink_abandoned(name, 7, lambda: False)
    assert segment_exists(name)
    assert unlink_abandoned(name, 7, lambda: True)
    assert not segment_exists(name)
    assert unlink_abandoned(name, 7, lambda: True)


def test_lock_of_a_segment_that_was_made_anew_is_not_of_the_new_one(name: str) -> None:
    old = Segment.attach(name, write=True)
    with ByteLock(name, 0) as lock:
        assert lock.is_of(name)
        assert old.is_named()
        old.unlink()
        assert not old.is_named()
        Segment.create(name, 1).close()
        assert not lock.is_of(name)
        assert not old.is_named()
        assert not is_held(name, 0)
    old.close()
