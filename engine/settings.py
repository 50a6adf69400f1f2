"""What can be set: every section and key with its default, its range and what it means.

A TOML table is a section below, a TOML key is a field of it. Units are in the names (`_s`, `_ms`, `_slots`) or in the
descriptions, from which `tickengine config` prints its commented file (engine/manual.py). Secrets are never settings:
they come from files or the environment (engine/access.py).

These are types and nothing else: they read and start nothing and know no worker (engine/plan.py maps them to those).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Port = Annotated[int, Meta(ge=1, le=65535)]
ByteSize = Annotated[str, Meta(pattern=r"^(?i:\d+(\.\d+)?\s*([kmgt]i?b?|b)?)$")]


class EngineSection(Struct, frozen=True, kw_only=True):
    """The engine as a whole."""

    name: Annotated[
        str,
        Meta(
            pattern=r"^[a-z0-9-]{1,16}$",
            description="names its segments and sockets; engines side by side differ in it",
        ),
    ] = "main"
    data_dir: Annotated[
        str, Meta(min_length=1, description="folder for what must outlive the engine; ~ is expanded")
    ] = "~/.local/share/tickengine"
    start_delay_s: Annotated[
        float, Meta(ge=0, le=3600, description="from ready to the first record, for subscribers to connect")
    ] = 0.0
    exit_when_done: Annotated[bool, Meta(description="stop with status 0 once every replay has been sent in full")] = (
        False
    )
    low_latency: Annotated[
        bool, Meta(description="workers pause shorter and fan-out spins longer: less latency, a core's time")
    ] = False
    max_memory: Annotated[
        ByteSize, Meta(description='refuse to start if the segments need more, e.g. "4GB"; "0" = no limit')
    ] = "0"
    math_threads: Annotated[
        int, Meta(ge=1, le=256, description="OPENBLAS_NUM_THREADS and OMP_NUM_THREADS of the workers")
    ] = 1
    hardware_platform: Annotated[str, Meta(max_length=64, description="free text, reported in /metrics")] = ""
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], Meta(description="least level of the lines that workers print")
    ] = "warning"


class HttpSection(Struct, frozen=True, kw_only=True):
    """HTTP of the control process: health, metrics, data, the live page."""

    host: Annotated[str, Meta(min_length=1, description="address to listen on; beyond loopback a token is needed")] = (
        "127.0.0.1"
    )
    port: Annotated[Port, Meta(description="TCP port")] = 8800
    token_file: Annotated[
        str,
        Meta(
            description="file with bearer tokens, one a line: TOKEN, or SCOPE TOKEN NAME with scope read or write; "
            "or TICKENGINE_HTTP_TOKEN, or a systemd credential http_token"
        ),
    ] = ""
    requests_per_second: Annotated[
        float, Meta(ge=1, le=1e6, description="requests that one client may send in the long run; twice that at once")
    ] = 5000.0
    max_body: Annotated[ByteSize, Meta(description="greatest body of POST /data/ingest; a stream has no bound")] = (
        "16MiB"
    )
    max_ingest_points: Annotated[
        int, Meta(ge=1, le=1_000_000, description="most points in one POST /data/ingest; a stream has no bound")
    ] = 20_000
    max_data_records: Annotated[
        int, Meta(ge=1, le=100_000, description="greatest `limit` of GET /data, in records")
    ] = 10_000
    max_bulk_records: Annotated[
        int, Meta(ge=1, le=5_000_000, description="the same with format=arrow or parquet; takes 1 to 2 kB each")
    ] = 200_000
    archive_timeout_s: Annotated[
        float, Meta(ge=0.1, le=600, description="what GET /data lets the tiers below L1 take; then it goes without")
    ] = 5.0


class ZmqSection(Struct, frozen=True, kw_only=True):
    """ZeroMQ endpoints of the fan-out workers; shard N adds N to each port."""

    host: Annotated[str, Meta(min_length=1, description="address to bind; beyond loopback CURVE keys are needed")] = (
        "127.0.0.1"
    )
    server_key_file: Annotated[
        str,
        Meta(
            description="file with this engine's CURVE secret key, made by `tickengine keys`, mode 0600; empty = the "
            "systemd credential zmq_server_key if there is one, else no keys"
        ),
    ] = ""
    client_keys: Annotated[
        str,
        Meta(
            description="who may connect: a folder of .pub files, or a file with a line PUBLIC-KEY NAME for each; read "
            "again within a second of a change, and who is taken off is disconnected; ipc sockets ask for keys too"
        ),
    ] = ""
    base_port: Annotated[
        int, Meta(ge=1, le=65000, description="raw is at base+1, msgpack +11, json +21, replay requests +31")
    ] = 8800
    ipc: Annotated[bool, Meta(description="also bind ipc sockets, in a folder of the runtime directory")] = True
    send_hwm: Annotated[
        int, Meta(ge=1, le=10_000_000, description="messages queued per subscriber; beyond it messages drop and count")
    ] = 100_000
    spin_us: Annotated[
        float,
        Meta(
            ge=0, le=1e6, description="fan-out spins so long on idle rings before it sleeps: latency against CPU time"
        ),
    ] = 20.0


class GatewaySection(Struct, frozen=True, kw_only=True):
    """WebSocket clients: ws://HOST:PORT/ws/stream."""

    enabled: Annotated[bool, Meta(description="run the gateway process")] = True
    host: Annotated[str, Meta(min_length=1, description="address to listen on; beyond loopback a token is needed")] = (
        "127.0.0.1"
    )
    port: Annotated[
        int, Meta(ge=0, le=65535, description="TCP port; 0 = the HTTP port less 200, so that engines do not clash")
    ] = 0
    origins: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='web pages of other hosts that may connect, "https://host"; "*" = any'),
    ] = ()
    max_clients: Annotated[int, Meta(ge=1, le=60_000, description="connections at a time")] = 10_000
    max_topics: Annotated[int, Meta(ge=1, le=65536, description="topics of one client")] = 1024
    queue_messages: Annotated[
        int, Meta(ge=1, le=1 << 20, description="wait for a slow client; beyond it only the newest of each topic")
    ] = 4096
    cut_after_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="a client whose connection takes nothing for so long is cut")
    ] = 10.0


