"""The exposition and the rates are made of what the status block holds: real blocks, real parsers."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from engine import rates
from engine.exposition import BUCKETS_NS, FeedLabel, SampleCollector, render
from engine.sample import WINDOW_S, History, Sample, take_sample
from shm.layout import empty
from shm.ring import RingReader, RingWriter
from shm.status import ProcessState, ProcessStatus, StatusBlock


@pytest.fixture
def block(engine_name: str) -> Iterator[StatusBlock]:
    """A status block of a small engine: one worker, one ring."""
    made = StatusBlock.create(engine_name)
    made.set_ring(2, "ingest-0", "ingest")
    yield made
    made.close()


@pytest.fixture
def worker(block: StatusBlock) -> ProcessStatus:
    """The worker's slot, with a feed."""
    status = block.register("ingest-0", "ingest", os.getpid())
    status.state = ProcessState.READY
    status.counter("records_published").set(5)
    status.counter("feed.1.records").set(5)
    status.counter("feed.1.errors").set(2)
    return status


def look(engine: str, block: StatusBlock, at_s: float) -> Sample:
    """A sample as of `at_s`."""
    return take_sample(engine, block, (2,), symbols=3, now_ns=1_000_000_000, monotonic_s=at_s)


def exposed(sample: Sample, accept: str = "") -> tuple[dict[tuple[str, tuple[str, ...]], float], str, str]:
    """({(name, label values in order of the labels' names): value}, text, content type)."""
    feeds = {1: FeedLabel('a "quoted"\nfeed', "simulated", 2.5, True)}
    body, content_type = render(SampleCollector(sample, feeds, {"ingest-0": 4}, 12.5), accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    values = {(s.name, tuple(s.labels.values())): s.value for family in parse(body.decode()) for s in family.samples}
    return values, body.decode(), content_type


def test_counters_of_the_status_block_become_labelled_metrics(
    engine_name: str, block: StatusBlock, worker: ProcessStatus
) -> None:
    values, text, _ = exposed(look(engine_name, block, 1.0))
    assert worker.counter("records_published").value == 5
    assert values[("marketdata_process_records_published_total", ("ingest-0", "ingest"))] == 5
    assert values[("marketdata_process_restarts_total", ("ingest-0", "ingest"))] == 4
    assert values[("marketdata_process_up", ("ingest-0", "ingest"))] == 1
    assert values[("marketdata_feed_errors_total", ('a "quoted"\nfeed', "simulated"))] == 2
    assert values[("marketdata_ingestion_rate_per_second", ())] == 12.5
    assert "feed.1" not in text


def test_rings_and_readers_are_exposed_with_lag_and_losses(
    engine_name: str, block: StatusBlock, worker: ProcessStatus
) -> None:
    assert worker.pid == os.getpid()
    with RingWriter.create(engine_name, 2, depth_slots=1024) as writer:
        with RingReader.attach(engine_name, 2, start="oldest", label="slow one"):
            writer.publish_batch(empty(100))
            values, _, _ = exposed(look(engine_name, block, 1.0))
        writer.unlink()
    assert values[("marketdata_ring_published_total", ("2", "ingest-0"))] == 100
    assert values[("marketdata_messages_processed_total", ())] == 100
    assert values[("marketdata_reader_lag_records", (str(os.getpid()), "slow one", "2"))] == 100


def test_histograms_are_cumulative_with_bounded_buckets(
    engine_name: str, block: StatusBlock, worker: ProcessStatus
) -> None:
    histogram = worker.histogram("ring_latency")
    for latency_ns in (300, 1500, 1500, 80_000, 3_000_000_000, 60_000_000_000):
        histogram.record(latency_ns)
    values, _, _ = exposed(look(engine_name, block, 1.0))
    name = "marketdata_processing_latency_seconds"
    buckets = [value for (metric, _), value in values.items() if metric == f"{name}_bucket"]
    assert len(buckets) == len(BUCKETS_NS) + 1
    assert buckets == sorted(buckets)
    assert values[(f"{name}_count", ())] == values[(f"{name}_bucket", ("+Inf",))] == 6
    assert values[(f"{name}_bucket", ("2e-06",))] == 3
    assert values[(f"{name}_sum", ())] == pytest.approx(63.0000833)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("application/openmetrics-text; version=1.0.0", "application/openmetrics-text"), ("text/plain", "text/plain")],
)
def test_both_formats_parse_and_hold_the_same(
    engine_name: str, block: StatusBlock, worker: ProcessStatus, accept: str, content_type: str
) -> None:
    worker.histogram("ring_latency").record(1000)
    values, text, got = exposed(look(engine_name, block, 1.0), accept)
    assert got.startswith(content_type)
    assert text.endswith("# EOF\n") == ("openmetrics" in accept)
    assert values[("marketdata_symbols_tracked", ())] == 3


def test_rates_are_means_over_the_window(engine_name: str, block: StatusBlock, worker: ProcessStatus) -> None:
    history = History()
    for second in range(30):
        worker.counter("feed.1.records").set(second * 100)
        history.add(look(engine_name, block, float(second)))
    worker.counter("feed.1.records").set(3000)
    assert len(history.samples) <= WINDOW_S + 2
    assert rates.feed_rate(history, look(engine_name, block, 30.0), 1) == pytest.approx(100.0)


def test_a_total_that_went_back_counts_from_zero(engine_name: str, block: StatusBlock, worker: ProcessStatus) -> None:
    history = History()
    worker.counter("feed.1.records").set(1000)
    history.add(look(engine_name, block, 0.0))
    worker.counter("feed.1.records").set(50)
    assert rates.feed_rate(history, look(engine_name, block, 1.0), 1) == pytest.approx(50.0)


def test_latencies_are_those_of_the_window_in_milliseconds(
    engine_name: str, block: StatusBlock, worker: ProcessStatus
) -> None:
    history = History()
    worker.histogram("ring_latency").record(9_000_000_000)
    history.add(look(engine_name, block, 0.0))
    for _ in range(100):
        worker.histogram("ring_latency").record(2_000_000)
    now = look(engine_name, block, 1.0)
    stats = rates.latency_ms(rates.window(history, now, "ring_latency"))
    assert stats["p50"] == pytest.approx(2.0, rel=0.04)
    assert stats["max"] < 10.0
    assert rates.latency_ms(rates.window(history, now, "send_latency"))["p99"] == 0.0
