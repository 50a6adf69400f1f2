"""Bodies of the calls on /feeds, asked and answered.

Types only: the schema at /schema is made from these; routes are in engine/http_feeds.py. Field names are fixed by the
interface document: clients of an existing system use them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from engine.body_types import Count, Time
from engine.feed_settings import FeedDataType


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
    health_score: Annotated[float, Meta(description="1 delivers as ever, 0 does not deliver; see workers/FEEDS.md")]
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