class WebhooksSection(Struct, frozen=True, kw_only=True):
    """Subscriptions made at POST /subscriptions, and their deliveries to callback URLs."""

    enabled: Annotated[bool, Meta(description="run the webhooks process; without it no callback_url is taken")] = True
    max_subscriptions: Annotated[
        int, Meta(ge=1, le=1000, description="subscriptions at a time, those without a callback_url included")
    ] = 256
    allow_private: Annotated[
        bool, Meta(description="deliver to private, loopback and link-local addresses too: trust who may subscribe")
    ] = False
    allow_networks: Annotated[
        tuple[str, ...],
        Meta(max_length=64, description='deliver to these networks though they are not public: "10.1.0.0/16", "::1"'),
    ] = ()
    secret_file: Annotated[
        str,
        Meta(
            description="file with the secret that signs deliveries of subscriptions without their own; or "
            "TICKENGINE_WEBHOOK_SECRET, or a systemd credential webhook_secret; else one is made in the data folder"
        ),
    ] = ""
    timeout_s: Annotated[float, Meta(ge=0.1, le=300, description="a delivery not answered by then has failed")] = 10.0
    queue_messages: Annotated[
        int, Meta(ge=1, le=1 << 20, description="wait for a slow receiver; beyond it the oldest go, and it is told")
    ] = 10_000
    queue_size: Annotated[ByteSize, Meta(description="the same bound in bytes")] = "8MiB"
    total_size: Annotated[
        ByteSize, Meta(description="of all queues together; beyond it those of low priority are shortened first")
    ] = "64MiB"
    batch_messages: Annotated[int, Meta(ge=1, le=10_000, description="most messages of one delivery")] = 500
    park_after: Annotated[
        int, Meta(ge=1, le=1000, description="failures in a row after which a subscription is parked")
    ] = 10
    parked_s: Annotated[
        float, Meta(ge=0.1, le=86400, description="a parked subscription is tried again after so long")
    ] = 300.0


