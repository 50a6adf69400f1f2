"""Books across switches against a slow model: two feeds whose books differ, switches at any moment, and a consumer.

The consumer knows nothing of feeds and switches: it applies each published record as documented. Whatever happens, it
must end with exactly the book that the feed has which publishes the instrument then.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shm.layout import Action, Flag, RecordType, Side, empty
from workers.group_member import Member
from workers.redundancy import Limits, Redundancy

MS = 1_000_000
START = 1_700_000_000_000_000_000
LIMITS = Limits(stale_ns=200 * MS, hold_ns=1000 * MS, margin=0.5, per_minute=1000, backlog_records=64)
INSTRUMENTS = 3
ROWS = 5
ANY_LEVEL = 0xFFFF
FORMS = ("price", "row", "order")

Level = tuple[float, float]  # price, size
Change = tuple[Action, Side, int, float, float]  # action, side, row or order, price, size


class Book:
    """One instrument's, the slow way: by price or by order a dict, by row two lists."""

    def __init__(self, form: str) -> None:
        self.form = form
        self.levels: dict[tuple[Side, float | int], Level] = {}
        self.rows: dict[Side, list[Level]] = {Side.BUY: [], Side.SELL: []}

    def clear(self) -> None:
        self.levels.clear()
        self.rows = {Side.BUY: [], Side.SELL: []}

    def apply(self, action: Action, side: Side, number: int, price: float, size: float) -> None:
        """As the documentation says a consumer does."""
        if action is Action.CLEAR:
            self.clear()
        elif self.form == "row":
            rows = self.rows[side]
            if action is Action.ADD:
                rows.insert(number, (price, size))
                del rows[ROWS:]
            elif action is Action.DELETE:
                del rows[number]
            else:
                rows[number] = price, size
        else:
            key = (side, price if self.form == "price" else number)
            if action is Action.DELETE or size == 0:
                self.levels.pop(key, None)
            else:
                self.levels[key] = price, size

    def change(self, dice: random.Random, fresh: int) -> Change:
        """Something that can happen to it; `fresh`: a number that no order has had."""
        side = dice.choice((Side.BUY, Side.SELL))
        price, size = float(100 + dice.randrange(12)) / 4, float(dice.randrange(1, 50))
        if self.form == "row":
            rows = self.rows[side]
            action = dice.choice((Action.ADD, Action.MODIFY, Action.DELETE)) if rows else Action.ADD
            place = dice.randrange(min(len(rows) + 1, ROWS) if action is Action.ADD else len(rows))
            return action, side, place, price, 0.0 if action is Action.DELETE else size
        there = [key for key in self.levels if key[0] is side]
        if self.form == "price":
            if there and dice.random() < 0.4:
                return Action.DELETE, side, 0, float(dice.choice(there)[1]), 0.0
            return Action.MODIFY, side, 0, price, size
        if there and dice.random() < 0.5:
            number = int(dice.choice(there)[1])
            action = dice.choice((Action.DELETE, Action.EXECUTE, Action.MODIFY))
            had = self.levels[side, number][0]
            return action, side, number, had, 0.0 if action is Action.DELETE else size
        return Action.ADD, side, fresh, price, size

    def snapshot(self) -> list[Change]:
        found: list[Change] = [(Action.CLEAR, Side.NONE, 0, float("nan"), 0.0)]
        if self.form == "row":
            for side, rows in self.rows.items():
                found += [(Action.ADD, side, place, *level) for place, level in enumerate(rows)]
        else:
            found += [(Action.ADD, side, int(key), *level) for (side, key), level in self.levels.items()]
        return found

    def state(self) -> Any:
        return self.rows if self.form == "row" else self.levels


