"""Duties: what each worker is told, role by role: its settings from the configuration, and what it does in words.

Pure; called by the plan alone, which decides what is common to them: labels, cores, rings, ports (`shared` has the
fields that every worker gets). A key of the configuration that a worker obeys becomes a field of its settings here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.byte_size import parse_bytes
from engine.config import gateway_port, is_loopback
from engine.curve import CurveFiles
from engine.folders import data_folder, ledger_path
from engine.roster import ingest_words
from engine.settings import Config
from engine.stores import Passwords
from workers.spec import (
    CacheSettings,
    CaptureSettings,
    FanoutSettings,
    FeedSpec,
    GatewaySettings,
    HistorianSettings,
    IngestSettings,
    MirrorSettings,
    QualitySettings,
    RecorderSettings,
    RedundancySettings,
    SubscriptionSpec,
    WebhookSettings,
    WorkerSettings,
)

_LOW_LATENCY_WAIT_US: Final = 20.0
_LOW_LATENCY_SPIN_US: Final = 2000.0


@dataclass(frozen=True)
class WorkerPlan:
    """One worker: its settings, and what it does in words."""

    settings: WorkerSettings
    does: str

    @property
    def label(self) -> str:
        """Unique in the engine."""
        return self.settings.label

    @property
    def role(self) -> str:
        """Key of workers.spec.MODULES."""
        return self.settings.role


def ingest(
    config: Config, shared: dict[str, Any], ring: int, feeds: tuple[FeedSpec, ...], *, isolated: bool
) -> WorkerPlan:
    """An ingest worker, with the feeds that the roster gave it; `isolated` is for a plug-in's."""
    section = config.ingest
    settings = IngestSettings(
        **shared,
        ring_id=ring,
        feeds=feeds,
        isolated=isolated,
        batch_slots=section.batch_slots,
        quality=QualitySettings(**msgspec.structs.asdict(config.quality)),
        priorities=config.priority.symbols,
        redundancy=RedundancySettings(**msgspec.structs.asdict(config.redundancy)),
        start_delay_s=config.engine.start_delay_s,
        min_wait_us=min(section.min_wait_us, _LOW_LATENCY_WAIT_US)
        if config.engine.low_latency
        else section.min_wait_us,
        folder=str(data_folder(config)),
        capture=_capture(config),
    )
    return WorkerPlan(settings, ingest_words(feeds, ring))


def cache(config: Config, shared: dict[str, Any], rings: tuple[int, ...], bar_ring: int, hold_back: bool) -> WorkerPlan:
    """The cache: it reads `rings` and writes `bar_ring`."""
    section = config.cache
    settings = CacheSettings(
        **shared,
        rings=rings,
        bar_ring_id=bar_ring,
        bar_intervals_s=section.bar_intervals_s,
        bar_close_delay_s=section.bar_close_delay_s,
        bar_exclude_outliers=section.bar_exclude_outliers,
        ranked_symbols=config.priority.ranked,
        reliable=hold_back,
    )
    return WorkerPlan(settings, f"latest values, bars of {_seconds(section.bar_intervals_s)} into ring {bar_ring}")


def recorder(config: Config, shared: dict[str, Any], rings: tuple[int, ...], hold_back: bool) -> WorkerPlan:
    """The recorder, for every ring; `hold_back`: its writers wait for it."""
    storage, folder = config.storage, data_folder(config)
    settings = RecorderSettings(
        **shared,
        rings=rings,
        folder=str(folder),
        fsync=storage.fsync,
        fsync_interval_s=storage.fsync_interval_s,
        flush_ms=storage.flush_ms,
        segment_bytes=max(4096, parse_bytes(storage.segment_size)),
        seal=storage.seal,
        seal_bytes=max(4096, parse_bytes(storage.seal_size)),
        journal_hours=storage.journal_hours,
        retention_hours=storage.retention_hours,
        max_journal_bytes=parse_bytes(storage.max_journal),
        max_parquet_bytes=parse_bytes(storage.max_parquet),
        reliable=hold_back,
    )
    return WorkerPlan(settings, f"rings {_listed(rings)} into {folder}")


def mirror(config: Config, shared: dict[str, Any], passwords: Passwords) -> list[WorkerPlan]:
    """The mirror of that label, if its store is configured."""
    folder, redis, postgres = str(data_folder(config)), config.redis, config.postgres
    if shared["label"] == "mirror-redis" and redis.url:
        settings = MirrorSettings(
            **shared,
            folder=folder,
            store="redis",
            address=redis.url,
            password=passwords.redis,
            flush_ms=redis.flush_ms,
            hours=redis.hours,
            max_records_per_symbol=redis.max_records_per_symbol,
        )
        return [WorkerPlan(settings, f"the journal to Redis, {redis.hours:g} hours of it")]
    if shared["label"] == "mirror-postgres" and postgres.dsn:
        settings = MirrorSettings(
            **shared,
            folder=folder,
            store="postgres",
            address=postgres.dsn,
            password=passwords.postgres,
            flush_ms=postgres.flush_ms,
            retention_days=postgres.retention_days,
            timescale=postgres.timescale,
        )
        kept = f", {postgres.retention_days} days of it" if postgres.retention_days else ""
        return [WorkerPlan(settings, f"the journal to PostgreSQL{kept}")]
    return []


