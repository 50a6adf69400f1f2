"""The store of what waits under overload against a slow model: what comes out, in which order, flagged and counted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import Action, Flag, Priority, RecordType, empty
from workers._conflate import KEYS, Conflator
from workers.wire import unpack_frame

TOPICS = 6  # 0, 1: quotes   2, 3: levels of ten   4: levels of a full book   5: bars
RANKED = 4  # instruments below 8 that rank high: those from here on
KINDS = (RecordType.QUOTE, RecordType.QUOTE, RecordType.LEVEL2, RecordType.LEVEL2, RecordType.LEVEL2, RecordType.BAR)


@dataclass
class Place:
    """A topic that waits: (number, key, tier, serial), ascending."""

    rank: int
    expected: int
    last: int
    held: list[tuple[int, object, int, int]] = field(default_factory=list)


class Model:
    """What conflate.h promises, with lists."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.places: dict[int, Place] = {}
        self.later: list[list[int]] = [[], [], []]
        self.now: list[list[int]] = [[], [], []]
        self.holes: set[int] = set()
        self.counts = {name: [0, 0, 0] for name in ("offered", "conflated", "shed", "taken")}

    def has_place(self, tier: int) -> bool:
        return self.has_room(tier) and len(self.places) < self.capacity

    def has_room(self, tier: int) -> bool:
        limit = self.capacity - (self.capacity // 4 if tier == Priority.LOW else 0)
        return sum(len(place.held) for place in self.places.values()) < limit

    def hold(
        self, topic: int, number: int, key: object, tier: int, serial: int, *, clear: bool, shed: int, ranked: bool
    ) -> None:
        self.counts["offered"][tier] += 1
        place = self.places.get(topic)
        if (shed >> tier & 1 and not ranked) or (place is None and not self.has_place(tier)):
            self.counts["shed"][tier] += 1
            if place is None:
                self.holes.add(topic)
            else:
                place.last = number
            return
        if place is None:
            rank = (1 if tier == Priority.LOW else 0) if ranked else (2 if tier == Priority.LOW else 1)
            place = self.places[topic] = Place(rank, number - (topic in self.holes), number)
            self.holes.discard(topic)
            self.later[rank].append(topic)
        gone = [entry for entry in place.held if clear or entry[1] == key]
        for entry in gone:
            self.counts["conflated"][entry[2]] += 1
            place.held.remove(entry)
        if len(place.held) >= KEYS:
            self.counts["shed"][place.held.pop(0)[2]] += 1
        place.last = number
        if not self.has_room(tier):
            self.counts["shed"][tier] += 1
            return
        place.held.append((number, key, tier, serial))

    def begin_pass(self) -> None:
        for now, later in zip(self.now, self.later, strict=True):
            if not now:
                now.extend(later)
                later.clear()

    def take(self, limit: int) -> list[tuple[int, int, int, bool]]:
        """(topic, number, serial, flagged)."""
        found: list[tuple[int, int, int, bool]] = []
        for queue in self.now:
            while queue and len(found) < limit:
                topic = queue[0]
                place = self.places[topic]
                while place.held and len(found) < limit:
                    number, _, tier, serial = place.held.pop(0)
                    found.append((topic, number, serial, number != place.expected))
                    place.expected = number + 1
                    self.counts["taken"][tier] += 1
                if place.held:
                    return found
                queue.pop(0)
                del self.places[topic]
                if place.expected != place.last + 1:
                    self.holes.add(topic)
        return found


RECORDS = st.tuples(
    st.integers(0, TOPICS - 1),
    st.sampled_from([Priority.NORMAL, Priority.LOW]),
    st.integers(0, 2),  # side
    st.integers(0, 80),  # level, price or interval
    st.integers(0, 30),  # action, CLEAR if it is 0
    st.integers(0, 7),  # instrument
)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("hold"), st.lists(RECORDS, min_size=1, max_size=120), st.sampled_from([0, 0, 1 << Priority.LOW])
        ),
        st.tuples(st.just("pass")),
        st.tuples(st.just("take")),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(steps=STEPS, capacity=st.integers(1, 200), limit=st.integers(1, 40))
def test_what_waits_comes_out_as_the_model_says(steps: list[tuple], capacity: int, limit: int) -> None:  # type: ignore[type-arg]
    marks = np.zeros(TOPICS, np.uint8)
    store, model = Conflator(marks, capacity=capacity, take_records=limit), Model(capacity)
    store.ranked[RANKED:8] = 1
    numbers, serial = [0] * TOPICS, 0

    def compare(number_of_takes: int) -> None:
        for _ in range(number_of_takes):
            wanted, got = model.take(limit), store.take()
            assert [(topic, number) for _, topic, number in got] == [entry[:2] for entry in wanted]
            for (index, _, number), (_, _, serial_, flagged) in zip(got, wanted, strict=True):
                record = store.records[index]
                assert record["source_sequence"] == serial_
                assert bool(record["flags"] & Flag.GAP_BEFORE) is flagged
                header, framed = unpack_frame(store.frame(index))
                assert (header.ring, header.record_count, header.topic_sequence) == (3, 1, number)
                assert framed.tobytes() == record.tobytes()

    for step in steps:
        if step[0] == "pass":
            store.begin_pass()
            model.begin_pass()
        elif step[0] == "take":
            compare(1)
        else:
            batch = empty(len(step[1]))
            of = np.zeros(len(step[1]), np.uint32)
            number = np.zeros(len(step[1]), np.uint64)
            for i, (topic, tier, side, value, action, instrument) in enumerate(step[1]):
                numbers[topic] += 1
                serial += 1
                of[i], number[i] = topic, numbers[topic]
                record = batch[i]
                kind = KINDS[topic]
                record["record_type"], record["priority"], record["instrument_id"] = kind, tier, instrument
                record["side"], record["source_sequence"] = side, serial
                key: object = None
                if kind == RecordType.BAR:
                    record["interval_s"] = key = value
                elif kind == RecordType.LEVEL2:
                    record["action"] = Action.CLEAR if action == 0 else Action.MODIFY
                    record["depth"] = 10 if topic < 4 else 0
                    record["level"], record["price"] = (value, serial / 7) if topic < 4 else (serial % 100, value / 4)
                    key = side, value
                ranked = instrument >= RANKED
                clear = kind == RecordType.LEVEL2 and action == 0
                model.hold(topic, numbers[topic], key, tier, serial, clear=clear, shed=step[2], ranked=ranked)
            index = np.arange(len(batch), dtype=np.uint32)
            store.hold(batch, index, of, number, len(batch), 3, 1000 + serial, step[2])
        assert store.waiting == sum(len(place.held) for place in model.places.values())
        assert marks.tolist() == [2 if t in model.places else int(t in model.holes) for t in range(TOPICS)]
        for name, counts in model.counts.items():
            assert list(getattr(store, name)) == counts

    for _ in range(2):  # what is left of the pass under way, then everything else
        compare(2 + sum(numbers) // limit)
        store.begin_pass()
        model.begin_pass()
    compare(2 + sum(numbers) // limit)
    assert store.waiting == store.waiting_topics == store.since_ns == 0
    for tier in Priority:
        assert store.offered[tier] == store.conflated[tier] + store.shed[tier] + store.taken[tier]
