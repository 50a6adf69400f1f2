"""The bodies that the HTTP interface answers with: the schema at /schema is made from these.

Types only. Field names are fixed by the interface document: clients of an existing system use them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

Count = Annotated[int, Meta(ge=0)]
Time = Annotated[str, Meta(description="ISO 8601 UTC with microseconds and Z")]


class Problem(Struct, kw_only=True, omit_defaults=True):
    """RFC 9457 problem details."""

    type: str = field(default="about:blank")
    title: Annotated[str, Meta(description="what kind of problem")]
    status: Annotated[int, Meta(description="the HTTP status code")]
    detail: Annotated[str, Meta(description="what went wrong here, which field and why")]
    errors: Annotated[list[FieldError], Meta(description="one entry a field")] = field(default_factory=list)


class FieldError(Struct, kw_only=True):
    """One unusable value."""

    field: str
    why: str


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


class SymbolScore(Struct, kw_only=True):
    """How much a symbol matters now."""

    symbol: str
    score: Annotated[float, Meta(description="activity and interest together, 0 to 2; README of the folder workers")]
    ranked: Annotated[bool, Meta(description="among those of highest score: under overload it goes first")]
    trades: Annotated[float, Meta(description="trades and ticks, halved every minute")]
    notional: Annotated[float, Meta(description="price times size of them, halved every minute")]
    move: Annotated[float, Meta(description="relative moves of the price from second to second, halved every minute")]
    watchers: Annotated[int, Meta(description="who names the symbol: ZeroMQ topics, and subscriptions by priority")]


class SymbolsAnswer(Struct, kw_only=True, omit_defaults=True):
    """GET /symbols."""

    symbols: list[str]
    count: Count
    scores: Annotated[
        list[SymbolScore] | None, Meta(description="with detail=true: of each symbol, the highest score first")
    ] = None


class FeedAnswer(Struct, kw_only=True):
    """One feed."""

    feed_id: str
    symbol: Annotated[str, Meta(description="its symbols; * = all that the source has")]
    data_source: str
    data_types: list[str]
    is_active: bool
    last_update: Time | None
    age_seconds: Annotated[float | None, Meta(description="since the last record")]
    message_count: Count
    error_count: Count
    gap_count: Count
    health_score: Annotated[float, Meta(description="1 delivers as ever, 0 does not deliver; see workers/README.md")]
    state: Annotated[
        Literal[
            "waiting",
            "connecting",
            "authenticating",
            "subscribing",
            "active",
            "stale",
            "recovering",
            "failed",
            "down",
            "paused",
            "ended",
        ],
        Meta(description="recovering: tried again soon; failed: too often, tried again after a pause (retry_at)"),
    ]
    why: str
    process: str
    rate: Annotated[float, Meta(description="records a second, lately")]
    group: str
    rank: Count
    configured: Annotated[bool, Meta(description="by file or command line: can be paused, not changed or removed here")]
    connections: Annotated[Count | None, Meta(description="of a live feed; null: it has none of its own")]
    reconnects: Count | None
    breaker: Literal["closed", "open", "half-open"] | None
    retry_at: Annotated[Time | None, Meta(description="when a feed that is down is tried again")]
    silent_symbols: Annotated[Count | None, Meta(description="symbols that are silent for longer than they ever are")]
    latency_ms: Annotated[float | None, Meta(description="from the venue's clock to ours, lately")]
    usual_latency_ms: Annotated[float | None, Meta(description="the same, over the last minutes")]
    role: Annotated[
        Literal["active", "standby"] | None, Meta(description="in its group: does it publish; null: it is in none")
    ] = None
    condition: Annotated[
        str | None, Meta(description="in its group: out, silent, proving (healthy, not for long enough yet), ready")
    ] = None
    publishes_alone: Annotated[
        list[str], Meta(description="a standby's: symbols on which the active feed is silent; some, if many")
    ] = field(default_factory=list)
    silent_here: Annotated[
        list[str], Meta(description="an active feed's: symbols that a standby publishes in its place")
    ] = field(default_factory=list)
    standby_records: Annotated[Count | None, Meta(description="withheld because another feed published")] = None
    group_switches: Annotated[Count | None, Meta(description="of its group, since its process was started")] = None
    last_switch: Annotated[str | None, Meta(description="why the group switched last")] = None
    last_switch_at: Time | None = None


FeedDataType = Literal["tick", "quote", "bar", "trade", "level2", "news"]


class CreateFeed(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /feeds."""

    symbol: Annotated[
        str, Meta(min_length=1, max_length=32, description="1 to 32 bytes without blanks; * = all that the source has")
    ]
    data_source: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            description="mock, replay, websocket, multicast, fix, alpha_vantage, fred, yahoo, ibkr; internal: posted",
        ),
    ]
    data_types: Annotated[list[FeedDataType], Meta(max_length=6, description="empty = all that the source has")] = (
        field(default_factory=list)
    )
    group: Annotated[str, Meta(max_length=64, description="feeds of the same thing from several sources")] = ""
    rank: Annotated[int, Meta(ge=0, le=1000, description="order within the group, 0 first")] = 0
    options: Annotated[
        dict[str, Any],
        Meta(
            max_length=64,
            description='settings of the source: {"rate": 100} of mock, {"file": ..., "speed": 1} of replay, '
            '{"venue": "binance"} of websocket',
        ),
    ] = field(default_factory=dict)


