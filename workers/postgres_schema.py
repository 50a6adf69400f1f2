"""The tables in PostgreSQL: market_data, made as TimescaleDB or as plain PostgreSQL can have it, and its partitions.

Called by workers/postgres_store.py with an open connection; reads no journal. What is there already is left as it is.

    market_data             time, symbol, data_type, source, price, volume, bid, ask, metadata;
                            index (symbol, data_type, time desc)
    market_data_ohlcv_1m    bars of a minute over ticks and trades: a continuous aggregate, or a view
    tickengine_cursors      how far each ring of each engine has been stored; changes with the rows, in one transaction
    tickengine_partitions   plain PostgreSQL only: what each partition spans and when it was last written to

TimescaleDB has chunks of an hour, compression after a day and retention of its own; in its Apache edition, which Linux
distributions have, only the chunks: old ones are dropped from here. Plain PostgreSQL has a partition a day, and a year
or a month for data that is older than the retention: a capture of long ago needs few of them. What is dropped has been
out of date by its own time and not been written to for `retention_days`, so that a replay of old data stays as long as
new data does; TimescaleDB judges by the age of the chunk instead, to the same end.

Source of the statements: TimescaleDB API reference, "Hypertables", "Compression", "Continuous aggregates", "Data
retention"; which of them the Apache edition has: "TimescaleDB editions".
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, LiteralString, NamedTuple

if TYPE_CHECKING:
    import psycopg

DAY_NS: Final = 86_400_000_000_000
MADE_AHEAD_DAYS: Final = 2

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS market_data (
    time timestamptz NOT NULL,
    symbol varchar(32) COLLATE "C" NOT NULL,
    data_type varchar(16) COLLATE "C" NOT NULL,
    source varchar(32) NOT NULL,
    price numeric,
    volume numeric,
    bid numeric,
    ask numeric,
    metadata jsonb NOT NULL
)"""
_INDEX: Final = "CREATE INDEX IF NOT EXISTS market_data_symbol_type_time ON market_data (symbol, data_type, time DESC)"
_CURSORS: Final = """
CREATE TABLE IF NOT EXISTS tickengine_cursors (
    engine text NOT NULL,
    ring integer NOT NULL,
    stream bigint NOT NULL,
    next_sequence bigint NOT NULL,
    updated timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (engine, ring, stream)
)"""
_PARTITIONS: Final = """
CREATE TABLE IF NOT EXISTS tickengine_partitions (
    name text PRIMARY KEY,
    from_day date NOT NULL,
    to_day date NOT NULL,
    written timestamptz NOT NULL DEFAULT now()
)"""
_BARS_VIEW: Final = """
CREATE OR REPLACE VIEW market_data_ohlcv_1m AS
SELECT date_bin('1 minute', time, timestamptz '2000-01-01 00:00:00+00') AS bucket, symbol,
       (array_agg(price ORDER BY time, (metadata->>'sequence')::bigint))[1] AS open,
       max(price) AS high, min(price) AS low,
       (array_agg(price ORDER BY time DESC, (metadata->>'sequence')::bigint DESC))[1] AS close,
       sum(volume) AS volume, count(*) AS trades
FROM market_data WHERE data_type IN ('tick', 'trade') AND price IS NOT NULL GROUP BY 1, 2"""
_HYPERTABLE: Final = (
    "SELECT create_hypertable('market_data', 'time', chunk_time_interval => INTERVAL '1 hour', if_not_exists => true)"
)
_POLICIES: Final[tuple[LiteralString, ...]] = (
    """ALTER TABLE market_data SET (timescaledb.compress, timescaledb.compress_segmentby = 'symbol, data_type',
       timescaledb.compress_orderby = 'time DESC')""",
    "SELECT add_compression_policy('market_data', compress_after => INTERVAL '1 day', if_not_exists => true)",
    """CREATE MATERIALIZED VIEW IF NOT EXISTS market_data_ohlcv_1m WITH (timescaledb.continuous) AS
       SELECT time_bucket(INTERVAL '1 minute', time) AS bucket, symbol, first(price, time) AS open,
              max(price) AS high, min(price) AS low, last(price, time) AS close, sum(volume) AS volume,
              count(*) AS trades
       FROM market_data WHERE data_type IN ('tick', 'trade') AND price IS NOT NULL GROUP BY 1, 2 WITH NO DATA""",
    """SELECT add_continuous_aggregate_policy('market_data_ohlcv_1m', start_offset => INTERVAL '1 day',
       end_offset => INTERVAL '1 minute', schedule_interval => INTERVAL '1 minute', if_not_exists => true)""",
)
_RETENTION: Final = """
SELECT add_retention_policy('market_data', drop_created_before => make_interval(days => %s), if_not_exists => true)"""
_DROP_CHUNKS: Final = "SELECT drop_chunks('market_data', created_before => now() - make_interval(days => %s))"
_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('tickengine market_data', 0))"


