"""The Prometheus exposition: a custom collector over a sample; nothing is counted beside the status block.

The engine-wide names are those of the interface document (`marketdata_*`). Beside them, with bounded labels:

    marketdata_process_*   per process: up, restarts, heartbeat age, core, every counter and gauge it keeps, resources
    marketdata_ring_*      per ring: records published, writer's epoch and life
    marketdata_reader_*    per registered reader: lag, losses
    marketdata_feed_*      per feed: records, errors, gaps, time since the last record
    marketdata_group_*     per redundancy group: standbys that could take over, switches
    marketdata_hop_*       latency of each hop, histogram

Called by engine/http.py for each scrape. Labels come from configuration and from readers' own labels, which are cut to
40 bytes by the ring; nothing secret is among them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector, CollectorRegistry

from engine.health import standing_by
from engine.sample import HOPS, Sample
from shm.histogram import HistogramView
from workers.spec import FeedReport

# Upper edges of the buckets, ns: 1-2-5 steps from 1 us to 10 s, and some below for spinning readers.
BUCKETS_NS: Final = (
    250,
    500,
    *(step * 10**power for power in range(3, 10) for step in (1, 2, 5)),
    10_000_000_000,
)
_HOP_HELP: Final = {
    "feed_latency": "from the arrival of the bytes to the record in its ring",
    "ring_latency": "from the record in its ring to a consumer's hands",
    "send_latency": "from the record in its ring to the sent message",
}
TIERS: Final = ("L1", "L2", "L3")
_FEED_COUNTER: Final = re.compile(r"^feed\.\d+\.|^source\.")  # of the second kind are names (shm/source_names.py)
_NOT_IN_NAMES: Final = re.compile(r"[^a-z0-9_]")


class FeedLabel:
    """What the exposition says about a feed beside its counters."""

    __slots__ = ("active", "name", "rate", "report", "role", "score", "source")

    def __init__(
        self,
        name: str,
        source: str,
        rate: float,
        active: bool,
        *,
        score: float = 0.0,
        report: FeedReport | None = None,
        role: str = "",
    ) -> None:
        """`rate` in records per second; `report` is a live feed's own; `role` in its group, "" if it is in none."""
        self.name = name
        self.source = source
        self.rate = rate
        self.active = active
        self.score = score
        self.report = report
        self.role = role


