"""What can be set of what is kept: latest values and L1, the journal and Parquet, Redis, PostgreSQL.

Sections of the configuration, as engine/settings.py says what they are. Types only.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.byte_size import ByteSize


class CacheSection(Struct, frozen=True, kw_only=True):
    """Latest values, the last records of each instrument (L1), and bars."""

    records_per_instrument: Annotated[
        int, Meta(ge=16, le=65536, description="L1 history of one instrument; 128 bytes each")
    ] = 1000
    max_symbols: Annotated[int, Meta(ge=16, le=65536, description="instruments that can have latest values and L1")] = (
        8192
    )
    max_l1_memory: Annotated[ByteSize, Meta(description="shared memory of all L1 histories together")] = "128MiB"
    bar_intervals_s: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=86400)], ...], Meta(max_length=8, description="lengths of the bars built")
    ] = (1, 60)
    bar_close_delay_s: Annotated[
        float, Meta(ge=0, le=60, description="wait after an interval before a silent instrument's bar closes")
    ] = 1.0
    bar_exclude_outliers: Annotated[
        bool, Meta(description="leave trades flagged OUTLIER out of bars and day statistics")
    ] = False


class StorageSection(Struct, frozen=True, kw_only=True):
    """What the recorder writes under `data_dir`: a journal of all records, sealed into Parquet (extra `storage`)."""

    enabled: Annotated[bool, Meta(description="run the recorder")] = True
    retention_hours: Annotated[
        float, Meta(ge=0, le=1e6, description="age at which recorded data goes; 0 = never by age")
    ] = 24.0
    fsync: Annotated[
        Literal["none", "interval", "always"],
        Meta(description="when blocks are brought to the disk; a kill loses nothing either way, a power cut may"),
    ] = "interval"
    fsync_interval_s: Annotated[
        float, Meta(ge=0.01, le=3600, description='pause between two, with fsync "interval"')
    ] = 1.0
    flush_ms: Annotated[
        float,
        Meta(ge=1, le=10_000, description="a record is in the journal this long after it was read, at the latest"),
    ] = 100.0
    segment_size: Annotated[ByteSize, Meta(description="length at which a journal file is left for a new one")] = (
        "64MiB"
    )
    journal_hours: Annotated[
        float, Meta(ge=0, le=1e6, description="how long what is in Parquet stays in the journal too")
    ] = 2.0
    max_journal: Annotated[ByteSize, Meta(description='the oldest journal files go beyond this; "0" = no limit')] = (
        "4GiB"
    )
    seal: Annotated[bool, Meta(description="write each past hour into Parquet, where pyarrow is installed")] = True
    seal_size: Annotated[
        ByteSize, Meta(description="raw records at which an hour is written in part: bounds the memory that takes")
    ] = "512MiB"
    max_parquet: Annotated[ByteSize, Meta(description='the oldest Parquet files go beyond this; "0" = no limit')] = (
        "8GiB"
    )


class RedisSection(Struct, frozen=True, kw_only=True):
    """Redis, filled from the journal (extra `redis`). Its password: TICKENGINE_REDIS_PASSWORD, or a credential."""

    url: Annotated[
        str, Meta(description='"redis://127.0.0.1:6379/0", also rediss:// and unix://; empty = no Redis')
    ] = ""
    hours: Annotated[float, Meta(ge=0.01, le=1e5, description="how long records stay")] = 24.0
    max_records_per_symbol: Annotated[
        int, Meta(ge=256, le=100_000_000, description="of each type; the oldest go beyond it, 256 at a time")
    ] = 20_000
    flush_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="how long records gather before they are sent, when few come")
    ] = 500.0


class PostgresSection(Struct, frozen=True, kw_only=True):
    """PostgreSQL, filled from the journal (extra `postgres`). Its password: PGPASSWORD, or a credential."""

    dsn: Annotated[
        str, Meta(description='"host=127.0.0.1 dbname=market user=tickengine", or a URL; empty = no PostgreSQL')
    ] = ""
    retention_days: Annotated[
        int, Meta(ge=0, le=36_500, description="how long rows stay, by their time and since they came; 0 = for ever")
    ] = 365
    timescale: Annotated[bool, Meta(description="use TimescaleDB where the server has it")] = True
    flush_ms: Annotated[
        float, Meta(ge=0, le=60_000, description="how long records gather before they are sent, when few come")
    ] = 500.0