class Span(NamedTuple):
    """Days since the Unix epoch, [first, end)."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """Name of the partition of this span."""
        return f"market_data_{date_of(self.first):%Y%m%d}_{self.end - self.first}d"


class Upkeep(Enum):
    """Who keeps market_data in pieces and within its age."""

    PARTITIONS = "plain PostgreSQL: we make partitions and drop them"
    CHUNKS = "TimescaleDB, Apache edition: it makes chunks, we drop them"
    POLICIES = "TimescaleDB: it makes chunks, compresses and drops them; or a table that somebody else made"


def prepare(connection: psycopg.Connection[Any], *, timescale: bool, retention_days: int) -> Upkeep:
    """Make what is missing; returns who looks after market_data. One transaction; psycopg.Error if refused."""
    with connection.transaction():
        connection.execute(_LOCK)
        connection.execute(_CURSORS)
        kind = _kind(connection)
        if kind is None and timescale and _get_extension(connection):
            connection.execute(_TABLE)
            connection.execute(_INDEX)
            connection.execute(_HYPERTABLE)
            if _apache_edition(connection):
                connection.execute(_BARS_VIEW)
                return Upkeep.CHUNKS
            for statement in _POLICIES:
                connection.execute(statement)
            if retention_days:
                connection.execute(_RETENTION, [retention_days])
            return Upkeep.POLICIES
        if kind is None:
            connection.execute(_TABLE + " PARTITION BY RANGE (time)")
            connection.execute(_INDEX)
            connection.execute(_BARS_VIEW)
        elif kind != "p":
            return Upkeep.CHUNKS if _is_hypertable(connection) and _apache_edition(connection) else Upkeep.POLICIES
        connection.execute(_PARTITIONS)
        return Upkeep.PARTITIONS


def drop_chunks(connection: psycopg.Connection[Any], keep_days: int) -> int:
    """Drop TimescaleDB's chunks that were made longer ago; returns how many."""
    return len(connection.execute(_DROP_CHUNKS, [keep_days]).fetchall())


def partitions(connection: psycopg.Connection[Any]) -> list[Span]:
    """The spans that have a partition."""
    rows = connection.execute(
        "SELECT from_day - date '1970-01-01', to_day - date '1970-01-01' FROM tickengine_partitions"
    )
    return [Span(*row) for row in rows]


