"""Health is never good because nothing happened, and it always says why it is not good."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from engine.health import Check, Expected, FeedExpected, FeedWatch, Health, Limits, Verdict, feed_state, judge
from engine.sample import FeedCounts, Sample
from shm import _status
from shm.histogram import HistogramView
from shm.ring import ReaderInfo
from shm.status import ProcessState, ProcessView, RingEntry
from workers.spec import GroupMember, GroupReport

LIMITS = Limits(heartbeat_timeout_s=1.0, stale_factor=5.0, stale_floor_s=2.0, first_data_s=10.0, latency_alert_ms=100.0)
FEED = FeedExpected(feed_id=1, name="ticks", label="ingest-0")
RUNNING = Expected(label="ingest-0", phase="running", failed=False, restarts=0, last_end="", recent=False)
START_NS = 1_700_000_000_000_000_000


def view(latency_ns: int = 0, count: int = 0) -> HistogramView:
    """A histogram of `count` equal durations."""
    counts = np.zeros(_status.BUCKETS, dtype=np.uint64)
    counts[_status.bucket_of(latency_ns)] = count
    return HistogramView(counts, latency_ns * count, latency_ns, latency_ns)


def process(
    now_s: float, *, state: ProcessState = ProcessState.READY, silent_s: float = 0.0, **extra: object
) -> ProcessView:
    """The ingest worker's slot."""
    fields: dict[str, object] = {
        "label": "ingest-0",
        "role": "ingest",
        "pid": 100,
        "alive": True,
        "state": state,
        "heartbeat_ns": START_NS + int((now_s - silent_s) * 1e9),
        "started_ns": START_NS,
        "restarts": 0,
        "core": -1,
        "placement": "core 1",
        "counters": {},
        "gauges": {},
        "histograms": {},
    }
    return ProcessView(**{**fields, **extra})  # type: ignore[arg-type]


def sample(
    now_s: float,
    records: int = 0,
    *,
    ended: bool = False,
    down: bool = False,
    processes: tuple[ProcessView, ...] | None = None,
    lost: int = 0,
) -> Sample:
    """The engine at `now_s` seconds after its start."""
    counts = FeedCounts(
        label="ingest-0", records=records, errors=0, gaps=0, last_update_ns=0, ended=ended, down=down, paused=False
    )
    reader = ReaderInfo(
        index=0,
        label="ingest-0",
        pid=100,
        cursor=1,
        lag=0,
        lost=lost,
        overruns_polling=0,
        overruns_reading=0,
        reads=0,
        reliable=False,
        demoted=False,
        alive=True,
        attached_ns=0,
    )
    return Sample(
        now_ns=START_NS + int(now_s * 1e9),
        monotonic_s=now_s,
        processes=(process(now_s),) if processes is None else processes,
        rings={},
        entries={2: RingEntry("ingest-0", "ingest")},
        readers={2: (reader,)},
        feeds={1: counts},
        symbols=1,
    )


def verdict(now: Sample, watch: FeedWatch, before: Sample | None = None, worker: Expected = RUNNING) -> Health:
    """The judgement of one worker and one feed."""
    return judge(now, before or now, workers=(worker,), feeds=(FEED,), watch=watch, limits=LIMITS)


def why(health: Health, name: str) -> str:
    """Reason of one check."""
    return next(check.why for check in health.checks if check.name == name)


def watched(*points: tuple[float, int]) -> FeedWatch:
    """A watch that has seen the feed's total at some times."""
    watch = FeedWatch()
    for now_s, records in points:
        watch.observe(sample(now_s, records), (FEED,))
    return watch


def test_a_feed_that_delivers_is_healthy() -> None:
    watch = watched((0, 0), (1, 10), (2, 20), (3, 30))
    health = verdict(sample(3, 30), watch)
    assert health.verdict is Verdict.HEALTHY
    assert health.active_feeds == 1


def grouped(*members: GroupMember, **report: object) -> Check:
    """The judgement of a group."""
    told = GroupReport(group="g", members=members, **report)  # type: ignore[arg-type]
    now = dataclasses.replace(sample(3, 30), groups={"g": told})
    health = judge(now, now, workers=(RUNNING,), feeds=(FEED,), watch=watched((0, 0), (1, 30)), limits=LIMITS)
    return next(check for check in health.checks if check.name == "group:g")


