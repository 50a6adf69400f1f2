"""Redundancy groups: the book of the feed that takes over is published whole, and then its changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, Action, Flag, RecordType
from tests.group_scene import MS, START, Scene, batch
from workers.redundancy import Limits


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
