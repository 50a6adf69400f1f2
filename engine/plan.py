"""From configuration to processes: which workers run, with which settings, on which rings.

`make_plan` is pure; it is called by the control process at start and by tests, and starts and opens nothing. The
mapping is

    ring 0   control process      status records of the engine, HTTP ingest
    ring 1   cache                bars
    ring 2+i ingest-i             feeds, dealt out in turn
    ring n+i plugin-i             one feed whose source is a plug-in

The recorder reads all of them and writes none; mirrors follow its journal. Which feeds run where says the roster
(engine/roster.py), what each worker is told engine/duties.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from engine import duties
from engine.config import gateway_port
from engine.curve import CurveFiles
from engine.duties import WorkerPlan
from engine.errors import ConfigError
from engine.roster import deal, feed_specs
from engine.settings import Config
from engine.stores import NO_PASSWORDS, Passwords
from shm.layout import MAX_RINGS
from workers.spec import FeedSpec, Placement, SubscriptionSpec

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
    feeds = (*feed_specs(config, codes), *added)
    groups = deal(tuple(feed for feed in feeds if feed.source not in codes), config.workers.ingest)
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
    labels += [f"fanout-{shard}" for shard in range(config.workers.fanout)] + [CACHE_LABEL]
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
        RingPlan(BAR_RING, CACHE_LABEL, "bars", depth, block_s),
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

    ids = tuple(ring.ring_id for ring in rings)
    workers = [duties.cache(config, shared(CACHE_LABEL), (CONTROL_RING, *ingest_rings), BAR_RING, hold_back)]
    if config.storage.enabled:
        workers.append(duties.recorder(config, shared(RECORDER_LABEL), ids, hold_back))
    for label in MIRROR_LABELS:
        workers += duties.mirror(config, shared(label), passwords)
    zmq = config.zmq
    ports = {
        name: zmq.base_port + offset for name, offset in (("raw", 1), ("msgpack", 11), ("json", 21), ("replay", 31))
    }
    for shard in range(config.workers.fanout):
        label = f"fanout-{shard}"
        workers.append(
            duties.fanout(
                config, shared(label), ids, shard, ports=ports, ipc_dir=ipc_dir, curve=curve, hold_back=hold_back
            )
        )
    ws_url = ""
    if config.gateway.enabled:
        ws_url = f"ws{http_url(config.gateway.host, gateway_port(config))[4:]}/ws/stream"
        workers.append(duties.gateway(config, shared(GATEWAY_LABEL), ids, tokens))
    archive_endpoint = f"ipc://{ipc_dir / HISTORIAN_LABEL}" if config.storage.enabled else ""
    if archive_endpoint:
        workers.append(duties.historian(config, shared(HISTORIAN_LABEL), archive_endpoint, passwords))
    if config.webhooks.enabled:
        workers.append(duties.webhooks(config, shared(WEBHOOKS_LABEL), ids, subscriptions))
    for label, ring, group in zip(writers, ingest_rings, [*groups, *hosts], strict=True):
        workers.append(duties.ingest(config, shared(label), ring, group, isolated=label in host_labels))
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


def http_url(host: str, port: int) -> str:
    """What to type into a browser on this host."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"


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
