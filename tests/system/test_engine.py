"""The engine as a whole, with real processes and signals: it starts, survives kills, stops, leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import zmq

from shm.layout import RecordType, StatusCode, empty
from shm.ring import RingReader, ring_info
from shm.segment import list_segments, segment_exists, segment_name
from tests.system.engine_process import ROOT, EngineProcess, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def engine(engine_name: str, tmp_path: Path) -> Iterator[EngineProcess]:
    """A simulating engine that is ready."""
    with EngineProcess(engine_name, tmp_path, "--simulate") as started:
        yield started.wait_ready()


def published(engine: EngineProcess) -> int:
    """Newest sequence of the first ingest ring."""
    return ring_info(engine.name, 2).published


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_start_prints_a_line_per_process_and_the_urls_and_publishes(engine: EngineProcess) -> None:
    lines = engine.output.splitlines()
    for label in ("ingest-0", "fanout-0", "cache", "recorder", "gateway", "historian", "webhooks", "control"):
        assert any(line.split()[:2] == [label, "pid"] for line in lines), engine.output
    ready = next(line for line in lines if line.startswith("ready"))
    assert engine.url("") in ready
    assert f"tcp://127.0.0.1:{engine.base + 1}" in ready
    wait_for("records in the ring", lambda: published(engine) > 0)


@pytest.mark.parametrize("label", ["ingest-0", "fanout-0", "cache", "recorder", "gateway", "historian", "webhooks"])
def test_killed_worker_comes_back_and_the_others_keep_their_pid(engine: EngineProcess, label: str) -> None:
    before = engine.pids()
    os.kill(before[label], signal.SIGKILL)
    after = wait_for("a new process", lambda: (now := engine.pids()).get(label, before[label]) != before[label] and now)
    assert {key: pid for key, pid in after.items() if key != label} == {
        key: pid for key, pid in before.items() if key != label
    }
    told = next(p for p in engine.json("/processes")["processes"] if p["label"] == label)
    assert told["restarts"] == 1
    assert told["last_end"] == "killed by SIGKILL"
    seen = published(engine)
    wait_for("records after the restart", lambda: published(engine) > seen)


def test_worker_that_can_not_be_spawned_for_a_while_comes_back(engine: EngineProcess) -> None:
    before = engine.pids()["cache"]
    control = psutil.Process(engine.process.pid)
    limits = control.rlimit(psutil.RLIMIT_NOFILE)
    control.rlimit(psutil.RLIMIT_NOFILE, (3, limits[1]))  # what is open stays open; there are no pipes to be had
    os.kill(before, signal.SIGKILL)
    wait_for("a start that fails", lambda: "no process could be started" in engine.output)
    control.rlimit(psutil.RLIMIT_NOFILE, limits)
    wait_for("a new process", lambda: engine.pids().get("cache", before) != before)
    assert engine.stop() == 0


def test_silent_worker_is_killed_and_started_again(engine: EngineProcess) -> None:
    before = engine.pids()["cache"]
    os.kill(before, signal.SIGSTOP)
    after = wait_for("a new process", lambda: engine.pids().get("cache", before) != before and engine.pids()["cache"])
    assert not alive(before)
    assert alive(after)
    assert "silent" in engine.output


def test_a_restart_is_told_in_ring_0(engine: EngineProcess) -> None:
    with RingReader.attach(engine.name, 0) as reader:
        os.kill(engine.pids()["ingest-0"], signal.SIGKILL)
        out = empty(16)
        codes: list[int] = []

        def told() -> bool:
            count = reader.read(out)
            assert all(out["record_type"][:count] == RecordType.STATUS)
            codes.extend(out["code"][:count].tolist())
            return len(codes) >= 2

        wait_for("down and up", told)
        assert codes[:2] == [StatusCode.FEED_DOWN, StatusCode.FEED_UP]


def test_health_names_the_worker_that_was_restarted(engine: EngineProcess) -> None:
    wait_for("healthy", lambda: engine.json("/health")["status"] == "healthy")
    os.kill(engine.pids()["fanout-0"], signal.SIGKILL)

    def why() -> str:
        checks = {check["name"]: check for check in engine.json("/health")["checks"]}
        check = checks["process:fanout-0"]
        return check["why"] if check["status"] != "healthy" else ""

    assert "killed by SIGKILL" in wait_for("a check that says why", why)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_it_with_status_0_and_nothing_is_left(engine: EngineProcess, number: signal.Signals) -> None:
    workers = engine.workers()
    assert len(workers) == 7
    assert engine.stop(number) == 0
    assert not [worker for worker in workers if alive(worker.pid)]
    assert list_segments(engine.name) == []
    assert "killing" not in engine.output


@pytest.mark.parametrize("at_step", ["ring 0", "status", "ready"])
def test_a_signal_at_any_step_of_the_start_leaves_nothing_behind(
    engine_name: str, tmp_path: Path, at_step: str
) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        reached = {
            "ring 0": lambda: segment_exists(segment_name(engine_name, "r0")),
            "status": lambda: segment_exists(segment_name(engine_name, "stat")),
            "ready": lambda: "ready" in engine.output,
        }[at_step]
        wait_for(at_step, reached)
        workers = engine.workers()
        assert engine.stop() == 0, engine.output
        wait_for("the end of all workers", lambda: not any(alive(worker.pid) for worker in workers))
    assert list_segments(engine_name) == []


def test_no_orphan_after_control_is_killed(engine: EngineProcess) -> None:
    pids = [worker.pid for worker in engine.workers()]
    engine.process.kill()
    engine.process.wait()
    wait_for("the end of all workers", lambda: not any(alive(pid) for pid in pids))


def test_a_hanging_worker_does_not_outlive_control_either(engine: EngineProcess) -> None:
    pids = [worker.pid for worker in engine.workers()]
    os.kill(engine.pids()["cache"], signal.SIGSTOP)
    engine.process.kill()
    engine.process.wait()
    wait_for("the end of all workers", lambda: not any(alive(pid) for pid in pids))


def test_next_engine_goes_on_with_the_rings_of_a_crashed_one(engine: EngineProcess, tmp_path: Path) -> None:
    wait_for("some records", lambda: published(engine) > 100)
    with RingReader.attach(engine.name, 2, label="outsider") as outsider:
        engine.process.kill()
        engine.process.wait()
        last = published(engine)
        out = empty(4096)
        while outsider.read(out):
            pass
        with EngineProcess(engine.name, tmp_path, "--simulate", base=engine.base) as second:
            second.wait_ready()
            wait_for("new records in the same ring", lambda: outsider.read(out) > 0)
            assert out["sequence"][0] >= last
            assert outsider.gap is None
            assert second.stop() == 0
    assert list_segments(engine.name) == []


def test_second_engine_of_the_same_name_is_refused(engine: EngineProcess, tmp_path: Path) -> None:
    with EngineProcess(engine.name, tmp_path, "--simulate") as second:
        assert second.process.wait(timeout=60) == 6
        assert f"an engine named {engine.name!r} is running already" in second.output
    seen = published(engine)
    wait_for("the first one goes on", lambda: published(engine) > seen)


def test_engines_of_two_names_run_side_by_side(engine: EngineProcess, tmp_path: Path) -> None:
    with EngineProcess(f"{engine.name}-b", tmp_path, "--simulate") as second:
        second.wait_ready()
        assert set(engine.pids().values()).isdisjoint(second.pids().values())
        assert second.json("/health")["engine"] == f"{engine.name}-b"
        assert second.stop() == 0
    assert engine.json("/health")["engine"] == engine.name
    assert segment_exists(segment_name(engine.name, "r2"))


@pytest.mark.parametrize("offset", [0, 1, 31])
def test_busy_port_ends_the_start_with_status_4(engine: EngineProcess, offset: int) -> None:
    name = f"{engine.name}-p"
    if offset:
        options = ("--http-port", str(engine.base + 5), "--zmq-port", str(engine.base))
    else:
        options = ("--http-port", str(engine.base), "--zmq-port", str(engine.base + 40))
    code = [sys.executable, "-m", "tools", "run", "--name", name, "--simulate", *options]
    ended = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 4, ended.stderr
    assert "taken by another process" in ended.stderr
    assert list_segments(name) == []


def test_unusable_configuration_ends_with_status_2_and_the_nearest_name(tmp_path: Path) -> None:
    path = tmp_path / "engine.toml"
    path.write_text("[rings]\ndepth_slot = 1024\n")
    command = [sys.executable, "-m", "tools", "run", "--config", str(path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert str(path) in ended.stderr
    assert "'depth_slots'" in ended.stderr


def test_bad_feed_options_end_the_start_with_a_reason(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.toml"
    path.write_text('[[feeds]]\nname = "x"\nsource = "simulated"\noptions = { rat = 5 }\n')
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        assert engine.process.wait(timeout=60) == 2
        assert "'rat'" in engine.output
    assert list_segments(engine_name) == []


def test_the_idle_engine_says_that_nothing_will_come(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "idle.toml"
    path.write_text("[engine]\n")
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        answer = engine.json("/health")
        assert answer["status"] == "degraded"
        assert "no feed is configured" in " ".join(check["why"] for check in answer["checks"])
        # ingest-0 takes feeds that are added over HTTP
        assert set(engine.pids()) == {
            "control",
            "cache",
            "recorder",
            "fanout-0",
            "gateway",
            "historian",
            "webhooks",
            "ingest-0",
        }
        assert engine.stop() == 0


def test_a_replay_that_is_done_ends_the_engine_if_asked_to(engine_name: str, tmp_path: Path, samples: Path) -> None:
    pytest.importorskip("databento_dbn")
    capture = next((samples / "dbn" / "es-futures").glob("*trades*"))
    options = ("--replay", str(capture), "--speed", "max", "--exit-when-done")
    with EngineProcess(engine_name, tmp_path, *options) as engine:
        assert engine.process.wait(timeout=60) == 0, engine.output
        assert "every replay has ended" in engine.output
    assert list_segments(engine_name) == []


def test_a_replay_that_is_done_keeps_being_served(engine_name: str, tmp_path: Path, samples: Path) -> None:
    pytest.importorskip("databento_dbn")
    capture = next((samples / "dbn" / "es-futures").glob("*trades*"))
    with EngineProcess(engine_name, tmp_path, "--replay", str(capture), "--speed", "max") as engine:
        engine.wait_ready()
        wait_for("the end", lambda: engine.json("/feeds")["feeds"][0]["state"] == "ended")
        answer = engine.json("/health")
        assert answer["status"] == "healthy"
        assert "ended" in " ".join(check["why"] for check in answer["checks"])
        assert (
            sum(
                engine.json(f"/data/{name}?data_type=trade&limit=1000")["count"]
                for name in engine.json("/symbols")["symbols"]
            )
            == 120
        )
        assert engine.stop() == 0


def test_a_replay_of_a_missing_file_ends_with_status_2(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--replay", str(tmp_path / "nothing.dbn")) as engine:
        assert engine.process.wait(timeout=60) == 2
        assert "nothing.dbn does not exist" in engine.output


def test_a_worker_that_dies_again_and_again_is_unhealthy_still_tried_and_forgiven(
    engine_name: str, tmp_path: Path
) -> None:
    path = tmp_path / "engine.toml"
    path.write_text(
        "[supervisor]\nstable_after_s = 3\nfailed_after = 4\nbackoff_cap_s = 0.5\n[simulate]\nenabled = true\n"
    )
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        others = {label: pid for label, pid in engine.pids().items() if label != "cache"}
        killed: set[int] = set()

        def kill_the_next() -> bool:
            pid = engine.pids().get("cache", 0)
            if pid and pid not in killed:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
            return len(killed) == 4

        wait_for("four kills", kill_the_next)
        status, _, body = wait_for("unhealthy", lambda: (a := engine.get("/health"))[0] == 503 and a)
        assert status == 503
        assert b"fails again and again" in body
        wait_for("healthy again", lambda: engine.json("/health")["status"] == "healthy")
        assert {label: pid for label, pid in engine.pids().items() if label != "cache"} == others


def test_records_that_take_too_long_raise_an_alert_in_ring_0(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.toml"
    path.write_text("[health]\nlatency_alert_ms = 0.0001\n[simulate]\nenabled = true\n")
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        out = empty(64)
        with RingReader.attach(engine_name, 0, start="oldest") as reader:

            def alerted() -> bool:
                count = reader.read(out)
                return StatusCode.LATENCY_ALERT in out["code"][:count].tolist()

            wait_for("an alert", alerted)
        checks = {check["name"]: check for check in engine.json("/health")["checks"]}
        assert checks["latency"]["status"] == "degraded"


def test_a_second_ctrl_c_ends_it_at_once_with_status_130(engine: EngineProcess) -> None:
    workers = engine.workers()
    os.kill(engine.pids()["ingest-0"], signal.SIGSTOP)  # will not stop by itself: the orderly stop has to wait for it
    engine.process.send_signal(signal.SIGINT)
    wait_for("the stop", lambda: "stopping (Ctrl-C)" in engine.output)
    assert engine.stop(signal.SIGINT) == 130
    wait_for("the end of all workers", lambda: not any(alive(worker.pid) for worker in workers))
    assert list_segments(engine.name) == []


def test_two_shards_share_the_instruments_on_ports_of_their_own(engine_name: str, tmp_path: Path) -> None:
    path = tmp_path / "engine.toml"
    path.write_text("[workers]\nfanout = 2\n[simulate]\nenabled = true\n")
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        assert {"fanout-0", "fanout-1"} <= set(engine.pids())
        topics: list[set[bytes]] = []
        context = zmq.Context()
        for shard in range(2):
            with context.socket(zmq.SUB) as subscriber:
                subscriber.subscribe(b"marketdata.quote.")
                subscriber.connect(f"tcp://127.0.0.1:{engine.base + 1 + shard}")
                assert subscriber.poll(30_000)
                seen: set[bytes] = set()
                while len(seen) < 20:
                    assert subscriber.poll(30_000)
                    seen.add(subscriber.recv_multipart()[0])
                topics.append(seen)
        context.term()
        assert topics[0].isdisjoint(topics[1])
        assert engine.stop() == 0
