"""Settings: what each worker is told at its start, its module, and what its exit code says.

The control process fills one `*Settings` struct per worker, starts `python -m MODULES[role]` and writes
`encode(settings)` as the first line of its standard input; the pipe stays open, and its end tells the worker that the
control process is gone. Types and their JSON; nothing is opened or started here.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

# Module of each role: what the control process starts with `python -m`.
MODULES: Final[dict[str, str]] = {
    "ingest": "workers.ingest",
    "fanout": "workers.fanout",
    "cache": "workers.cache",
    "recorder": "workers.recorder",
    "gateway": "workers.gateway",
    "mirror": "workers.mirror",
    "historian": "workers.historian",
    "webhooks": "workers.webhooks",
}

# Exit codes of a worker process.
EXIT_CLEAN: Final = 0
EXIT_FAILED: Final = 1
EXIT_BAD_SETTINGS: Final = 2
EXIT_SHM: Final = 3

MAX_GROUP_FEEDS: Final = 8  # feeds of one redundancy group

EngineName = Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,16}$")]
Label = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,30}$")]
RingId = Annotated[int, Meta(ge=0, le=15)]
FeedId = Annotated[int, Meta(ge=0, le=65535)]
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]
NotNegative = Annotated[float, Meta(ge=0)]
Tier = Literal["high", "normal", "low"]


class _Spec(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the settings: immutable, named fields, an unknown key is an error."""


class Placement(_Spec, frozen=True, kw_only=True):
    """Where a worker may run.

    With "auto" every worker works out the same plan from `rank` and `workers`, so that no two share a core. `rank` is
    the worker's place in the order of choice (ingest, then fanout, cache, ...), from 0, and `workers` how many workers
    of this engine want a core; without them the worker stays unpinned.
    """

    policy: Literal["auto", "none", "core"] = "auto"
    core: int = -1  # the CPU number for policy "core"
    rank: int = -1
    workers: int = 0
    realtime_priority: Annotated[int, Meta(ge=0, le=99)] = 0  # SCHED_FIFO priority, 0 = the normal scheduler
    lock_memory: bool = False  # mlockall, so that no page of the worker is ever written out


class WorkerSettings(_Spec, frozen=True, kw_only=True):
    """What every worker is told."""

    engine: EngineName
    label: Label  # unique in the engine, e.g. "ingest-0"; also its name in status block, logs, control socket
    role: str = ""
    control_endpoint: str = ""  # ipc://... of the control process; empty = takes no commands
    placement: Placement = Placement()
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class FeedSpec(_Spec, frozen=True, kw_only=True):
    """One feed of an ingest worker."""

    feed_id: FeedId
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    source: str  # "simulated", "replay", ...: the names of workers.source.SOURCES, or a plug-in's (workers.plugins)
    source_code: Annotated[int, Meta(ge=0, le=255)] = 0  # of a plug-in's records (shm.source_names); 0 = built in
    symbols: tuple[str, ...] = ()  # empty = the source's own choice
    data_types: tuple[str, ...] = ()  # names of shm.layout.TYPE_NAMES; empty = the source's own choice
    options: dict[str, Any] = {}  # the source's own settings; it refuses what it does not know
    added: bool = False  # over HTTP, not configured: settings that can't work fail the feed and not its worker
    paused: bool = False  # starts paused
    group: Annotated[str, Meta(max_length=64)] = ""  # of feeds of the same instruments; empty = it is in none
    rank: Annotated[int, Meta(ge=0, le=1000)] = 0  # within the group, 0 = preferred


class QualitySettings(_Spec, frozen=True, kw_only=True):
    """Thresholds of the checks that set the flags of a record (workers/quality.py)."""

    enabled: bool = True
    policy: Literal["flag", "reject"] = "flag"  # impossible values: flagged INCOMPLETE, or rejected and counted
    late_after_ms: NotNegative = 1000.0  # ts_receive - ts_event above this is LATE; 0 = never
    late_when_replayed: bool = False  # judge replayed records too
    outlier_deviations: NotNegative = 12.0  # distance from the running mean, in running mean deviations; 0 = off
    outlier_floor_percent: NotNegative = 0.25  # and at least this far: one tick in a dead market is none
    outlier_percent: NotNegative = 20.0  # this far from the running mean is an outlier whatever the deviation; 0 = off
    volume_spike_factor: NotNegative = 50.0  # size above this many running mean sizes; 0 = off
    warm_up_records: Positive = 32  # per instrument and kind, before OUTLIER and VOLUME_SPIKE are judged
    memory_records: Positive = 64  # length of the running means, in records


