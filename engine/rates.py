"""The numbers of GET /metrics, as the interface document names them, and the rates that the page shows.

Pure: made from samples (engine/sample.py). Rates are means over the window of the history, latencies those of the
window too, in milliseconds; totals count from the start of the engine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from engine.sample import History, Sample
from shm.histogram import HistogramView

_CONTAINER_MARKS: Final = (Path("/.dockerenv"), Path("/run/.containerenv"))
_CONTAINER_VARIABLE: Final = "container"  # set by podman, systemd-nspawn and others, in lower case


def latency_ms(view: HistogramView) -> dict[str, float]:
    """min, max, avg, p50, p95, p99 in milliseconds; all 0 where nothing was measured."""
    return {
        "min": view.min / 1e6,
        "max": view.max / 1e6,
        "avg": view.mean / 1e6,
        "p50": view.percentile(50) / 1e6,
        "p95": view.percentile(95) / 1e6,
        "p99": view.percentile(99) / 1e6,
    }


def window(history: History, current: Sample, name: str, role: str | None = None) -> HistogramView:
    """What a histogram recorded within the window, over all processes (of a role)."""
    before = history.oldest
    view = current.histogram(name, role)
    return view if before is None else view - before.histogram(name, role)


def end_to_end(history: History, current: Sample) -> HistogramView:
    """The longest hop that was measured: publish to sent; without subscribers, publish to read."""
    sent = window(history, current, "send_latency")
    return sent if sent.count else window(history, current, "ring_latency")


def messages_rate(history: History, current: Sample) -> float:
    """Records published per second."""
    before = history.oldest
    return history.rate(current, current.published, before.published if before else 0)


def stored_rate(history: History, current: Sample) -> float:
    """Records applied to L1 per second."""
    before = history.oldest
    return history.rate(current, current.total("records_applied"), before.total("records_applied") if before else 0)


def process_rates(history: History, current: Sample, label: str) -> dict[str, float]:
    """Per second, the counters of one process that tell of its work."""
    process, oldest = current.process(label), history.oldest
    before = oldest.process(label) if oldest is not None else None
    if process is None:
        return {}
    earlier = before.counters if before is not None else {}
    names = ("records_published", "records_read", "records_sent", "messages_sent", "records_applied", "bytes_sent")
    return {
        name: history.rate(current, process.counters[name], earlier.get(name, 0))
        for name in names
        if name in process.counters
    }


def feed_rate(history: History, current: Sample, feed_id: int) -> float:
    """Records per second of one feed."""
    oldest = history.oldest
    now = current.feeds.get(feed_id)
    before = oldest.feeds.get(feed_id) if oldest is not None else None
    return history.rate(current, now.records if now else 0, before.records if before else 0)


def containerized() -> bool:
    """Whether this process runs in a container, as far as one can tell."""
    return any(mark.exists() for mark in _CONTAINER_MARKS) or bool(os.environ.get(_CONTAINER_VARIABLE))
