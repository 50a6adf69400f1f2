"""The ring against a slow model of it: a list of what was published, and a few numbers for each reader."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, precondition, rule

from shm.layout import Flag, RecordType, StatusCode, empty
from shm.ring import RingReader, RingWriter, list_readers, ring_info
from shm.segment import list_segments, unlink_segment

MAX_READERS = 8


@dataclass
class Modelled:
    """A real reader and what must be true of it."""

    real: RingReader
    position: int
    reliable: bool
    demoted: bool = False
    lost: int = 0
    polling: int = 0
    out: np.ndarray = field(default_factory=lambda: empty(40))


class RingMachine(RuleBasedStateMachine):
    """One writer that never waits (block_s is 0), some readers, and `published`: the payload of sequence i + 1."""

    readers = Bundle("readers")

    @initialize(depth=st.sampled_from([16, 32, 64]), wakeups=st.booleans())
    def make(self, depth: int, wakeups: bool) -> None:
        self.engine = f"m{secrets.token_hex(5)}"
        self.depth = depth
        self.published: list[int] = []
        self.payload = 0
        self.epoch = 1
        self.modelled: list[Modelled] = []
        self.writer = RingWriter.create(self.engine, 0, depth_slots=depth, wakeups=wakeups, block_s=0.0)

    def teardown(self) -> None:
        for reader in getattr(self, "modelled", []):
            reader.real.close()
        if hasattr(self, "writer"):
            self.writer.close()
            for segment in list_segments(self.engine):
                unlink_segment(segment)

    def _new(self, count: int) -> np.ndarray:
        records = empty(count)
        records["record_type"] = RecordType.TRADE
        records["source_sequence"] = self.payload + 1 + np.arange(count)
        records["price"] = -records["source_sequence"].astype(float)
        self.payload += count
        return records

    def _note(self, payloads: list[int]) -> None:
        self.published += payloads
        for reader in self.modelled:
            if payloads and reader.reliable and len(self.published) >= reader.position + self.depth:
                reader.demoted = True
                reader.reliable = False

    @rule(form=st.sampled_from(["bytes", "record", "array"]))
    def publish_one(self, form: str) -> None:
        records = self._new(1)
        what = {"bytes": records[0].tobytes(), "record": records[0], "array": records}[form]
        assert self.writer.publish(what) == len(self.published) + 1
        self._note([self.payload])

    @rule(count=st.integers(0, 150))
    def publish_many(self, count: int) -> None:
        records = self._new(count + 1)
        first = len(self.published) + 1
        assert self.writer.publish_batch(records, count) == (first if count else 0)
        self._note(records["source_sequence"][:count].tolist())

    @precondition(lambda self: len(self.modelled) < MAX_READERS)
    @rule(
        target=readers,
        start=st.one_of(st.sampled_from(["newest", "oldest"]), st.floats(0, 1)),
        reliable=st.booleans(),
        register=st.booleans(),
    )
    def attach(self, start: str | float, reliable: bool, register: bool) -> Modelled:
        end = len(self.published)
        place = start if isinstance(start, str) else 1 + round(start * end)
        position = {"newest": end + 1, "oldest": max(1, end + 1 - self.depth * 3 // 4)}.get(place, place)
        reliable = reliable and register
        real = RingReader.attach(self.engine, 0, start=place, reliable=reliable, register=register)
        reader = Modelled(real, int(position), reliable)
        self.modelled.append(reader)
        return reader

    @rule(reader=readers, limit=st.one_of(st.just(-1), st.integers(0, 45)))
    def read(self, reader: Modelled, limit: int) -> None:
        end, room = len(self.published), len(reader.out) if limit < 0 else min(limit, len(reader.out))
        gap = None
        if room and reader.position <= end - self.depth:
            resume = max(reader.position, end - self.depth // 2)
            gap = (reader.position, resume)
            reader.lost += resume - reader.position
            reader.polling += 1
            reader.position = resume
        expected = min(room, self.depth, end + 1 - reader.position)
        assert reader.real.poll() == (gap is not None or end >= reader.position)
        assert reader.real.read(reader.out, limit) == expected
        assert reader.real.gap == gap
        got = reader.out[:expected]
        assert got["sequence"].tolist() == list(range(reader.position, reader.position + expected))
        assert got["source_sequence"].tolist() == self.published[reader.position - 1 : reader.position - 1 + expected]
        notes = got["record_type"] == RecordType.STATUS
        assert (got["price"][~notes] == -got["source_sequence"][~notes].astype(float)).all()
        assert (got["code"][notes] == StatusCode.WRITER_RESTARTED).all()
        marked = np.flatnonzero(got["flags"] & Flag.GAP_BEFORE).tolist()
        assert marked == ([0] if gap else [])
        reader.position += expected

    @rule(reader=readers, where=st.one_of(st.sampled_from(["newest", "oldest"]), st.floats(0, 1)))
    def seek(self, reader: Modelled, where: str | float) -> None:
        end = len(self.published)
        place = where if isinstance(where, str) else 1 + round(where * end)
        reader.real.seek(place)
        reader.position = int({"newest": end + 1, "oldest": max(1, end + 1 - self.depth * 3 // 4)}.get(place, place))

    @rule(reader=consumes(readers))
    def leave(self, reader: Modelled) -> None:
        reader.real.close()
        self.modelled.remove(reader)

    @rule()
    def writer_closes_and_opens(self) -> None:
        self.writer.close()
        self.writer = RingWriter.open(self.engine, 0)
        assert not self.writer.restarted
        self.epoch += 1

    @rule()
    def writer_dies_and_another_takes_over(self) -> None:
        self.writer._lock.release()  # what the kernel does for a process that ends
        self.writer._segment.close()
        self.writer = RingWriter.open(self.engine, 0)
        assert self.writer.restarted
        assert self.writer.recovered_sequence == len(self.published) + 1
        self.epoch += 1
        self._note([0])  # the status record

    @invariant()
    def all_agree(self) -> None:
        if not hasattr(self, "writer"):
            return
        end = len(self.published)
        info = ring_info(self.engine, 0)
        assert (info.published, info.epoch, self.writer.next_sequence) == (end, self.epoch, end + 1)
        for reader in self.modelled:
            real = reader.real
            assert (real.sequence, real.lag, real.published) == (reader.position, end + 1 - reader.position, end)
            assert (real.lost, real.overruns_polling, real.overruns_reading) == (reader.lost, reader.polling, 0)
            assert real.demoted == reader.demoted
        seen = {one.index: one for one in list_readers(self.engine, 0)}
        registered = {lock.index - 1: reader.real for reader in self.modelled if (lock := reader.real._lock)}
        assert seen.keys() == registered.keys()
        for index, real in registered.items():
            line = seen[index]
            assert (line.cursor, line.lost, line.label, line.alive) == (real.sequence, real.lost, real.label, True)


TestRingAgainstModel = RingMachine.TestCase
TestRingAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