class SampleCollector(Collector):
    """Turns one sample into metric families. `feeds` by feed id."""

    def __init__(
        self,
        sample: Sample,
        feeds: dict[int, FeedLabel],
        restarts: dict[str, int],
        rate: float,
        subscriptions: int = 0,
    ) -> None:
        """`restarts` per worker label, from the supervisor; `rate` = records published per second.

        `subscriptions`: active ones of those made over HTTP.
        """
        self._sample = sample
        self._feeds = feeds
        self._restarts = restarts
        self._rate = rate
        self._subscriptions = subscriptions

    def collect(self) -> Iterator[Any]:
        """Every family, in the order of the module's list."""
        yield from self._engine()
        yield from self._processes()
        yield from self._rings()
        yield from self._feed_families()
        yield from self._group_families()
        yield from self._hops()

    def _engine(self) -> Iterator[Any]:
        sample = self._sample
        processed = CounterMetricFamily("marketdata_messages_processed", "Records published into the rings")
        processed.add_metric([], sample.published)
        yield processed
        stored = CounterMetricFamily(
            "marketdata_data_points_stored", "Records in the journal; without a recorder in L1"
        )
        stored.add_metric([], sample.stored)
        yield stored
        latency = HistogramMetricFamily(
            "marketdata_processing_latency_seconds", "From the record in its ring to a consumer's hands, all consumers"
        )
        _add(latency, [], sample.histogram("ring_latency"))
        yield latency
        errors = CounterMetricFamily(
            "marketdata_feed_errors", "Pieces of input that could not be decoded", labels=["feed", "source"]
        )
        for feed_id, feed in self._feeds.items():
            counts = sample.feeds.get(feed_id)
            errors.add_metric([feed.name, feed.source], counts.errors if counts else 0)
        yield errors
        ratio = GaugeMetricFamily(
            "marketdata_cache_hit_ratio",
            "Share of data requests that L1 answered alone; of those that needed L2 or L3 the share that they helped",
            labels=["tier"],
        )
        for level, tier in tier_counts(sample).items():
            ratio.add_metric([level], tier.hit_ratio)
        yield ratio
        yield _gauge("marketdata_active_feeds", "Feeds that deliver", sum(feed.active for feed in self._feeds.values()))
        yield _gauge(
            "marketdata_subscription_count",
            "Topics subscribed to at the fan-out, and active subscriptions made over HTTP",
            sample.total("subscriptions", "fanout") + self._subscriptions,
        )
        yield _gauge("marketdata_ingestion_rate_per_second", "Records published a second, lately", self._rate)
        yield _gauge("marketdata_symbols_tracked", "Symbols in the instrument table", sample.symbols)

    def _processes(self) -> Iterator[Any]:
        sample = self._sample
        per_process = ["process", "role"]
        up = GaugeMetricFamily("marketdata_process_up", "1 if the process runs and is ready", labels=per_process)
        age = GaugeMetricFamily(
            "marketdata_process_heartbeat_age_seconds", "Time since the main loop last turned", labels=per_process
        )
        restarts = CounterMetricFamily("marketdata_process_restarts", "Restarts by the supervisor", labels=per_process)
        core = GaugeMetricFamily(
            "marketdata_process_core", "CPU that the process is pinned to; -1 = none", labels=per_process
        )
        counters: dict[str, CounterMetricFamily] = {}
        gauges: dict[str, GaugeMetricFamily] = {}
        for process in sample.processes:
            labels = [process.label, process.role]
            up.add_metric(labels, float(process.alive and process.state.name == "READY"))
            age.add_metric(labels, max(0.0, (sample.now_ns - process.heartbeat_ns) / 1e9))
            restarts.add_metric(labels, self._restarts.get(process.label, process.restarts))
            core.add_metric(labels, process.core)
            for name, value in process.counters.items():
                if not _FEED_COUNTER.match(name):
                    counters.setdefault(
                        name,
                        CounterMetricFamily(_metric(name), f"Counter {name} of the process", labels=per_process),
                    ).add_metric(labels, value)
            for name, level in process.gauges.items():
                if not _FEED_COUNTER.match(name):
                    gauges.setdefault(
                        name, GaugeMetricFamily(_metric(name), f"Gauge {name} of the process", labels=per_process)
                    ).add_metric(labels, level)
        yield from (up, age, restarts, core, *self._resources(per_process))
        yield from counters.values()
        yield from (family for name, family in gauges.items() if name not in counters)

    def _resources(self, per_process: list[str]) -> Iterator[Any]:
        memory = GaugeMetricFamily(
            "marketdata_process_resident_memory_bytes", "Resident memory, shared segments included", labels=per_process
        )
        cpu = CounterMetricFamily("marketdata_process_cpu_seconds", "CPU time, user and system", labels=per_process)
        for process in self._sample.processes:
            used = self._sample.resources.get(process.label)
            if used is not None:
                memory.add_metric([process.label, process.role], used.resident_bytes)
                cpu.add_metric([process.label, process.role], used.cpu_s)
        yield memory
        yield cpu

    def _rings(self) -> Iterator[Any]:
        sample = self._sample
        per_ring = ["ring", "writer"]
        published = CounterMetricFamily("marketdata_ring_published", "Newest sequence of the ring", labels=per_ring)
        epoch = GaugeMetricFamily("marketdata_ring_epoch", "How often the ring's writer has changed", labels=per_ring)
        writer = GaugeMetricFamily("marketdata_ring_writer_up", "1 if the ring's writer lives", labels=per_ring)
        depth = GaugeMetricFamily("marketdata_ring_depth_slots", "Slots of the ring", labels=per_ring)
        for ring_id, info in sample.rings.items():
            entry = sample.entries.get(ring_id)
            labels = [str(ring_id), entry.label if entry else ""]
            published.add_metric(labels, info.published)
            epoch.add_metric(labels, info.epoch)
            writer.add_metric(labels, float(info.writer_alive))
            depth.add_metric(labels, info.depth_slots)
        yield from (published, epoch, writer, depth)
        per_reader = ["ring", "reader", "pid"]
        lag = GaugeMetricFamily("marketdata_reader_lag_records", "Published and not yet read", labels=per_reader)
        lost = CounterMetricFamily("marketdata_reader_lost_records", "Overrun before they were read", labels=per_reader)
        overruns = CounterMetricFamily("marketdata_reader_overruns", "Times the reader was lapped", labels=per_reader)
        demoted = GaugeMetricFamily(
            "marketdata_reader_demoted",
            "1 if a reliable reader was too slow and is waited for no more",
            labels=per_reader,
        )
        for ring_id, readers in sample.readers.items():
            for reader in readers:
                if not reader.alive:
                    continue
                labels = [str(ring_id), reader.label, str(reader.pid)]
                lag.add_metric(labels, reader.lag)
                lost.add_metric(labels, reader.lost)
                overruns.add_metric(labels, reader.overruns_polling + reader.overruns_reading)
                demoted.add_metric(labels, float(reader.demoted))
        yield from (lag, lost, overruns, demoted)

    def _feed_families(self) -> Iterator[Any]:
        sample = self._sample
        per_feed = ["feed", "source"]
        records = CounterMetricFamily("marketdata_feed_records", "Records of the feed", labels=per_feed)
        gaps = CounterMetricFamily("marketdata_feed_gaps", "Holes in the venue's own numbering", labels=per_feed)
        active = GaugeMetricFamily("marketdata_feed_active", "1 if the feed delivers", labels=per_feed)
        ended = GaugeMetricFamily("marketdata_feed_ended", "1 if the replay has come to its end", labels=per_feed)
        rate = GaugeMetricFamily("marketdata_feed_rate_per_second", "Records a second, lately", labels=per_feed)
        age = GaugeMetricFamily("marketdata_feed_age_seconds", "Time since the feed's last record", labels=per_feed)
        health = GaugeMetricFamily("marketdata_feed_health", "How well the feed does, 0 to 1", labels=per_feed)
        reconnects = CounterMetricFamily(
            "marketdata_feed_reconnects", "Connections made after the first", labels=per_feed
        )
        silent = GaugeMetricFamily(
            "marketdata_feed_silent_symbols", "Symbols silent for longer than they ever are", labels=per_feed
        )
        breaker = GaugeMetricFamily("marketdata_feed_breaker_open", "1 while the breaker is open", labels=per_feed)
        latency = GaugeMetricFamily(
            "marketdata_feed_venue_latency_seconds", "From the venue's clock to ours, lately", labels=per_feed
        )
        standby = GaugeMetricFamily(
            "marketdata_feed_standby", "1 while another feed of its redundancy group publishes", labels=per_feed
        )
        for feed_id, feed in self._feeds.items():
            counts = sample.feeds.get(feed_id)
            labels = [feed.name, feed.source]
            if feed.role:
                standby.add_metric(labels, float(feed.role == "standby"))
            health.add_metric(labels, feed.score)
            if feed.report is not None:
                reconnects.add_metric(labels, feed.report.reconnects)
                silent.add_metric(labels, feed.report.silent)
                breaker.add_metric(labels, float(feed.report.breaker == "open"))
                if feed.report.latency_ms is not None:
                    latency.add_metric(labels, feed.report.latency_ms / 1e3)
            records.add_metric(labels, counts.records if counts else 0)
            gaps.add_metric(labels, counts.gaps if counts else 0)
            active.add_metric(labels, float(feed.active))
            ended.add_metric(labels, float(counts.ended) if counts else 0.0)
            rate.add_metric(labels, feed.rate)
            if counts is not None and counts.last_update_ns:
                age.add_metric(labels, max(0.0, (sample.now_ns - counts.last_update_ns) / 1e9))
        yield from (records, gaps, active, ended, rate, age, health, reconnects, silent, breaker, latency, standby)

    def _group_families(self) -> Iterator[Any]:
        standbys = GaugeMetricFamily(
            "marketdata_group_standbys", "Feeds of the redundancy group that could take over now", labels=["group"]
        )
        switches = GaugeMetricFamily(
            "marketdata_group_switches", "Switches of the group since its process was started", labels=["group"]
        )
        for name, group in self._sample.groups.items():
            standbys.add_metric([name], len(standing_by(group)))
            switches.add_metric([name], group.switches)
        yield from (standbys, switches)

    def _hops(self) -> Iterator[Any]:
        hop = HistogramMetricFamily(
            "marketdata_hop_latency_seconds",
            "Latency of one hop: " + "; ".join(f"{name} {text}" for name, text in _HOP_HELP.items()),
            labels=["hop", "process"],
        )
        for process in self._sample.processes:
            for name in HOPS:
                if name in process.histograms:
                    _add(hop, [name, process.label], process.histograms[name])
        yield hop