def fanout(
    config: Config,
    shared: dict[str, Any],
    rings: tuple[int, ...],
    shard: int,
    *,
    ports: dict[str, int],
    ipc_dir: Path,
    curve: CurveFiles,
    hold_back: bool,
) -> WorkerPlan:
    """Fan-out of one shard. `ports` by endpoint, those of shard 0."""
    zmq = config.zmq
    settings = FanoutSettings(
        **shared,
        rings=rings,
        shard=shard,
        shards=config.workers.fanout,
        host=zmq.host,
        raw_port=ports["raw"],
        msgpack_port=ports["msgpack"],
        json_port=ports["json"],
        replay_port=ports["replay"],
        ipc_dir=str(ipc_dir) if zmq.ipc else "",
        server_key_file=curve.server_key_file,
        client_keys=curve.client_keys,
        journal=str(data_folder(config) / "journal") if config.storage.enabled else "",
        send_hwm=zmq.send_hwm,
        reliable=hold_back,
        spin_us=max(zmq.spin_us, _LOW_LATENCY_SPIN_US) if config.engine.low_latency else zmq.spin_us,
        segment_mode=int(config.rings.mode, 8),
        segment_group=config.rings.group,
    )
    part = f", shard {shard + 1} of {config.workers.fanout}" if config.workers.fanout > 1 else ""
    return WorkerPlan(settings, f"rings {_listed(rings)} to ZeroMQ{part}")


def gateway(config: Config, shared: dict[str, Any], rings: tuple[int, ...], tokens: tuple[str, ...]) -> WorkerPlan:
    """The gateway; on loopback it asks nobody for a token."""
    section = config.gateway
    settings = GatewaySettings(
        **shared,
        rings=rings,
        host=section.host,
        port=gateway_port(config),
        tokens=() if is_loopback(section.host) else tokens,
        origins=section.origins,
        max_clients=section.max_clients,
        max_topics=section.max_topics,
        queue_messages=section.queue_messages,
        cut_after_s=section.cut_after_s,
    )
    return WorkerPlan(settings, f"rings {_listed(rings)} to WebSocket clients")


def webhooks(
    config: Config, shared: dict[str, Any], rings: tuple[int, ...], subscriptions: tuple[SubscriptionSpec, ...]
) -> WorkerPlan:
    """The webhooks worker, with the subscriptions that have a callback URL."""
    section = config.webhooks
    settings = WebhookSettings(
        **shared,
        rings=rings,
        ledger=str(ledger_path(config)),
        subscriptions=subscriptions,
        allow_private=section.allow_private,
        allow_networks=section.allow_networks,
        timeout_s=section.timeout_s,
        queue_messages=section.queue_messages,
        queue_bytes=max(1, parse_bytes(section.queue_size)),
        total_bytes=max(1, parse_bytes(section.total_size)),
        batch_messages=section.batch_messages,
        park_after=section.park_after,
        parked_s=section.parked_s,
        max_deliveries=section.max_subscriptions,
    )
    return WorkerPlan(settings, f"rings {_listed(rings)} to webhooks")


def historian(config: Config, shared: dict[str, Any], endpoint: str, passwords: Passwords) -> WorkerPlan:
    """The historian, and where it listens."""
    settings = HistorianSettings(
        **shared,
        endpoint=endpoint,
        folder=str(data_folder(config)),
        store_timeout_s=config.http.archive_timeout_s / 2,  # one that is slow leaves the others their time
        redis_url=config.redis.url,
        redis_password=passwords.redis,
        postgres_dsn=config.postgres.dsn,
        postgres_password=passwords.postgres,
    )
    return WorkerPlan(settings, "answers GET /data from what is recorded")


def _capture(config: Config) -> CaptureSettings | None:
    section = config.capture
    if not section.feeds:
        return None
    folder = Path(section.folder).expanduser().absolute() if section.folder else data_folder(config) / "wire"
    return CaptureSettings(
        folder=str(folder),
        feeds=section.feeds,
        compress=section.compress,
        part_bytes=max(4096, parse_bytes(section.part_size)),
        part_s=section.part_hours * 3600,
        keep_bytes=parse_bytes(section.max_size),
        queue_bytes=max(1 << 16, parse_bytes(section.queue_size)),
    )


def _seconds(intervals: tuple[int, ...]) -> str:
    return ", ".join(f"{s} s" if s % 60 else f"{s // 60} min" for s in intervals)


def _listed(numbers: tuple[int, ...]) -> str:
    values = sorted(numbers)
    return f"{values[0]}-{values[-1]}" if len(values) > 1 else str(values[0])
