"""From configuration to processes: which workers run, with which settings, on which rings.

`make_plan` is pure; it is called by the control process at start and by tests, and starts and opens nothing. The
mapping is

    ring 0   control process      status records of the engine, HTTP ingest
    ring 1   cache                bars
    ring 2+i ingest-i             feeds, dealt out in turn
    ring n+i plugin-i             one feed whose source is a plug-in

The recorder reads all of them and writes none; mirrors follow its journal.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from engine.config import gateway_port, is_loopback, parse_bytes
from engine.curve import CurveFiles
from engine.errors import ConfigError
from engine.settings import Config, FeedSection
from engine.stores import NO_PASSWORDS, Passwords
from shm.layout import MAX_RINGS
from workers.spec import (
    MAX_GROUP_FEEDS,
    CacheSettings,
    CaptureSettings,
    FanoutSettings,
    FeedSpec,
    GatewaySettings,
    HistorianSettings,
    IngestSettings,
    MirrorSettings,
    Placement,
    QualitySettings,
    RecorderSettings,
    RedundancySettings,
    SubscriptionSpec,
    WebhookSettings,
    WorkerSettings,
)

CONTROL_RING: Final = 0
BAR_RING: Final = 1
FIRST_INGEST_RING: Final = 2
CONTROL_LABEL: Final = "control"
GATEWAY_LABEL: Final = "gateway"
RECORDER_LABEL: Final = "recorder"
CACHE_LABEL: Final = "cache"
HISTORIAN_LABEL: Final = "historian"
WEBHOOKS_LABEL: Final = "webhooks"
MIRROR_LABELS: Final = ("mirror-redis", "mirror-postgres")

_HOLD_BACK_S: Final = 3.0
_LOW_LATENCY_WAIT_US: Final = 20.0
_LOW_LATENCY_SPIN_US: Final = 2000.0
_MAX_SOCKET_PATH_CHARS: Final = 100  # sun_path has 104 to 108 bytes


@dataclass(frozen=True)
class RingPlan:
    """A ring and who writes it."""

    ring_id: int
    label: str
    role: str
    depth_slots: int
    block_s: float  # how long its writer waits for a reliable reader


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


@dataclass(frozen=True)
class Plan:
    """Everything that will run. `workers` in order of start: consumers before producers."""

    workers: tuple[WorkerPlan, ...]
    rings: tuple[RingPlan, ...]
    feeds: tuple[FeedSpec, ...]
    control_endpoint: str
    ipc_dir: str
    http_url: str
    endpoints: dict[str, tuple[str, ...]]  # "raw", "msgpack", "json", "replay" -> one address a shard
    ws_url: str = ""  # of the gateway; empty = there is none
    archive_endpoint: str = ""  # of the historian; empty = there is none


def runtime_dir(env: Mapping[str, str], engine: str) -> Path:
    """Folder for this engine's sockets: under systemd's runtime directory, the user's, or a private one in /tmp."""
    if env.get("RUNTIME_DIRECTORY"):
        return Path(env["RUNTIME_DIRECTORY"].split(":")[0]) / engine
    if env.get("XDG_RUNTIME_DIR"):
        return Path(env["XDG_RUNTIME_DIR"]) / "tickengine" / engine
    return Path(env.get("TMPDIR", "/tmp")) / f"tickengine-{os.getuid()}" / engine


