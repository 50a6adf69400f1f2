"""Bodies of the calls about market data: records, snapshots, symbols and their scores, points that are posted.

Types only: the schema at /schema is made from these, and engine/replies.py fills them in. Field names are fixed by the
interface document: clients of an existing system use them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from engine.body_types import Count, Time


class SymbolScore(Struct, kw_only=True):
    """How much a symbol matters now."""

    symbol: str
    score: Annotated[float, Meta(description="activity and interest together, 0 to 2; workers/DELIVERY.md")]
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