class RedundancySettings(_Spec, frozen=True, kw_only=True):
    """When the feeds of a group take over from each other (workers/redundancy.py)."""

    stale_ms: Annotated[float, Meta(ge=20, le=10_000)] = 250.0  # least patience with a silent feed
    hold_s: NotNegative = 30.0  # a feed that is back must be healthy for so long before it publishes again
    margin: Annotated[float, Meta(ge=0, le=1)] = 0.5  # a difference of health scores below this is none
    switches_per_minute: Positive = 6  # beyond it only a feed that is lost or silent is left
    backlog_records: Annotated[int, Meta(ge=64, le=1 << 20)] = 16_384  # kept of each standby (128 bytes each)
    book_mb: Annotated[int, Meta(ge=1, le=1 << 14)] = 32  # at most, for the books of each feed


class CaptureSettings(_Spec, frozen=True, kw_only=True):
    """Where what live feeds receive is written down, and how it is cut (workers/capture_log.py)."""

    folder: Annotated[str, Meta(min_length=1)]
    feeds: tuple[str, ...] = ()  # of an engine: names of those that are captured; "*" = all that are live
    compress: Literal["auto", "zstd", "none"] = "auto"  # auto: text with zstd, packets not
    part_bytes: Annotated[int, Meta(ge=4096)] = 256 << 20  # a part ends at this size on disk ...
    part_s: Annotated[float, Meta(gt=0)] = 3600.0  # ... or age
    keep_bytes: Annotated[int, Meta(ge=0)] = 0  # of a feed; beyond it the oldest parts go; 0 = all are kept
    flush_s: Annotated[float, Meta(gt=0, le=60)] = 0.25  # what is in memory no longer than this outlives a kill
    queue_bytes: Annotated[int, Meta(ge=1 << 16)] = 64 << 20  # of a feed; beyond it the newest are dropped, counted


class IngestSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.ingest: feeds into one ring."""

    role: str = "ingest"
    ring_id: RingId
    feeds: tuple[FeedSpec, ...] = ()
    batch_slots: Annotated[int, Meta(ge=16, le=65536)] = 2048  # records per publish at full speed (128 bytes each)
    quality: QualitySettings = QualitySettings()
    priorities: dict[str, Tier] = {}  # symbols whose quotes, levels and bars have another tier than their type's
    redundancy: RedundancySettings = RedundancySettings()
    start_delay_s: NotNegative = 0.0  # from ready to the first record, for subscribers to connect
    min_wait_us: NotNegative = 200.0  # least pause between two polls of a paced feed: latency against CPU time
    folder: str = ""  # of this engine alone: what sources keep beyond their process (budgets, published, FIX numbers)
    capture: CaptureSettings | None = None  # None: nothing is written down
    isolated: bool = False  # hosts one feed whose source is a plug-in, and no other: what that does harms nobody else


class FanoutSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.fanout: rings to ZeroMQ. A port of 0 leaves that endpoint out; shard N adds N to each port."""

    role: str = "fanout"
    rings: tuple[RingId, ...]
    shard: Annotated[int, Meta(ge=0)] = 0  # this worker takes the instruments whose id modulo `shards` is `shard`
    shards: Positive = 1
    host: str = "127.0.0.1"
    raw_port: Port = 8801
    msgpack_port: Port = 8811
    json_port: Port = 8821
    replay_port: Port = 8831
    ipc_dir: str = ""  # folder of the ipc sockets; empty = no ipc endpoints
    server_key_file: str = ""  # CURVE secret key (workers/keys.py); empty = anybody who reaches the sockets may connect
    client_keys: str = ""  # file or folder with the public keys of who may connect; both or neither
    journal: str = ""  # the recorder's journal folder, for replay by time; empty = there is none
    send_hwm: Annotated[int, Meta(ge=1)] = 100_000  # messages queued per subscriber before the newest is dropped
    batch_slots: Positive = 32768  # most records of a turn: busy, the more the more records share a message
    reliable: bool = False  # hold the writers back (bounded) instead of losing records: for replays at full speed
    start: Literal["newest", "oldest"] = "newest"
    spin_us: NotNegative = 20.0  # how long it spins on idle rings before it sleeps: latency against CPU time
    segment_mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o600  # of the topic table, where this worker makes it
    segment_group: str = ""  # empty = the process's own


class CacheSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.cache: rings to the latest table, and bars into a ring of its own."""

    role: str = "cache"
    rings: tuple[RingId, ...]
    bar_ring_id: RingId = 1
    bar_intervals_s: tuple[Positive, ...] = (1, 60)
    bar_close_delay_s: NotNegative = 1.0  # wait after an interval's end before a silent instrument's bar closes
    bar_exclude_outliers: bool = False  # leave trades flagged OUTLIER out of bars and day statistics
    ranked_symbols: Annotated[int, Meta(ge=0)] = 32  # symbols of highest score that rank high; 0 = no scores
    batch_slots: Positive = 4096  # records read from a ring at a time
    reliable: bool = False  # hold the writers back (bounded) instead of losing records: for replays at full speed
    start: Literal["newest", "oldest"] = "oldest"


class RecorderSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.recorder: rings to the journal, the journal to Parquet. A size of 0 = no limit."""

    role: str = "recorder"
    rings: tuple[RingId, ...]
    folder: Annotated[str, Meta(min_length=1)]  # of this engine alone; gets the folders journal/ and parquet/
    fsync: Literal["none", "interval", "always"] = "interval"
    fsync_interval_s: Annotated[float, Meta(gt=0)] = 1.0
    flush_ms: NotNegative = 100.0  # a record is in the journal this long after it was read, at the latest
    batch_slots: Annotated[int, Meta(ge=256, le=1 << 20)] = 32768  # buffer of each ring, and longest block, in records
    segment_bytes: Annotated[int, Meta(ge=4096)] = 64 << 20  # length at which a segment file is left for a new one
    seal: bool = True  # write Parquet; without pyarrow it is left undone
    seal_bytes: Annotated[int, Meta(ge=4096)] = 512 << 20  # raw records at which an hour is sealed in part, for memory
    journal_hours: NotNegative = 2.0  # how long a sealed segment stays in the journal
    retention_hours: NotNegative = 24.0  # how long anything stays
    max_journal_bytes: Annotated[int, Meta(ge=0)] = 4 << 30
    max_parquet_bytes: Annotated[int, Meta(ge=0)] = 0
    reliable: bool = False  # hold the writers back (bounded) instead of losing records: for replays at full speed


class GatewaySettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.gateway: rings to WebSocket clients. Beyond loopback it refuses to listen without a token."""

    role: str = "gateway"
    rings: tuple[RingId, ...]
    host: str = "127.0.0.1"
    port: Port = 8600
    tokens: tuple[str, ...] = ()  # bearer tokens, any of which will do; asked for beyond loopback only
    origins: tuple[str, ...] = ()  # web pages of other hosts that may connect, as "https://host:port"; "*" = any
    max_clients: Positive = 10_000
    max_topics: Positive = 1024  # of one client
    max_message_bytes: Annotated[int, Meta(ge=256, le=1 << 24)] = 65536  # a request longer than this ends its client
    queue_messages: Positive = 4096  # wait for a slow client in order; beyond it the newest of each topic
    conflated_topics: Positive = 16_384  # topics that may wait so; beyond it the client is cut
    cut_after_s: Annotated[float, Meta(gt=0)] = 10.0  # a client whose socket takes nothing for so long is cut
    batch_slots: Annotated[int, Meta(ge=1, le=65536)] = 2048  # most records of a ring in one turn


class HistorianSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.historian: answers for what L1 no longer has, from the stores below it. The repr leaves these out."""

    role: str = "historian"
    endpoint: Annotated[str, Meta(min_length=1)]  # ipc://..., where it listens
    folder: Annotated[str, Meta(min_length=1)]  # of this engine alone; the recorder's
    store_timeout_s: Annotated[float, Meta(gt=0)] = 5.0  # what one store may take for one question
    max_waiting: Positive = 32  # questions; beyond it they are refused as busy
    redis_url: str = ""  # L2 beside the journal; empty = there is none
    redis_password: str = ""
    postgres_dsn: str = ""  # L3 beside Parquet; empty = there is none
    postgres_password: str = ""

    def __repr__(self) -> str:
        return f"HistorianSettings(label={self.label!r}, folder={self.folder!r}, ...)"