def add_partitions(connection: psycopg.Connection[Any], days: Iterable[int], now_ns: int, keep_days: int) -> list[Span]:
    """Make the partitions that these days (since the Unix epoch) need; returns all that there are then."""
    with connection.transaction():
        connection.execute(_LOCK)
        known = partitions(connection)
        for day in days:
            span = span_for(day, known, now_ns // DAY_NS, keep_days)
            if span is None:
                continue
            known.append(span)
            bounds = (
                f"FROM ('{date_of(span.first):%Y-%m-%d} 00:00:00+00') TO ('{date_of(span.end):%Y-%m-%d} 00:00:00+00')"
            )
            # Attaching takes a weaker lock than CREATE TABLE ... PARTITION OF: readers go on meanwhile.
            _run(connection, f"CREATE TABLE {span.name} (LIKE market_data INCLUDING DEFAULTS)")
            _run(connection, f"ALTER TABLE market_data ATTACH PARTITION {span.name} FOR VALUES {bounds}")
            connection.execute(
                "INSERT INTO tickengine_partitions (name, from_day, to_day) VALUES (%s, %s, %s)",
                [span.name, date_of(span.first).date(), date_of(span.end).date()],
            )
    return known


def touch_partitions(connection: psycopg.Connection[Any], spans: Iterable[Span]) -> None:
    """Say that these are written to now."""
    names = [span.name for span in spans]
    connection.execute("UPDATE tickengine_partitions SET written = now() WHERE name = ANY(%s)", [names])


def drop_partitions(connection: psycopg.Connection[Any], now_ns: int, keep_days: int) -> int:
    """Drop what is out of date and has not been written to for as long; returns how many."""
    limit = datetime.fromtimestamp(now_ns // 10**9, UTC) - timedelta(days=keep_days)
    with connection.transaction():
        connection.execute(_LOCK)
        rows = connection.execute(
            "DELETE FROM tickengine_partitions WHERE to_day <= %s AND written < %s RETURNING name",
            [limit.date(), limit],
        ).fetchall()
        for (name,) in rows:
            _run(connection, f"DROP TABLE IF EXISTS {name}")
    return len(rows)


def span_for(day: int, known: Iterable[Span], today: int, keep_days: int) -> Span | None:
    """The partition to make for a day; None if it has one.

    A year or a month, where the whole of it is older than what is kept and nothing in it has a partition; else the day.
    """
    taken = list(known)
    if any(span.first <= day < span.end for span in taken):
        return None
    date = date_of(day)
    year = Span(_day(date.year, 1), _day(date.year + 1, 1))
    month = Span(_day(date.year, date.month), _day(date.year + date.month // 12, date.month % 12 + 1))
    for span in (year, month):
        if span.end <= today - (keep_days or 365) and not any(s.first < span.end and span.first < s.end for s in taken):
            return span
    return Span(day, day + 1)


def date_of(day: int) -> datetime:
    """Midnight UTC of a day since the Unix epoch."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)


def _day(year: int, month: int) -> int:
    return (datetime(year, month, 1, tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)).days


def _kind(connection: psycopg.Connection[Any]) -> str | None:
    """pg_class.relkind of market_data: "p" partitioned, "r" ordinary or a hypertable; None = there is none."""
    row = connection.execute("SELECT relkind FROM pg_class WHERE oid = to_regclass('market_data')").fetchone()
    if row is None:
        return None
    kind = row[0]
    return kind.decode() if isinstance(kind, bytes) else str(kind)


def _get_extension(connection: psycopg.Connection[Any]) -> bool:
    """Whether TimescaleDB can be used; a role that may not create it goes on without.

    A server that has it installed, but not in `shared_preload_libraries`, ends a connection that asks for it. That it
    is loaded is seen by its settings.
    """
    import psycopg

    loaded = connection.execute("SELECT 1 FROM pg_settings WHERE name LIKE 'timescaledb.%' LIMIT 1").fetchone()
    available = connection.execute("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'").fetchone()
    if loaded is None or available is None:
        return False
    try:
        with connection.transaction():
            connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
    except psycopg.Error:
        return False
    return True


def _is_hypertable(connection: psycopg.Connection[Any]) -> bool:
    if connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'").fetchone() is None:
        return False
    found = "SELECT 1 FROM timescaledb_information.hypertables WHERE hypertable_name = 'market_data'"
    return connection.execute(found).fetchone() is not None


def _apache_edition(connection: psycopg.Connection[Any]) -> bool:
    row = connection.execute("SELECT current_setting('timescaledb.license', true)").fetchone()
    return row is not None and row[0] == "apache"


def _run(connection: psycopg.Connection[Any], statement: str) -> None:
    """A statement with a name in it that was made here."""
    connection.execute(statement.encode())
