"""The latest table under fire: a cache process at full speed, readers beside it, and kill -9 at any moment.

Each instrument's n-th trade has price n, size 2n, trade_id n, and its n-th quote has bid n, ask n + 1: so every field
of a state follows from one number, and a torn, stale or repeated entry shows itself. Allowed: a state that is behind
the ring. Forbidden: fields of two moments in one snapshot, a hole or a repetition in a history, a version that goes
back; and, once a killed cache has been replaced and has caught up, any record or bar that came twice or not at all.
"""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from shm.latest import LatestTable
from shm.layout import Flag, RecordType, empty
from shm.ring import RingReader, RingWriter, create_ring
from tests.children import Child, wait_until
from tests.ticks import SECOND, START

pytestmark = pytest.mark.slow

INSTRUMENTS = 5
DEPTH = 120
TRADES = 8000  # of each instrument in a burst; so many more quotes
INTERVALS_S = (1, 60)
KILLS = 12
STEP_NS = 20_000_000  # 50 trades of an instrument a second

CACHE = """
import sys, time
from workers.cache import Cache
from workers.spec import CacheSettings
engine, slots = sys.argv[1], int(sys.argv[2])
cache = Cache(CacheSettings(engine=engine, label="cache", rings=(2,), batch_slots=slots, bar_close_delay_s=0.0))
print("ready")
while True:
    if not cache.turn(time.time_ns()):
        cache.wait(0.01)
"""

READER = """
import sys
from shm.latest import LatestTable
from tests.stress.test_latest_kill import check_entry, INSTRUMENTS
table = LatestTable.attach(sys.argv[1])
versions = {}
print("ready")
reads = 0
import select
while True:
    for _ in range(20):
        for instrument in range(INSTRUMENTS):
            versions[instrument] = check_entry(table, instrument, versions.get(instrument, 0))
            reads += 1
    if select.select([sys.stdin], [], [], 0)[0]:
        break
print(reads)
"""


def burst(first: int, count: int) -> np.ndarray:
    """Trades and quotes number first .. first + count - 1 of every instrument, in turn."""
    numbers = np.repeat(np.arange(first, first + count), INSTRUMENTS * 2)
    records = empty(len(numbers))
    records["instrument_id"] = np.tile(np.repeat(np.arange(INSTRUMENTS), 2), count)
    records["flags"] = Flag.REPLAYED
    records["ts_event"] = START + numbers * STEP_NS
    trades, quotes = records[0::2], records[1::2]
    trades["record_type"], quotes["record_type"] = RecordType.TRADE, RecordType.QUOTE
    trades["price"] = trades["trade_id"] = numbers[0::2]
    trades["size"] = 2 * numbers[0::2]
    quotes["bid"] = quotes["bid_size"] = numbers[1::2]
    quotes["ask"] = numbers[1::2] + 1
    records["source_sequence"] = numbers
    return records