class RingsSection(Struct, frozen=True, kw_only=True):
    """Rings and the access to all segments."""

    depth_slots: Annotated[
        int, Meta(ge=1024, le=1 << 26, description="records per ring, a power of two; 128 bytes each")
    ] = 65536
    wakeups: Annotated[bool, Meta(description="readers may sleep; false = they nap, and the writer saves a fence")] = (
        True
    )
    block_ms: Annotated[
        float, Meta(ge=0, le=10_000, description="how long a writer waits for a reliable reader before demoting it")
    ] = 100.0
    mode: Annotated[
        Literal["0600", "0640", "0660"],
        Meta(description="file mode of the segments; 0640 lets `group` read, 0660 also lets its readers register"),
    ] = "0600"
    group: Annotated[str, Meta(description="group that owns the segments; empty = the engine's own")] = ""


class WorkersSection(Struct, frozen=True, kw_only=True):
    """How many processes do what."""

    ingest: Annotated[
        int, Meta(ge=1, le=14, description="ingest processes at most; feeds are dealt out among them")
    ] = 1
    plugins: Annotated[
        int,
        Meta(
            ge=0, le=13, description="ingest processes for plug-in feeds at least, one each; feeds added later need one"
        ),
    ] = 0
    fanout: Annotated[int, Meta(ge=1, le=8, description="fan-out processes; instruments are sharded among them")] = 1


class IngestSection(Struct, frozen=True, kw_only=True):
    """Ingest workers."""

    batch_slots: Annotated[int, Meta(ge=16, le=65536, description="records per publish at full speed")] = 2048
    min_wait_us: Annotated[
        float, Meta(ge=0, le=1e6, description="least pause between two polls of a paced feed: latency against CPU time")
    ] = 200.0


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


class PlacementSection(Struct, frozen=True, kw_only=True):
    """Which cores the workers run on. macOS: a QoS class instead of cores."""

    policy: Annotated[
        Literal["auto", "none"],
        Meta(description="auto = pin to performance cores where there are enough; none = never"),
    ] = "auto"
    cores: Annotated[
        dict[str, Annotated[int, Meta(ge=0)]],
        Meta(description='core number by worker label, e.g. {"ingest-0" = 2}; goes before the policy'),
    ] = field(default_factory=dict)
    max_cores: Annotated[float, Meta(ge=0, le=1024, description="pin at most so many workers; 0 = no limit")] = 0
    realtime_priority: Annotated[
        int, Meta(ge=0, le=99, description="SCHED_FIFO priority; 0 = the normal scheduler")
    ] = 0
    lock_memory: Annotated[bool, Meta(description="mlockall in every worker")] = False


class QualitySection(Struct, frozen=True, kw_only=True):
    """Thresholds of the checks that flag records. A flagged record is never dropped."""

    enabled: Annotated[bool, Meta(description="run the checks at all")] = True
    policy: Annotated[
        Literal["flag", "reject"], Meta(description="impossible values: flagged INCOMPLETE, or rejected and counted")
    ] = "flag"
    late_after_ms: Annotated[
        float, Meta(ge=0, description="received this long after the venue's time is LATE; 0 = never")
    ] = 1000.0
    late_when_replayed: Annotated[bool, Meta(description="judge lateness of replayed records too")] = False
    outlier_deviations: Annotated[
        float, Meta(ge=0, description="distance from the running mean, in mean deviations, that is OUTLIER; 0 = off")
    ] = 12.0
    outlier_floor_percent: Annotated[float, Meta(ge=0, description="and at least this far from it")] = 0.25
    outlier_percent: Annotated[
        float, Meta(ge=0, description="this far from the running mean is OUTLIER whatever the deviation; 0 = off")
    ] = 20.0
    volume_spike_factor: Annotated[
        float, Meta(ge=0, description="a size above this many running mean sizes is VOLUME_SPIKE; 0 = off")
    ] = 50.0
    warm_up_records: Annotated[int, Meta(ge=1, description="records of an instrument before it is judged")] = 32
    memory_records: Annotated[int, Meta(ge=1, description="length of the running means")] = 64


