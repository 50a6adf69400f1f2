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
    quote,
    trade,
    trades,
)
from workers.decoders.capture import open_capture
from workers.errors import SettingsError, SourceError, WorkerError
from workers.sources import replay_file


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


def test_trading_status_comes_whatever_the_types_and_only_of_the_symbols(samples: Path) -> None:
    path = str(samples / "iex/TOPS16.pcapng.gz")
    found = drain(make(path, symbols=("AAPL", "ZVZZT"), data_types=("trade",), speed="max"))
    told = found[found["record_type"] == RecordType.STATUS]
    halts = told[told["code"] == StatusCode.TRADING_STATUS]
    assert set(found["instrument_id"]) <= {0, 1, NO_INSTRUMENT}
    assert set(market(found)["record_type"]) == {RecordType.TRADE}
    assert sorted(halts["instrument_id"].tolist()) == [0, 0, 1, 1]  # H and O of each
    assert ends(told[told["code"] != StatusCode.TRADING_STATUS]) == [("TOPS16.pcapng.gz", len(found) - 1)]


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
        assert ends(got[-1:]) == [(file.name, len(expected))]


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