class ChangeFeed(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /feeds/{feed_id}."""

    data_types: Annotated[
        Annotated[list[FeedDataType], Meta(max_length=6)] | None, Meta(description="take these; empty = all")
    ] = None
    paused: Annotated[bool | None, Meta(description="true: take nothing until false")] = None


class FeedCreated(Struct, kw_only=True):
    """POST /feeds."""

    status: Annotated[
        Literal["created", "restarted", "exists"],
        Meta(description="created with 201; the others, for a request that was made before, with 200"),
    ]
    feed_id: str
    symbol: str
    data_source: str


class FeedRemoved(Struct, kw_only=True):
    """DELETE /feeds/{feed_id}."""

    status: Literal["removed"] = "removed"
    feed_id: str


class FeedsAnswer(Struct, kw_only=True):
    """GET /feeds."""

    feeds: list[FeedAnswer]
    count: Count
    total_messages: Count


SubscribedSymbol = Annotated[
    str, Meta(min_length=1, max_length=33, description="a symbol, the start of some and *, or *")
]
SubscribedSymbols = Annotated[list[SubscribedSymbol], Meta(max_length=256)]
Priority = Literal["high", "normal", "low"]
CallbackUrl = Annotated[str, Meta(max_length=2048)]
Secret = Annotated[str, Meta(min_length=16, max_length=256)]


class CreateSubscription(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /subscriptions."""

    symbols: Annotated[list[SubscribedSymbol], Meta(min_length=1, max_length=256)]
    data_types: Annotated[list[FeedDataType], Meta(max_length=6, description="empty = all")] = field(
        default_factory=list
    )
    callback_url: Annotated[
        CallbackUrl | None,
        Meta(description="http or https; without it nothing is delivered: stream `topics` of GET /subscriptions/{id}"),
    ] = None
    priority: Annotated[
        Priority, Meta(description="who is served first, and whose queue is shortened last, when there is too much")
    ] = "normal"
    secret: Annotated[
        Secret | None, Meta(description="signs the deliveries; never answered. Without it the engine's own")
    ] = None


class ChangeSubscription(Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of PATCH /subscriptions/{subscription_id}: only what is given changes; removals come first."""

    add_symbols: SubscribedSymbols = field(default_factory=list)
    remove_symbols: SubscribedSymbols = field(default_factory=list)
    add_data_types: Annotated[list[FeedDataType], Meta(max_length=6)] = field(default_factory=list)
    remove_data_types: Annotated[list[FeedDataType], Meta(max_length=6)] = field(default_factory=list)
    is_active: Annotated[
        bool | None, Meta(description="false: pause, and drop what is queued; true: go on, also if it is parked")
    ] = None
    priority: Priority | None = None
    callback_url: Annotated[CallbackUrl | None, Meta(description="empty: deliver nothing any more")] = None
    secret: Secret | None = None


class SubscriptionCreated(Struct, kw_only=True):
    """POST /subscriptions."""

    status: Literal["created"] = "created"
    subscription_id: str
    symbols: list[str]
    data_types: list[str]


class SubscriptionsCreated(Struct, kw_only=True):
    """POST /subscriptions/batch."""

    status: Literal["created"] = "created"
    subscriptions: list[SubscriptionCreated]
    count: Count


class SubscriptionAnswer(Struct, kw_only=True):
    """One subscription."""

    subscription_id: str
    symbols: list[str]
    data_types: Annotated[list[str], Meta(description="empty = all")]
    callback_url: str | None
    priority: Priority
    is_active: Annotated[bool, Meta(description="as its owner wants it")]
    state: Annotated[
        Literal["delivering", "waiting", "parked", "paused", "no callback"],
        Meta(description="waiting: for the next attempt; parked: after many that failed"),
    ]
    created_at: Time
    delivered: Annotated[Count, Meta(description="messages that the receiver has acknowledged")]
    failed: Annotated[Count, Meta(description="deliveries that it has not; they are repeated")]
    queued: Annotated[Count, Meta(description="messages that wait or are under way")]
    lost: Annotated[Count, Meta(description="messages never delivered, told in the next delivery, as far as counted")]
    last_failure: Annotated[str, Meta(description="why the last delivery failed; empty if it did not")]
    last_delivery: Annotated[Time | None, Meta(description="when one was acknowledged last")]
    next_attempt: Time | None


class SubscriptionDetail(SubscriptionAnswer, kw_only=True):
    """GET and PATCH /subscriptions/{subscription_id}."""

    topics: Annotated[list[str], Meta(description="as WebSocket clients subscribe to them")]


class SubscriptionsAnswer(Struct, kw_only=True):
    """GET /subscriptions."""

    subscriptions: list[SubscriptionAnswer]
    count: Count


class SubscriptionRemoved(Struct, kw_only=True):
    """DELETE /subscriptions/{subscription_id}."""

    status: Literal["removed"] = "removed"
    subscription_id: str


class DataPoint(Struct, kw_only=True):
    """One record."""

    timestamp: Annotated[str, Meta(description="the venue's time, ISO 8601 UTC with microseconds and Z")]
    data_type: str
    source: str
    data: Annotated[dict[str, Any], Meta(description="the fields of its type; null = undefined")]
    sequence: Annotated[Count, Meta(description="sequence in its ring")]
    latency_ms: Annotated[float | None, Meta(description="how old it was when it got here")]
    flags: list[str]


class DataAnswer(Struct, kw_only=True):
    """GET /data/{symbol}."""

    symbol: str
    data_type: str
    data: Annotated[list[DataPoint], Meta(description="oldest first, the newest `limit` of them")]
    count: Count
    cursor: Annotated[str | None, Meta(description="asked for with it, what comes before these; null = nothing does")]
    incomplete: Annotated[
        list[str], Meta(description="stores that could not be asked, and why: what only they have is not in `data`")
    ]


class LastTradeAnswer(Struct, kw_only=True):
    """Last trade or tick."""

    price: float | None
    size: float | None
    timestamp: Time


class QuoteAnswer(Struct, kw_only=True):
    """Last quote."""

    bid: float | None
    ask: float | None
    bid_size: float | None
    ask_size: float | None


class DailyStats(Struct, kw_only=True):
    """The newest UTC day."""

    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: float | None
    vwap: float | None


class RejectedPoint(Struct, kw_only=True):
    """A point that was not stored."""

    index: Annotated[Count, Meta(description="its place among the points sent, from 0")]
    error: Annotated[str, Meta(description="which field, and why")]


class IngestAnswer(Struct, kw_only=True):
    """POST /data/ingest."""

    status: Literal["ingested"] = "ingested"
    count: Annotated[Count, Meta(description="points of this request that are stored")]
    total_stored: Annotated[Count, Meta(description="points stored by this call since the engine's start")]
    rejected: list[RejectedPoint]


class SnapshotBody(Struct, kw_only=True):
    """What is known of a symbol; null where nothing was seen."""

    last_trade: LastTradeAnswer | None
    quote: QuoteAnswer | None
    daily_stats: DailyStats | None


class SnapshotAnswer(Struct, kw_only=True):
    """POST /symbols/{symbol}/snapshot."""

    symbol: str
    timestamp: Time
    snapshot: SnapshotBody
    as_of: Annotated[
        dict[str, int], Meta(description="ring -> sequence up to which it is complete: read on from the next one")
    ]