class PrioritySection(Struct, frozen=True, kw_only=True):
    """What fan-out gives up first when it gets more than it can send. Trades, ticks, news and status never."""

    symbols: Annotated[
        dict[str, Literal["high", "normal", "low"]],
        Meta(
            description='tier of the quotes, levels and bars of a symbol, e.g. {"BTC-USD" = "high"}; else quotes are '
            "normal, levels and bars low. Overloaded, high goes out in full, of normal the newest, low if there is time"
        ),
    ] = field(default_factory=dict)
    ranked: Annotated[
        int,
        Meta(
            ge=0,
            le=4096,
            description="so many symbols rank high by what is traded and who watches (GET /symbols?detail=true): "
            "overloaded, their quotes go first and their levels and bars are not given up; 0 = no scores",
        ),
    ] = 32


class RedundancySection(Struct, frozen=True, kw_only=True):
    """Feeds with a common `group` stand by for each other: when another one takes over."""

    stale_ms: Annotated[
        float,
        Meta(
            ge=20,
            le=10_000,
            description="a feed silent for so long while a standby delivers is left; or for longer, if it was before",
        ),
    ] = 250.0
    hold_s: Annotated[
        float,
        Meta(ge=0, le=86_400, description="a preferred feed must be healthy for so long to publish again"),
    ] = 30.0
    margin: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="health scores that differ by less are the same: then the rank decides; an outage costs 0.4",
        ),
    ] = 0.5
    switches_per_minute: Annotated[
        int, Meta(ge=1, le=1000, description="beyond it only a feed that is lost or silent is left")
    ] = 6
    backlog_records: Annotated[
        int, Meta(ge=64, le=1 << 20, description="kept of each standby, to fill the hole at a switch; 128 bytes each")
    ] = 16_384
    book_mb: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 14,
            description="at most, for the level2 books of each feed, told whole at a switch; 43 to 85 bytes a level",
        ),
    ] = 32


class SupervisorSection(Struct, frozen=True, kw_only=True):
    """Watching and restarting the workers."""

    heartbeat_timeout_s: Annotated[
        float, Meta(ge=0.5, le=600, description="a ready worker silent for this long is killed and started again")
    ] = 1.0
    startup_grace_s: Annotated[
        float, Meta(ge=1, le=600, description="from spawn to ready before a worker counts as stuck")
    ] = 15.0
    backoff_cap_s: Annotated[
        float, Meta(ge=0.1, le=600, description="longest pause before a restart; the first restart is immediate")
    ] = 5.0
    stable_after_s: Annotated[
        float, Meta(ge=0.1, le=3600, description="having run this long, earlier failures are forgotten")
    ] = 10.0
    failed_after: Annotated[
        int, Meta(ge=1, le=1000, description="failures in a row after which a worker shows as failed; retries go on")
    ] = 5


class HealthSection(Struct, frozen=True, kw_only=True):
    """When the engine calls itself degraded."""

    stale_factor: Annotated[
        float,
        Meta(ge=1.5, le=1000, description="a feed is stale when silent for this many times its usual longest pause"),
    ] = 5.0
    stale_floor_s: Annotated[float, Meta(ge=0.1, le=86400, description="and never before this long")] = 2.0
    first_data_s: Annotated[
        float, Meta(ge=0.1, le=86400, description="a feed may take this long to its first record")
    ] = 10.0
    latency_alert_ms: Annotated[
        float, Meta(ge=0, le=1e6, description="p99 from ring to consumer above this raises an alert; 0 = never")
    ] = 100.0
    store_lag_s: Annotated[
        float, Meta(ge=1, le=1e6, description="a database this far behind the journal makes the engine degraded")
    ] = 60.0


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


class CaptureSection(Struct, frozen=True, kw_only=True):
    """What live feeds receive and send, written down as it is; `run --replay` plays it to the same records."""

    feeds: Annotated[
        tuple[str, ...],
        Meta(description='names of the feeds that are captured; "*" = every one that can be; empty = none'),
    ] = ()
    folder: Annotated[str, Meta(description="where the files go; empty = wire/ in the engine's data folder")] = ""
    compress: Annotated[
        Literal["auto", "zstd", "none"],
        Meta(description="auto: text with zstd (extra `replay`), packets not, so that every tool opens them"),
    ] = "auto"
    part_size: Annotated[ByteSize, Meta(description="size on disk at which a file is left for a new one")] = "256MiB"
    part_hours: Annotated[float, Meta(gt=0, le=1e4, description="and its greatest age")] = 1.0
    max_size: Annotated[ByteSize, Meta(description='of a feed; its oldest files go beyond this; "0" = no limit')] = (
        "10GiB"
    )
    queue_size: Annotated[
        ByteSize,
        Meta(description="of a feed: what may wait for the disk; the newest beyond it are dropped and counted"),
    ] = "64MiB"


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


