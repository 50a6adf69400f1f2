"""Makes the bodies that the HTTP interface answers with, from samples and records. Called by engine/http.py.

Besides the sample it is given it looks only at the latest-value table's fill; it changes nothing.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

import msgspec

from engine import data_bodies, feed_bodies, rates, status_bodies
from engine.exposition import tier_counts
from engine.health import Verdict
from engine.observer import FeedView, Observer, feed_score
from engine.sample import HOPS, Sample
from shm.errors import ShmError
from shm.histogram import HistogramView
from shm.latest import Snapshot
from shm.layout import RECORD_SIZE_BYTES, Flag, RecordType
from shm.message import flag_names, iso_time, news_fields, payload
from shm.source_names import SourceNames

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def word(verdict: Verdict) -> Literal["healthy", "degraded", "unhealthy"]:
    """A verdict as it is written."""
    words: tuple[Literal["healthy", "degraded", "unhealthy"], ...] = ("healthy", "degraded", "unhealthy")
    return words[verdict]


def finite(value: float) -> float | None:
    """JSON has no NaN and no infinity: null."""
    return value if math.isfinite(value) else None


def stats(view: HistogramView) -> status_bodies.LatencyStats:
    """Latencies of a histogram, ms."""
    return status_bodies.LatencyStats(**rates.latency_ms(view))


def metrics(observer: Observer) -> status_bodies.MetricsAnswer:
    """GET /metrics."""

    sample, history = observer.current(), observer.history
    tiers = tier_counts(sample)
    messages, stored = rates.messages_rate(history, sample), rates.stored_rate(history, sample)
    try:
        held = observer.records_held()
    except ShmError:
        held = 0
    return status_bodies.MetricsAnswer(
        messages_per_second=messages,
        data_points_per_second=stored,
        total_messages=sample.published,
        total_data_points=sample.total("records_applied"),
        active_subscriptions=sample.total("subscriptions", "fanout") + observer.subscriptions.active,
        active_feeds=observer.health().active_feeds,
        symbols_tracked=sample.symbols,
        latency_stats=stats(rates.end_to_end(history, sample)),
        hops={name: stats(rates.window(history, sample, name)) for name in HOPS},
        throughput_stats=status_bodies.ThroughputStats(messages_per_second=messages, data_points_per_second=stored),
        cache_size=held,
        cache_hit_ratio=tiers["L1"].hit_ratio,
        tiers={
            level: status_bodies.TierAnswer(hits=c.hits, misses=c.misses, down=c.down, hit_ratio=c.hit_ratio)
            for level, c in tiers.items()
        },
        overload=overload(sample),
        containerized=rates.containerized(),
        hardware_platform=observer.config.engine.hardware_platform,
    )


def overload(sample: Sample) -> status_bodies.OverloadAnswer:
    """What fan-out leaves out, for GET /metrics."""
    worst = max((p.gauges.get("overload", 0.0) for p in sample.processes if p.alive), default=0.0)
    return status_bodies.OverloadAnswer(
        state="shedding" if worst >= 2 else "conflating" if worst >= 1 else "normal",
        conflated=sample.total("records_conflated"),
        shed=sample.total("records_shed"),
    )


def process(observer: Observer, sample: Sample, label: str) -> status_bodies.ProcessAnswer:
    """One entry of GET /processes."""
    view = sample.process(label)
    assert view is not None
    worker = observer.supervisor.workers.get(label)
    before = observer.history.oldest
    earlier = before.process(label) if before is not None else None
    used = sample.resources.get(label)
    used_before = before.resources.get(label) if before is not None and earlier and earlier.pid == view.pid else None
    cpu_s = used.cpu_s - used_before.cpu_s if used and used_before else 0.0
    own = [reader for found in sample.readers.values() for reader in found if reader.pid == view.pid and view.alive]
    latencies = {}
    for name, histogram in view.histograms.items():
        past = earlier.histograms.get(name) if earlier is not None else None
        latencies[name] = stats(histogram - past if past is not None else histogram)
    return status_bodies.ProcessAnswer(
        label=label,
        role=view.role,
        does=worker.plan.does if worker else "supervises, serves HTTP",
        pid=worker.pid if worker else view.pid,
        state=view.state.name.lower(),
        phase=worker.life.phase.value if worker else "running",
        alive=view.alive,
        core=view.core,
        placement=view.placement,
        heartbeat_age_ms=max(0.0, (sample.now_ns - view.heartbeat_ns) / 1e6),
        uptime_seconds=max(0.0, (sample.now_ns - view.started_ns) / 1e9),
        restarts=worker.life.restarts if worker else 0,
        last_end=worker.last_end if worker else "",
        resident_bytes=used.resident_bytes if used else 0,
        own_bytes=used.own_bytes if used else 0,
        cpu_percent=round(100 * cpu_s / observer.history.window_s(sample), 2),
        lag=sum(reader.lag for reader in own),
        lost=view.counters.get("records_lost", 0),
        rates=rates.process_rates(observer.history, sample, label),
        counters={name: value for name, value in view.counters.items() if not name.startswith("feed.")},
        gauges={name: finite(value) for name, value in view.gauges.items() if not name.startswith("feed.")},
        latencies=latencies,
    )


def feed(view: FeedView) -> feed_bodies.FeedAnswer:
    """One entry of GET /feeds."""
    report = view.report if view.state != "paused" else None
    return feed_bodies.FeedAnswer(
        feed_id=view.spec.name,
        symbol=",".join(view.spec.symbols) or "*",
        data_source=view.entry.data_source,
        data_types=list(view.spec.data_types) or ["all"],
        is_active=view.active,
        last_update=iso_time(view.last_update_ns) if view.last_update_ns else None,
        age_seconds=max(0.0, time.time() - view.last_update_ns / 1e9) if view.last_update_ns else None,
        message_count=view.records,
        error_count=view.errors,
        gap_count=view.gaps,
        health_score=feed_score(view),
        state=view.state,  # type: ignore[arg-type]  # feed_state gives no other words
        why=view.why,
        process=view.label,
        rate=view.rate,
        group=view.spec.group,
        rank=view.spec.rank,
        configured=view.entry.added is None,
        connections=report.connections if report else None,
        reconnects=report.reconnects if report else None,
        breaker=report.breaker if report else None,  # type: ignore[arg-type]  # the breaker has no other states
        retry_at=iso_time(report.retry_at_ns) if report and report.retry_at_ns else None,
        silent_symbols=report.silent if report else None,
        latency_ms=report.latency_ms if report else None,
        usual_latency_ms=report.usual_latency_ms if report else None,
        role=view.member.role if view.member else None,
        condition=view.member.condition if view.member else None,
        publishes_alone=list(view.member.symbols) if view.member else [],
        silent_here=list(view.member.without) if view.member else [],
        standby_records=view.member.withheld if view.member else None,
        group_switches=view.group.switches if view.group else None,
        last_switch=view.group.last_switch or None if view.group else None,
        last_switch_at=iso_time(view.group.last_switch_ns) if view.group and view.group.last_switch_ns else None,
    )


def time_ns(moment: datetime) -> int:
    """ns since the epoch, exact; without a zone it is UTC. Times that int64 can't hold become its ends."""
    since = moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH
    return max(-(1 << 63), min((1 << 63) - 1, since // timedelta(microseconds=1) * 1000))


def points(raw: bytes, symbol: str, source_names: SourceNames | None = None) -> list[data_bodies.DataPoint]:
    """Records in words. The pieces of one news item become one point."""
    made: list[data_bodies.DataPoint] = []
    pieces: list[bytes] = []
    for at in range(0, len(raw), RECORD_SIZE_BYTES):
        record = raw[at : at + RECORD_SIZE_BYTES]
        flags = int.from_bytes(record[38:40], "little")
        if record[36] == RecordType.NEWS:
            pieces.append(record)
            if flags & Flag.CONTINUES:
                continue
        found = payload(pieces[0] if pieces else record, symbol, source_names=source_names)
        fields = news_fields(pieces) if pieces else found["data"]
        pieces = []
        made.append(
            data_bodies.DataPoint(
                timestamp=fields.pop("timestamp"),
                data_type=found["data_type"],
                source=found["source"],
                data=fields,
                sequence=found["sequence"],
                latency_ms=found["latency_ms"],
                flags=flag_names(flags),
            )
        )
    return made


_encode: Final = msgspec.json.Encoder().encode


def snapshot_body(symbol: str, found: Snapshot, now_ns: int) -> bytes:
    """POST /symbols/{symbol}/snapshot, as JSON."""
    trade, quote, day = found.last_trade, found.quote, found.day
    return _encode(
        data_bodies.SnapshotAnswer(
            symbol=symbol,
            timestamp=iso_time(now_ns),
            snapshot=data_bodies.SnapshotBody(
                last_trade=data_bodies.LastTradeAnswer(
                    price=finite(trade.price), size=finite(trade.size), timestamp=iso_time(trade.ts_event)
                )
                if trade
                else None,
                quote=data_bodies.QuoteAnswer(
                    bid=finite(quote.bid),
                    ask=finite(quote.ask),
                    bid_size=finite(quote.bid_size),
                    ask_size=finite(quote.ask_size),
                )
                if quote
                else None,
                daily_stats=data_bodies.DailyStats(
                    **{name: finite(getattr(day, name)) for name in ("open", "high", "low", "close", "volume", "vwap")}
                )
                if day
                else None,
            ),
            as_of={str(ring): sequence for ring, sequence in found.as_of.items()},
        )
    )
