"""Waiting for records: the ladder from spinning to sleep, across processes, on several rings, and in asyncio."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from shm import _ring
from shm.errors import BadArgument
from shm.layout import empty
from shm.ring import RingReader, RingSet, RingWriter, create_ring
from shm.segment import Segment, segment_name
from tests.children import Child, wait_until
from tests.records import broken, sealed

SLEEPERS = _ring.READERS_OFFSET_BYTES + 128
BELL = SLEEPERS + 4


class Bell:
    """Looks at the words of a ring on which readers sleep."""

    def __init__(self, engine: str, ring_id: int) -> None:
        self._segment = Segment.attach(segment_name(engine, f"r{ring_id}"))

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._segment.buf[offset : offset + 4], "little")

    @property
    def somebody_sleeps(self) -> bool:
        return self._word(SLEEPERS) == 1

    @property
    def rung(self) -> int:
        return self._word(BELL)


def test_wait_returns_at_once_when_something_is_there_and_false_when_nothing_comes(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        for timeout_s in (0.0, -1.0, 1e-6, 0.002):
            assert not reader.wait(timeout_s)
        writer.publish(sealed(1))
        for timeout_s in (0.0, 0.002, float("inf")):
            assert reader.wait(timeout_s)


def test_news_of_a_gap_ends_the_wait(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        writer.publish_batch(sealed(500))
        assert reader.wait(float("inf"))


def test_sleeping_reader_in_another_process_is_woken_by_publish(engine_name: str) -> None:
    script = """
        import sys
        from shm.layout import empty
        from shm.ring import RingReader
        reader = RingReader.attach(sys.argv[1], 0)
        out = empty(8)
        print("ready")
        for _ in range(3):
            assert reader.wait(1e9)
            print(reader.read(out), int(out["sequence"][0]))
    """
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, Child(script, engine_name) as child:
        bell = Bell(engine_name, 0)
        assert child.hear() == "ready"
        for sequence in (1, 2, 3):
            wait_until(lambda: bell.somebody_sleeps, "the child goes to sleep")
            rung = bell.rung
            writer.publish(sealed(1))
            assert bell.rung == rung + 1
            assert child.hear() == f"1 {sequence}"


def test_writer_rings_no_bell_while_nobody_sleeps(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        bell = Bell(engine_name, 0)
        rung = bell.rung
        writer.publish_batch(sealed(40))
        assert reader.wait(0)
        assert bell.rung == rung


def test_new_writer_wakes_those_whom_its_predecessor_left_asleep(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    segment = Segment.attach(segment_name(engine_name, "r0"), write=True)
    with RingReader.attach(engine_name, 0) as reader, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(reader.wait, 1e9)
        bell = Bell(engine_name, 0)
        wait_until(lambda: bell.somebody_sleeps, "the reader goes to sleep")
        segment.buf[SLEEPERS : SLEEPERS + 4] = bytes(4)  # died between clearing this word and ringing the bell
        with RingWriter.open(engine_name, 0) as writer:
            wait_until(lambda: bell.somebody_sleeps, "the reader has looked and sleeps again")
            writer.publish(sealed(1))
            assert waiting.result(60)
    segment.close()


def test_ring_without_wakeups_can_be_waited_on_by_naps(engine_name: str) -> None:
    with (
        RingWriter.create(engine_name, 0, depth_slots=64, wakeups=False) as writer,
        RingReader.attach(engine_name, 0) as reader,
        ThreadPoolExecutor(1) as pool,
    ):
        waiting = pool.submit(reader.wait, 1e9)
        writer.publish(sealed(1))
        assert waiting.result(60)
        assert not Bell(engine_name, 0).somebody_sleeps


def test_ring_set_wakes_for_any_of_its_rings(engine_name: str) -> None:
    writers = [RingWriter.create(engine_name, ring_id, depth_slots=64) for ring_id in range(3)]
    readers = RingSet(RingReader.attach(engine_name, ring_id) for ring_id in range(3))
    bells = [Bell(engine_name, ring_id) for ring_id in range(3)]
    out = empty(4)
    with ThreadPoolExecutor(1) as pool:
        for writer, reader in zip(writers, readers, strict=True):
            waiting = pool.submit(readers.wait, 1e9)
            wait_until(lambda: all(bell.somebody_sleeps for bell in bells), "the set sleeps on all of its rings")
            writer.publish(sealed(1))
            assert waiting.result(60)
            assert [one.read(out) for one in readers] == [int(one is reader) for one in readers]
    assert not readers.wait(0.001)
    for writer, count in zip(writers, (10, 20, 30), strict=True):
        writer.publish_batch(sealed(count))
    assert [(reader.ring_id, len(batch)) for reader, batch in readers.batches(0.0)] == [(0, 10), (1, 20), (2, 30)]
    readers.close()
    with pytest.raises(BadArgument, match="the reader is closed"):
        readers.wait(0)
    for writer in writers:
        writer.close()


def test_set_of_no_rings_or_of_too_many_is_refused(engine_name: str) -> None:
    create_ring(engine_name, 0, depth_slots=64)
    with RingReader.attach(engine_name, 0) as reader:
        for count in (0, 17):
            with pytest.raises(BadArgument, match=f"waiting on {count} rings"):
                RingSet([reader] * count).wait(0)


def test_wait_lets_other_threads_run(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        reader.spin_ns = 10**18  # spins all the time, and never sleeps
        thread = threading.Thread(target=writer.publish, args=(sealed(1),))
        thread.start()
        assert reader.wait(60)
        thread.join()


def test_asyncio_stream_delivers_without_blocking_the_loop(engine_name: str) -> None:
    async def consume(reader: RingReader, writer: RingWriter) -> list[int]:
        got: list[int] = []

        async def produce() -> None:
            for first in range(0, 100, 10):
                writer.publish_batch(sealed(10, first=first))
                while len(got) < first + 10:
                    await asyncio.sleep(0)

        producing = asyncio.create_task(produce())
        async for batch in reader.stream(slots=4):
            assert broken(batch) == 0
            got.extend(int(sequence) for sequence in batch["sequence"])
            if len(got) == 100:
                break
        await producing
        return got

    with RingWriter.create(engine_name, 0, depth_slots=64) as writer, RingReader.attach(engine_name, 0) as reader:
        assert asyncio.run(consume(reader, writer)) == list(range(1, 101))


def test_asyncio_stream_that_is_cancelled_lets_go_of_the_reader(engine_name: str) -> None:
    async def start_and_cancel(reader: RingReader) -> None:
        async def listen() -> None:
            async for _ in reader.stream():
                raise AssertionError("nothing was published")

        task = asyncio.create_task(listen())
        bell = Bell(engine_name, 0)
        while not bell.somebody_sleeps:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    create_ring(engine_name, 0, depth_slots=64)
    with RingReader.attach(engine_name, 0) as reader:
        asyncio.run(start_and_cancel(reader))
        assert not reader.poll()