class SubscriptionSpec(_Spec, frozen=True, kw_only=True):
    """One webhook subscription."""

    key: Positive  # unique for ever: its place in the ledger
    subscription_id: str
    topics: tuple[str, ...]  # marketdata.TYPE.SYMBOL; TYPE may be *, SYMBOL may end in *
    callback_url: str
    secret: str
    priority: Literal["high", "normal", "low"] = "normal"
    paused: bool = False


class WebhookSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.webhooks: rings to callback URLs. Without a subscription it sleeps, attached to nothing."""

    role: str = "webhooks"
    rings: tuple[RingId, ...]
    ledger: Annotated[str, Meta(min_length=1)]  # file in which positions and counts outlive the process
    subscriptions: tuple[SubscriptionSpec, ...] = ()
    allow_private: bool = False
    allow_networks: tuple[str, ...] = ()
    timeout_s: Annotated[float, Meta(gt=0)] = 10.0  # of one delivery, from connecting to the answer's head
    queue_messages: Positive = 10_000  # of one subscription; beyond it the oldest go and a gap is told
    queue_bytes: Positive = 8 << 20
    total_bytes: Positive = 64 << 20  # of all queues; beyond it those of low priority are shortened first
    batch_messages: Positive = 500  # of one delivery
    batch_bytes: Positive = 1 << 20
    park_after: Positive = 10  # failures in a row
    parked_s: Annotated[float, Meta(gt=0)] = 300.0  # until a parked subscription is tried again
    max_deliveries: Positive = 256  # requests under way at a time
    batch_slots: Annotated[int, Meta(ge=1, le=65536)] = 2048  # most records of a ring in one turn


class MirrorSettings(WorkerSettings, frozen=True, kw_only=True):
    """workers.mirror: the journal into one store. The repr leaves out where it is and its password."""

    role: str = "mirror"
    folder: Annotated[str, Meta(min_length=1)]  # the recorder's, with journal/ in it
    store: Literal["redis", "postgres"]
    address: Annotated[str, Meta(min_length=1)]  # URL of Redis, connection string or URL of PostgreSQL
    password: str = ""  # is not part of the address, so that this can be shown
    flush_ms: NotNegative = 500.0  # how long records gather before they are sent, when few come
    max_batch_records: Annotated[int, Meta(ge=1, le=1 << 20)] = 32768  # of one transaction, and a block more
    timeout_s: Annotated[float, Meta(gt=0)] = 30.0  # a store that does not answer for so long is connected to anew
    hours: Annotated[float, Meta(gt=0)] = 24.0  # redis: how long records stay
    max_records_per_symbol: Positive = 20_000  # redis: of each type
    retention_days: Annotated[int, Meta(ge=0)] = 365  # postgres: 0 = for ever
    timescale: bool = True  # postgres: use TimescaleDB where it can be had

    def __repr__(self) -> str:
        return f"MirrorSettings(label={self.label!r}, store={self.store!r}, folder={self.folder!r}, ...)"


SettingsT = TypeVar("SettingsT", bound=WorkerSettings)

_json_encoder = msgspec.json.Encoder()
_ordered_encoder = msgspec.json.Encoder(order="deterministic")


def encode(settings: WorkerSettings) -> bytes:
    """The settings as one line of JSON, with its newline: what goes first into a worker's standard input."""
    return _json_encoder.encode(settings) + b"\n"


def encode_feed(feed: FeedSpec) -> bytes:
    """One feed's settings as JSON, the same bytes for the same input: what tells whether that has changed."""
    return _ordered_encoder.encode(msgspec.structs.replace(feed, paused=False))


def decode(line: bytes, settings_type: type[SettingsT]) -> SettingsT:
    """The settings from a line of JSON. msgspec.ValidationError or DecodeError names the field and what is wrong."""
    return msgspec.json.decode(line, type=settings_type)
