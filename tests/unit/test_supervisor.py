"""The pure half of supervision: lives of workers, back-off, the plan of processes, lines of their output."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from engine.config import load
from engine.errors import ConfigError
from engine.feed_settings import FeedSection
from engine.folders import runtime_dir
from engine.lifecycle import TRANSITIONS, Action, Event, Life, Limits, Phase, backoff_s
from engine.plan import make_plan
from engine.process import LINES_PER_SECOND, MAX_LINE_BYTES, LineBuffer, worker_environment
from engine.supervisor import end_in_words
from workers.source import read_options
from workers.sources.replay import ReplayOptions
from workers.spec import (
    MODULES,
    FanoutSettings,
    FeedSpec,
    GatewaySettings,
    HistorianSettings,
    IngestSettings,
    RecorderSettings,
    decode,
    encode,
)

LIMITS = Limits(heartbeat_timeout_s=1.0, startup_grace_s=15.0, backoff_cap_s=5.0, stable_after_s=10.0, failed_after=5)
TURN_S = 0.2


def running(now_s: float = 0.0) -> Life:
    """A worker that has said ready."""
    life = Life(LIMITS, lambda: 0.5, now_s)
    life.spawned(now_s, heartbeat=7)
    assert life.turn(now_s + 0.1, TURN_S, 8, ready=True) is Action.NOTHING
    assert life.phase is Phase.RUNNING
    return life


def test_first_restart_is_immediate_then_delays_double_up_to_the_cap() -> None:
    delays = [backoff_s(failures, 5.0, lambda: 0.999999) for failures in range(1, 12)]
    assert delays[0] == 0.0
    assert delays[1] == pytest.approx(0.1, rel=1e-3)
    for earlier, later in pairwise(delays[1:]):
        assert later == pytest.approx(min(2 * earlier, 5.0), rel=1e-3)
    assert delays[-1] == pytest.approx(5.0, rel=1e-3)


def test_delays_are_jittered_over_the_upper_half() -> None:
    assert backoff_s(4, 5.0, lambda: 0.0) == pytest.approx(0.2)
    assert backoff_s(4, 5.0, lambda: 0.5) == pytest.approx(0.3)
    assert backoff_s(10_000, 5.0, lambda: 0.0) == pytest.approx(2.5)


def test_a_crash_is_answered_with_a_spawn_at_once() -> None:
    life = running()
    assert life.exited(20.0) is Action.SPAWN
    assert (life.phase, life.restarts, life.failures) == (Phase.WAITING, 1, 1)


def test_a_process_is_asked_for_once_however_late_it_is_started() -> None:
    life = running()
    assert life.exited(20.0) is Action.SPAWN
    for now_s in (20.0, 20.2, 25.0):  # a second process would never be watched, nor ended
        assert life.turn(now_s, TURN_S, 8, ready=False) is Action.NOTHING
    life.spawned(25.0)
    assert life.exited(25.1) is Action.NOTHING
    assert life.turn(25.1 + 5.0, TURN_S, 8, ready=False) is Action.SPAWN
    assert life.turn(25.1 + 5.2, TURN_S, 8, ready=False) is Action.NOTHING


def test_a_crash_loop_waits_and_shows_as_failed_but_goes_on() -> None:
    life = Life(LIMITS, lambda: 0.0, 0.0)
    now_s = 0.0
    action = Action.NOTHING
    for failure in range(1, 9):
        assert Action.SPAWN in (action, life.turn(now_s, TURN_S, 0, ready=False))
        life.spawned(now_s)
        action = life.exited(now_s)
        assert (action is Action.SPAWN) == (failure == 1)
        assert life.failed == (failure >= LIMITS.failed_after)
        if life.due_s > now_s:
            assert life.turn(life.due_s - 0.01, TURN_S, 0, ready=False) is Action.NOTHING
        now_s = max(life.due_s, now_s)
    assert life.turn(now_s, TURN_S, 0, ready=False) is Action.SPAWN


def test_earlier_failures_are_forgotten_after_a_stable_time() -> None:
    life = running()
    life.exited(1.0)
    life.spawned(1.0)
    life.turn(1.1, TURN_S, 1, ready=True)
    assert life.failures == 1
    life.turn(11.2, TURN_S, 2, ready=True)
    assert life.failures == 0
    assert not life.failed


def test_silence_longer_than_the_timeout_is_a_kill_and_a_beat_resets_it() -> None:
    life = running()
    now_s, beats = 0.1, 8
    for _ in range(20):
        now_s += TURN_S
        beats += 1
        assert life.turn(now_s, TURN_S, beats, ready=True) is Action.NOTHING
    silent_since_s = now_s
    while life.turn(now_s, TURN_S, beats, ready=True) is Action.NOTHING:
        now_s += TURN_S
    assert LIMITS.heartbeat_timeout_s <= now_s - silent_since_s + 1e-9 <= LIMITS.heartbeat_timeout_s + TURN_S + 1e-6


def test_nobody_is_killed_for_a_pause_that_the_supervisor_slept_through() -> None:
    life = running()
    assert life.turn(3600.0, TURN_S, 8, ready=True) is Action.NOTHING
    assert life.silent_s < 0.5


def test_a_heartbeat_that_jumps_back_with_the_clock_is_a_heartbeat() -> None:
    life = running()
    for step in range(20):
        assert life.turn(0.1 + TURN_S * (step + 1), TURN_S, 1_000_000 - step, ready=True) is Action.NOTHING


def test_a_starting_worker_has_the_grace_and_no_longer() -> None:
    life = Life(LIMITS, lambda: 0.5, 0.0)
    life.spawned(0.0)
    assert life.turn(14.9, TURN_S, 0, ready=False) is Action.NOTHING
    assert life.turn(15.1, TURN_S, 0, ready=False) is Action.KILL


def test_a_stopped_worker_is_never_started_again() -> None:
    life = running()
    life.stop()
    assert life.phase is Phase.STOPPING
    assert life.turn(5.0, TURN_S, 8, ready=True) is Action.NOTHING
    assert life.exited(5.1) is Action.NOTHING
    assert life.phase is Phase.STOPPED
    assert life.turn(99.0, TURN_S, 8, ready=True) is Action.NOTHING


def test_every_phase_leads_to_stopped() -> None:
    for phase in Phase:
        reached = {phase}
        for _ in Phase:
            reached |= {target for (source, _), target in TRANSITIONS.items() if source in reached}
        assert Phase.STOPPED in reached
    assert not [key for key in TRANSITIONS if key[0] is Phase.STOPPED]
    assert {event for _, event in TRANSITIONS} == set(Event)


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "killed by SIGKILL"), (3, "exit 3 (shared memory)"), (2, "exit 2 (settings)"), (7, "exit 7 (failed)")],
)
def test_an_end_is_told_in_words(code: int, words: str) -> None:
    assert end_in_words(code) == words


def test_the_plan_gives_each_worker_its_ring_and_consumers_all_rings(tmp_path: Path) -> None:
    config = load(
        None,
        {},
        {"workers.ingest": 3, "workers.fanout": 2, "replay.files": ["a.dbn", "b.dbn"], "simulate.enabled": True},
    )
    config = msgspec.structs.replace(config, feeds=(FeedSection(name="f", source="simulated"),))
    plan = make_plan(config, tmp_path)
    assert [worker.label for worker in plan.workers] == [
        "cache",
        "recorder",
        "fanout-0",
        "fanout-1",
        "gateway",
        "historian",
        "webhooks",
        "ingest-0",
        "ingest-1",
        "ingest-2",
    ]
    assert [(ring.ring_id, ring.label) for ring in plan.rings] == [
        (0, "control"),
        (1, "cache"),
        (2, "ingest-0"),
        (3, "ingest-1"),
        (4, "ingest-2"),
    ]
    shards = [worker.settings for worker in plan.workers if isinstance(worker.settings, FanoutSettings)]
    assert [(shard.shard, shard.shards, shard.rings) for shard in shards] == [
        (0, 2, (0, 1, 2, 3, 4)),
        (1, 2, (0, 1, 2, 3, 4)),
    ]
    assert plan.endpoints["raw"] == ("tcp://127.0.0.1:8801", "tcp://127.0.0.1:8802")
    gateway = next(worker.settings for worker in plan.workers if isinstance(worker.settings, GatewaySettings))
    assert (gateway.port, gateway.rings, plan.ws_url) == (8600, (0, 1, 2, 3, 4), "ws://127.0.0.1:8600/ws/stream")
    hosted = [feed.feed_id for w in plan.workers if isinstance(w.settings, IngestSettings) for feed in w.settings.feeds]
    assert sorted(hosted) == [1, 2, 3]
    replay = next(feed for feed in plan.feeds if feed.source == "replay")
    assert [Path(file).name for file in replay.options["files"]] == ["a.dbn", "b.dbn"]
    for worker in plan.workers:
        assert worker.role in MODULES
        assert decode(encode(worker.settings), type(worker.settings)) == worker.settings


@pytest.mark.parametrize("merge", [True, False])
def test_the_replay_section_says_whether_files_are_merged(tmp_path: Path, merge: bool) -> None:
    plan = make_plan(load(None, {}, {"replay.files": ["a.dbn", "b.dbn"], "replay.merge": merge}), tmp_path)
    (feed,) = plan.feeds
    assert read_options(feed, ReplayOptions).merge is merge
    assert read_options(make_plan(load(None, {}, {"replay.files": ["a"]}), tmp_path).feeds[0], ReplayOptions).merge


def test_feeds_of_one_group_go_to_one_worker(tmp_path: Path) -> None:
    config = load(None, {}, {"workers.ingest": 3, "simulate.enabled": False})
    sections = [("a", "g"), ("b", ""), ("c", ""), ("d", "h"), ("e", "g"), ("f", "h"), ("i", "")]
    feeds = tuple(FeedSection(name=name, source="simulated", group=group, rank=2) for name, group in sections)
    added = (FeedSpec(feed_id=1001, name="x", source="simulated", added=True, group="h"),)
    plan = make_plan(msgspec.structs.replace(config, feeds=feeds), tmp_path, added)
    hosted = [
        [feed.name for feed in worker.settings.feeds]
        for worker in plan.workers
        if isinstance(worker.settings, IngestSettings)
    ]
    assert hosted == [["a", "e", "d", "f", "x"], ["b", "i"], ["c"]]
    assert {(feed.group, feed.rank) for feed in plan.feeds if feed.name in "af"} == {("g", 2), ("h", 2)}


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ((FeedSection(name="r", source="replay", group="g"),), r"\[\[feeds\]\] r: group: a replay can't be"),
        (
            tuple(FeedSection(name=f"f{number}", source="simulated", group="g") for number in range(9)),
            r"\[\[feeds\]\] f8: group 'g' has more than 8 feeds",
        ),
    ],
)
def test_a_group_that_can_not_be_is_refused(feeds: tuple[FeedSection, ...], words: str, tmp_path: Path) -> None:
    config = msgspec.structs.replace(load(None, {}), feeds=feeds)
    with pytest.raises(ConfigError, match=words):
        make_plan(config, tmp_path)


def test_readers_hold_the_writers_back_only_for_replays_at_full_speed(tmp_path: Path) -> None:
    for speed, reliable in (("max", True), ("10", False)):
        plan = make_plan(load(None, {}, {"replay.files": ["a.dbn"], "replay.speed": speed}), tmp_path)
        readers = [worker.settings for worker in plan.workers if worker.role in ("cache", "fanout")]
        assert {getattr(settings, "reliable", None) for settings in readers} == {reliable}


def test_a_worker_without_a_feed_is_not_started(tmp_path: Path) -> None:
    plan = make_plan(load(None, {}, {"workers.ingest": 5}), tmp_path)
    assert [worker.label for worker in plan.workers if worker.role == "ingest"] == ["ingest-0"]


def test_the_recorder_reads_every_ring_into_a_folder_of_the_engines_own(tmp_path: Path) -> None:
    keys = {
        "engine.data_dir": str(tmp_path),
        "engine.name": "x",
        "storage.retention_hours": 3.0,
        "storage.max_journal": "1MiB",
    }
    plan = make_plan(load(None, {}, keys), tmp_path)
    (settings,) = [worker.settings for worker in plan.workers if isinstance(worker.settings, RecorderSettings)]
    assert settings.rings == tuple(ring.ring_id for ring in plan.rings)
    assert (settings.folder, settings.retention_hours, settings.max_journal_bytes) == (f"{tmp_path}/x", 3.0, 1 << 20)
    assert (settings.placement.policy, settings.reliable) == ("none", False)
    without = make_plan(load(None, {}, {"storage.enabled": False}), tmp_path)
    assert not {"recorder", "historian"} & {worker.label for worker in without.workers}
    assert without.archive_endpoint == ""
    (historian,) = [worker.settings for worker in plan.workers if isinstance(worker.settings, HistorianSettings)]
    assert (historian.folder, historian.endpoint) == (settings.folder, plan.archive_endpoint)
    at_once = make_plan(load(None, {}, {"replay.files": ["a.dbn"], "replay.speed": "max"}), tmp_path)
    assert all(worker.settings.reliable for worker in at_once.workers if isinstance(worker.settings, RecorderSettings))


def test_placement_ranks_ingest_first_and_explicit_cores_go_before_the_policy(tmp_path: Path) -> None:
    config = load(None, {}, {"placement.cores": {"cache": 3}, "placement.max_cores": 1})
    plans = {worker.label: worker.settings.placement for worker in make_plan(config, tmp_path).workers}
    assert (plans["ingest-0"].policy, plans["ingest-0"].rank, plans["ingest-0"].workers) == ("auto", 0, 1)
    assert plans["fanout-0"].policy == plans["gateway"].policy == "none"
    assert (plans["cache"].policy, plans["cache"].core) == ("core", 3)
    with pytest.raises(ConfigError, match="no worker is labelled 'ingest-9'"):
        make_plan(load(None, {}, {"placement.cores": {"ingest-9": 3}}), tmp_path)


def test_sockets_go_to_the_runtime_directory_of_systemd_then_of_the_user() -> None:
    env = {"RUNTIME_DIRECTORY": "/run/tickengine:/run/other", "XDG_RUNTIME_DIR": "/run/user/1"}
    assert runtime_dir(env, "main") == Path("/run/tickengine/main")
    assert runtime_dir({"XDG_RUNTIME_DIR": "/run/user/1"}, "main") == Path("/run/user/1/tickengine/main")


def test_workers_get_no_secrets_and_no_line_to_systemd() -> None:
    env = {"TICKENGINE_HTTP_TOKEN": "x", "NOTIFY_SOCKET": "/n", "WATCHDOG_USEC": "1", "HOME": "/h"}
    chosen = worker_environment(env, 2)
    assert chosen["HOME"] == "/h"
    assert chosen["OMP_NUM_THREADS"] == chosen["OPENBLAS_NUM_THREADS"] == "2"
    assert not {"TICKENGINE_HTTP_TOKEN", "NOTIFY_SOCKET", "WATCHDOG_USEC"} & set(chosen)


def test_workers_get_the_keys_of_data_vendors_from_credentials(tmp_path: Path) -> None:
    (tmp_path / "fred_api_key").write_text("from the credential\n")
    (tmp_path / "alpha_vantage_api_key").write_text("not this one")
    (tmp_path / "http_token").write_text("secret")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "ALPHA_VANTAGE_API_KEY": "from the environment"}
    chosen = worker_environment(env, 2)
    assert chosen["FRED_API_KEY"] == "from the credential"
    assert chosen["ALPHA_VANTAGE_API_KEY"] == "from the environment"
    assert not {"CREDENTIALS_DIRECTORY", "HTTP_TOKEN"} & set(chosen)


def test_credentials_of_fix_feeds_reach_the_workers_and_no_others_do(tmp_path: Path) -> None:
    (tmp_path / "fix_prime_password").write_text("secret\n")
    (tmp_path / "http_token").write_text("other")
    env = {"CREDENTIALS_DIRECTORY": str(tmp_path), "TICKENGINE_FIX_PRIME_USERNAME": "me"}
    chosen = worker_environment(env, 1)
    assert chosen["TICKENGINE_FIX_PRIME_PASSWORD"] == "secret"
    assert chosen["TICKENGINE_FIX_PRIME_USERNAME"] == "me"
    assert "CREDENTIALS_DIRECTORY" not in chosen
    assert "other" not in chosen.values()
    (tmp_path / "fix_prime_password").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="credential fix_prime_password: not text"):
        worker_environment(env, 1)


def test_lines_come_whole_however_the_output_is_cut() -> None:
    text = "one\ntwo äöü\nlast without end".encode()
    for size in (1, 2, 3, 7, len(text)):
        lines: list[str] = []
        buffer = LineBuffer(lines.append)
        for at in range(0, len(text), size):
            buffer.feed(1, text[at : at + size], 0.0)
        buffer.flush()
        assert lines == ["one", "two äöü", "last without end"]


def test_output_is_bounded_in_length_and_in_lines_a_second_and_says_so() -> None:
    lines: list[str] = []
    buffer = LineBuffer(lines.append)
    buffer.feed(1, b"x" * (MAX_LINE_BYTES * 3), 10.0)
    assert max(len(line) for line in lines) <= MAX_LINE_BYTES
    buffer.feed(1, b"y\n" * (LINES_PER_SECOND * 2), 10.5)
    assert len(lines) <= LINES_PER_SECOND
    buffer.feed(1, b"z\n", 12.0)
    assert "lines left out" in lines[-2]
    assert lines[-1] == "z"
