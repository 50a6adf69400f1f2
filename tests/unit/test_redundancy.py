"""Redundancy groups: who publishes when, and what makes another do so."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shm.layout import NO_INSTRUMENT, Flag, RecordType
from tests.group_scene import LIMITS, MS, START, S, Scene, events_of
from workers.errors import SettingsError
from workers.group_member import TRANSITIONS, Condition, Event, Member
from workers.redundancy import BETTER_NS, MAX_MEMBERS, START_NS, UNLEARNED_NS, Limits


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