def make_plan(
    config: Config,
    ipc_dir: Path,
    added: tuple[FeedSpec, ...] = (),
    *,
    tokens: tuple[str, ...] = (),
    subscriptions: tuple[SubscriptionSpec, ...] = (),
    curve: CurveFiles | None = None,
    passwords: Passwords = NO_PASSWORDS,
    source_codes: Mapping[str, int] | None = None,
) -> Plan:
    """The plan that a configuration asks for, with feeds and subscriptions made over HTTP that shall go on.

    `tokens` are the bearer tokens, for workers that clients reach; `subscriptions` those that have a callback URL;
    `curve` the keys of the ZeroMQ sockets, `passwords` those of the databases; `source_codes` has the plug-ins among
    the feeds' sources, and what stands in their records.

    Raises:
        ConfigError: settings that exclude each other.
    """
    curve = curve or CurveFiles()
    control_endpoint = f"ipc://{ipc_dir / 'control'}"
    if len(str(ipc_dir)) > _MAX_SOCKET_PATH_CHARS - 20:
        raise ConfigError(
            f"the runtime directory {ipc_dir} is too long for the name of a Unix socket; set XDG_RUNTIME_DIR"
        )
    codes = source_codes or {}
    feeds = (*_feed_specs(config, codes), *added)
    groups = _deal(tuple(feed for feed in feeds if feed.source not in codes), config.workers.ingest)
    alone = [feed for feed in feeds if feed.source in codes]
    grouped = next((feed for feed in alone if feed.group), None)
    if grouped is not None:
        raise ConfigError(f"[[feeds]] {grouped.name}: group: a plug-in has a process of its own, and can't be in one")
    hosts = [(feed,) for feed in alone] + [()] * (config.workers.plugins - len(alone))
    if FIRST_INGEST_RING + len(groups) + len(hosts) > MAX_RINGS:
        most = MAX_RINGS - FIRST_INGEST_RING
        raise ConfigError(
            f"{len(groups)} ingest processes and {len(hosts)} for plug-ins are more than the {most} that have a ring; "
            "lower [workers] ingest or plugins"
        )
    hold_back = any(feed.source == "replay" and feed.options.get("speed") == "max" for feed in feeds)
    labels = [f"ingest-{index}" for index in range(len(groups))]
    labels += [f"fanout-{shard}" for shard in range(config.workers.fanout)] + ["cache"]
    labels += [RECORDER_LABEL] if config.storage.enabled else []
    host_labels = [f"plugin-{index}" for index in range(len(hosts))]
    placements = _placements(config, labels, host_labels)
    writers = [f"ingest-{index}" for index in range(len(groups))] + host_labels
    ingest_rings = tuple(FIRST_INGEST_RING + index for index in range(len(writers)))
    depth, block_s = config.rings.depth_slots, config.rings.block_ms / 1000
    if hold_back:  # a reader that waits for a slow subscriber must not be demoted meanwhile
        block_s = max(block_s, _HOLD_BACK_S)
    rings = (
        RingPlan(CONTROL_RING, CONTROL_LABEL, "control", depth, block_s),
        RingPlan(BAR_RING, "cache", "bars", depth, block_s),
        *(RingPlan(ring, label, "ingest", depth, block_s) for ring, label in zip(ingest_rings, writers, strict=True)),
    )

    def shared(label: str) -> dict[str, Any]:
        return {
            "engine": config.engine.name,
            "label": label,
            "control_endpoint": control_endpoint,
            "placement": placements[label],
            "log_level": config.engine.log_level,
        }

    zmq, cache = config.zmq, config.cache
    workers: list[WorkerPlan] = [
        WorkerPlan(
            CacheSettings(
                **shared("cache"),
                rings=(CONTROL_RING, *ingest_rings),
                bar_ring_id=BAR_RING,
                bar_intervals_s=cache.bar_intervals_s,
                bar_close_delay_s=cache.bar_close_delay_s,
                bar_exclude_outliers=cache.bar_exclude_outliers,
                ranked_symbols=config.priority.ranked,
                reliable=hold_back,
            ),
            f"latest values, bars of {_seconds(cache.bar_intervals_s)} into ring {BAR_RING}",
        )
    ]
    if config.storage.enabled:
        workers.append(_recorder(config, shared(RECORDER_LABEL), rings, hold_back))
    for label in MIRROR_LABELS:
        workers += _mirror(config, shared(label), passwords)
    ports = {
        name: zmq.base_port + offset for name, offset in (("raw", 1), ("msgpack", 11), ("json", 21), ("replay", 31))
    }
    for shard in range(config.workers.fanout):
        workers.append(
            WorkerPlan(
                FanoutSettings(
                    **shared(f"fanout-{shard}"),
                    rings=tuple(ring.ring_id for ring in rings),
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
                ),
                f"rings {_listed(ring.ring_id for ring in rings)} to ZeroMQ"
                + (f", shard {shard + 1} of {config.workers.fanout}" if config.workers.fanout > 1 else ""),
            )
        )
    ws_url = ""
    if config.gateway.enabled:
        gateway = config.gateway
        ws_url = f"ws{http_url(gateway.host, gateway_port(config))[4:]}/ws/stream"
        workers.append(
            WorkerPlan(
                GatewaySettings(
                    **shared(GATEWAY_LABEL),
                    rings=tuple(ring.ring_id for ring in rings),
                    host=gateway.host,
                    port=gateway_port(config),
                    tokens=() if is_loopback(gateway.host) else tokens,
                    origins=gateway.origins,
                    max_clients=gateway.max_clients,
                    max_topics=gateway.max_topics,
                    queue_messages=gateway.queue_messages,
                    cut_after_s=gateway.cut_after_s,
                ),
                f"rings {_listed(ring.ring_id for ring in rings)} to WebSocket clients",
            )
        )
    archive_endpoint = f"ipc://{ipc_dir / HISTORIAN_LABEL}" if config.storage.enabled else ""
    if archive_endpoint:
        workers.append(_historian(config, shared(HISTORIAN_LABEL), archive_endpoint, passwords))
    if config.webhooks.enabled:
        workers.append(_webhooks(config, shared(WEBHOOKS_LABEL), rings, subscriptions))
    wait_us = (
        min(config.ingest.min_wait_us, _LOW_LATENCY_WAIT_US) if config.engine.low_latency else config.ingest.min_wait_us
    )
    for label, ring, group in zip(writers, ingest_rings, [*groups, *hosts], strict=True):
        workers.append(
            WorkerPlan(
                IngestSettings(
                    **shared(label),
                    ring_id=ring,
                    feeds=group,
                    isolated=label in host_labels,
                    batch_slots=config.ingest.batch_slots,
                    quality=QualitySettings(**msgspec.structs.asdict(config.quality)),
                    priorities=config.priority.symbols,
                    redundancy=RedundancySettings(**msgspec.structs.asdict(config.redundancy)),
                    start_delay_s=config.engine.start_delay_s,
                    min_wait_us=wait_us,
                    folder=str(data_folder(config)),
                    capture=_capture(config),
                ),
                ingest_words(group, ring),
            )
        )
    return Plan(
        workers=tuple(workers),
        rings=rings,
        feeds=feeds,
        control_endpoint=control_endpoint,
        ipc_dir=str(ipc_dir),
        http_url=http_url(config.http.host, config.http.port),
        endpoints={
            name: tuple(f"tcp://{zmq.host}:{port + shard}" for shard in range(config.workers.fanout))
            for name, port in ports.items()
        },
        ws_url=ws_url,
        archive_endpoint=archive_endpoint,
    )