def test_a_group_is_healthy_while_one_publishes_and_another_could() -> None:
    active = GroupMember(feed_id=1, role="active", condition="ready")
    ready = GroupMember(feed_id=2, role="standby", condition="ready")
    out = GroupMember(feed_id=3, role="standby", condition="out", why="no answer")
    check = grouped(active, ready, out, switches=2, last_switch="silent for 0.30 s")
    assert check.verdict is Verdict.HEALTHY
    assert check.why == (
        "ticks publishes; standing by: feed 2 (ready), feed 3 (out: no answer); 2 switches, the last: silent for 0.30 s"
    )
    assert grouped(active, out).verdict is Verdict.DEGRADED
    assert "no standby that could take over" in grouped(active, out).why
    assert "no feed of it delivers" in grouped(GroupMember(feed_id=1, role="active", condition="out"), out).why
    assert grouped(ready).why == "no feed of it delivers: nobody publishes"
    elsewhere = GroupMember(feed_id=1, role="active", condition="ready", without=("A", "B", "C", "D"))
    check = grouped(elsewhere, ready, held_back=True)
    assert check.verdict is Verdict.DEGRADED
    assert "on A, B, C and more it is silent, others publish; the way back waits" in check.why


def test_a_feed_that_goes_silent_is_degraded_though_its_process_runs() -> None:
    watch = watched((0, 0), (1, 10), (2, 20), (3, 30))
    health = verdict(sample(9, 30), watch)
    assert health.verdict is Verdict.DEGRADED
    assert health.active_feeds == 0
    assert "silent for 6.0 s" in why(health, "feed:ticks")


def test_a_slow_feed_is_judged_by_its_own_cadence() -> None:
    watch = watched((0, 0), (1, 1), (31, 2), (61, 3))
    assert verdict(sample(100, 3), watch).verdict is Verdict.HEALTHY
    assert verdict(sample(61 + 5 * 30 + 1, 3), watch).verdict is Verdict.DEGRADED


def test_one_long_pause_is_forgotten_with_time() -> None:
    points = [(float(s), s + 1) for s in range(3)] + [(60.0, 60)] + [(60.0 + s, 60 + s) for s in range(1, 1200)]
    watch = watched((0, 0), *points)
    last_s, last = points[-1]
    assert watch.allowed_s(1, LIMITS) < 60
    assert verdict(sample(last_s + 60, last), watch).verdict is Verdict.DEGRADED


def test_a_feed_that_never_delivers_is_degraded_after_its_time() -> None:
    watch = watched((0, 0), (1, 0))
    assert verdict(sample(5, 0), watch).verdict is Verdict.HEALTHY
    late = verdict(sample(11, 0), watch)
    assert late.verdict is Verdict.DEGRADED
    assert "not delivered a single record" in why(late, "feed:ticks")


def test_no_feed_at_all_is_not_healthy() -> None:
    now = sample(1)
    health = judge(now, now, workers=(RUNNING,), feeds=(), watch=FeedWatch(), limits=LIMITS)
    assert health.verdict is Verdict.DEGRADED
    assert "no feed" in why(health, "feeds")


def test_a_replay_that_has_ended_is_no_fault_but_is_said() -> None:
    watch = FeedWatch()
    for now in (sample(0, 0), sample(1, 100), sample(2, 100, ended=True)):
        watch.observe(now, (FEED,))
    health = verdict(sample(500, 100, ended=True), watch)
    assert health.verdict is Verdict.HEALTHY
    assert "ended" in why(health, "feed:ticks")
    assert health.active_feeds == 0


def test_a_source_that_can_not_be_had_is_degraded() -> None:
    watch = FeedWatch()
    watch.observe(sample(0, 0, down=True), (FEED,))
    assert feed_state(sample(1, 0, down=True), FEED, watch, LIMITS) == "down"
    assert verdict(sample(1, 0, down=True), watch).verdict is Verdict.DEGRADED


@pytest.mark.parametrize(
    ("worker", "expected", "words"),
    [
        (
            Expected("ingest-0", "waiting", False, 2, "killed by SIGKILL", True),
            Verdict.DEGRADED,
            "waiting, last: killed by SIGKILL",
        ),
        (Expected("ingest-0", "waiting", True, 9, "exit 1 (failed)", True), Verdict.UNHEALTHY, "again and again"),
        (Expected("ingest-0", "running", False, 1, "killed by SIGKILL", True), Verdict.DEGRADED, "a moment ago"),
        (Expected("ingest-0", "running", False, 1, "killed by SIGKILL", False), Verdict.HEALTHY, "1 restart"),
    ],
)
def test_a_process_is_judged_by_its_life(worker: Expected, expected: Verdict, words: str) -> None:
    health = verdict(sample(3, 30), watched((0, 0), (2, 20), (3, 30)), worker=worker)
    check = next(check for check in health.checks if check.name == "process:ingest-0")
    assert check.verdict is expected
    assert words in check.why


