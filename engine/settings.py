"""What can be set: every section and key with its default, its range and what it means.

A TOML table is a section below, a TOML key is a field of it. Units are in the names (`_s`, `_ms`, `_slots`) or in the
descriptions, from which `tickengine config` prints its commented file (engine/manual.py). Secrets are never settings:
they come from files or the environment (engine/access.py).

Here are the sections of the engine as a whole and `Config`, which has them all; those of what comes in, what is kept
and what goes out are in feed_settings.py, store_settings.py and delivery_settings.py. These are types and nothing else:
they read and start nothing and know no worker (engine/duties.py maps them to those).
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

from engine.byte_size import ByteSize
from engine.delivery_settings import GatewaySection, HttpSection, PrioritySection, WebhooksSection, ZmqSection
from engine.feed_settings import (
    CaptureSection,
    FeedSection,
    IngestSection,
    QualitySection,
    RedundancySection,
    ReplaySection,
    SimulateSection,
)
from engine.store_settings import CacheSection, PostgresSection, RedisSection, StorageSection


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