class Feed:
    """A venue's connection: its books as it has them, and which of them it has told since it was connected."""

    def __init__(self, number: int, form: str, dice: random.Random) -> None:
        self.number = number
        self.books = [Book(form) for _ in range(INSTRUMENTS)]
        self.form = form
        self.dice = dice
        self.orders = number * 1_000_000
        self.lag_ms = dice.randrange(0, 300)  # its clock

    def records(self, instrument: int, changes: list[Change], now_ms: int, flags: int = 0) -> np.ndarray:
        out = empty(len(changes))
        for record, (action, side, number, price, size) in zip(out, changes, strict=True):
            record["record_type"] = RecordType.LEVEL2
            record["instrument_id"] = instrument
            record["feed_id"] = self.number
            record["ts_event"] = START + (now_ms - self.lag_ms) * MS
            record["ts_receive"] = START + now_ms * MS
            record["action"], record["side"], record["price"], record["size"] = action, side, price, size
            record["flags"] = flags
            record["level"] = number if self.form == "row" and action is not Action.CLEAR else ANY_LEVEL
            record["depth"] = ROWS if self.form == "row" else 0
            record["source_sequence"] = number if self.form == "order" else now_ms
        out["flags"][-1:] |= np.uint16(Flag.LAST_OF_BATCH)
        return out

    def changed(self, instrument: int, now_ms: int) -> np.ndarray:
        changes = []
        for _ in range(self.dice.randrange(1, 5)):
            self.orders += 1
            change = self.books[instrument].change(self.dice, self.orders)
            self.books[instrument].apply(*change)
            changes.append(change)
        return self.records(instrument, changes, now_ms)

    def pictured(self, instrument: int, now_ms: int) -> np.ndarray:
        return self.records(instrument, self.books[instrument].snapshot(), now_ms, int(Flag.SNAPSHOT))


class Consumer:
    """Applies what is published, and nothing else."""

    def __init__(self, forms: dict[int, str]) -> None:
        self._forms = forms  # by feed: whether numbers are those of orders
        self.books = [Book("price") for _ in range(INSTRUMENTS)]
        self.incomplete = [False] * INSTRUMENTS

    def take(self, records: np.ndarray) -> None:
        for record in records:
            instrument, action = int(record["instrument_id"]), Action(int(record["action"]))
            book = self.books[instrument]
            if action is Action.CLEAR:
                assert record["flags"] & int(Flag.SNAPSHOT)
                book.clear()
                book.form = self._forms[int(record["feed_id"])]
                self.incomplete[instrument] = bool(record["flags"] & int(Flag.INCOMPLETE))
            number = int(record["level"]) if book.form == "row" else int(record["source_sequence"])
            book.apply(action, Side(int(record["side"])), number, float(record["price"]), float(record["size"]))


class Scene:
    """Two feeds, their group, the consumer, and a clock in ms."""

    def __init__(self, forms: tuple[str, str], dice: random.Random) -> None:
        self.group = Redundancy("g", LIMITS)
        self.dice = dice
        self.now_ms = 1000
        self.feeds = [Feed(number + 1, form, dice) for number, form in enumerate(forms)]
        self.members = [self.group.join(feed.number, f"f{feed.number}", feed.number) for feed in self.feeds]
        self.consumer = Consumer({feed.number: feed.form for feed in self.feeds})
        self.up = [False, False]
        self.switches = 0
        for which, member in enumerate(self.members):
            self.group.introduce(member, orders=forms[which] == "order")
            self.connect(which)

    @property
    def now_ns(self) -> int:
        return START + self.now_ms * MS

    def hear(self, which: int, records: np.ndarray) -> None:
        cut = self.dice.randrange(len(records) + 1)  # what belongs together may come in two batches
        for piece in (records[:cut].copy(), records[cut:].copy()):
            kept = self.group.filter(piece, len(piece), self.members[which], self.now_ns)
            self.consumer.take(piece[:kept])
            if self.dice.random() < 0.3:
                self.step()

    def connect(self, which: int) -> None:
        """The feed is up, and tells its books one after the other, maybe not all of them at once."""
        self.up[which] = True
        self.group.up(self.members[which], self.now_ns)
        for instrument in self.dice.sample(range(INSTRUMENTS), INSTRUMENTS):
            self.hear(which, self.feeds[which].pictured(instrument, self.now_ms))

    def cut(self, which: int) -> None:
        self.up[which] = False
        self.group.down(self.members[which], self.now_ns, "cut")
        self.group.void(self.members[which])

    def step(self) -> None:
        for takeover in self.group.step(self.now_ns):
            self.switches += 1
            self.consumer.take(takeover.records)
        if self.group.board.due and self.dice.random() < 0.5:  # the worker may be late
            self.consumer.take(self.group.pictures(self.dice.choice((1, 8, 4096)), self.now_ns))

    def settle(self) -> None:
        for takeover in self.group.step(self.now_ns):
            self.consumer.take(takeover.records)
        while self.group.board.due:
            self.consumer.take(self.group.pictures(4, self.now_ns))

    def publisher(self, instrument: int) -> Feed:
        for which, member in enumerate(self.members):
            if instrument in self.group.exceptions(member)[0]:
                return self.feeds[which]
        active = self.group.active
        assert isinstance(active, Member)
        return self.feeds[self.members.index(active)]