class SimulateSection(Struct, frozen=True, kw_only=True):
    """The simulated feed; also switched on by `--simulate`, and when nothing at all is configured."""

    enabled: Annotated[bool, Meta(description="add a simulated feed")] = False
    instruments: Annotated[int, Meta(ge=1, le=65536, description="number of simulated instruments")] = 200
    rate: Annotated[
        float, Meta(ge=0, le=1e9, description="records per second over all instruments; 0 = as fast as it goes")
    ] = 2000.0
    seed: Annotated[int, Meta(ge=0, le=(1 << 32) - 1, description="same seed, same ticks")] = 1


class ReplaySection(Struct, frozen=True, kw_only=True):
    """Captured data played back; what `--replay`, `--speed`, `--loop` and `--faults` set."""

    files: Annotated[
        tuple[str, ...],
        Meta(max_length=1024, description="captures; the format is recognised"),
    ] = ()
    speed: Annotated[
        str,
        Meta(
            pattern=r"^(max|\d+(\.\d+)?)$",
            description='1 = as captured, N = N times as fast, "max" = as fast as it goes',
        ),
    ] = "1"
    loop: Annotated[bool, Meta(description="begin again at the end")] = False
    merge: Annotated[bool, Meta(description="several captures by time; false: one after the other, as listed")] = True
    faults: Annotated[
        str,
        Meta(
            pattern=r"^([a-z_]+=[0-9.e+-]+)?(, *[a-z_]+=[0-9.e+-]+)*$",
            description='messages damaged on purpose, by seed, such as "drop=0.01,reorder=0.001,seed=3"; empty = none',
        ),
    ] = ""


class FeedSection(Struct, frozen=True, kw_only=True):
    """One `[[feeds]]` table."""

    name: Annotated[str, Meta(min_length=1, max_length=64, description="unique name of the feed")]
    source: Annotated[
        str,
        Meta(
            min_length=1, description="simulated, replay, websocket, multicast, fix, alpha_vantage, fred, yahoo, ibkr"
        ),
    ]
    symbols: Annotated[tuple[str, ...], Meta(description="empty = all that the source has")] = ()
    data_types: Annotated[
        tuple[Literal["tick", "quote", "bar", "trade", "level2", "news"], ...],
        Meta(description="empty = all that the source has"),
    ] = ()
    enabled: Annotated[bool, Meta(description="false = known, not started")] = True
    group: Annotated[
        str, Meta(max_length=64, description="feeds of the same group stand by for each other, see [redundancy]")
    ] = ""
    rank: Annotated[int, Meta(ge=0, le=1000, description="within the group; the lowest is preferred")] = 0
    options: Annotated[dict[str, Any], Meta(description="settings of the source itself")] = field(default_factory=dict)


class Config(Struct, frozen=True, kw_only=True):
    """Everything that can be set, checked. `origins` maps "section.key" to where its value came from."""

    engine: EngineSection = EngineSection()
    http: HttpSection = HttpSection()
    zmq: ZmqSection = ZmqSection()
    gateway: GatewaySection = GatewaySection()
    webhooks: WebhooksSection = WebhooksSection()
    rings: RingsSection = RingsSection()
    workers: WorkersSection = WorkersSection()
    ingest: IngestSection = IngestSection()
    cache: CacheSection = CacheSection()
    placement: PlacementSection = PlacementSection()
    quality: QualitySection = QualitySection()
    priority: PrioritySection = PrioritySection()
    redundancy: RedundancySection = RedundancySection()
    supervisor: SupervisorSection = SupervisorSection()
    health: HealthSection = HealthSection()
    storage: StorageSection = StorageSection()
    capture: CaptureSection = CaptureSection()
    redis: RedisSection = RedisSection()
    postgres: PostgresSection = PostgresSection()
    simulate: SimulateSection = SimulateSection()
    replay: ReplaySection = ReplaySection()
    feeds: tuple[FeedSection, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
