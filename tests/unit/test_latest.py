"""The latest-value table: what a snapshot and a history say, what fits, what a late joiner may rely on, errors."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shm.errors import BadArgument, LayoutMismatch, NotAllowed, SegmentExists, SegmentMissing, ShmError, WriterBusy
from shm.latest import LatestTable
from shm.layout import Flag, RecordType, Side, empty
from shm.ring import RingReader
from shm.segment import Segment, segment_name
from tests.ticks import SECOND, START, Bench, quote, trade

ROOT = Path(__file__).resolve().parents[2]


def test_an_instrument_never_seen_has_no_snapshot_and_no_history(engine_name: str) -> None:
    with LatestTable.create(engine_name, instruments=4) as table:
        for instrument in (0, 3, 4, 10**6, -1):
            assert table.snapshot(instrument) is None
            assert len(table.history(instrument)) == 0
            assert table.join(instrument)[0] is None
        assert table.as_of() == {}
        assert np.isnan(table.stats().bytes_per_record)


def test_a_snapshot_holds_the_last_trade_quote_and_day(engine_name: str) -> None:
    with Bench(engine_name) as bench:
        table = LatestTable.attach(engine_name)
        bench.turn(quote(START, 10.5, float("nan"), instrument=3, feed_id=4))
        snapshot = table.snapshot(3)
        assert snapshot is not None
        assert (snapshot.last_trade, snapshot.day, snapshot.open_bars) == (None, None, ())
        assert snapshot.quote is not None
        assert (snapshot.quote.bid, snapshot.quote.bid_size, snapshot.quote.ask_size) == (10.5, 1.0, 2.0)
        assert np.isnan(snapshot.quote.ask)
        assert (snapshot.quote.ts_event, snapshot.quote.feed_id) == (START, 4)
        bench.turn(
            trade(START + 1, 20.0, 3.0, instrument=3),
            trade(START + 2, 18.0, 1.0, instrument=3, trade_id=77, side=Side.BUY, conditions=5, source=9, feed_id=6),
        )
        snapshot = table.snapshot(3)
        assert snapshot is not None
        last, day = snapshot.last_trade, snapshot.day
        assert last is not None
        assert day is not None
        assert (last.price, last.size, last.ts_event, last.ts_receive) == (18.0, 1.0, START + 2, START + 1002)
        assert (last.trade_id, last.venue, last.side, last.conditions, last.source) == (77, "XTST", Side.BUY, 5, 9)
        assert (last.flags, last.feed_id, last.sequence) == (Flag.REPLAYED, 6, 3)
        assert day.day == START // (86400 * SECOND)
        assert (day.open, day.high, day.low, day.close, day.volume, day.vwap) == (20, 20, 18, 18, 4, (60 + 18) / 4)
        assert [bar.interval_s for bar in snapshot.open_bars] == [1, 60]
        assert snapshot.as_of == {2: 3}
        assert snapshot.version == 2


def test_a_new_utc_day_starts_the_statistics_again_and_a_late_trade_does_not(engine_name: str) -> None:
    midnight = (START // (86400 * SECOND) + 1) * 86400 * SECOND
    with Bench(engine_name) as bench:
        bench.turn(trade(midnight - 1, 10), trade(midnight, 20), trade(midnight - 1, 30), trade(midnight + 1, 21, 2))
        day = bench.table.snapshot(0).day  # type: ignore[union-attr]
        assert day is not None
        assert (day.day, day.open, day.high, day.volume, day.trade_count) == (
            midnight // (86400 * SECOND),
            20,
            21,
            3,
            2,
        )


def test_an_older_trade_or_quote_does_not_replace_a_newer_one(engine_name: str) -> None:
    with Bench(engine_name) as bench:
        bench.turn(
            trade(START + 5, 1), trade(START, 2), quote(START + 5, 1, 2), quote(START, 3, 4), quote(START + 5, 5, 6)
        )
        snapshot = bench.table.snapshot(0)
        assert snapshot is not None
        assert snapshot.last_trade is not None
        assert snapshot.quote is not None
        assert (snapshot.last_trade.price, snapshot.quote.bid) == (1, 5)


def test_history_is_the_newest_records_oldest_first(engine_name: str) -> None:
    with Bench(engine_name, depth_records=100, batch_slots=64) as bench:
        for first in range(0, 730, 10):
            bench.turn(*(trade(START + i, i) for i in range(first, first + 10)), quote(START, 1, 2, instrument=1))
            count = min(100, first + 10)
            assert bench.table.history(0)["price"].tolist() == list(range(first + 10 - count, first + 10))
        assert bench.table.history(0, 3)["price"].tolist() == [727, 728, 729]
        assert len(bench.table.history(0, 0)) == 0
        with pytest.raises(BadArgument, match="limit is -1"):
            bench.table.history(0, -1)
        same = bench.table.history(0, 1)
        reader = RingReader.attach(engine_name, 2, start="oldest", register=False)
        out = empty(1024)
        published = out[: reader.read(out)]
        assert published[published["instrument_id"] == 0][-1].tobytes() == same.tobytes()
        reader.close()


def test_history_of_one_type_looks_behind_the_others(engine_name: str) -> None:
    with Bench(engine_name, intervals_s=(1,)) as bench:
        bench.turn(*(trade(START + i * SECOND, i) for i in range(20)))
        bench.turn(*(quote(START + 20 * SECOND + i, i, i) for i in range(50)))
        assert bench.table.history(0, 5, RecordType.TRADE)["price"].tolist() == [15, 16, 17, 18, 19]
        assert bench.table.history(0, 5, RecordType.QUOTE)["bid"].tolist() == [45, 46, 47, 48, 49]
        bars = bench.table.history(0, 5, RecordType.BAR)
        assert bars["close"].tolist() == [14, 15, 16, 17, 18]
        assert len(bench.table.history(0, 5, RecordType.NEWS)) == 0
        everything = bench.table.history(0)
        assert len(everything) == 20 + 50 + 19
        assert np.all(np.diff(everything["ts_publish"]) >= 0)


def test_records_beyond_the_last_entry_are_counted_and_hurt_nobody(engine_name: str) -> None:
    with Bench(engine_name, instruments=2) as bench:
        bench.turn(trade(START, 1, instrument=1), trade(START, 2, instrument=2), trade(START, 3, instrument=0xFFFFFFFF))
        assert bench.table.snapshot(1) is not None
        assert bench.table.snapshot(2) is None
        assert bench.table.counters["l1_no_room"] == 2
        assert bench.table.as_of() == {2: 3}


def test_a_pool_that_is_too_small_is_shared_evenly(engine_name: str) -> None:
    with Bench(engine_name, instruments=10, depth_records=100, pool_records=1000, batch_slots=256) as bench:
        bench.turn(*(trade(START + i, i, instrument=0) for i in range(200)))
        assert len(bench.table.history(0)) == 100
        for i in range(3000):
            bench.publish(trade(START + i, i, instrument=i % 10))
            if i % 200 == 0:
                bench.turn()
        bench.turn()
        held = [len(bench.table.history(instrument)) for instrument in range(10)]
        assert min(held) >= 50
        assert sum(held) >= 800
        for instrument in range(10):
            prices = bench.table.history(instrument)["price"]
            assert prices[-1] == 2990 + instrument
            assert np.all(np.diff(prices) == 10)  # what is left is without holes
        assert bench.table.counters["not_kept"] == 0


def test_with_fewer_chunks_than_instruments_the_values_are_right_and_the_loss_is_counted(engine_name: str) -> None:
    with Bench(engine_name, instruments=10, depth_records=50, pool_records=100) as bench:
        bench.turn(*(trade(START + i, i, instrument=i % 10) for i in range(100)))
        counters = bench.table.counters
        held = bench.table.stats().records_held
        assert counters["not_kept"] == 100 - held > 0
        for instrument in range(10):
            snapshot = bench.table.snapshot(instrument)
            assert snapshot is not None
            assert snapshot.last_trade is not None
            assert snapshot.last_trade.price == 90 + instrument


def test_a_full_table_takes_at_most_160_bytes_a_record(engine_name: str) -> None:
    with Bench(engine_name, instruments=64, depth_records=1000, pool_records=64 * 1000, batch_slots=1024) as bench:
        burst = empty(1000)
        burst["record_type"] = RecordType.QUOTE
        for round_ in range(66):
            burst["instrument_id"] = np.arange(1000) % 64
            burst["ts_event"] = START + round_
            bench.writers[2].publish_batch(burst)
            bench.turn()
        stats = bench.table.stats()
        assert stats.instruments == 64
        assert stats.records_held > 60_000
        assert stats.chunks_free * 20 < stats.chunks_total
        assert stats.bytes_per_record <= 160


def test_a_late_joiner_goes_on_from_the_snapshot_without_gap_or_duplicate(engine_name: str) -> None:
    with Bench(engine_name, rings=(2, 3)) as bench:
        bench.turn(*(trade(START + i, i, instrument=i % 3) for i in range(30)))
        bench.turn(*(trade(START + i, 100 + i, instrument=i % 3) for i in range(10)), ring=3)
        snapshot, records = bench.table.join(1)
        assert snapshot is not None
        assert snapshot.as_of == {2: 30, 3: 10}
        bench.publish(*(trade(START + i, i, instrument=i % 3) for i in range(30, 60)))
        reader = RingReader.attach(engine_name, 2, start=snapshot.as_of[2] + 1, register=False)
        out = empty(100)
        fresh = out[: reader.read(out)]
        later = fresh[fresh["instrument_id"] == 1]["price"].tolist()
        of_ring_2 = [price for price in records["price"].tolist() if price < 100]
        assert of_ring_2 + later == list(range(1, 60, 3))
        reader.close()


def test_a_ring_made_anew_is_read_from_its_beginning(engine_name: str) -> None:
    with Bench(engine_name) as bench:
        bench.turn(*(trade(START + i, i) for i in range(50)))
        bench.cache.close()
        writer = bench.writers[2]
        writer.close()
        writer.unlink()
        bench.writers[2] = type(writer).create(engine_name, 2, depth_slots=1024)
        bench.publish(trade(START + 100, 99))
        bench.restart()
        bench.turn()
        assert bench.table.history(0)["price"].tolist() == [*range(50), 99]
        assert bench.table.as_of()[2] == 1


def test_only_one_process_may_write(engine_name: str) -> None:
    with LatestTable.create(engine_name) as table, LatestTable.attach(engine_name, write=True) as other:
        table.lock_writer()
        with pytest.raises(WriterBusy, match="has a writer already"):
            other.lock_writer()
        table.close()
        other.lock_writer()
        with LatestTable.attach(engine_name) as reader, pytest.raises(NotAllowed, match="read-only"):
            reader.lock_writer()


def test_create_and_attach_say_what_is_wrong(engine_name: str) -> None:
    with pytest.raises(SegmentMissing):
        LatestTable.attach(engine_name)
    table = LatestTable.create_or_attach(engine_name, instruments=10, bar_intervals_s=(1,))
    with pytest.raises(SegmentExists):
        LatestTable.create(engine_name)
    LatestTable.create_or_attach(engine_name, instruments=10, bar_intervals_s=(1,)).close()
    with pytest.raises(LayoutMismatch, match=r"bar_intervals_s is .1,. there and .1, 60. is asked for"):
        LatestTable.create_or_attach(engine_name, instruments=10)
    table.segment.buf[8] = 9
    with pytest.raises(LayoutMismatch, match="version is 9 there and 1 in this build"):
        LatestTable.attach(engine_name)
    table.segment.buf[8] = 1
    table.segment.buf[0] = 0
    with pytest.raises(LayoutMismatch, match="no latest table"):
        LatestTable.attach(engine_name)
    table.segment.buf[:8] = bytes(8)
    with pytest.raises(SegmentMissing, match="still being made"):
        LatestTable.attach(engine_name)
    table.close()
    table.close()
    with pytest.raises(ShmError, match="closed"):
        table.snapshot(0)
    table.unlink()
    Segment.create(segment_name(engine_name, "last"), 100).close()
    with pytest.raises((LayoutMismatch, SegmentMissing)):
        LatestTable.attach(engine_name)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"instruments": 0}, "instruments is 0"),
        ({"depth_records": 0}, "depth_records is 0"),
        ({"pool_records": 10}, "pool_records is 10, must be at least 50"),
        ({"bar_intervals_s": (0,)}, "bar_intervals_s is"),
        ({"bar_intervals_s": (1, 1)}, "each length once"),
        ({"bar_intervals_s": tuple(range(1, 10))}, "up to 8"),
    ],
)
def test_unusable_sizes_are_named(engine_name: str, options: dict[str, object], words: str) -> None:
    with pytest.raises(BadArgument, match=words):
        LatestTable.create(engine_name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("compiler", ["cc", "aarch64-linux-gnu-gcc"])
def test_the_headers_compile_alone_as_plain_c11(tmp_path: Path, compiler: str) -> None:
    source = tmp_path / "alone.c"
    source.write_text('#include "shm/latest_writer.h"\nint main(void) { return 0; }\n')
    options = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-O2", "-I", os.fspath(ROOT), "-c", "-o", os.devnull]
    try:
        subprocess.run([compiler, *options, os.fspath(source)], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip(f"no {compiler} here")