class TierCounts(NamedTuple):
    """What one tier has done for GET /data (engine/tiers.py counts it)."""

    hits: int
    misses: int
    down: int

    @property
    def hit_ratio(self) -> float:
        """Share of hits; 1 while there was nothing to miss."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 1.0


def tier_counts(sample: Sample) -> dict[str, TierCounts]:
    """Counts of L1, and of the tiers below it as far as they were needed."""
    control = sample.process("control")
    counters = control.counters if control is not None else {}
    found = {
        level: TierCounts(*(counters.get(f"tier.{level}.{what}", 0) for what in TierCounts._fields)) for level in TIERS
    }
    return {level: counts for level, counts in found.items() if level == "L1" or any(counts)}


def render(collector: SampleCollector, accept: str) -> tuple[bytes, str]:
    """(body, content type) as the Accept header asks for it: OpenMetrics if named, else the text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    if "application/openmetrics-text" in accept:
        return generate_openmetrics(registry), CONTENT_TYPE_OPENMETRICS  # type: ignore[no-untyped-call]  # has no types
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family


def _metric(name: str) -> str:
    """A metric's name from a counter's: `records_published` -> `marketdata_process_records_published`."""
    return f"marketdata_process_{_NOT_IN_NAMES.sub('_', name.lower()).removesuffix('_total')}"


def _add(family: HistogramMetricFamily, labels: list[str], view: HistogramView) -> None:
    counts = view.cumulative(BUCKETS_NS)
    buckets = [(f"{edge / 1e9:.9g}", float(count)) for edge, count in zip(BUCKETS_NS, counts, strict=True)]
    family.add_metric(labels, [*buckets, ("+Inf", float(view.count))], sum_value=view.sum_ns / 1e9)
