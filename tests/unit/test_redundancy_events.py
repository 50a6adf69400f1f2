"""Redundancy groups: no event is told twice or left out, at a switch or at a restart."""

from __future__ import annotations

from typing import Any

import numpy as np

from shm.layout import NO_INSTRUMENT, Flag, RecordType, StatusCode
from tests.group_scene import MS, START, S, Scene, batch, events_of
from workers.group_member import Condition
from workers.redundancy import Limits


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


def test_corrections_are_told_although_they_speak_of_the_past() -> None:
    scene = Scene(0, 1)
    scene.both(1, 2, 3, ids=True)
    scene.group.down(scene.members[0], scene.now_ns, "x")
    scene.step()
    assert scene.say(1, 2, ids=True, flags=int(Flag.CORRECTED)) == [2]
    assert scene.say(1, 3, ids=True) == []
    assert scene.say(1, 4, ids=True) == [4]


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