@given(
    forms=st.tuples(st.sampled_from(FORMS), st.sampled_from(FORMS)),
    seed=st.integers(0, 1 << 30),
    steps=st.integers(20, 300),
)
@settings(max_examples=120, deadline=None)
def test_a_consumer_ends_with_the_book_of_the_feed_that_publishes(
    forms: tuple[str, str], seed: int, steps: int
) -> None:
    dice = random.Random(seed)
    scene = Scene(forms, dice)
    mute: tuple[int, int] | None = None  # which feed says nothing of which instrument
    for _ in range(steps):
        scene.now_ms += dice.choice((1, 10, 40))
        what = dice.random()
        which = dice.randrange(2)
        if what < 0.04 and scene.up[1 - which]:
            scene.cut(which) if scene.up[which] else scene.connect(which)
        elif what < 0.06:
            mute = None if mute else (which, dice.randrange(INSTRUMENTS))
        elif what < 0.08 and scene.up[which]:
            instrument = dice.randrange(INSTRUMENTS)
            scene.hear(which, scene.feeds[which].pictured(instrument, scene.now_ms))
        else:
            instrument = dice.randrange(INSTRUMENTS)
            for one in dice.sample((0, 1), 2):
                if scene.up[one] and (one, instrument) != mute:
                    scene.hear(one, scene.feeds[one].changed(instrument, scene.now_ms))
        scene.step()
    scene.settle()
    for instrument, book in enumerate(scene.consumer.books):
        feed = scene.publisher(instrument)
        assert book.form == feed.form
        assert book.state() == feed.books[instrument].state()
        assert not scene.consumer.incomplete[instrument]


@pytest.mark.parametrize("form", FORMS)
def test_a_switch_in_the_middle_of_changes_takes_over_the_other_book(form: str) -> None:
    """The least that must happen: without any picture by the venue itself, switches both ways are whole."""
    scene = Scene((form, form), random.Random(7))
    for _ in range(3):
        for which in (0, 1):
            for _ in range(40):
                scene.now_ms += 1
                for one in (0, 1):
                    scene.hear(one, scene.feeds[one].changed(scene.now_ms % INSTRUMENTS, scene.now_ms))
            before = [book.state() for book in scene.feeds[0].books]
            assert before != [book.state() for book in scene.feeds[1].books]
            scene.group.down(scene.members[which], scene.now_ns, "silent")  # its connection and its book stay
            scene.settle()
            assert scene.group.active is scene.members[1 - which]
            for instrument, book in enumerate(scene.consumer.books):
                assert book.state() == scene.feeds[1 - which].books[instrument].state()
            scene.group.up(scene.members[which], scene.now_ns)