def missing_files(plan: Plan) -> list[str]:
    """Files that replays name and that are not there; the only look at the file system of this module."""
    configured = [feed for feed in plan.feeds if not feed.added]  # the others keep trying, and say so
    named = [str(file) for feed in configured if feed.source == "replay" for file in feed.options.get("files", ())]
    return [file for file in named if not Path(file).is_file()]


def data_folder(config: Config) -> Path:
    """Where an engine keeps what must outlive it: a folder of its own name, so that engines side by side share none."""
    return Path(os.path.expanduser(config.engine.data_dir)).absolute() / config.engine.name


def _recorder(config: Config, shared: dict[str, Any], rings: tuple[RingPlan, ...], hold_back: bool) -> WorkerPlan:
    storage, folder = config.storage, data_folder(config)
    settings = RecorderSettings(
        **shared,
        rings=tuple(ring.ring_id for ring in rings),
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
    return WorkerPlan(settings, f"rings {_listed(ring.ring_id for ring in rings)} into {folder}")


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


def _historian(config: Config, shared: dict[str, Any], endpoint: str, passwords: Passwords) -> WorkerPlan:
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


def _webhooks(
    config: Config, shared: dict[str, Any], rings: tuple[RingPlan, ...], subscriptions: tuple[SubscriptionSpec, ...]
) -> WorkerPlan:
    section = config.webhooks
    settings = WebhookSettings(
        **shared,
        rings=tuple(ring.ring_id for ring in rings),
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
    return WorkerPlan(settings, f"rings {_listed(ring.ring_id for ring in rings)} to webhooks")


def ledger_path(config: Config) -> Path:
    """The file in which the webhooks worker keeps positions and counts (shm/ledger.py)."""
    return data_folder(config) / "webhooks.ledger"


def _mirror(config: Config, shared: dict[str, Any], passwords: Passwords) -> list[WorkerPlan]:
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


def http_url(host: str, port: int) -> str:
    """What to type into a browser on this host."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"


def _feed_specs(config: Config, source_codes: Mapping[str, int]) -> tuple[FeedSpec, ...]:
    sections = [feed for feed in config.feeds if feed.enabled]
    taken = {feed.name for feed in config.feeds}
    if config.simulate.enabled:
        options: dict[str, Any] = {
            "instruments": config.simulate.instruments,
            "rate": config.simulate.rate or "max",
            "seed": config.simulate.seed,
        }
        sections.append(FeedSection(name=_unused("simulated", taken), source="simulated", options=options))
    if config.replay.files:
        files = [str(Path(file).expanduser().absolute()) for file in config.replay.files]
        first = Path(files[0]).name.split(".")[0][:56] if len(files) == 1 else ""
        speed: Any = config.replay.speed if config.replay.speed == "max" else float(config.replay.speed)
        options = {"files": files, "speed": speed, "loop": config.replay.loop, "merge": config.replay.merge}
        if config.replay.faults:
            options["faults"] = config.replay.faults
        sections.append(FeedSection(name=_unused(first or "replay", taken), source="replay", options=options))
    _check_groups(sections)
    return tuple(
        FeedSpec(
            feed_id=number,
            name=feed.name,
            source=feed.source,
            source_code=source_codes.get(feed.source, 0),
            symbols=feed.symbols,
            data_types=feed.data_types,
            options=feed.options,
            group=feed.group,
            rank=feed.rank,
        )
        for number, feed in enumerate(sections, 1)
    )


def _deal(feeds: tuple[FeedSpec, ...], hands: int) -> list[tuple[FeedSpec, ...]]:
    """Feeds in turn to at most `hands` workers, those of one group to the same: they take over from each other.

    To one worker at least: feeds may be added later.
    """
    together: dict[str, list[FeedSpec]] = {}
    for feed in feeds:
        together.setdefault(f"group {feed.group}" if feed.group else f"feed {feed.feed_id}", []).append(feed)
    parts = [*together.values()]
    count = min(hands, max(1, len(parts)))
    return [tuple(feed for part in parts[index::count] for feed in part) for index in range(count)]


def _check_groups(sections: list[FeedSection]) -> None:
    """ConfigError for what can't stand by for another feed."""
    members: dict[str, int] = {}
    for feed in sections:
        if not feed.group:
            continue
        if feed.source == "replay":
            raise ConfigError(f"[[feeds]] {feed.name}: group: a replay can't be in a redundancy group; leave it out")
        members[feed.group] = members.get(feed.group, 0) + 1
        if members[feed.group] > MAX_GROUP_FEEDS:
            raise ConfigError(f"[[feeds]] {feed.name}: group {feed.group!r} has more than {MAX_GROUP_FEEDS} feeds")


def _placements(config: Config, labels: list[str], host_labels: list[str]) -> dict[str, Placement]:
    section = config.placement
    # The last ones want no core unless given one: those they serve can wait, and plug-ins are strangers.
    known = [*labels, *host_labels, GATEWAY_LABEL, *MIRROR_LABELS, HISTORIAN_LABEL, WEBHOOKS_LABEL]
    unknown = sorted(set(section.cores) - set(known))
    if unknown:
        raise ConfigError(f"[placement] cores: no worker is labelled {unknown[0]!r}; there are {', '.join(known)}")
    limit = len(labels) if section.max_cores == 0 else max(1, int(section.max_cores))
    # The recorder waits for the disk; a core that it would own is of more use to the others.
    pinned = [label for label in labels if label not in section.cores and label != RECORDER_LABEL][:limit]
    wanting = pinned if section.policy == "auto" else []
    placements = {}
    for label in known:
        common: dict[str, Any] = {"realtime_priority": section.realtime_priority, "lock_memory": section.lock_memory}
        if label in section.cores:
            placements[label] = Placement(policy="core", core=section.cores[label], **common)
        elif label in wanting:
            placements[label] = Placement(policy="auto", rank=wanting.index(label), workers=len(wanting), **common)
        else:
            placements[label] = Placement(policy="none", **common)
    return placements


def _unused(name: str, taken: set[str]) -> str:
    candidate, number = name, 2
    while candidate in taken:
        candidate, number = f"{name}-{number}", number + 1
    taken.add(candidate)
    return candidate


def ingest_words(feeds: tuple[FeedSpec, ...], ring_id: int) -> str:
    """What an ingest worker does, for people."""
    names = [f"{feed.source} {feed.name}" if feed.source != feed.name else feed.name for feed in feeds]
    more = f" and {len(names) - 3} more feeds" if len(names) > 3 else ""
    return f"{', '.join(names[:3]) or 'no feed'}{more} into ring {ring_id}"


def _seconds(intervals: tuple[int, ...]) -> str:
    return ", ".join(f"{s} s" if s % 60 else f"{s // 60} min" for s in intervals)


def _listed(numbers: Any) -> str:
    values = sorted(numbers)
    return f"{values[0]}-{values[-1]}" if len(values) > 1 else str(values[0])