def test_a_silent_process_is_degraded_though_it_says_ready() -> None:
    now = sample(5, 50, processes=(process(5, silent_s=1.5),))
    health = verdict(now, watched((0, 0), (4, 40), (5, 50)))
    assert health.verdict is Verdict.DEGRADED
    assert "silent for 1.5 s" in why(health, "process:ingest-0")


def test_a_recorder_that_can_not_write_is_degraded_and_says_so() -> None:
    now = sample(5, 50, processes=(process(5, gauges={"journal_stalled": 1.0}),))
    health = verdict(now, watched((0, 0), (4, 40), (5, 50)))
    assert health.verdict is Verdict.DEGRADED
    assert "keeps its position" in why(health, "process:ingest-0")


def mirror(now_s: float, *, lost: int = 0, **gauges: float) -> tuple[ProcessView, ...]:
    """The slot of a mirror, in the place of the ingest worker's."""
    return (process(now_s, role="mirror", gauges=gauges, counters={"records_lost": lost}),)


@pytest.mark.parametrize(
    ("lost", "gauges", "words"),
    [
        (
            0,
            {"store_down": 1.0, "lag_records": 70.0, "lag_seconds": 3.0},
            "can't be had (see the log); 70 records, 3 s",
        ),
        (0, {"lag_records": 9e6, "lag_seconds": 61.0}, "9000000 records, 61 s, behind the journal"),
        (5, {"lag_seconds": 1.0}, "5 records had gone from the journal"),
    ],
)
def test_a_database_that_is_down_slow_or_was_too_late_is_degraded(
    lost: int, gauges: dict[str, float], words: str
) -> None:
    watch = watched((0, 0), (4, 40), (5, 50))
    before = sample(0, processes=mirror(0))
    health = verdict(sample(5, 50, processes=mirror(5, lost=lost, **gauges)), watch, before=before)
    assert health.verdict is Verdict.DEGRADED
    assert words in why(health, "process:ingest-0")
    fine = sample(5, 50, processes=mirror(5, lost=lost, lag_records=1e6, lag_seconds=59.0))
    later = verdict(fine, watch, before=sample(0, processes=mirror(0, lost=lost)))
    assert later.verdict is Verdict.HEALTHY


def test_stored_records_are_those_of_the_journal_and_without_a_recorder_those_of_l1() -> None:
    cache = process(5, label="cache", role="cache", counters={"records_applied": 7})
    recorder = process(5, label="recorder", role="recorder", counters={"records_stored": 5})
    assert sample(5, processes=(cache,)).stored == 7
    assert sample(5, processes=(cache, recorder)).stored == 5


def test_losses_of_our_own_readers_degrade_until_the_window_has_passed_them() -> None:
    watch = watched((0, 0), (4, 40), (5, 50))
    health = verdict(sample(5, 50, lost=7), watch, before=sample(0, lost=0))
    assert health.verdict is Verdict.DEGRADED
    assert "lost 7 records" in why(health, "ring:2")
    assert verdict(sample(5, 50, lost=7), watch, before=sample(0, lost=7)).verdict is Verdict.HEALTHY


def test_latency_above_the_alert_degrades() -> None:
    watch = watched((0, 0), (4, 40), (5, 50))
    slow = sample(5, 50, processes=(process(5, histograms={"ring_latency": view(250_000_000, 1000)}),))
    health = verdict(slow, watch, before=sample(0))
    assert health.verdict is Verdict.DEGRADED
    assert "above 100" in why(health, "latency")


def test_a_stopping_engine_is_unhealthy() -> None:
    now = sample(3, 30)
    watch = watched((0, 0), (3, 30))
    health = judge(now, now, workers=(RUNNING,), feeds=(FEED,), watch=watch, limits=LIMITS, stopping=True)
    assert health.verdict is Verdict.UNHEALTHY


def test_an_overloaded_fan_out_is_degraded_and_says_how_much_it_left_out() -> None:
    def fanout(now_s: float, overload: float, conflated: int) -> ProcessView:
        counters = {"records_conflated": conflated, "records_shed": 3}
        return process(now_s, gauges={"overload": overload}, counters=counters)

    watch = watched((0, 0), (1, 10), (2, 20), (3, 30))
    before = sample(1, 10, processes=(fanout(1, 0.0, 5),))
    health = verdict(sample(3, 30, processes=(fanout(3, 1.0, 105),)), watch, before)
    assert health.verdict is Verdict.DEGRADED
    assert "100 records conflated and 0 shed" in why(health, "process:ingest-0")
    assert verdict(sample(3, 30, processes=(fanout(3, 0.0, 105),)), watch, before).verdict is Verdict.HEALTHY
