"""When L1 may answer alone: never with an answer that a look at everything would change."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from engine.l1 import L1, Wanted, key_of
from engine.tiers import CURSOR_CHARS, decode_cursor, encode_cursor
from shm.latest import LatestTable
from shm.layout import RecordType, StatusCode, concatenate, empty
from shm.ring import RingReader
from tests.ticks import BAR_RING, SECOND, START, Bench, quote, trade
from workers.tier import Key
from workers.tier import Wanted as TierWanted
from workers.tier_order import choose

NEWEST = Wanted(None, None, None, None, 10)


def published(bench: Bench, instrument: int) -> np.ndarray:
    """Everything that has ever been published of an instrument."""
    found = []
    for ring in (BAR_RING, *bench.writers):
        with RingReader.attach(bench.engine, ring, start="oldest", register=False) as reader:
            out = empty(1 << 14)
            count = reader.read(out)
            assert reader.gap is None
            found.append(out[:count])
    records = concatenate(found)
    return records[records["instrument_id"] == instrument]


def model(records: np.ndarray, wanted: Wanted) -> list[tuple[int, int, int]]:
    before = Key(*wanted.before) if wanted.before is not None else None
    chosen = choose(records, TierWanted("", wanted.kind, wanted.from_ns, wanted.to_ns, before, wanted.limit))
    return [key_of(record) for record in chosen]


def test_what_it_answers_alone_is_what_a_look_at_everything_gives(engine_name: str) -> None:
    chance = random.Random(3)
    alone = {True: 0, False: 0}
    with Bench(engine_name, rings=(2, 3), depth_slots=1 << 14, depth_records=120) as bench:
        l1 = L1(LatestTable.attach(engine_name))
        for _ in range(250):
            for _ in range(chance.randrange(30)):
                late_ns = chance.choice([0, 1000, 1000, 1000, 50_000_000, SECOND, 500 * SECOND])
                make = chance.choice([trade, quote])
                record = make(time.time_ns() - late_ns, 10.0, 1.0, instrument=chance.randrange(3), flags=0)
                bench.publish(record, ring=chance.choice([2, 3]))
            bench.turn()
            instrument = chance.randrange(4)
            everything = published(bench, instrument)
            times = [None, *(int(t) for t in everything["ts_event"][-40:])]
            keys = [None, *(key_of(record) for record in everything[-40:])]
            wanted = Wanted(
                chance.choice([None, None, RecordType.TRADE, RecordType.QUOTE, RecordType.BAR]),
                chance.choice([None, None, chance.choice(times)]),
                chance.choice([None, None, chance.choice(times)]),
                chance.choice([None, None, chance.choice(keys)]),
                chance.choice([1, 5, 20, 500]),
            )
            view = l1.look(instrument, wanted)
            alone[view.alone] += 1
            found = [key_of(record) for record in view.records]
            assert found == sorted(set(found))
            if view.alone:
                assert found == model(everything, wanted)
            else:
                assert set(found) <= set(model(everything, wanted._replace(limit=1 << 30)))
        l1.table.close()
    assert min(alone.values()) > 20, alone


def test_trading_status_stands_among_the_last_records_and_changes_nothing_else(engine_name: str) -> None:
    halted = {"record_type": RecordType.STATUS, "code": StatusCode.TRADING_STATUS, "text": b"halted: ITCH H, reason T1"}
    with Bench(engine_name) as bench:
        bench.turn(trade(START, 10.0), trade(START + 5, 0, 0, **halted), trade(START + 10, 11.0))
        bench.turn(trade(START + 20, 0, 0, instrument=0xFFFFFFFF, **halted))
        bench.turn(trade(START + 30, 0, 0, **halted | {"code": StatusCode.GAP}))
        latest = LatestTable.attach(engine_name)
        snapshot, records = latest.join(0, 100)
        assert records["record_type"].tolist() == [RecordType.TRADE, RecordType.STATUS, RecordType.TRADE]
        assert records["text"][1] == b"halted: ITCH H, reason T1"
        assert snapshot is not None
        assert snapshot.last_trade is not None
        assert snapshot.last_trade.price == 11.0
        latest.close()


def live(bench: Bench, count: int, *, lead_ns: int = 0) -> None:
    """Quotes of instrument 0, a little apart."""
    for _ in range(count):
        bench.publish(quote(time.time_ns() + lead_ns, 10.0, 11.0, flags=0))
        time.sleep(0.001)  # the time of the records, not a wait
    bench.turn()


def test_live_data_is_answered_alone_and_replayed_data_is_not(engine_name: str) -> None:
    with Bench(engine_name, depth_slots=1 << 12) as bench:
        l1 = L1(bench.table)
        for number in range(30):
            bench.publish(quote(number, 1.0, 2.0, instrument=1))
        live(bench, 40)
        assert l1.look(0, NEWEST).alone
        replayed = l1.look(1, NEWEST)
        assert (replayed.alone, len(replayed.records), replayed.unread_ns) == (False, 10, 0)


def test_few_records_are_an_answer_only_of_a_range_that_it_knows(engine_name: str) -> None:
    with Bench(engine_name) as bench:
        l1 = L1(bench.table)
        live(bench, 30)
        newest_ns = int(l1.look(0, NEWEST).records["ts_event"][-1])
        many = NEWEST._replace(limit=1000)
        assert not l1.look(0, many).alone  # earlier runs may have had some
        view = l1.look(0, many._replace(from_ns=newest_ns - 3_000_000))
        assert view.alone
        assert 1 <= len(view.records) < 30
        assert not l1.look(0, many._replace(from_ns=1)).alone
        assert not l1.look(None, NEWEST).alone
        assert l1.look(None, NEWEST._replace(from_ns=time.time_ns() + SECOND)).alone


def test_what_has_left_l1_and_what_the_cache_lost_sets_the_limit(engine_name: str) -> None:
    with Bench(engine_name, depth_slots=1 << 12, depth_records=100) as bench:
        l1 = L1(bench.table)
        live(bench, 300)
        view = l1.look(0, NEWEST._replace(limit=100))
        assert not view.alone
        assert len(view.records) == 100
        assert view.unread_ns == int(view.records["ts_publish"][0])
        assert l1.look(0, NEWEST).alone
        assert not l1.look(0, NEWEST, hole_ns=time.time_ns()).alone
        assert l1.look(0, NEWEST, hole_ns=view.unread_ns).alone


def test_data_dated_ahead_of_the_clock_widens_the_margin(engine_name: str) -> None:
    with Bench(engine_name, depth_slots=1 << 12) as bench:
        l1 = L1(bench.table)
        live(bench, 60, lead_ns=SECOND)
        assert not l1.look(0, NEWEST).alone


def test_an_instrument_beyond_the_table_is_not_l1s_to_answer(engine_name: str) -> None:
    with Bench(engine_name, instruments=16) as bench:
        view = L1(bench.table).look(16, NEWEST)
        assert (view.alone, len(view.records)) == (False, 0)
        assert view.unread_ns > time.time_ns()


@pytest.mark.parametrize(
    "key", [(0, 0, 0), (-1, 5, 7), ((1 << 63) - 1, -(1 << 63), (1 << 64) - 1), (1_750_000_000_000_000_000, 1, 2)]
)
def test_a_cursor_gives_its_key_back(key: tuple[int, int, int]) -> None:
    cursor = encode_cursor(key)
    assert len(cursor) == CURSOR_CHARS
    assert decode_cursor(cursor) == key


@pytest.mark.parametrize("cursor", ["", "x", "a" * 31, "a" * 33, "ä" * 32, " " * 32, "a" * 31 + "=", "+" * 32])
def test_what_is_no_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(ValueError, match="none that this engine has given"):
        decode_cursor(cursor)