def check_entry(table: LatestTable, instrument: int, version_before: int) -> int:
    """Take a snapshot with its history; prove both from the one number they must follow from. Returns the version."""
    snapshot, history = table.join(instrument, DEPTH)
    if snapshot is None:
        assert version_before == 0
        return 0
    assert snapshot.version >= version_before
    trade, quote, day = snapshot.last_trade, snapshot.quote, snapshot.day
    assert trade is not None
    assert day is not None
    n = round(trade.price)
    assert (trade.price, trade.size, trade.trade_id, trade.ts_event) == (n, 2 * n, n, START + n * STEP_NS)
    assert (day.open, day.high, day.low, day.close, day.trade_count, day.volume) == (1, n, 1, n, n, n * (n + 1))
    if quote is not None:
        m = round(quote.bid)
        assert m in (n - 1, n)
        assert (quote.bid, quote.ask, quote.bid_size, quote.ts_event) == (m, m + 1, m, START + m * STEP_NS)
    else:
        assert n == 1
    assert snapshot.as_of[2] >= trade.sequence
    for bar in snapshot.open_bars:
        first = max(1, -(-(bar.start - START) // STEP_NS))
        assert (bar.open, bar.high, bar.low, bar.close) == (first, n, first, n)
        assert (bar.trade_count, bar.volume) == (n - first + 1, n * (n + 1) - (first - 1) * first)
    events = history[history["record_type"] != RecordType.BAR]
    numbers = events["source_sequence"]
    kinds = events["record_type"] == RecordType.TRADE
    if len(events):
        newest = 2 * n + (quote is not None and quote.bid == n)
        order = 2 * numbers.astype(np.int64) + ~kinds
        assert order[-1] == newest
        assert np.all(np.diff(order) == 1)
        assert np.all(events["price"] == numbers)
    return snapshot.version


def expected_bars(last: int) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(interval_s, start) -> (open, close, volume) of the bars that trades 1 .. last have closed."""
    bars = {}
    for interval_s in INTERVALS_S:
        per_bar = interval_s * SECOND // STEP_NS
        for start in range(0, last + 1, per_bar):
            first, end = max(1, start), min(last, start + per_bar - 1)
            if end < last:
                bars[(interval_s, START + start * STEP_NS)] = (first, end, end * (end + 1) - (first - 1) * first)
    return bars


def test_readers_see_whole_entries_and_kills_of_the_cache_lose_and_repeat_nothing(engine_name: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    table = LatestTable.create(engine_name, instruments=8, depth_records=DEPTH, pool_records=8 * 300)
    create_ring(engine_name, 1, depth_slots=1 << 16)
    writer = RingWriter.create(engine_name, 2, depth_slots=1 << 18)
    bars = RingReader.attach(engine_name, 1, start="oldest", register=False)
    last = kills_at_work = 0

    def caught_up() -> bool:
        return table.as_of().get(2, 0) >= writer.next_sequence - 1

    with Child(READER, engine_name) as reader:
        assert reader.hear() == "ready"
        for round_ in range(KILLS + 1):
            with Child(CACHE, engine_name, chance.choice((16, 16, 64, 4096))) as cache:
                assert cache.hear() == "ready"
                for _ in range(chance.randrange(1, 4)):
                    wait_until(caught_up, "the cache catches up")
                    writer.publish_batch(burst(last + 1, TRADES))
                    last += TRADES
                if round_ < KILLS:
                    time.sleep(chance.random() * 0.02)  # not to wait for anything: any moment will do
                    cache.kill()
                    kills_at_work += not caught_up()
                else:
                    wait_until(caught_up, "the last cache catches up")
                    cache.kill()
        reader.say("stop")
        assert int(reader.hear()) >= 100

    for instrument in range(INSTRUMENTS):
        check_entry(table, instrument, 1)
        snapshot, history = table.join(instrument, DEPTH)
        assert snapshot is not None
        assert snapshot.day is not None
        assert snapshot.last_trade is not None
        assert snapshot.last_trade.price == last
        assert len(history) >= DEPTH
    again = table.counters["records_skipped"]
    print(f"{kills_at_work} of {KILLS} kills hit a cache at work; {again} records were seen again")
    assert table.counters["writers"] == KILLS + 1
    out = empty(1 << 16)
    published = out[: bars.read(out)]
    published = published[published["record_type"] == RecordType.BAR]
    for instrument in range(INSTRUMENTS):
        own = published[published["instrument_id"] == instrument]
        got = {
            (int(bar["interval_s"]), int(bar["ts_event"])): (bar["open"], bar["close"], bar["volume"]) for bar in own
        }
        assert len(got) == len(own), "a bar was published twice"
        assert got == expected_bars(last)
        assert not np.any(own["flags"] & (Flag.CORRECTED | Flag.INCOMPLETE | Flag.LATE))
        kept = table.history(instrument, record_type=RecordType.BAR)
        assert kept["sequence"].tolist() == own["sequence"][-len(kept) :].tolist()
        assert len(kept) >= min(len(own), 50)
    table.close()
    bars.close()
    writer.close()
