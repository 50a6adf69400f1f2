"""Walking tiers against a slow model: whichever store holds what, an answer is the newest records, each once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shm.layout import RecordType, empty
from workers.tier import Key, TierDown, Wanted
from workers.tier_order import choose, key_of
from workers.tier_walk import walk

KINDS = (RecordType.TRADE, RecordType.QUOTE)
Row = tuple[int, int, int, RecordType]


def records_of(rows: list[Row]) -> np.ndarray:
    records = empty(len(rows))
    for at, (event, publish, sequence, kind) in enumerate(rows):
        records[at]["ts_event"], records[at]["ts_publish"], records[at]["sequence"] = event, publish, sequence
        records[at]["record_type"] = kind
    return records


def rows_of(records: np.ndarray) -> list[Row]:
    return [(*key_of(record), RecordType(int(record["record_type"]))) for record in records]


class Shelf:
    """A store whose records lie in a list, in no order."""

    def __init__(self, level: str, rows: list[Row], *, down: bool) -> None:
        self.level = level
        self.name = f"shelf of {level}"
        self.rows = rows
        self.down = down

    def read(self, wanted: Wanted) -> np.ndarray:
        if self.down:
            raise TierDown("fell over")
        return choose(records_of(self.rows), wanted)

    def close(self) -> None:
        self.rows = []


def model(rows: set[Row], wanted: Wanted) -> list[Row]:
    """The answer by plain Python."""
    keys = {row[:3]: row for row in sorted(rows)}
    chosen = [
        row
        for key, row in sorted(keys.items())
        if (wanted.kind is None or row[3] == wanted.kind)
        and (wanted.from_ns is None or row[0] >= wanted.from_ns)
        and (wanted.to_ns is None or row[0] < wanted.to_ns)
        and (wanted.before is None or key < wanted.before)
    ]
    return chosen[-wanted.limit :]


small = st.integers(0, 6)
# One kind for each key, because equal keys are one record.
keys = st.tuples(small, small, small)
all_rows = st.lists(keys, max_size=40, unique=True).map(lambda found: [(*key, KINDS[sum(key) % 2]) for key in found])
places = st.lists(st.sets(st.integers(0, 3), min_size=1), min_size=40, max_size=40)
maybe = st.none() | small
wanteds = st.builds(
    Wanted,
    symbol=st.just("X"),
    kind=st.none() | st.sampled_from(KINDS),
    from_ns=maybe,
    to_ns=maybe,
    before=st.none() | keys.map(Key._make),
    limit=st.integers(1, 12),
)


@given(all_rows, places, wanteds, st.sets(st.integers(1, 3)))
def test_an_answer_is_the_newest_of_all_tiers_that_are_up(
    rows: list[Row], where: list[set[int]], wanted: Wanted, down: set[int]
) -> None:
    held: list[list[Row]] = [[row for row, at in zip(rows, where, strict=False) if level in at] for level in range(4)]
    levels = ("L2", "L3", "L3")
    tiers = [Shelf(level, held[at], down=at in down) for at, level in enumerate(levels, 1)]
    walked = walk(tiers, wanted, choose(records_of(held[0]), wanted), lambda: False)
    up = [held[at] for at in range(4) if at not in down]
    assert rows_of(walked.records) == model({row for part in up for row in part}, wanted)
    assert len(walked.missing) == len(down)
    answer = set(rows_of(walked.records))
    assert ("L1" in walked.gave) == bool(answer & set(held[0]))
    assert set(walked.gave) <= {"L1", *(level for at, level in enumerate(levels, 1) if at not in down)}
    assert bool(walked.gave) == bool(answer)


@given(all_rows, places, st.integers(1, 7), st.randoms(use_true_random=False))
def test_paging_meets_every_record_once_while_they_move_from_tier_to_tier(
    rows: list[Row], where: list[set[int]], limit: int, chance: object
) -> None:
    held = [{row for row, at in zip(rows, where, strict=False) if level in at} for level in range(4)]
    wanted = Wanted("X", None, None, None, None, limit)
    seen: list[Row] = []
    fresh = 100
    while True:
        tiers = [Shelf(f"L{min(at + 1, 3)}", list(held[at]), down=False) for at in range(1, 4)]
        walked = walk(tiers, wanted, choose(records_of(list(held[0])), wanted), lambda: False)
        seen[:0] = rows_of(walked.records)
        if len(walked.records) < limit:
            break
        wanted = wanted._replace(before=key_of(walked.records[0]))
        for at in range(3):  # what leaves a tier is in the next one by then
            leaving = {row for row in held[at] if chance.random() < 0.5}  # type: ignore[attr-defined]
            held[at] -= leaving
            held[at + 1] |= leaving
        fresh += 1
        held[0].add((fresh, fresh, fresh, RecordType.TRADE))
    assert seen == sorted(rows)


def test_what_has_no_time_left_is_not_asked_and_named() -> None:
    tiers = [Shelf("L2", [(1, 1, 1, RecordType.TRADE)], down=False)]
    walked = walk(tiers, Wanted("X", None, None, None, None, 3), empty(0), lambda: True)
    assert len(walked.records) == 0
    assert walked.missing == ("L2 shelf of L2: no time was left for it",)
