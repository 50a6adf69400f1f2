"""Reliable readers: the writer waits for them, for a time; a dead or slow one never stops it for good."""

from __future__ import annotations

import gc
import threading

import pytest

from shm.errors import BadArgument
from shm.layout import empty
from shm.ring import RingReader, RingWriter, list_readers
from tests.children import Child, wait_until
from tests.records import broken, sealed

FOR_EVER_S = 3600.0


class WriterThread:
    """Publishes `count` sealed records, one by one or as one batch, in a thread of its own."""

    def __init__(self, writer: RingWriter, count: int, *, batch: bool) -> None:
        self._writer = writer
        self._records = sealed(count, first=writer.next_sequence - 1)
        self._thread = threading.Thread(target=self._batch if batch else self._singles, daemon=True)
        self._thread.start()

    def _singles(self) -> None:
        for record in self._records:
            self._writer.publish(record)

    def _batch(self) -> None:
        self._writer.publish_batch(self._records)

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def join(self) -> None:
        self._thread.join()


@pytest.mark.parametrize("batch", [False, True])
def test_writer_waits_for_a_reliable_reader_and_nothing_is_lost(engine_name: str, batch: bool) -> None:
    with (
        RingWriter.create(engine_name, 0, depth_slots=64, block_s=FOR_EVER_S) as writer,
        RingReader.attach(engine_name, 0, reliable=True) as reader,
    ):
        thread = WriterThread(writer, 1000, batch=batch)
        out = empty(10)
        for sequence in range(1, 1001, 10):
            wait_until(lambda: reader.lag == min(64, 1001 - reader.sequence), "the writer fills the ring, no more")
            assert reader.read(out) == 10
            assert out["sequence"][0] == sequence
            assert broken(out) == 0
        thread.join()
        assert (reader.lost, reader.lag) == (0, 0)


def test_reader_that_blocks_too_long_is_demoted_and_told_its_gap(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64, block_s=0.005) as writer:
        slow = RingReader.attach(engine_name, 0, label="slow", reliable=True)
        quick = RingReader.attach(engine_name, 0, label="quick")
        writer.publish_batch(sealed(64))
        assert not slow.demoted
        writer.publish_batch(sealed(100, first=64))
        assert slow.demoted
        assert [(one.reliable, one.demoted) for one in list_readers(engine_name, 0)] == [(True, True), (False, False)]
        out = empty(64)
        for reader in (slow, quick):
            assert reader.read(out) == 33
            assert reader.gap == (1, 132)
        writer.publish_batch(sealed(100))
        assert slow.read(out) == 33
        slow.close()
        quick.close()


def test_demotion_spares_the_reliable_readers_that_keep_up(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64, block_s=0.005) as writer:
        slow = RingReader.attach(engine_name, 0, reliable=True)
        good = RingReader.attach(engine_name, 0, reliable=True)
        out = empty(64)
        for _ in range(10):
            writer.publish_batch(sealed(16))
            assert good.read(out) == 16
        assert (slow.demoted, good.demoted, good.lost) == (True, False, 0)
        slow.close()
        good.close()


def test_dead_reliable_reader_is_found_by_its_lock(engine_name: str) -> None:
    script = """
        import sys
        from shm.ring import RingReader
        reader = RingReader.attach(sys.argv[1], 0, reliable=True)
        print("ready")
        sys.stdin.readline()
    """
    with (
        RingWriter.create(engine_name, 0, depth_slots=64, block_s=FOR_EVER_S) as writer,
        Child(script, engine_name) as child,
    ):
        assert child.hear() == "ready"
        assert list_readers(engine_name, 0)[0].alive
        child.kill()
        assert [(one.pid, one.alive) for one in list_readers(engine_name, 0)] == [(child.pid, False)]
        writer.publish_batch(sealed(200))
        assert writer.next_sequence == 201
        assert list_readers(engine_name, 0) == []


def test_reader_that_was_forgotten_without_closing_does_not_hold_the_writer(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64, block_s=FOR_EVER_S) as writer:
        reader = RingReader.attach(engine_name, 0, reliable=True)
        del reader
        gc.collect()
        writer.publish_batch(sealed(200))
        assert writer.next_sequence == 201


def test_reliable_reader_in_a_line_just_freed_by_another_is_waited_for(engine_name: str) -> None:
    with RingWriter.create(engine_name, 0, depth_slots=64, block_s=FOR_EVER_S) as writer:
        ahead = RingReader.attach(engine_name, 0, reliable=True)
        out = empty(64)
        writer.publish_batch(sealed(60))
        ahead.read(out)
        for _ in range(10):
            writer.publish(sealed(1))  # the writer has looked at `ahead` and need not look again for a lap
        ahead.close()
        with RingReader.attach(engine_name, 0, start="oldest", reliable=True) as behind:
            assert behind.sequence == 71 - 48
            thread = WriterThread(writer, 100, batch=False)
            wait_until(lambda: behind.published == behind.sequence + 63, "the writer fills the ring, no more")
            while behind.sequence <= 170:
                behind.read(out)
            thread.join()
            assert behind.lost == 0


def test_reliable_reader_that_seeks_back_is_waited_for(engine_name: str) -> None:
    with (
        RingWriter.create(engine_name, 0, depth_slots=64, block_s=FOR_EVER_S) as writer,
        RingReader.attach(engine_name, 0, reliable=True) as reader,
    ):
        out = empty(64)
        writer.publish_batch(sealed(60))
        reader.read(out)
        for _ in range(10):
            writer.publish(sealed(1))
        reader.seek("oldest")
        thread = WriterThread(writer, 100, batch=False)
        while reader.sequence <= 170:
            reader.read(out, 5)
        thread.join()
        assert reader.lost == 0


def test_reader_that_can_not_be_known_can_not_be_reliable(engine_name: str) -> None:
    with (
        RingWriter.create(engine_name, 0, depth_slots=64),
        pytest.raises(BadArgument, match="register must be True"),
    ):
        RingReader.attach(engine_name, 0, reliable=True, register=False)
