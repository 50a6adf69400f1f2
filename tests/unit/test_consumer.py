"""The handle by which a colocated consumer finds an engine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import shm
from shm.errors import BadArgument, SegmentMissing
from shm.ring import RingWriter, list_readers
from tests.records import broken, sealed


@pytest.fixture
def writers(engine_name: str) -> Iterator[dict[int, RingWriter]]:
    made = {ring_id: RingWriter.create(engine_name, ring_id, depth_slots=64) for ring_id in (0, 2, 11)}
    yield made
    for writer in made.values():
        writer.close()


def test_engine_is_found_by_name_with_its_rings(engine_name: str, writers: dict[int, RingWriter]) -> None:
    writers[2].publish_batch(sealed(7))
    engine = shm.attach(engine_name)
    assert list(engine.rings) == [0, 2, 11]
    assert engine.rings[2].published == 7
    assert repr(engine) == f"<Engine {engine_name!r} rings [0, 2, 11]>"


def test_engine_that_does_not_run_is_missing(engine_name: str) -> None:
    with pytest.raises(SegmentMissing, match=f"no rings of an engine named '{engine_name}'"):
        shm.attach(engine_name)
    with pytest.raises(BadArgument, match="engine name"):
        shm.attach("No Such Name")


def test_reader_of_all_rings_gets_every_record_of_each(engine_name: str, writers: dict[int, RingWriter]) -> None:
    for ring_id, writer in writers.items():
        writer.publish_batch(sealed(ring_id + 1))
    readers = shm.attach(engine_name).reader(start="oldest", label="all of it")
    got = dict.fromkeys(writers, 0)
    for reader, batch in readers.batches(0.0):
        assert broken(batch) == 0
        got[reader.ring_id] += len(batch)
    assert got == {ring_id: ring_id + 1 for ring_id in writers}
    assert [one.label for ring_id in writers for one in list_readers(engine_name, ring_id)] == ["all of it"] * 3
    readers.close()


def test_reader_of_some_rings_leaves_the_others_alone(engine_name: str, writers: dict[int, RingWriter]) -> None:
    readers = shm.attach(engine_name).reader(2, 0)
    assert [reader.ring_id for reader in readers] == [2, 0]
    assert [len(list_readers(engine_name, ring_id)) for ring_id in writers] == [1, 1, 0]
    readers.close()


def test_reader_of_a_missing_ring_leaves_no_half_of_a_set(engine_name: str, writers: dict[int, RingWriter]) -> None:
    with pytest.raises(SegmentMissing):
        shm.attach(engine_name).reader(0, 2, 5)
    assert [list_readers(engine_name, ring_id) for ring_id in writers] == [[], [], []]


def test_tables_that_are_not_there_are_missing_when_asked_for(engine_name: str, writers: dict[int, RingWriter]) -> None:
    assert writers
    engine = shm.attach(engine_name)
    for table in ("instruments", "latest", "status"):
        with pytest.raises(SegmentMissing):
            getattr(engine, table)
