"""The replay source: every record once and in order, paced as recorded, with an end that consumers can see.

The files are small Binance captures written here and read by the real decoder; `samples` tests use captured ones.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from shm.layout import NO_INSTRUMENT, Flag, RecordType, StatusCode, concatenate, empty
from workers.decoders.capture import open_capture
from workers.errors import SettingsError, SourceError, WorkerError
from workers.source import SourceContext, open_source
from workers.sources import replay_file
from workers.sources.replay import ReplaySource
from workers.spec import FeedSpec

NOW_NS = 1_790_000_000_000_000_000
RECORDED_NS = 1_723_161_254_000_000_000
SECOND_NS = 1_000_000_000


def trade(at_ns: int, trade_id: int, symbol: str = "BTCUSDT") -> str:
    ms = at_ns // 1_000_000
    return (
        f'{at_ns} {{"stream":"{symbol.lower()}@trade","data":{{"e":"trade","E":{ms},"s":"{symbol}","t":{trade_id},'
        f'"p":"100.5","q":"2","T":{ms},"m":true,"M":true}}}}\n'
    )


def quote(at_ns: int, update: int) -> str:
    return (
        f'{at_ns} {{"stream":"btcusdt@bookTicker","data":{{"u":{update},"s":"BTCUSDT","b":"100.4","B":"1","a":"100.6",'
        f'"A":"2"}}}}\n'
    )


def capture(folder: Path, name: str, *lines: str) -> str:
    path = folder / name
    path.write_text("".join(lines))
    return str(path)


def trades(folder: Path, name: str, offsets_s: list[float], first_id: int = 1) -> str:
    lines = [trade(RECORDED_NS + round(s * 1e9), first_id + index) for index, s in enumerate(offsets_s)]
    return capture(folder, name, *lines)


def make(*files: str, symbols: tuple[str, ...] = (), data_types: tuple[str, ...] = (), **options: Any) -> ReplaySource:
    ids: dict[str, int] = {}
    spec = FeedSpec(
        feed_id=4,
        name="rep",
        source="replay",
        symbols=symbols,
        data_types=data_types,
        options={"files": list(files), **options},
    )
    source = open_source(SourceContext(spec, lambda symbol: ids.setdefault(symbol, len(ids))))
    assert isinstance(source, ReplaySource)
    return source


def drain(source: ReplaySource, now_ns: int = NOW_NS, slots: int = 1000, polls: int = 10_000) -> np.ndarray:
    """Everything until the source is finished, polled whenever it is due."""
    batches = [empty(0)]
    for _ in range(polls):
        out = empty(slots)
        batches.append(out[: source.poll(out, now_ns)])
        if source.next_due_ns is None:
            return concatenate(batches)
        now_ns = max(now_ns, source.next_due_ns)
    raise AssertionError("not finished")


def market(records: np.ndarray) -> np.ndarray:
    return records[records["record_type"] != RecordType.STATUS]


def ids(records: np.ndarray) -> list[int]:
    return [int(number) for number in market(records)["trade_id"]]


def ends(records: np.ndarray) -> list[tuple[str, int]]:
    found = records[records["record_type"] == RecordType.STATUS]
    assert set(found["code"]) <= {StatusCode.END_OF_REPLAY}
    return [(end["text"].decode(), int(end["to_sequence"] - end["from_sequence"])) for end in found]


@pytest.mark.parametrize("slots", [1, 7, 5000])
@pytest.mark.parametrize("speed", ["max", 1e6])
def test_every_record_comes_once_in_order_with_its_own_times(tmp_path: Path, speed: Any, slots: int) -> None:
    source = make(trades(tmp_path, "a.txt", [step * 0.001 for step in range(100)]), speed=speed)
    records = drain(source, slots=slots)
    assert ids(records) == list(range(1, 101))
    got = market(records)
    assert np.array_equal(got["ts_receive"], RECORDED_NS + np.arange(100) * 1_000_000)
    assert np.all(got["flags"] & Flag.REPLAYED)
    assert set(got["feed_id"]) == {4}
    assert source.position == len(records)
    assert source.bytes_received > 0


def test_the_end_is_announced_with_the_file_name_and_the_number_of_records(tmp_path: Path) -> None:
    records = drain(make(trades(tmp_path, "day one.txt", [0, 1, 2]), speed="max"))
    assert ends(records) == [("day one.txt", 3)]
    end = records[-1]
    assert end["record_type"] == RecordType.STATUS
    assert end["instrument_id"] == NO_INSTRUMENT
    assert end["flags"] & Flag.REPLAYED
    assert end["ts_event"] == records[-2]["ts_event"]


def test_records_are_due_as_they_were_recorded(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 0.5, 0.5, 2.0]))
    out = empty(10)
    assert source.poll(out, NOW_NS) == 1
    assert source.next_due_ns == NOW_NS + 500_000_000
    assert source.poll(out, NOW_NS + 499_999_999) == 0
    assert source.poll(out, NOW_NS + 500_000_000) == 2
    assert source.next_due_ns == NOW_NS + 2 * SECOND_NS
    assert source.poll(out, NOW_NS + 2 * SECOND_NS) == 2  # the last one and the end
    assert source.next_due_ns is None


def test_speed_divides_the_time_between_records(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 10]), speed=4)
    source.poll(empty(10), NOW_NS)
    assert source.next_due_ns == NOW_NS + 2_500_000_000


def test_a_replay_that_falls_behind_catches_up(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1, 2, 3]))
    out = empty(10)
    source.poll(out, NOW_NS)
    assert source.poll(out, NOW_NS + 2_500_000_000) == 2
    assert source.next_due_ns == NOW_NS + 3 * SECOND_NS


def test_slight_disorder_does_not_stretch_the_replay(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1.0, 0.9, 1.1, 1.0, 1.2]))
    source.poll(empty(10), NOW_NS)
    out = empty(10)
    assert source.poll(out, NOW_NS + SECOND_NS) == 2
    assert source.next_due_ns == NOW_NS + 1_100_000_000


def test_a_jump_back_within_a_file_does_not_stall_it(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [1000, 1001, 0, 1]))
    source.poll(empty(10), NOW_NS)
    out = empty(10)
    assert source.poll(out, NOW_NS + SECOND_NS) == 2
    assert source.next_due_ns == NOW_NS + 2 * SECOND_NS


def test_long_pauses_can_be_shortened(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 3600, 3600.5]), max_gap_s=1)
    source.poll(empty(10), NOW_NS)
    assert source.next_due_ns == NOW_NS + SECOND_NS
    source.poll(empty(10), NOW_NS + SECOND_NS)
    assert source.next_due_ns == NOW_NS + 1_500_000_000


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


def test_looping_begins_again_after_a_second_and_ends_each_pass(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1]), loop=True)
    now_ns, seen = NOW_NS, []
    out = empty(10)
    while len(seen) < 8:
        seen += [(now_ns, int(record["record_type"])) for record in out[: source.poll(out, now_ns)]]
        assert source.next_due_ns is not None
        now_ns = max(now_ns, source.next_due_ns)
    assert [kind == RecordType.STATUS for _, kind in seen[:7]] == [False, False, True, False, False, True, False]
    assert [(at - NOW_NS) // SECOND_NS for at, _ in seen[:7]] == [0, 1, 1, 2, 3, 3, 4]


def test_looping_at_full_speed_gives_the_same_records_again(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1, 2]), loop=True, speed="max")
    out = empty(12)
    assert source.poll(out, NOW_NS) == 12
    assert ids(out) == [1, 2, 3] * 3
    assert ends(out) == [("a.txt", 3)] * 3


def test_looping_over_nothing_is_an_error_and_no_endless_loop(tmp_path: Path) -> None:
    nothing = capture(tmp_path, "a.txt", '1723161254000000000 {"stream":"x@other","data":{"e":"other"}}\n')
    with pytest.raises((SourceError, WorkerError)):
        drain(make(nothing, loop=True, speed="max"), polls=10)


@pytest.mark.parametrize("speed", ["max", 1e6])
@pytest.mark.parametrize("skipped", [0, 1, 4095, 4096, 4097, 9_999, 10_000, 10_001])
def test_skipping_leaves_out_exactly_so_many(tmp_path: Path, speed: Any, skipped: int) -> None:
    path = trades(tmp_path, "a.txt", [step * 0.0001 for step in range(10_000)])
    whole = drain(make(path, speed=speed))
    source = make(path, speed=speed)
    source.skip(skipped)
    rest = drain(source)
    assert rest.tobytes() == whole[skipped:].tobytes()
    assert source.position == len(whole) == 10_001


def test_skipping_goes_over_passes_and_ends(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1, 2]), loop=True, speed="max")
    source.skip(4 * 1000 + 1)
    out = empty(4)
    for _ in range(10_000):
        if count := source.poll(out, NOW_NS):
            break
    assert count == 4
    assert ids(out) == [2, 3, 1]
    assert source.position == 4 * 1000 + 1 + 4


def test_after_skipping_the_pace_begins_with_the_first_record_delivered(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 100, 200, 300]))
    source.skip(2)
    out = empty(10)
    while (count := source.poll(out, NOW_NS)) == 0:
        pass
    assert ids(out[:count]) == [3]
    assert source.next_due_ns == NOW_NS + 100 * SECOND_NS


def test_pause_postpones_what_is_left(tmp_path: Path) -> None:
    source = make(trades(tmp_path, "a.txt", [0, 1, 2]))
    source.poll(empty(10), NOW_NS)
    source.resume(NOW_NS + 60 * SECOND_NS)
    out = empty(10)
    assert source.poll(out, NOW_NS + 60 * SECOND_NS) == 0
    assert source.next_due_ns == NOW_NS + 61 * SECOND_NS


def test_only_wanted_types_and_symbols_come(tmp_path: Path) -> None:
    path = capture(
        tmp_path,
        "a.txt",
        trade(RECORDED_NS, 1),
        quote(RECORDED_NS, 2),
        trade(RECORDED_NS, 3, "ETHUSDT"),
        trade(RECORDED_NS, 2),
    )
    everything = market(drain(make(path, speed="max")))
    quotes = market(drain(make(path, speed="max", data_types=("quote",))))
    eth = market(drain(make(path, speed="max", symbols=("ETHUSDT",))))
    assert len(everything) == 4
    assert set(quotes["record_type"]) == {RecordType.QUOTE}
    assert ids(eth) == [3]
    assert ends(drain(make(path, speed="max", symbols=("ETHUSDT",)))) == [("a.txt", 1)]


def test_undecodable_lines_are_counted_and_passed_over(tmp_path: Path) -> None:
    path = capture(
        tmp_path, "a.txt", trade(RECORDED_NS, 1), f'{RECORDED_NS} {{"stream":"btc', "\n", trade(RECORDED_NS, 2)
    )
    source = make(path, speed="max")
    assert ids(drain(source)) == [1, 2]
    assert source.errors == 1


def test_a_damaged_file_gives_what_stands_before_the_damage(tmp_path: Path) -> None:
    lines = "".join(trade(RECORDED_NS + step, step) for step in range(1, 20_001))
    packed = gzip.compress(lines.encode())
    path = tmp_path / "cut.gz"
    path.write_bytes(packed[: len(packed) // 2])
    source = make(str(path), trades(tmp_path, "whole.txt", [0.5], first_id=77), speed="max")
    found = ids(drain(source))
    assert found[:-1] == list(range(1, len(found)))
    assert 1000 < len(found) < 20_000
    assert found[-1] == 77
    assert source.errors >= 1


def test_a_missing_file_is_an_error_of_the_feed(tmp_path: Path) -> None:
    source = make(str(tmp_path / "none"))
    with pytest.raises((OSError, WorkerError)):
        source.poll(empty(10), NOW_NS)


@pytest.mark.parametrize("pack", [None, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize("count", [10, 20_000])
def test_progress_tells_what_was_handed_out_and_not_what_was_read_ahead(
    tmp_path: Path, pack: Callable[[bytes], bytes] | None, count: int
) -> None:
    lines = "".join(trade(RECORDED_NS + step * 1_000_000, step) for step in range(1, count + 1)).encode()
    path = tmp_path / "a.bin"
    path.write_bytes(pack(lines) if pack else lines)
    source = make(str(path), str(path))
    now_ns, handed_out, out = NOW_NS, 0, empty(4096)
    shares: list[tuple[float, float]] = []
    while handed_out < 2 * count:
        handed_out += len(market(out[: source.poll(out, now_ns)]))
        shares.append((source.progress, handed_out / (2 * count)))
        now_ns += count * 100_000
    told, true = np.array(shares).T
    assert np.all(np.diff(told) >= 0)
    assert np.abs(told - true).max() < 0.15  # a chunk of 4096 ahead where one file ends and the next begins


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sped": 1}, "did you mean 'speed'"),
        ({"speed": 0}, "speed"),
        ({"speed": "fast"}, "speed"),
        ({"max_gap_s": -1}, "max_gap_s"),
    ],
)
def test_options_that_can_not_work_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make("a", **options)


def test_no_files_and_unknown_types_are_refused() -> None:
    with pytest.raises(SettingsError, match="files"):
        make()
    with pytest.raises(SettingsError, match="'trade'"):
        make("a", data_types=("trad",))


def test_a_real_capture_comes_through_unchanged(samples: Path) -> None:
    path = samples / "iex"
    file = next(iter(sorted(entry for entry in path.iterdir() if entry.is_file())))
    names: dict[str, int] = {}
    reference = open_capture(file, intern=lambda symbol: names.setdefault(symbol, len(names)), feed_id=4)
    batches = []
    while True:
        out = empty(5000)
        count = reference.decode(out)
        if not count:
            break
        batches.append(out[:count])
    expected = concatenate(batches)
    for slots in (333, 8192):
        got = drain(make(str(file), speed="max"), slots=slots)
        assert got[:-1].tobytes() == expected.tobytes()
        assert ends(got) == [(file.name, len(expected))]


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("speed", [1.0, "max"])
def test_what_nobody_wants_is_not_read_in_one_poll(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool, speed: Any
) -> None:
    """A worker that did so would be taken for a stuck one, and its successor would do the same."""
    monkeypatch.setattr(replay_file, "REST_RECORDS", 8192)
    lines = [trade(RECORDED_NS + number, number) for number in range(40_000)]
    last = trade(RECORDED_NS + 40_000, 7, "ETHUSDT")
    one = capture(tmp_path, "one.txt", *lines, last)
    other = capture(tmp_path, "other.txt", trade(RECORDED_NS + 1, 5, "ETHUSDT"))
    source = make(one, other, symbols=("ETHUSDT",), merge=merge, speed=speed)
    counts, now_ns = [], NOW_NS
    while source.next_due_ns is not None:
        now_ns = max(now_ns, source.next_due_ns)
        counts.append(source.poll(empty(1000), now_ns))
    assert sum(counts) == (3 if merge else 4)
    assert counts.count(0) >= 4
    again = make(one, other, symbols=("ETHUSDT",), merge=merge, speed=speed)
    again.skip(1)
    assert len(drain(again)) == sum(counts) - 1
