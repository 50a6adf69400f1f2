"""Redis and PostgreSQL behind the journal, as servers: what is stored, read back, aged; and who else may write."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from shm.layout import NO_INSTRUMENT, Flag, RecordType, Side, empty
from tests.children import wait_until
from tests.journals import HOUR, NOW, STREAM, trades
from tests.mirrors import RING, SYMBOLS, Mirroring, slowly
from tests.servers import PostgresServer, RedisServer
from workers.journal_follower import JournalFollower
from workers.store import StoreDown
from workers.tier import Key, TierDown, Wanted


@pytest.fixture(params=["redis", "postgres", "timescale"])
def mirroring(request: pytest.FixtureRequest, engine_name: str, tmp_path: Path) -> Iterator[Mirroring]:
    made = Mirroring(engine_name, tmp_path, request.getfixturevalue(f"shared_{request.param}"))
    yield made
    made.close()


@pytest.fixture
def in_postgres(engine_name: str, tmp_path: Path, shared_postgres: PostgresServer) -> Iterator[Mirroring]:
    made = Mirroring(engine_name, tmp_path, shared_postgres)
    yield made
    made.close()


@pytest.fixture
def in_redis(engine_name: str, tmp_path: Path, shared_redis: RedisServer) -> Iterator[Mirroring]:
    made = Mirroring(engine_name, tmp_path, shared_redis)
    yield made
    made.close()


def mixed(count: int, chance: random.Random, *, spread_ns: int = HOUR) -> np.ndarray:
    """Records of every type with every byte set, times in no order and often equal."""
    records = empty(count)
    raw = records.view(np.uint8).reshape(count, -1)
    raw[:] = np.frombuffer(chance.randbytes(count * 128), np.uint8).reshape(count, -1)
    records["record_type"] = [chance.randint(1, 7) for _ in range(count)]
    records["source"] = [chance.choice([1, 5, 10, 64, 255]) for _ in range(count)]
    records["instrument_id"] = [chance.choice([*range(len(SYMBOLS)), 60_000, NO_INSTRUMENT]) for _ in range(count)]
    steps = chance.choice([1, 999, 1000, spread_ns // 50])
    records["ts_event"] = [NOW + chance.randint(-50, 50) * steps for _ in range(count)]
    records["ts_publish"] = [NOW + chance.randint(0, 3) for _ in range(count)]
    return records


def fill(mirroring: Mirroring, **changes: object) -> None:
    """Everything in the journal into the store, in this process."""
    store = mirroring.store(**changes)
    follower = JournalFollower(mirroring.folder / "journal")
    follower.resume(store.connect())
    while batches := follower.read(1000):
        store.store(batches, NOW)
    store.close()
    follower.close()


def test_records_of_every_type_come_back_equal_and_as_a_slow_search_finds_them(mirroring: Mirroring) -> None:
    chance = random.Random(7)
    written = []
    for _ in range(12):
        records = mixed(chance.randint(1, 400), chance)
        mirroring.append(records)
        written.append(records)
    fill(mirroring)
    every = np.concatenate([records.view(np.uint8) for records in written]).view(written[0].dtype)
    assert mirroring.raw().tobytes() == every.tobytes()
    tier = mirroring.tier(timeout_s=30)
    found_some = 0
    for _ in range(60):
        some = every[chance.randrange(len(every))]
        key = Key(int(some["ts_event"]), int(some["ts_publish"]), int(some["sequence"]))
        wanted = Wanted(
            chance.choice([*SYMBOLS, "", "NEVER"]),
            chance.choice([None, *RecordType]),
            chance.choice([None, int(some["ts_event"]), int(some["ts_event"]) - HOUR]),
            chance.choice([None, int(some["ts_event"]), int(some["ts_event"]) + 1]),
            chance.choice([None, key]),
            chance.choice([1, 3, 50, 100_000]),
        )
        answer = tier.read(wanted)
        assert answer["sequence"].tolist() == slowly(every, SYMBOLS, wanted), wanted
        assert answer.tobytes() == every[answer["sequence"].astype(int) - 1].tobytes()
        found_some += bool(len(answer))
    assert found_some > 20


def test_paging_back_by_the_oldest_key_meets_each_record_once(mirroring: Mirroring) -> None:
    for first in range(1, 2000, 100):
        mirroring.append(trades(first, 100, instruments=1, event_ns=NOW - first % 7 * 1000))
    fill(mirroring)
    tier = mirroring.tier(timeout_s=30)
    wanted = Wanted(SYMBOLS[0], RecordType.TRADE, None, None, None, 37)
    met: list[int] = []
    while len(page := tier.read(wanted)):
        met += page["sequence"].tolist()
        wanted = wanted._replace(before=Key(*(int(page[0][name]) for name in Key._fields)))
    assert sorted(met) == list(range(1, 2001))


def test_data_of_long_ago_is_stored_and_found(mirroring: Mirroring) -> None:
    old = 1_340_000_000_000_000_000  # 2012
    mirroring.append(trades(1, 300, event_ns=NOW))
    mirroring.append(trades(301, 300, event_ns=old))
    mirroring.append(trades(601, 300, event_ns=0))
    mirroring.append(trades(901, 300, event_ns=-1_000_000_000))  # 1969
    fill(mirroring)
    assert mirroring.raw()["sequence"].tolist() == list(range(1, 1201))
    tier = mirroring.tier(timeout_s=30)
    asked = Wanted(SYMBOLS[1], None, old, old + HOUR, None, 1000)
    assert tier.read(asked)["ts_event"].min() >= old
    assert len(tier.read(asked)) == 43
    assert len(tier.read(asked._replace(from_ns=None, to_ns=0))) == 43


def test_the_clock_set_back_loses_nothing(mirroring: Mirroring) -> None:
    for first, now_ns in ((1, NOW), (101, NOW - 5 * HOUR), (201, NOW + HOUR)):
        records = trades(first, 100)
        records["ts_publish"] = now_ns
        mirroring.append(records, now_ns=now_ns)
    store = mirroring.store()
    follower = JournalFollower(mirroring.folder / "journal")
    follower.resume(store.connect())
    for now_ns in (NOW, NOW - 9 * HOUR, NOW - HOUR):
        store.store(follower.read(100), now_ns)
        store.tend(now_ns)
    store.close()
    assert mirroring.raw()["sequence"].tolist() == list(range(1, 301))


def test_of_two_mirrors_the_one_behind_is_told_and_nothing_is_there_twice(mirroring: Mirroring) -> None:
    mirroring.append(trades(1, 500))
    stores = [mirroring.store(), mirroring.store()]
    followers = [JournalFollower(mirroring.folder / "journal") for _ in stores]
    for store, follower in zip(stores, followers, strict=True):
        follower.resume(store.connect())
    stores[0].store(followers[0].read(1000), NOW)
    with pytest.raises(StoreDown, match="another mirror"):
        stores[1].store(followers[1].read(1000), NOW)
    mirroring.append(trades(501, 500))
    followers[1].resume(stores[1].connect())
    stores[1].store(followers[1].read(1000), NOW)
    with pytest.raises(StoreDown, match="another mirror"):
        stores[0].store(followers[0].read(1000), NOW)
    for store in stores:
        store.close()
    assert mirroring.raw()["sequence"].tolist() == list(range(1, 1001))


def test_cursors_of_rings_that_will_not_come_again_are_removed(mirroring: Mirroring) -> None:
    mirroring.append(trades(1, 10))
    fill(mirroring)
    store = mirroring.store()
    (place,) = store.connect()
    store.forget([place._replace(stream=5)])
    mirroring.append(trades(11, 10))
    follower = JournalFollower(mirroring.folder / "journal")
    follower.resume(store.connect())
    store.forget([])
    store.store(follower.read(100), NOW)
    store.forget([place])
    assert store.connect() == {}
    store.close()
    assert mirroring.raw()["sequence"].tolist() == list(range(1, 21))


def test_engines_in_one_store_do_not_see_each_other(mirroring: Mirroring, tmp_path: Path) -> None:
    mirroring.append(trades(1, 10))
    fill(mirroring)
    other = Mirroring(f"{mirroring.engine}x", tmp_path / "other", mirroring.server)
    try:
        assert len(other.tier(timeout_s=30).read(Wanted(SYMBOLS[1], None, None, None, None, 10))) == 0
        assert other.store().connect() == {}
    finally:
        other.close()


def test_a_store_that_refuses_is_down_within_the_timeout_and_says_no_password(mirroring: Mirroring) -> None:
    from tests.ports import free_port
    from workers.postgres_tier import PostgresTier
    from workers.redis_tier import RedisTier
    from workers.store import with_password

    address = mirroring.server.address.replace(str(mirroring.server.port), str(free_port()))
    made = RedisTier if mirroring.kind == "redis" else PostgresTier
    tier = made(with_password(address, "s3cret words"), "main", 1.0)
    for _ in range(2):
        with pytest.raises(TierDown) as told:
            tier.read(Wanted("S0", None, None, None, None, 1))
        assert "s3cret" not in str(told.value)
    tier.close()


def test_rows_have_the_columns_of_the_interface(in_postgres: Mirroring) -> None:
    begin = NOW + 77 * 24 * HOUR  # a minute in which no other test has put trades
    records = trades(1, 5, event_ns=begin + 123)
    kinds = [RecordType.TRADE, RecordType.QUOTE, RecordType.BAR, RecordType.LEVEL2, RecordType.STATUS]
    records["record_type"] = kinds
    records["instrument_id"] = 0
    records.view(np.uint8).reshape(5, 128)[1:, 64:] = 0
    records["source"] = 1
    records[0]["price"], records[0]["size"], records[0]["side"] = 1.1, 2.5e-7, Side.SELL
    records[1]["bid"], records[1]["ask"] = 99.99, float("nan")
    for name, value in zip(("open", "high", "low", "close", "volume"), (1.5, 3, 1, 2.25, 1e21), strict=True):
        records[2][name] = value
    records[3]["price"], records[3]["best_bid"], records[3]["best_ask"] = -37.63, 0.1 + 0.2, 1 / 3
    records[4]["flags"] = Flag.REPLAYED | Flag.SYNTHETIC
    in_postgres.append(records)
    fill(in_postgres)
    rows = in_postgres.server.query(
        "SELECT data_type, symbol, source, price, volume, bid, ask, metadata, time FROM market_data "
        "WHERE starts_with(metadata->>'origin', %s) ORDER BY (metadata->>'sequence')::bigint",
        f"{in_postgres.engine}/",
    )
    numbers = [row[3:7] for row in rows]
    assert numbers == [
        (Decimal("1.1"), Decimal("0.00000025"), None, None),
        (None, None, Decimal("99.99"), None),
        (Decimal("2.25"), Decimal("1e21"), None, None),
        (Decimal("-37.63"), Decimal(0), Decimal("0.30000000000000004"), Decimal("0.3333333333333333")),
        (None, None, None, None),
    ]
    assert [row[0] for row in rows] == ["trade", "quote", "bar", "level2", "status"]
    assert {row[1:3] for row in rows} == {(SYMBOLS[0], "ibkr")}
    assert rows[0][7]["side"] == "sell"
    assert rows[0][7]["origin"] == f"{in_postgres.engine}/{RING}/{STREAM}"
    assert {name: rows[2][7][name] for name in ("open", "high", "low")} == {"open": 1.5, "high": 3, "low": 1}
    assert rows[4][7]["flags"] == int(Flag.REPLAYED | Flag.SYNTHETIC)
    assert [row[8].timestamp() for row in rows] == [(begin + 1000 * n) // 1000 / 1e6 for n in range(1, 6)]
    (bar,) = in_postgres.server.query(
        "SELECT open, close, volume, trades FROM market_data_ohlcv_1m WHERE symbol = %s AND bucket > to_timestamp(%s)",
        SYMBOLS[0],
        begin / 1e9 - 60,
    )
    assert bar == (Decimal("1.1"), Decimal("1.1"), Decimal("0.00000025"), 1)
    (index,) = in_postgres.server.query("SELECT indexdef FROM pg_indexes WHERE tablename = 'market_data'")
    assert '(symbol, data_type, "time" DESC)' in index[0]


def test_partitions_are_made_ahead_and_go_once_they_are_old_and_unused(engine_name: str, tmp_path: Path) -> None:
    server = PostgresServer()
    server.start()
    made = Mirroring(engine_name, tmp_path, server)
    day = 24 * HOUR
    try:
        for first, event_ns in ((1, NOW), (101, NOW - 40 * day), (201, NOW - 4000 * day)):
            made.append(trades(first, 100, event_ns=event_ns))
        store = made.store(retention_days=30)
        follower = JournalFollower(made.folder / "journal")
        follower.resume(store.connect())
        store.store(follower.read(1000), NOW)
        store.tend(NOW)
        names = [row[0] for row in server.query("SELECT name FROM tickengine_partitions ORDER BY from_day")]
        assert names[0].endswith(("_365d", "_366d"))  # 2014: one for the year
        assert len([name for name in names if name.endswith("_1d")]) >= 3  # today and days ahead
        assert store.tend(NOW + 31 * day) == 0  # old by its time, but it was written just now
        server.query("UPDATE tickengine_partitions SET written = timestamptz '2020-01-01'")
        assert store.tend(NOW + 2 * day) == 2
        assert made.raw()["sequence"].tolist() == list(range(1, 101))
        store.close()
    finally:
        made.close()
        server.close()


def test_timescaledb_has_chunks_of_an_hour_which_go_once_they_were_made_long_ago(
    engine_name: str, tmp_path: Path
) -> None:
    server = PostgresServer(timescale=True)
    server.start()
    made = Mirroring(engine_name, tmp_path, server)
    try:
        for first, event_ns in ((1, NOW), (101, NOW - HOUR), (201, NOW - 4000 * 24 * HOUR)):
            made.append(trades(first, 100, event_ns=event_ns))
        store = made.store(retention_days=30)
        follower = JournalFollower(made.folder / "journal")
        follower.resume(store.connect())
        store.store(follower.read(1000), NOW)
        spans = server.query(
            "SELECT DISTINCT range_end - range_start FROM timescaledb_information.chunks "
            "WHERE hypertable_name = 'market_data'"
        )
        assert [span for (span,) in spans] == [timedelta(hours=1)]
        assert len(server.query("SELECT * FROM market_data_ohlcv_1m WHERE symbol = %s", SYMBOLS[0])) >= 3
        assert store.tend(NOW) == 0  # a replay of 2014 stays as long as new data does
        assert made.raw()["sequence"].tolist() == list(range(1, 301))
        if server.query("SHOW timescaledb.license") == [("apache",)]:  # else a policy of the server's own does it
            server.query(
                "UPDATE _timescaledb_catalog.chunk SET creation_time = now() - interval '31 days' "
                "WHERE id IN (SELECT chunk_id FROM _timescaledb_catalog.chunk_constraint cc "
                "JOIN _timescaledb_catalog.dimension_slice ds ON ds.id = cc.dimension_slice_id "
                "WHERE ds.range_end < %s)",
                (NOW - 2 * HOUR) // 1000,
            )
            store.close()
            store = made.store(retention_days=30)
            store.connect()  # finds the table as it is
            assert store.tend(NOW) == 1
            assert made.raw()["sequence"].tolist() == list(range(1, 201))
        store.close()
    finally:
        made.close()
        server.close()


def test_redis_keeps_the_newest_by_number_and_by_age(in_redis: Mirroring) -> None:
    for first in range(1, 5000, 100):
        records = trades(first, 100, instruments=1)
        records["ts_publish"] = NOW + (HOUR * 25 if first > 4500 else 0)
        in_redis.append(records)
    store = in_redis.store(max_records_per_symbol=1000, hours=24.0)
    follower = JournalFollower(in_redis.folder / "journal")
    follower.resume(store.connect())
    while batches := follower.read(100):
        store.store(batches, NOW)
    assert in_redis.raw()["sequence"].tolist() == list(range(4001, 5001))
    client = in_redis.server.client()
    (key,) = client.keys(f"tickengine:{{{in_redis.engine}}}:d:*")
    assert 0 < client.pttl(key) <= HOUR * 24 // 10**6
    wait_until(lambda: store.tend(NOW + HOUR * 25) > 0, "old entries go")
    assert in_redis.raw()["sequence"].tolist() == list(range(4501, 5001))
    store.close()
