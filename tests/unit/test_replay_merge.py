"""Several captures in one replay: played by time, each record once, looping and skipping as if they were one."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import RecordType, empty
from tests.replayed_trades import (
    NOW_NS,
    RECORDED_NS,
    SECOND_NS,
    capture,
    drain,
    ends,
    ids,
    make,
    market,
    trade,
    trades,
)


def test_files_follow_one_another_and_one_end_closes_them(tmp_path: Path) -> None:
    first = trades(tmp_path, "1.txt", [0, 1])
    second = trades(tmp_path, "2.txt", [2, 3], first_id=11)
    records = drain(make(first, second, speed="max"))
    assert ids(records) == [1, 2, 11, 12]
    assert ends(records) == [("2.txt", 4)]


@pytest.mark.parametrize("speed", ["max", 1])
def test_a_file_that_begins_earlier_is_parted_by_an_end_and_does_not_stall(tmp_path: Path, speed: Any) -> None:
    first = trades(tmp_path, "1.txt", [1000, 1001])
    second = trades(tmp_path, "2.txt", [0, 1], first_id=11)
    source = make(first, second, speed=speed, merge=False)
    records = drain(source)
    assert ends(records) == [("1.txt", 2), ("2.txt", 2)]
    assert [int(kind) for kind in records["record_type"] == RecordType.STATUS] == [0, 0, 1, 0, 0, 1]
    if speed == 1:
        assert source._last_poll_ns == NOW_NS + 2 * SECOND_NS


@pytest.mark.parametrize("slots", [1, 333, 5000])
@pytest.mark.parametrize("speed", ["max", 1e6])
def test_files_that_overlap_are_played_by_time(tmp_path: Path, speed: Any, slots: int) -> None:
    even = trades(tmp_path, "even.txt", [step * 0.002 for step in range(2000)], first_id=1_000_000)
    odd = trades(tmp_path, "odd.txt", [step * 0.002 + 0.001 for step in range(2000)], first_id=2_000_000)
    if slots == 1:
        even = trades(tmp_path, "even.txt", [0, 0.002, 0.004], first_id=1_000_000)
        odd = trades(tmp_path, "odd.txt", [0.001, 0.003, 0.005], first_id=2_000_000)
    records = drain(make(odd, even, speed=speed), slots=slots)
    found = ids(records)
    assert np.all(np.diff(market(records)["ts_receive"]) == 1_000_000)
    assert [number % 1_000_000 for number in found] == [index // 2 for index in range(len(found))]
    assert ends(records) == [("odd.txt", len(found))]


def test_files_listed_backwards_are_played_forwards(tmp_path: Path) -> None:
    first = trades(tmp_path, "1.txt", [1000, 1001])
    second = trades(tmp_path, "2.txt", [0, 1], first_id=11)
    records = drain(make(first, second, speed="max"))
    assert ids(records) == [11, 12, 1, 2]
    assert ends(records) == [("1.txt", 4)]


def test_merged_files_keep_the_recorded_pace(tmp_path: Path) -> None:
    first = trades(tmp_path, "1.txt", [0, 2, 4])
    second = trades(tmp_path, "2.txt", [1, 3, 7], first_id=11)
    source = make(first, second)
    now_ns, seen = NOW_NS, []
    out = empty(10)
    while source.next_due_ns is not None:
        now_ns = max(now_ns, source.next_due_ns)
        seen += [(now_ns - NOW_NS, number) for number in ids(out[: source.poll(out, now_ns)])]
    assert seen == [
        (second * SECOND_NS, number) for second, number in ((0, 1), (1, 11), (2, 2), (3, 12), (4, 3), (7, 13))
    ]


@pytest.mark.parametrize("speed", ["max", 1e6])
@pytest.mark.parametrize("skipped", [0, 1, 4095, 5000, 9_999, 10_000, 10_001])
def test_skipping_in_merged_files_leaves_out_exactly_so_many(tmp_path: Path, speed: Any, skipped: int) -> None:
    files = [
        trades(tmp_path, "a.txt", [step * 0.001 for step in range(5000)]),
        trades(tmp_path, "b.txt", [2.5 + step * 0.0004 for step in range(5000)], first_id=10_001),
    ]
    whole = drain(make(*files, speed=speed))
    source = make(*files, speed=speed)
    source.skip(skipped)
    rest = drain(source, slots=700)
    assert rest.tobytes() == whole[skipped:].tobytes()
    assert source.position == len(whole) == 10_001


def test_of_consecutive_files_only_one_is_open_at_a_time(tmp_path: Path) -> None:
    files = [trades(tmp_path, f"{hour}.txt", [hour, hour + 0.5], first_id=hour * 10 + 1) for hour in range(20)]
    source = make(*files, speed="max")
    out, found = empty(1), []
    while source.next_due_ns is not None:
        found += ids(out[: source.poll(out, NOW_NS)])
        assert len(source._open) <= 1
    assert found == [hour * 10 + number for hour in range(20) for number in (1, 2)]


def test_lobster_books_listed_beside_their_events_are_not_read_twice(samples: Path) -> None:
    files = sorted(str(path) for path in (samples / "ticks/lobster").iterdir())
    assert len(files) == 2
    records = drain(make(*files, speed="max"))
    assert len(market(records)) == 2248
    assert [name for name, _ in ends(records)] == [Path(files[0]).name[:40]]


def test_merged_files_loop_as_one(tmp_path: Path) -> None:
    first = trades(tmp_path, "1.txt", [0, 2])
    second = trades(tmp_path, "2.txt", [1, 3], first_id=11)
    source = make(first, second, loop=True, speed="max")
    out, count = empty(10), 0
    while count < len(out):
        count += source.poll(out[count:], NOW_NS)
    assert ids(out) == [1, 11, 2, 12] * 2
    assert ends(out) == [("2.txt", 4)] * 2


@pytest.mark.parametrize("speed", ["max", 1])
def test_many_files_that_begin_together_are_opened_one_a_poll(tmp_path: Path, speed: Any) -> None:
    files = [trades(tmp_path, f"{number}.txt", [0, 1, 2], first_id=number * 10) for number in range(30)]
    source = make(*files, speed=speed)
    out, opened, found = empty(1000), [0], 0
    while found < 30:
        found += source.poll(out, NOW_NS)
        opened.append(len(source._open))
    assert max(np.diff(opened)) <= 2  # the first one, which is alone, and the second
    assert max(opened) == 30


def test_damage_and_files_without_records_do_not_stop_the_others(tmp_path: Path) -> None:
    lines = "".join(trade(RECORDED_NS + step * SECOND_NS, step) for step in range(1, 20_001))
    packed = gzip.compress(lines.encode())
    (tmp_path / "cut.gz").write_bytes(packed[: len(packed) // 2])
    nothing = capture(tmp_path, "none.txt", '1723161254000000000 {"stream":"x@other","data":{"e":"other"}}\n')
    late = trades(tmp_path, "late.txt", [0.5, 30_000], first_id=50_001)
    source = make(late, str(tmp_path / "cut.gz"), nothing, speed="max")
    found = ids(drain(source))
    assert found[0] == 50_001
    assert found[-1] == 50_002
    assert found[1:-1] == list(range(1, len(found) - 1))
    assert source.errors >= 1
    assert source.progress == 1.0
