"""Bars: when they close, what is in them, what becomes of late trades, gaps, ends of replays and restarts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from shm.latest import LatestTable
from shm.layout import Flag, RecordType, Source, empty
from tests.ticks import SECOND, START, Bench, brief, end_of_replay, quote, trade
from workers._cache import Applier


def at(seconds: float) -> int:
    """Time of a trade, ns."""
    return START + round(seconds * SECOND)


def test_a_bar_closes_when_a_trade_of_a_later_interval_comes(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=60) as bench:
        bench.turn(trade(at(0), 10, 1), trade(at(0.2), 12, 2), trade(at(0.4), 9, 3), trade(at(0.999999999), 11, 4))
        assert bench.new_bars() == []
        bench.turn(trade(at(1), 20, 5, ts_receive=at(1.5)))
        (bar,) = bench.new_bars()
        assert brief(bar) == (1, 0, 10, 12, 9, 11, 10, 4)
        assert float(bar["vwap"]) == (10 * 1 + 12 * 2 + 9 * 3 + 11 * 4) / 10
        assert (bar["source"], bar["venue"], bar["flags"]) == (Source.REPLAY, b"XTST", Flag.REPLAYED)
        assert bar["ts_receive"] == at(1.5)  # of the trade that closed it
        assert bar["ts_publish"] > 0
        (open_bar,) = bench.table.snapshot(0).open_bars  # type: ignore[union-attr]
        assert (open_bar.start, open_bar.close, open_bar.trade_count) == (at(1), 20, 1)


def test_intervals_are_independent_and_seconds_without_trades_have_no_bar(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1, 5, 60), delay_s=600) as bench:
        bench.turn(*(trade(at(s), 100 + s, 1) for s in (0, 1, 4, 7, 66)))
        got = [brief(bar) for bar in bench.new_bars()]
        assert [bar[:2] for bar in got if bar[0] == 1] == [(1, 0), (1, 1), (1, 4), (1, 7)]
        assert [bar for bar in got if bar[0] > 1] == [
            (5, 0, 100, 104, 100, 104, 3, 3),
            (5, 5, 107, 107, 107, 107, 1, 1),
            (60, 0, 100, 107, 100, 107, 4, 4),
        ]


def test_a_silent_instruments_bar_closes_by_the_stream_clock_after_the_delay(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=2) as bench:
        bench.turn(trade(at(0.5), 10), quote(at(2.9), 1, 2, instrument=1))
        assert bench.new_bars() == []
        bench.turn(quote(at(3.0), 1, 2, instrument=1))
        (bar,) = bench.new_bars()
        assert brief(bar) == (1, 0, 10, 10, 10, 10, 1, 1)
        assert not bar["flags"] & Flag.INCOMPLETE
        bench.now_ns += 3600 * SECOND  # the wall clock says nothing about a replay
        bench.turn(trade(at(3.1), 10))
        bench.now_ns += 3600 * SECOND
        bench.turn()
        assert bench.new_bars() == []


def test_each_feed_has_its_own_clock(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=1) as bench:
        bench.turn(trade(at(0.5), 10, feed_id=1), trade(at(86_400), 5, instrument=1, feed_id=2))
        assert bench.new_bars() == []
        bench.turn(trade(at(0.6), 11, feed_id=1), quote(at(2), 1, 2, instrument=2, feed_id=1))
        assert [brief(bar)[:2] for bar in bench.new_bars()] == [(1, 0)]


def test_the_wall_clock_closes_bars_of_a_live_feed_that_fell_silent(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=1) as bench:
        bench.now_ns = at(100)  # this host is 100 s ahead of the venue
        bench.turn(quote(at(-5), 1, 2, flags=0, ts_receive=at(95)))
        bench.turn(trade(at(0.5), 10, flags=0, ts_receive=at(100.5)))
        bench.cache.turn(at(101.9))
        assert bench.new_bars() == []
        bench.cache.turn(at(102.1))
        (bar,) = bench.new_bars()
        assert (brief(bar)[:2], bar["flags"], bar["ts_receive"]) == ((1, 0), 0, at(102.1))


def test_open_and_close_go_by_the_trades_times_and_by_arrival_among_equals(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(60,)) as bench:
        bench.turn(trade(at(5), 1), trade(at(9), 2), trade(at(9), 3), trade(at(3), 4), trade(at(3), 5), trade(at(7), 6))
        bench.turn(trade(at(60), 9))
        assert brief(bench.new_bars()[0]) == (60, 0, 4, 6, 1, 3, 6, 6)


def test_a_late_trade_of_the_bar_closed_last_corrects_it(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=60) as bench:
        bench.turn(trade(at(0.5), 10), trade(at(1.5), 20), trade(at(0.9), 30, 2), trade(at(0.1), 5, 3))
        first, second, third = bench.new_bars()
        assert brief(first) == (1, 0, 10, 10, 10, 10, 1, 1)
        assert brief(second) == (1, 0, 10, 30, 10, 30, 3, 2)
        assert brief(third) == (1, 0, 5, 30, 5, 30, 6, 3)
        assert [bool(bar["flags"] & Flag.CORRECTED) for bar in (first, second, third)] == [False, True, True]
        assert bench.cache.counters["late_trades"] == 2
        assert bench.cache.counters["lost_trades"] == 0


def test_a_late_trade_of_an_interval_nobody_traded_in_makes_a_bar_flagged_late(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=60) as bench:
        bench.turn(trade(at(0.5), 10), trade(at(5.5), 20), trade(at(3), 7), trade(at(3), 8))
        _, late, corrected = bench.new_bars()
        assert (brief(late), late["flags"] & ~Flag.REPLAYED) == ((1, 3, 7, 7, 7, 7, 1, 1), Flag.LATE)
        assert (brief(corrected)[-1], corrected["flags"] & ~Flag.REPLAYED) == (2, Flag.LATE | Flag.CORRECTED)


def test_an_older_late_trade_is_in_no_bar_but_counted_and_kept_in_history(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=60) as bench:
        bench.turn(trade(at(0.5), 10), trade(at(1.5), 20), trade(at(2.5), 30), trade(at(0.6), 40))
        assert [brief(bar)[1] for bar in bench.new_bars()] == [0, 1]
        assert bench.cache.counters["lost_trades"] == 1
        assert bench.table.history(0, record_type=RecordType.TRADE)["price"].tolist() == [10, 20, 30, 40]
        snapshot = bench.table.snapshot(0)
        assert snapshot is not None
        assert snapshot.last_trade is not None
        assert snapshot.last_trade.price == 30  # of the newest trade by its own time


def test_unusable_prices_and_sizes_do_not_enter_bars(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,)) as bench:
        bench.turn(
            trade(at(0), math.nan),
            trade(at(0), math.inf),
            trade(at(0), -3, math.nan),
            trade(at(0), 2, -5),
            trade(at(1), 1),
        )
        (bar,) = bench.new_bars()
        assert brief(bar) == (1, 0, -3, 2, -3, 2, 0, 2)
        assert np.isnan(bar["vwap"])
        assert bench.cache.counters["bad_prices"] == 2
        assert len(bench.table.history(0, record_type=RecordType.TRADE)) == 5


def test_ticks_make_bars_and_other_types_do_not(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,)) as bench:
        bench.turn(
            trade(at(0), 5, record_type=RecordType.TICK),
            quote(at(0.1), 1, 2),
            trade(at(0.2), 99, record_type=RecordType.LEVEL2),
            trade(at(0.3), 99, record_type=RecordType.NEWS),
            trade(at(1), 6, record_type=RecordType.TICK),
        )
        assert [brief(bar) for bar in bench.new_bars()] == [(1, 0, 5, 5, 5, 5, 1, 1)]


def test_times_before_the_epoch_start_their_bars_at_the_floor(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(60,)) as bench:
        # ts_event <= 0 means unknown: ts_receive stands in, and that may be negative in a broken capture
        bench.turn(trade(0, 5, ts_receive=-1), trade(0, 6, ts_receive=30 * SECOND))
        (bar,) = bench.new_bars()
        assert bar["ts_event"] == -60 * SECOND


def test_end_of_replay_closes_bars_and_flags_those_whose_time_is_not_over(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1, 60)) as bench:
        bench.turn(
            trade(at(0.5), 10, feed_id=7),
            trade(at(3), 11, instrument=1, feed_id=8),
            quote(at(1.2), 1, 2, feed_id=7, instrument=2),
            end_of_replay(7),
        )
        bars = bench.new_bars()
        assert [(bar["instrument_id"], *brief(bar)[:2]) for bar in bars] == [(0, 1, 0), (0, 60, 0)]
        assert [bool(bar["flags"] & Flag.INCOMPLETE) for bar in bars] == [False, True]


def test_a_replay_that_starts_again_builds_its_bars_again(engine_name: str) -> None:
    run = [trade(at(0.5), 10), trade(at(1.5), 11), trade(at(70), 12), end_of_replay()]
    with Bench(engine_name) as bench:
        bench.turn(*run)
        first = [brief(bar) for bar in bench.new_bars()]
        assert len(first) == 5
        for _ in range(3):
            bench.turn(*run)
            assert [brief(bar) for bar in bench.new_bars()] == first
        snapshot = bench.table.snapshot(0)
        assert snapshot is not None
        assert snapshot.day is not None
        assert (snapshot.day.trade_count, snapshot.day.volume) == (3, 3)
        assert bench.cache.counters["late_trades"] == 0


def test_a_replay_that_goes_on_after_its_end_opens_the_unfinished_bar_again(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(60,)) as bench:
        bench.turn(trade(at(5), 10), end_of_replay(), trade(at(20), 11), trade(at(30), 9))
        assert len(bench.new_bars()) == 1
        bench.turn(trade(at(60), 1))
        (bar,) = bench.new_bars()
        assert brief(bar) == (60, 0, 10, 11, 9, 9, 3, 3)
        assert bar["flags"] == Flag.REPLAYED | Flag.CORRECTED


def test_a_clean_stop_closes_open_bars_as_incomplete_and_a_restart_goes_on_with_them(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(60,)) as bench:
        bench.turn(trade(at(5), 10))
        bench.cache.finish(bench.now_ns)
        (bar,) = bench.new_bars()
        assert bar["flags"] == Flag.REPLAYED | Flag.INCOMPLETE
        bench.restart()
        bench.turn(trade(at(6), 11), trade(at(61), 12))
        (bar,) = bench.new_bars()
        assert (brief(bar)[-1], bar["flags"]) == (2, Flag.REPLAYED | Flag.CORRECTED)


def test_records_overrun_by_the_cache_mark_the_bars_under_way(engine_name: str) -> None:
    gap = Flag.INCOMPLETE | Flag.GAP_BEFORE | Flag.REPLAYED
    with Bench(engine_name, intervals_s=(60,), depth_slots=64, rings=(2, 3)) as bench:
        bench.turn(trade(at(0), 10, instrument=0))
        bench.turn(trade(at(0), 10, instrument=5, feed_id=3), ring=3)
        bench.publish(*(quote(at(1), 1, 2, instrument=1) for _ in range(200)))
        bench.turn(trade(at(2), 3, instrument=2))  # may have traded in the gap
        bench.turn(*(trade(at(60 + i), 11, instrument=i) for i in range(3)), trade(at(121), 1, instrument=2))
        bench.turn(trade(at(60), 1, instrument=5, feed_id=3), ring=3)
        flags = {(int(bar["instrument_id"]), brief(bar)[1]): int(bar["flags"]) for bar in bench.new_bars()}
        assert {key: got for key, got in flags.items() if key[1] == 0} == {
            (0, 0): gap,
            (2, 0): gap,
            (5, 0): Flag.REPLAYED,
        }
        assert {got for key, got in flags.items() if key[1] > 0} == {Flag.REPLAYED}
        assert bench.cache.counters["gaps"] == 1
        assert bench.cache.counters["records_lost"] == 200 - bench.writers[2].depth_slots // 2


def test_the_first_bar_of_a_live_feed_joined_under_way_is_incomplete(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,)) as bench:
        bench.turn(*(trade(at(s), 10, flags=0) for s in (0.5, 1.5, 2.5)))
        assert [int(bar["flags"]) for bar in bench.new_bars()] == [Flag.INCOMPLETE, 0]


def test_a_live_trade_from_the_far_future_does_not_shift_the_bars(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,)) as bench:
        bench.turn(trade(at(0), 1, flags=0), trade(at(7200), 2, flags=0, ts_receive=at(0.5)), trade(at(1), 3, flags=0))
        assert [brief(bar)[-1] for bar in bench.new_bars()] == [2]
        assert bench.cache.counters["future_times"] == 1


def test_bars_of_a_vendor_are_kept_beside_our_own(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(60,)) as bench:
        vendor = trade(at(0), 0, record_type=RecordType.BAR, interval_s=60, trade_count=5, close=7.0)
        bench.turn(trade(at(5), 10), vendor, trade(at(60), 11))
        assert [brief(bar)[-1] for bar in bench.new_bars()] == [1]
        assert bench.table.history(0, record_type=RecordType.BAR)["trade_count"].tolist() == [5, 1]


def test_bars_of_the_es_trades_equal_the_captured_ones(engine_name: str, samples: Path) -> None:
    dbn = pytest.importorskip("databento_dbn")
    zstandard = pytest.importorskip("zstandard")

    def decode(name: str) -> list[object]:
        raw = (samples / "dbn" / "es-futures" / name).read_bytes()
        decoder = dbn.DBNDecoder()
        decoder.write(zstandard.ZstdDecompressor().stream_reader(raw).read())
        return [message for message in decoder.decode() if hasattr(message, "instrument_id")]

    trades = decode("futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst")
    numbers = sorted({message.instrument_id for message in trades})  # type: ignore[attr-defined]
    captured = {
        (message.instrument_id, message.ts_event): message  # type: ignore[attr-defined]
        for message in decode("futures_ohlcv-1m_2024-07-01T23-40_2024-07-02T00-10.dbn.zst")
    }
    assert len(trades) == 120
    with Bench(engine_name, intervals_s=(60,)) as bench:
        bench.turn(
            *(
                trade(m.ts_event, m.price / 1e9, m.size, instrument=numbers.index(m.instrument_id))  # type: ignore[attr-defined]
                for m in trades
            ),
            end_of_replay(),
        )
        bars = bench.new_bars()
    for bar in bars:
        same = captured[(numbers[bar["instrument_id"]], int(bar["ts_event"]))]
        ours = (bar["open"], bar["high"], bar["low"], bar["close"], bar["volume"])
        prices = (same.open, same.high, same.low, same.close)  # type: ignore[attr-defined]
        assert tuple(map(float, ours)) == (*(price / 1e9 for price in prices), same.volume)  # type: ignore[attr-defined]
    assert [18, 23, 175, 37] in [
        [int(bar["volume"]) for bar in bars if bar["instrument_id"] == number] for number in range(len(numbers))
    ]


@pytest.mark.parametrize("excluded", [False, True])
def test_outliers_are_in_bars_unless_excluded_and_in_history_always(engine_name: str, *, excluded: bool) -> None:
    with LatestTable.create(engine_name, instruments=2, bar_intervals_s=(1,), pool_records=1000) as table:
        applier = Applier(table.segment.buf, pid=1, bar_ring_id=1, grace_ns=0, exclude_outliers=excluded)
        stream = (trade(at(0), 10), trade(at(0.1), 99, flags=Flag.REPLAYED | Flag.OUTLIER), trade(at(1), 11))
        for sequence, record in enumerate(stream, start=1):
            record["sequence"] = sequence
            assert applier.apply(2, record, 0, 1) == 1
        applier.commit()
        out = empty(64)
        assert applier.take_bars(out) == 1
        assert out["high"][0] == (10 if excluded else 99)
        assert len(table.history(0)) == 3
        applier.close()


def test_a_trade_that_the_venue_takes_back_is_kept_in_the_history_and_counted_in_no_bar(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,), delay_s=60) as bench:
        taken_back = trade(at(0.3), 99, 7, flags=Flag.REPLAYED | Flag.CORRECTED)
        bench.turn(trade(at(0), 10, 1), taken_back, trade(at(1), 20, 5))
        (bar,) = bench.new_bars()
        assert brief(bar) == (1, 0, 10, 10, 10, 10, 1, 1)
        snapshot = bench.table.snapshot(0)
        assert snapshot is not None
        assert snapshot.day is not None
        assert snapshot.day.volume == 6
        assert (bench.table.history(0, record_type=RecordType.TRADE)["price"] == [10, 99, 20]).all()
