"""What the HTTP interface answers about the engine itself: health, metrics, processes, readers.

Types only: the schema at /schema is made from these, and engine/replies.py fills them in. Field names are fixed by the
interface document: clients of an existing system use them.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct

from engine.body_types import Count


class CheckAnswer(Struct, kw_only=True):
    """One judgement."""

    name: Annotated[str, Meta(description="what was judged: process:LABEL, feed:NAME, ring:ID, latency")]
    status: Literal["healthy", "degraded", "unhealthy"]
    why: str


class HealthAnswer(Struct, kw_only=True):
    """GET /health."""

    status: Literal["healthy", "degraded", "unhealthy"]
    engine: Annotated[str, Meta(description="name of the engine")]
    messages_processed: Annotated[Count, Meta(description="records published since the start")]
    data_points_stored: Annotated[
        Count, Meta(description="records in the journal since the start; without a recorder those in L1")
    ]
    subscriptions_served: Annotated[
        Count, Meta(description="topics that ZeroMQ subscribers have asked for, and active ones of GET /subscriptions")
    ]
    active_feeds: Annotated[Count, Meta(description="feeds that deliver")]
    symbols_tracked: Count
    uptime_seconds: float
    messagebus_connected: Annotated[bool, Meta(description="whether every fan-out process is ready")]
    checks: Annotated[list[CheckAnswer], Meta(description="why: per process and per feed, rings, latency")]


class LiveAnswer(Struct, kw_only=True):
    """GET /live."""

    status: Literal["alive"] = "alive"


class ReadyAnswer(Struct, kw_only=True):
    """GET /ready."""

    status: Literal["ready", "not ready"]
    waiting_for: Annotated[list[str], Meta(description="processes that are not ready")]


class LatencyStats(Struct, kw_only=True):
    """Latencies of the last seconds, milliseconds."""

    min: float
    max: float
    avg: float
    p50: float
    p95: float
    p99: float


class ThroughputStats(Struct, kw_only=True):
    """Rates of the last seconds."""

    messages_per_second: float
    data_points_per_second: float


class TierAnswer(Struct, kw_only=True):
    """What one tier has done for GET /data."""

    hits: Annotated[Count, Meta(description="L1: requests that it answered alone; else those to which it gave records")]
    misses: Annotated[Count, Meta(description="requests in which it was asked for records that it did not have")]
    down: Annotated[Count, Meta(description="requests in which one of its stores could not be asked")]
    hit_ratio: float


class OverloadAnswer(Struct, kw_only=True):
    """What fan-out has left out because it got more than it can send, all of them together."""

    state: Annotated[Literal["normal", "conflating", "shedding"], Meta(description="of the worst of them, now")]
    conflated: Annotated[Count, Meta(description="records that a newer one replaced before they were sent")]
    shed: Annotated[Count, Meta(description="records of the low tier that were not sent at all")]


class MetricsAnswer(Struct, kw_only=True):
    """GET /metrics."""

    messages_per_second: float
    data_points_per_second: float
    total_messages: Count
    total_data_points: Count
    active_subscriptions: Annotated[
        Count, Meta(description="topics that ZeroMQ subscribers have asked for, and active ones of GET /subscriptions")
    ]
    active_feeds: Count
    symbols_tracked: Count
    latency_stats: Annotated[
        LatencyStats, Meta(description="from the ring to the sent message, or to a reader if nobody subscribes")
    ]
    hops: Annotated[dict[str, LatencyStats], Meta(description="each hop: feed_latency, ring_latency, send_latency")]
    throughput_stats: ThroughputStats
    cache_size: Annotated[Count, Meta(description="records held in L1")]
    cache_hit_ratio: Annotated[float, Meta(description="share of data requests that L1 answered alone")]
    tiers: Annotated[dict[str, TierAnswer], Meta(description="L1, L2, L3, as far as they have been asked")]
    overload: OverloadAnswer
    engine_type: Literal["market_data"] = "market_data"
    containerized: bool
    hardware_platform: str


class ProcessAnswer(Struct, kw_only=True):
    """One process."""

    label: str
    role: str
    does: Annotated[str, Meta(description="its work, in words")]
    pid: Annotated[int, Meta(description="process id; 0 while there is no process")]
    state: Annotated[str, Meta(description="what the process says: starting, ready, draining, stopped, failed")]
    phase: Annotated[str, Meta(description="what its supervisor says: starting, running, waiting, stopping, stopped")]
    alive: bool
    core: Annotated[int, Meta(description="CPU that it is pinned to; -1 = none")]
    placement: Annotated[str, Meta(description="what placement it got")]
    heartbeat_age_ms: float
    uptime_seconds: float
    restarts: Count
    last_end: Annotated[str, Meta(description="how its last process ended; empty if it never did")]
    resident_bytes: Annotated[Count, Meta(description="resident memory, shared segments included")]
    own_bytes: Annotated[Count, Meta(description="resident memory without shared pages")]
    cpu_percent: Annotated[float, Meta(description="of one core, lately")]
    lag: Annotated[Count, Meta(description="records that it has not read yet, over all its rings")]
    lost: Annotated[Count, Meta(description="records that it was overrun by")]
    rates: Annotated[dict[str, float], Meta(description="its counters of work, per second, lately")]
    counters: dict[str, int]
    gauges: dict[str, float | None]
    latencies: Annotated[dict[str, LatencyStats], Meta(description="its histograms, of the last seconds")]


class ProcessesAnswer(Struct, kw_only=True):
    """GET /processes."""

    processes: list[ProcessAnswer]
    count: Count


class ReaderAnswer(Struct, kw_only=True):
    """One registered reader of a ring."""

    ring: int
    label: str
    pid: int
    process: Annotated[str, Meta(description="label of the engine's own process; empty for a reader from outside")]
    alive: bool
    cursor: Annotated[Count, Meta(description="sequence that it reads next")]
    lag: Annotated[Count, Meta(description="published and not yet read")]
    lost: Annotated[Count, Meta(description="overrun before they were read")]
    overruns: Count
    reliable: Annotated[bool, Meta(description="the writer waits for it, for a bounded time")]
    demoted: Annotated[bool, Meta(description="was reliable, but too slow")]


class RingAnswer(Struct, kw_only=True):
    """One ring."""

    ring: int
    writer: str
    role: str
    writer_pid: int
    writer_alive: bool
    epoch: Annotated[Count, Meta(description="how often its writer has changed")]
    published: Annotated[Count, Meta(description="newest sequence")]
    depth_slots: int
    rate: Annotated[float, Meta(description="records a second, lately")]


class ReadersAnswer(Struct, kw_only=True):
    """GET /readers."""

    readers: list[ReaderAnswer]
    rings: list[RingAnswer]
    count: Count
