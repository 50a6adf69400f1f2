"""Redundancy groups: who publishes when, and that nothing is told twice or left out at a switch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType, StatusCode, empty
from workers.errors import SettingsError
from workers.group_member import TRANSITIONS, Condition, Event, Member
from workers.redundancy import BETTER_NS, MAX_MEMBERS, START_NS, UNLEARNED_NS, Limits, Redundancy, Takeover

MS = 1_000_000
S = 1_000_000_000
START = 1_700_000_000 * S
LIMITS = Limits(stale_ns=200 * MS, hold_ns=10 * S, margin=0.25, per_minute=3, backlog_records=256)


def batch(
    *events: int, instrument: int = 0, kind: RecordType = RecordType.TRADE, ids: bool = False, **fields: Any
) -> Any:
    """One record an event, whose time is START + that many ms; with `ids` that is its trade id too."""
    records = empty(len(events))
    for record, event in zip(records, events, strict=True):
        record["record_type"] = kind
        record["instrument_id"] = instrument
        record["ts_event"] = START + event * MS
        record["ts_receive"] = START + event * MS
        record["venue"] = b"XTST"
        if ids:
            record["trade_id"] = event
        for name, value in fields.items():
            record[name] = value
    return records


def events_of(records: np.ndarray) -> list[int]:
    return [(int(ts) - START) // MS for ts in records["ts_event"]]


class Scene:
    """A group, its clock in ms, and what it has published, as (feed, event) in order."""

    def __init__(self, *ranks: int, limits: Limits = LIMITS, up: bool = True) -> None:
        self.now_ms = 0
        self.group = Redundancy("g", limits)
        self.members = [self.group.join(10 + number, f"f{number}", rank) for number, rank in enumerate(ranks)]
        self.published: list[tuple[int, int]] = []
        self.records: list[np.ndarray] = []
        self.takeovers: list[Takeover] = []
        if up:
            for member in self.members:
                self.group.up(member, self.now_ns)
            self.step()

    @property
    def now_ns(self) -> int:
        return START + self.now_ms * MS

    def at(self, now_ms: int) -> Scene:
        """Look at every due time until then."""
        while (due_ms := -(-(self.group.due_ns - START) // MS)) <= now_ms:
            self.now_ms = max(self.now_ms, due_ms)
            self.step()
        self.now_ms = now_ms
        return self

    def hear(self, number: int, records: np.ndarray) -> list[int]:
        """A member delivers; what of it is published at once."""
        kept = self.group.filter(records, len(records), self.members[number], self.now_ns)
        self._publish(self.members[number].feed_id, records[:kept])
        self.step()
        return events_of(records[:kept])

    def say(self, number: int, *events: int, **fields: Any) -> list[int]:
        return self.hear(number, batch(*events, **fields))

    def both(self, *events: int, **fields: Any) -> None:
        """Every member delivers each event, a little later than it happened."""
        for event in events:
            self.at(event + 1)
            for number in range(len(self.members)):
                self.say(number, event, **fields)

    def step(self) -> None:
        for takeover in self.group.step(self.now_ns):
            self.takeovers.append(takeover)
            self._publish(takeover.to_feed, takeover.records)

    def _publish(self, feed: int, records: np.ndarray) -> None:
        self.published += [(feed, event) for event in events_of(records)]
        self.records.append(records.copy())

    @property
    def switches(self) -> list[tuple[int, int]]:
        return [(one.from_feed, one.to_feed) for one in self.takeovers]

    def condition(self, number: int) -> Condition:
        return self.members[number].condition


def test_the_preferred_feed_publishes_and_the_other_is_withheld() -> None:
    scene = Scene(1, 0)
    assert scene.say(1, 5, 6) == [5, 6]
    assert scene.say(0, 5, 6) == []
    assert scene.group.board.standby == 2
    assert scene.group.active is scene.members[1]
    assert not scene.takeovers


@pytest.mark.parametrize(("condition", "event"), [(c, e) for c in Condition for e in Event])
def test_every_event_in_every_condition_leads_where_the_table_says(condition: Condition, event: Event) -> None:
    scene = Scene(0, 1, up=False)
    group, member = scene.group, scene.members[1]
    group.up(scene.members[0], scene.now_ns)
    scene.both(1, 2)
    if condition is not Condition.OUT:
        group.up(member, scene.now_ns)
    if condition is Condition.READY:
        for event_ms in range(100, 10_500, 500):
            scene.both(event_ms)
    elif condition is Condition.MUTE:
        for event_ms in range(100, 4000, 100):
            scene.at(event_ms).say(0, event_ms)
    assert member.condition is condition
    now_ms = scene.now_ms
    if event is Event.UP:
        group.up(member, scene.now_ns)
    elif event is Event.DOWN:
        group.down(member, scene.now_ns, "gone")
    elif event is Event.SPOKE:
        scene.now_ms += 5
        scene.say(0, now_ms + 4)
        scene.say(1, now_ms + 4)
        scene.at(now_ms + 300)
    elif event is Event.SILENT:
        for event_ms in range(now_ms + 100, now_ms + 9000, 100):
            scene.at(event_ms).say(0, event_ms)
    elif event is Event.PROVEN:
        for event_ms in range(now_ms + 400, now_ms + 10_800, 400):
            scene.at(event_ms).say(0, event_ms)
            if condition not in (Condition.OUT, Condition.MUTE):
                scene.say(1, event_ms)
    assert member.condition is TRANSITIONS.get((condition, event), condition)


def test_a_lost_connection_is_left_at_once_and_the_backlog_fills_the_hole() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 50))
    scene.say(1, 50, 51, 52)
    scene.group.down(scene.members[0], scene.now_ns, "closed by the venue")
    scene.step()
    (takeover,) = scene.takeovers
    assert takeover[:4] == (10, 11, NO_INSTRUMENT, "lost: closed by the venue")
    assert events_of(takeover.records) == [50, 51, 52]
    assert (takeover.records["flags"] == int(Flag.BACKFILLED)).all()
    assert scene.say(1, 53) == [53]
    assert [event for _, event in scene.published] == list(range(10, 54))
    assert scene.condition(0) is Condition.OUT


def test_a_slower_standby_does_not_tell_again_what_was_published() -> None:
    scene = Scene(0, 1)
    for event in range(10, 30):
        scene.at(event).say(0, event)
        scene.say(1, event - 5)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.takeovers[0].records.size == 0
    assert scene.say(1, 25, 26, 27, 28, 29, 30, 31) == [30, 31]
    assert scene.group.board.duplicates == 5
    assert [event for _, event in scene.published] == list(range(10, 32))


def test_trade_ids_tell_events_of_the_same_time_apart() -> None:
    scene = Scene(0, 1)
    same_time = {"ts_event": START + 5 * MS, "ids": True}
    scene.say(0, 1, 2, 3, **same_time)
    scene.say(1, 1, 2, 3, 4, **same_time)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.takeovers[0].records["trade_id"].tolist() == [4]
    late = batch(2, 5, ids=True, ts_event=START + 5 * MS)
    kept = scene.group.filter(late, 2, scene.members[1], scene.now_ns)
    assert late[:kept]["trade_id"].tolist() == [5]


def test_quotes_without_a_time_of_their_own_go_by_the_venues_sequence() -> None:
    scene = Scene(0, 1)

    def quote(number: int, received_ms: int) -> np.ndarray:
        return batch(received_ms, kind=RecordType.QUOTE, source_sequence=number)

    for number in range(1, 200):  # the standby's copy is received later, and is no news
        scene.at(10 * number)
        scene.hear(0, quote(number, 10 * number))
        scene.hear(1, quote(number, 10 * number + 5))
    scene.at(5000)
    assert not scene.takeovers
    scene.hear(1, quote(200, 5000))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.takeovers[0].records["source_sequence"].tolist() == [200]
    scene = Scene(0, 1)
    scene.hear(0, quote(900, 10))
    scene.hear(1, quote(5, 20))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.takeovers[0].records.size == 0
    assert len(scene.hear(1, quote(6, 1020))) == 1  # a number that was its connection's own costs a second at most


def test_a_clock_that_is_set_back_does_not_blind_the_group() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 100, 10))
    scene.group.down(scene.members[0], scene.now_ns - 3600 * S, "x")
    assert [one.to_feed for one in scene.group.step(scene.now_ns - 3600 * S)] == [11]
    scene.group.up(scene.members[0], scene.now_ns - 3600 * S)
    scene.group.due_ns = scene.now_ns
    scene.group.down(scene.members[1], scene.now_ns - 3600 * S, "y")
    scene.group.due_ns = scene.now_ns
    assert [one.to_feed for one in scene.group.step(scene.now_ns - 3600 * S)] == [10]


def test_trade_ids_of_different_venues_are_not_compared() -> None:
    scene = Scene(0, 1)
    scene.say(0, 900, ids=True, ts_event=START + 10 * MS)
    scene.say(1, 5, ids=True, ts_event=START + 20 * MS, venue=b"OTHER")
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.takeovers[0].records["trade_id"].tolist() == [5]


def test_trade_ids_that_began_anew_do_not_stop_a_feed_for_ever() -> None:
    scene = Scene(0, 1)
    scene.say(0, 900, ids=True, ts_event=START)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.say(1, 5, ids=True, ts_event=START + 1 * S) == []
    assert len(scene.say(1, 6, ids=True, ts_event=START + 61 * S)) == 1


def test_a_time_far_ahead_of_the_clock_does_not_stop_the_next_feed_for_long() -> None:
    scene = Scene(0, 1)
    scene.both(1, 2)
    scene.say(0, 10_000_000)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.say(1, 4000) == []
    assert scene.say(1, 6000) == [6000]


def test_a_silent_feed_is_left_when_the_other_one_delivers_what_it_does_not() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 500, 10))
    lost_at = 490
    for event in range(500, 900, 10):
        scene.at(event).say(1, event)
    (takeover,) = scene.takeovers
    assert takeover[:3] == (10, 11, NO_INSTRUMENT)
    assert takeover.reason.startswith("silent for 0.2")
    first = events_of(takeover.records)
    assert first[0] == lost_at + 10
    assert [event for _, event in scene.published] == list(range(10, 900, 10))
    assert scene.condition(0) is Condition.MUTE
    assert scene.group.last_switch_ns - START <= (lost_at + 20 + 300) * MS


def test_silence_of_all_feeds_is_nobodys_fault() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 500, 10))
    scene.at(60_000)
    assert not scene.takeovers
    assert scene.condition(0) in (Condition.PROVING, Condition.READY)


def test_one_event_that_the_publisher_has_lost_is_no_reason() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 500, 10))
    scene.at(500).say(1, 500)
    scene.at(9000)
    scene.both(9001, 9002)
    assert not scene.takeovers


def test_patience_grows_with_what_a_feed_usually_takes() -> None:
    scene = Scene(0, 1)
    for event in range(100, 6100, 100):  # the preferred one delivers in bundles
        scene.at(event).say(1, event)
        if event % 400 == 0:
            scene.say(0, *range(event - 300, event + 1, 100))
    for event in range(6100, 6600, 100):  # one of which comes late
        scene.at(event).say(1, event)
    assert not scene.takeovers
    scene.at(6550).say(0, *range(6100, 6550, 100))
    for event in range(6600, 8500, 100):
        scene.at(event).say(1, event)
    assert scene.switches == [(10, 11)]
    assert scene.group.last_switch_ns > START + 7300 * MS


def test_only_the_instruments_that_are_silent_move_and_come_back() -> None:
    scene = Scene(0, 1)
    for event in range(10, 1000, 10):
        scene.both(event, instrument=event // 10 % 3)
    for event in range(1000, 2000, 10):
        scene.at(event)
        instrument = event // 10 % 3
        scene.say(1, event, instrument=instrument)
        if instrument != 2:
            scene.say(0, event, instrument=instrument)
    (takeover,) = scene.takeovers
    assert takeover[:3] == (10, 11, 2)
    assert takeover.reason.startswith("trade silent for 0.2")
    assert scene.group.active is scene.members[0]
    assert scene.group.exceptions(scene.members[1]) == ([2], [])
    assert scene.group.exceptions(scene.members[0]) == ([], [2])
    told = [event for _, event in scene.published]
    assert sorted(told) == list(range(10, 2000, 10))
    for event in range(2000, 15_000, 10):
        scene.both(event, instrument=event // 10 % 3)
    assert scene.switches == [(10, 11), (11, 10)]
    assert scene.takeovers[1].instrument_id == 2
    assert scene.group.exceptions(scene.members[1]) == ([], [])
    told = [event for _, event in scene.published]
    assert sorted(told) == list(range(10, 15_000, 10))
    assert len(set(told)) == len(told)


def test_an_instrument_that_only_a_standby_has_is_published_from_there() -> None:
    scene = Scene(0, 1)
    for event in range(20, 5000, 20):
        scene.both(event)
        scene.say(1, event, instrument=7)
    assert [(one.to_feed, one.instrument_id) for one in scene.takeovers] == [(11, 7)]
    assert scene.group.last_switch_ns - START <= UNLEARNED_NS + 100 * MS
    assert scene.takeovers[0].lost == 0


def test_an_exception_returns_when_its_feed_is_lost() -> None:
    scene = Scene(0, 1)
    for event in range(10, 5000, 10):
        scene.both(event)
        scene.say(1, event, instrument=7)
    scene.group.down(scene.members[1], scene.now_ns, "gone")
    scene.step()
    assert scene.switches[-1] == (11, 10)
    assert scene.takeovers[-1].instrument_id == 7
    assert scene.group.exceptions(scene.members[0]) == ([], [])


def test_the_preferred_feed_comes_back_only_after_it_was_healthy_for_long_enough() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 500, 10))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    for event in range(500, 3000, 10):
        scene.at(event).say(1, event)
    scene.group.up(scene.members[0], scene.now_ns)
    back_at = scene.now_ms
    scene.both(*range(3000, 7000, 20))
    scene.group.down(scene.members[0], scene.now_ns, "again")  # the clock begins anew
    scene.group.up(scene.members[0], scene.now_ns)
    again_at = scene.now_ms
    scene.both(*range(7000, 25_000, 20))
    assert scene.switches == [(10, 11), (11, 10)]
    returned_ms = (scene.group.last_switch_ns - START) // MS
    assert returned_ms >= again_at + (LIMITS.hold_ns + BETTER_NS) // MS > back_at
    assert scene.takeovers[1].reason.startswith("rank 0 healthy for 1")
    told = [event for _, event in scene.published]
    assert len(set(told)) == len(told)
    assert told == sorted(told)
    assert set(range(10, 3000, 10)) | set(range(3000, 25_000, 20)) == set(told)


def test_a_feed_that_is_not_well_gives_way_to_a_healthier_one_and_small_differences_do_not_count() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 13_000, 20))
    scene.group.rate(scene.members[0], 0.8)
    scene.both(*range(13_000, 20_000, 20))
    assert not scene.takeovers
    scene.group.rate(scene.members[0], 0.5)
    scene.both(*range(20_000, 24_000, 20))
    assert scene.switches == [(10, 11)]
    assert scene.takeovers[0].reason == "health 1.00 against 0.50"
    scene.group.rate(scene.members[0], 0.74)
    scene.both(*range(24_000, 40_000, 20))
    assert len(scene.takeovers) == 1
    scene.group.rate(scene.members[0], 0.8)
    scene.both(*range(40_000, 44_000, 20))
    assert scene.switches == [(10, 11), (11, 10)]


def test_ways_back_are_limited_and_flights_are_not() -> None:
    limits = Limits(stale_ns=200 * MS, hold_ns=1 * S, margin=0.25, per_minute=3, backlog_records=64)
    scene = Scene(0, 1, limits=limits)
    now = 10
    for _ in range(5):
        scene.both(*range(now, now + 3000, 20))
        now += 3000
        scene.group.down(scene.members[0], scene.now_ns, "x")
        scene.step()
        scene.group.up(scene.members[0], scene.now_ns)
    scene.both(*range(now, now + 5000, 20))
    assert scene.switches == [(10, 11), (11, 10), (10, 11)]
    assert scene.group.held_back
    scene.group.down(scene.members[1], scene.now_ns, "y")
    scene.step()
    assert scene.switches[-1] == (11, 10)


def test_a_group_that_begins_waits_a_moment_for_its_first_choice() -> None:
    scene = Scene(0, 1, up=False)
    scene.group.up(scene.members[1], scene.now_ns)
    scene.step()
    scene.say(1, 5)
    scene.at(START_NS // MS - 10)
    assert not scene.published
    scene.at(START_NS // MS + 300)
    assert scene.published == [(11, 5)]
    assert scene.takeovers[0].reason == "not up: not up yet"


def test_when_nobody_is_left_the_first_to_come_back_goes_on() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 500, 10))
    for member in scene.members:
        scene.group.down(member, scene.now_ns, "x")
    scene.step()
    scene.at(5000)
    assert scene.switches == []
    scene.group.up(scene.members[1], scene.now_ns)
    scene.step()
    assert scene.switches == [(10, 11)]
    assert scene.say(1, 480, 490, 5001) == [5001]


def test_what_a_backlog_gave_is_not_told_again_although_nobody_knows_when_it_was_received() -> None:
    scene = Scene(0, 1)
    scene.both(1, 2, 3)
    scene.say(1, 4, 5, ts_receive=0)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    scene.group.up(scene.members[0], scene.now_ns)
    scene.say(0, 4, 5, ts_receive=0)
    scene.group.down(scene.members[1], scene.now_ns, "x")
    scene.step()
    assert [event for _, event in scene.published] == [1, 2, 3, 4, 5]


def test_a_feed_that_connects_anew_does_not_repeat_itself() -> None:
    scene = Scene(0)
    scene.say(0, 1, 2, 3)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.group.up(scene.members[0], scene.now_ns)
    assert scene.say(0, 2, 3, 4) == [4]


def test_a_backlog_that_was_too_short_is_told_and_flagged() -> None:
    limits = Limits(backlog_records=4)
    scene = Scene(0, 1, limits=limits)
    scene.both(1, 2, 3)
    scene.say(1, *range(4, 12))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    (takeover,) = scene.takeovers
    assert events_of(takeover.records) == [8, 9, 10, 11]
    assert takeover.lost == 1
    assert takeover.records["flags"][0] & int(Flag.GAP_BEFORE)
    assert not takeover.records["flags"][1] & int(Flag.GAP_BEFORE)
    assert scene.group.board.lost == 4


def levels(*told: tuple[int, float, float], event: int = 0, **fields: Any) -> np.ndarray:
    """Level2 records of (side, price, size) by price; size 0 takes one out, side 0 is a CLEAR."""
    records = batch(*[event] * len(told), kind=RecordType.LEVEL2, level=0xFFFF, **fields)
    for record, (side, price, size) in zip(records, told, strict=True):
        record["side"], record["price"], record["size"] = side, price, size
        record["action"] = Action.MODIFY if size else Action.DELETE if side else Action.CLEAR
    return records


def picture_of(records: np.ndarray) -> list[tuple[str, int, float, float]]:
    """(action, side, price, size) of each."""
    return [
        (Action(int(one["action"])).name, int(one["side"]), float(one["price"]), float(one["size"])) for one in records
    ]


def switched(scene: Scene, away_from: int = 0) -> np.ndarray:
    """The books that are published when a feed is left."""
    scene.group.down(scene.members[away_from], scene.now_ns, "x")
    scene.step()
    return scene.group.pictures(1000, scene.now_ns)


def test_the_book_of_the_next_feed_is_published_whole_and_then_its_changes_whatever_their_time() -> None:
    scene = Scene(0, 1)
    scene.at(100).hear(0, levels((1, 9.0, 1.0), (2, 10.0, 1.0), event=90))
    scene.hear(1, levels((1, 8.0, 5.0), (1, 8.5, 1.0), (2, 9.5, 2.0), event=50, source_sequence=77))
    scene.hear(1, levels((1, 8.5, 0.0), (2, 9.25, 3.0), event=60, source_sequence=78, venue=b"NEXT", feed_id=11))
    found = switched(scene)
    assert picture_of(found[1:]) == [("ADD", 1, 8.0, 5.0), ("ADD", 2, 9.25, 3.0), ("ADD", 2, 9.5, 2.0)]
    first = found[0]
    assert (first["action"], first["side"]) == (Action.CLEAR, 0)
    assert first["flags"] == Flag.SNAPSHOT | Flag.GAP_BEFORE
    assert (found["flags"][1:3] == Flag.SNAPSHOT).all()
    assert found["flags"][3] == Flag.SNAPSHOT | Flag.LAST_OF_BATCH
    assert (found["ts_event"] == START + 60 * MS).all()
    assert (found["source_sequence"] == 78).all()
    assert (found["venue"] == b"NEXT").all()
    assert (found["feed_id"] == 11).all()
    assert np.isnan(found["best_bid"][0])
    assert found["best_bid"][1:].tolist() == [8.0] * 3
    assert found["best_ask"][2:].tolist() == [9.25] * 2
    assert scene.group.board.due == 0
    assert scene.hear(1, levels((1, 8.75, 1.0), event=70)) == [70]  # older than what the feed before has told
    assert scene.takeovers[0].records.size == 0


def test_what_changes_before_a_book_is_out_goes_out_with_it() -> None:
    scene = Scene(0, 1)
    for instrument in (3, 4):
        for number in (0, 1):
            scene.hear(number, levels((1, 5.0 + number, 1.0), event=10, instrument=instrument))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.group.board.due == 2
    assert picture_of(scene.group.pictures(2, scene.now_ns))[1:] == [("ADD", 1, 6.0, 1.0)]
    assert scene.group.board.due == 1
    assert scene.hear(1, levels((1, 6.0, 9.0), event=20, instrument=4)) == []
    assert scene.hear(1, levels((1, 6.0, 8.0), event=20, instrument=3)) == [20]
    (rest,) = [scene.group.pictures(1, scene.now_ns)]
    assert picture_of(rest)[1:] == [("ADD", 1, 6.0, 9.0)]
    assert rest["instrument_id"].tolist() == [4, 4]
    assert scene.hear(1, levels((1, 6.0, 7.0), event=21, instrument=4)) == [21]


def test_a_picture_of_the_venues_own_takes_the_place_of_one_that_is_due() -> None:
    scene = Scene(0, 1)
    for number in (0, 1):
        scene.hear(number, levels((1, 5.0, 1.0), event=10))
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    own = levels((0, 0.0, 0.0), (1, 4.0, 1.0), event=11, flags=int(Flag.SNAPSHOT))
    assert scene.hear(1, own) == [11, 11]
    assert own["flags"][0] & int(Flag.GAP_BEFORE)
    assert scene.group.board.due == 0
    assert len(scene.group.pictures(10, scene.now_ns)) == 0


def test_a_book_that_the_next_feed_does_not_know_is_cleared_and_said_to_lack_something() -> None:
    scene = Scene(0, 1)
    scene.hear(0, levels((1, 5.0, 1.0), event=10))
    scene.hear(1, batch(10))
    found = switched(scene)
    assert picture_of(found)[0][0] == "CLEAR"
    assert found["flags"].tolist() == [Flag.SNAPSHOT | Flag.GAP_BEFORE | Flag.INCOMPLETE | Flag.LAST_OF_BATCH]
    assert found["feed_id"].tolist() == [11]


@pytest.mark.parametrize("why", ["lost", "gap", "hole", "its own"])
def test_a_book_that_may_lack_something_is_said_to_until_it_begins_anew(why: str) -> None:
    scene = Scene(0, 1)
    scene.hear(0, levels((1, 5.0, 1.0), event=10))
    scene.hear(1, levels((1, 5.0, 2.0), (2, 6.0, 1.0), event=10))
    if why == "lost":
        scene.group.void(scene.members[1])
    elif why == "gap":
        scene.hear(1, batch(11, kind=RecordType.STATUS, instrument=NO_INSTRUMENT, code=4))
    flags = {"hole": Flag.GAP_BEFORE, "its own": Flag.INCOMPLETE}.get(why, Flag(0))
    scene.hear(1, levels((1, 4.0, 3.0), event=12, flags=int(flags)))
    found = switched(scene)
    assert (found["flags"] & np.uint16(Flag.INCOMPLETE)).all()
    there = (
        [("ADD", 1, 4.0, 3.0)] if why == "lost" else [("ADD", 1, 5.0, 2.0), ("ADD", 1, 4.0, 3.0), ("ADD", 2, 6.0, 1.0)]
    )
    assert picture_of(found)[1:] == there
    scene.group.up(scene.members[0], scene.now_ns)
    scene.hear(0, levels((0, 0.0, 0.0), event=20, flags=int(Flag.SNAPSHOT)))
    found = switched(scene, 1)
    assert len(found) == 1
    assert not found["flags"][0] & int(Flag.INCOMPLETE)


def test_a_gap_of_another_instrument_says_nothing_of_a_book() -> None:
    scene = Scene(0, 1)
    scene.hear(1, levels((1, 5.0, 2.0), event=10))
    scene.hear(1, batch(11, kind=RecordType.STATUS, instrument=7, code=4))
    assert not (switched(scene)["flags"] & np.uint16(Flag.INCOMPLETE)).any()


def test_ranks_that_a_feed_states_are_stated_and_rows_keep_their_places() -> None:
    scene = Scene(0, 1)
    ranked = levels((1, 5.0, 2.0), (1, 6.0, 1.0), (2, 7.0, 1.0), event=10, order_count=4)
    ranked["level"] = (0, 0, 0)
    scene.hear(1, ranked)
    rows = levels((2, 7.0, 1.0), (2, 8.0, 2.0), (2, 7.5, 3.0), event=10, instrument=1, depth=3)
    rows["level"], rows["action"] = (0, 2, 0), (Action.ADD, Action.MODIFY, Action.ADD)
    scene.hear(1, rows)
    found = switched(scene)
    assert found["level"].tolist() == [0xFFFF, 0, 1, 0, 0xFFFF, 0, 1]
    assert found["order_count"].tolist() == [0, 4, 4, 4, 0, 0, 0]
    assert picture_of(found)[5:] == [("ADD", 2, 7.5, 3.0), ("ADD", 2, 7.0, 1.0)]  # the third row was pushed out
    assert (found["depth"][4:] == 3).all()
    scene.hear(1, levels((2, 9.0, 1.0), event=11, instrument=2, depth=9, feed_id=3))
    assert scene.group.board.due == 0


def test_orders_are_told_by_their_numbers() -> None:
    scene = Scene(0, 1)
    scene.group.introduce(scene.members[1], orders=True)
    for number, told in enumerate([(1, 5.0, 2.0), (1, 5.0, 3.0), (2, 6.0, 1.0)], 100):
        scene.hear(1, levels(told, event=10, source_sequence=number))
    scene.hear(1, levels((1, 5.0, 0.0), event=11, source_sequence=100))
    found = switched(scene)
    assert picture_of(found)[1:] == [("ADD", 1, 5.0, 3.0), ("ADD", 2, 6.0, 1.0)]
    assert found["source_sequence"].tolist()[1:] == [101, 102]


def test_memory_for_books_is_bounded_and_what_finds_no_room_is_counted_and_told() -> None:
    scene = Scene(0, 1, limits=Limits(book_bytes=4096))
    scene.hear(1, levels(*[(1, float(price), 1.0) for price in range(1, 201)], event=10))
    board = scene.group.board
    assert board.book_bytes(1) == 4096
    assert board.levels_lost == 200 - 96  # three quarters of 128 slots of 32 bytes
    found = switched(scene)
    assert len(found) == 97
    assert (found["flags"] & np.uint16(Flag.INCOMPLETE)).all()
    scene.group.leave(scene.members[1], scene.now_ns)
    assert board.book_bytes(1) == 0


def test_a_book_that_others_publish_for_a_feed_returns_whole() -> None:
    """By instrument: the other feed's book when it takes over, and the first one's when it is back."""
    scene = Scene(0, 1)
    pictures = []
    for event in range(10, 15_000, 10):
        scene.both(event)
        for number, size in ((0, 1.0), (1, 2.0)):
            if number or not 1000 <= event < 3000:
                scene.hear(number, levels((1, 5.0 + event % 30, size), event=event))
        if scene.group.board.due:
            pictures.append(scene.group.pictures(100, scene.now_ns))
    assert [(one.to_feed, one.reason.split()[0]) for one in scene.takeovers] == [(11, "level2"), (10, "level2")]
    assert [picture_of(one)[1:] for one in pictures] == [
        [("ADD", 1, price, size) for price in (25.0, 15.0, 5.0)] for size in (2.0, 1.0)
    ]


def test_a_book_returns_when_the_feed_that_published_it_leaves() -> None:
    scene = Scene(0, 1)
    for event in range(10, 4000, 10):
        scene.both(event)
        scene.hear(1, levels((1, 5.0, 2.0), event=event))
    scene.group.pictures(100, scene.now_ns)
    scene.hear(0, levels((1, 4.0, 2.0), event=4000))
    scene.group.leave(scene.members[1], scene.now_ns)
    scene.step()
    assert scene.switches == [(10, 11), (11, 10)]
    assert scene.takeovers[1].reason == "removed"
    assert picture_of(scene.group.pictures(100, scene.now_ns))[1:] == [("ADD", 1, 4.0, 2.0)]


def test_corrections_are_told_although_they_speak_of_the_past() -> None:
    scene = Scene(0, 1)
    scene.both(1, 2, 3, ids=True)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.say(1, 2, ids=True, flags=int(Flag.CORRECTED)) == [2]
    assert scene.say(1, 3, ids=True) == []
    assert scene.say(1, 4, ids=True) == [4]


def test_a_polled_feed_is_not_judged_by_its_pauses_as_standby_or_publisher() -> None:
    scene = Scene(0, 1, limits=replace(LIMITS, backlog_records=4096))
    scene.group.introduce(scene.members[1], asks=True, types=("trade",))
    for event in range(10, 60_000, 20):
        scene.at(event).say(0, event)
        if event % 20_000 == 10:
            scene.say(1, *range(max(10, event - 19_980), event + 1, 20))
    assert scene.condition(1) is Condition.READY
    assert not scene.takeovers
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.switches == [(10, 11)]
    scene.group.up(scene.members[0], scene.now_ns)
    back_ms = scene.now_ms
    for event in range(60_010, 85_000, 20):  # the stream is back, and must be well for as long as ever
        scene.at(event).say(0, event)
    assert scene.switches == [(10, 11), (11, 10)]
    assert (scene.group.last_switch_ns - START) // MS >= back_ms + (LIMITS.hold_ns + BETTER_NS) // MS
    assert [event for _, event in scene.published] == list(range(10, 85_000, 20))


def test_a_preferred_feed_that_is_polled_stays_while_it_answers_and_the_stream_has_what_it_does_not_carry() -> None:
    scene = Scene(0, 1)
    scene.group.introduce(scene.members[0], asks=True, types=("bar",))
    scene.group.introduce(scene.members[1], types=("bar", "trade"))
    for event in range(100, 100_000, 100):
        scene.at(event).say(1, event)
        if event % 1000 == 0:
            scene.say(1, event, kind=RecordType.BAR)
        if event % 7000 == 0:
            scene.say(0, *range(event - 6000, event + 1, 1000), kind=RecordType.BAR)
    kinds = [(one.to_feed, one.reason.partition(" for ")[0]) for one in scene.takeovers]
    # Of bars it had none at first, so the stream's were had; since they came of it, it goes on with them.
    assert kinds == [(11, "trade silent"), (11, "bar silent"), (10, "bar delivered again")]
    assert scene.group.active is scene.members[0]
    bars = [one for records in scene.records for one in records if one["record_type"] == RecordType.BAR]
    assert [(int(one["ts_event"]) - START) // MS for one in bars] == list(range(1000, 98_001, 1000))


def test_bars_of_different_lengths_are_different_things() -> None:
    """Two that end at the same time, of which the feeds have one each, move and are fenced each by itself."""
    scene = Scene(0, 1)
    scene.group.introduce(scene.members[0], types=("trade",))
    for event in range(100, 8000, 100):
        scene.both(event)
        for length in (60, 300):
            if event % (length * 10) == 0:
                scene.say(1, event, kind=RecordType.BAR, interval_s=length)
    bars = [one for records in scene.records for one in records if one["record_type"] == RecordType.BAR]
    told = sorted((int(one["interval_s"]), (int(one["ts_event"]) - START) // MS) for one in bars)
    assert told == [(60, event) for event in range(600, 8000, 600)] + [(300, 3000), (300, 6000)]
    assert [one.to_feed for one in scene.takeovers] == [11, 11]
    for length in range(400, 440):  # many lengths share a key, and nothing breaks
        scene.say(1, 8000, kind=RecordType.BAR, interval_s=length)


def test_what_a_feed_does_not_carry_is_had_of_another_after_one_event_and_says_nothing_of_its_health() -> None:
    scene = Scene(0, 1)
    scene.group.introduce(scene.members[0], types=("trade",))
    scene.group.introduce(scene.members[1], asks=True, types=("bar",))
    scene.both(10)
    scene.say(1, *range(1, 9), kind=RecordType.BAR, flags=int(Flag.BACKFILLED))
    scene.at(20_000)
    (takeover,) = scene.takeovers  # and not the whole group, although its publisher says nothing
    assert (takeover.to_feed, takeover.instrument_id) == (11, 0)
    assert events_of(takeover.records) == list(range(1, 9))
    assert scene.group.active is scene.members[0]
    assert scene.group.exceptions(scene.members[0]) == ([], [])  # nothing that it should have is missing
    assert scene.group.exceptions(scene.members[1]) == ([0], [])


def test_status_records_pass_from_everybody() -> None:
    scene = Scene(0, 1)
    assert scene.say(1, 5, kind=RecordType.STATUS, instrument=NO_INSTRUMENT) == [5]
    assert scene.say(1, 5, kind=RecordType.STATUS, code=StatusCode.GAP) == [5]


HALT: dict[str, Any] = {"kind": RecordType.STATUS, "code": StatusCode.TRADING_STATUS}


def test_trading_status_is_published_once_and_the_standbys_in_its_place_after_a_switch() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 100, 10))
    assert scene.say(0, 100, **HALT) == [100]
    assert scene.say(1, 100, 110, **HALT) == []  # the second one is lost with the first feed
    scene.group.down(scene.members[0], scene.now_ns, "lost")
    scene.step()
    assert scene.switches == [(10, 11)]
    told = scene.records[-1]
    assert events_of(told) == [110]
    assert told["code"].tolist() == [StatusCode.TRADING_STATUS]
    assert told["flags"][0] & int(Flag.BACKFILLED)
    assert scene.say(1, 120, **HALT) == [120]
    assert [event for _, event in scene.published].count(100) == 1


def test_a_feed_that_does_not_carry_trading_status_is_not_left_for_that() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 100, 10))
    for instrument in range(20):
        scene.say(1, 100, 101, 102, instrument=instrument, **HALT)
    scene.at(20_000)
    assert scene.takeovers == []
    assert not scene.group.board.owed


def test_trading_status_from_before_a_restart_is_not_published_again() -> None:
    scene = Scene(0, 1, up=False)
    scene.group.restore(batch(1, 2, **HALT), scene.now_ns)
    scene.group.up(scene.members[0], scene.now_ns)
    assert scene.say(0, 2, 3, **HALT) == [3]


def test_what_was_published_before_a_restart_is_not_published_again() -> None:
    scene = Scene(0, 1, up=False)
    scene.group.restore(batch(1, 2, 3), scene.now_ns)
    scene.group.up(scene.members[0], scene.now_ns)
    assert scene.say(0, 2, 3, 4) == [4]
    assert scene.group.board.mark(0, RecordType.TRADE) == (START + 4 * MS, 0)


def test_a_feed_that_leaves_hands_over_and_its_place_can_be_taken() -> None:
    scene = Scene(0, 1)
    scene.both(*range(10, 100, 10))
    scene.say(1, 100)
    scene.group.leave(scene.members[0], scene.now_ns)
    scene.group.leave(scene.members[0], scene.now_ns)
    newcomer = scene.group.join(30, "new", 0)
    scene.step()
    assert scene.switches == [(30, 11)]  # which has the number of the one that left
    assert events_of(scene.takeovers[0].records) == [100]
    assert isinstance(newcomer, Member)
    assert scene.condition(1) in (Condition.PROVING, Condition.READY)


def test_a_group_has_an_end() -> None:
    scene = Scene(*range(MAX_MEMBERS))
    with pytest.raises(SettingsError, match="group 'g' has 8 feeds"):
        scene.group.join(99, "one", 9)
