"""The command line as people use it: real commands in processes of their own, on real engines and captured files."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from shm.segment import list_segments
from tests.system.engine_process import DEADLINE_S, ROOT, EngineProcess, wait_for

pytestmark = pytest.mark.slow

MBP = "dbn/es-futures/futures_mbp-1_2024-07-01T23-58_2024-07-02T00-02.dbn.zst"
BINANCE = "websocket/spot_btcusdt_20240808.gz"
TRADES = "dbn/es-futures/futures_trades_2024-07-01T23-58_2024-07-02T00-02.dbn.zst"


def start(*words: str) -> subprocess.Popen[str]:
    """`tickengine WORDS`, running."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def cli(*words: str) -> subprocess.CompletedProcess[str]:
    """`tickengine WORDS`, to its end."""
    process = start(*words)
    try:
        out, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    return subprocess.CompletedProcess(words, process.returncode, out, err)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """A simulating engine for the commands that only look."""
    with EngineProcess(f"cli{os.getpid()}", tmp_path_factory.mktemp("cli"), "--simulate") as engine:
        engine.wait_ready()
        yield engine
        assert engine.stop() == 0


# ---- run ------------------------------------------------------------------------------------------------------------


def test_ctrl_c_stops_the_engine_and_nothing_is_left(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        for label, pid in engine.pids().items():
            assert re.search(rf"^  {label} +pid {pid} ", engine.output, re.MULTILINE), engine.output
        workers = engine.workers()
        assert list_segments(engine_name)
        assert engine.stop(signal.SIGINT) == 0
        assert list_segments(engine_name) == []
        assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
        assert "stopping (Ctrl-C)" in engine.output


def test_two_engines_run_side_by_side(shared: EngineProcess, engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as other:
        other.wait_ready()
        assert cli("tail", "--count", "1", "--name", engine_name).returncode == 0
        assert other.stop() == 0
    assert cli("tail", "--count", "1", "--name", shared.name).returncode == 0
    assert list_segments(engine_name) == []


# ---- top, tail ------------------------------------------------------------------------------------------------------


def test_top_once_shows_every_process_feed_and_ring(shared: EngineProcess) -> None:
    shown = cli("top", "--once", "--interval", "0.2", "--name", shared.name)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    first = [line.split()[0] for line in shown.stdout.splitlines() if line.split()]
    for word in ("control", "cache", "fanout-0", "ingest-0", "simulated", "r0", "r1", "r2"):
        assert word in first, shown.stdout
    assert shared.url("") in shown.stdout
    assert "\x1b" not in shown.stdout


def test_live_top_draws_and_ends_by_q(shared: EngineProcess) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "tools", "top", "--interval", "0.1", "--name", shared.name],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "160", "LINES": "50"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""

    def hear() -> None:
        nonlocal seen
        if select.select([ours], [], [], 0)[0]:
            seen += os.read(ours, 65536)

    try:
        wait_for("a frame", lambda: hear() or b"fanout-0" in seen)
        os.write(ours, b"q")
        # What it still draws must be read, or it would wait for us.
        wait_for("its end", lambda: process.poll() is not None or hear())
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize("way", [[], ["--zmq"]], ids=["rings", "zmq"])
def test_tail_prints_as_many_json_records_as_asked_for(shared: EngineProcess, way: list[str]) -> None:
    shown = cli("tail", "trade.AAPL", "quote.MSFT", "--count", "5", "--json", "--name", shared.name, *way)
    assert shown.returncode == 0, shown.stderr
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(records) == 5
    assert {(record["data_type"], record["symbol"]) for record in records} <= {("trade", "AAPL"), ("quote", "MSFT")}
    assert all(record["source"] == "mock" and record["data"] for record in records)


def test_tail_prints_lines_from_the_oldest_on(shared: EngineProcess) -> None:
    shown = cli("tail", "tick", "--from", "oldest", "--count", "3", "--name", shared.name)
    lines = [line for line in shown.stdout.splitlines() if not line.startswith("--")]
    assert len(lines) == 3
    assert all(line.split()[2] == "tick" for line in lines)


def test_tail_ends_with_its_reader(shared: EngineProcess) -> None:
    with start("tail", "--name", shared.name) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 0


def test_tail_ends_by_ctrl_c(shared: EngineProcess) -> None:
    with start("tail", "--json", "--name", shared.name) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == 130
        assert "Traceback" not in err


@pytest.mark.parametrize("command", [["tail"], ["tail", "--zmq"], ["top", "--once"]])
def test_without_such_an_engine_is_status_3_and_one_line(command: list[str], engine_name: str) -> None:
    shown = cli(*command, "--name", engine_name)
    assert shown.returncode == 3
    assert len(shown.stderr.splitlines()) == 1
    assert engine_name in shown.stderr


def test_tail_refuses_a_pattern_that_can_match_nothing() -> None:
    shown = cli("tail", "quotes.AAPL")
    assert shown.returncode == 2
    assert "quotes" in shown.stderr


# ---- shm ------------------------------------------------------------------------------------------------------------


def test_shm_sees_a_living_engine_and_does_not_clean_it(shared: EngineProcess) -> None:
    rows = json.loads(cli("shm", "ls", shared.name, "--json").stdout)
    assert {row["name"] for row in rows} == set(list_segments(shared.name))
    assert any(row["alive"] for row in rows)
    kept = cli("shm", "clean", shared.name)
    assert kept.returncode == 1
    assert "alive" in kept.stdout
    assert set(list_segments(shared.name)) == {row["name"] for row in rows}


def test_shm_tells_of_a_killed_engine_and_cleans_it_up(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        wait_for("records", lambda: cli("shm", "inspect", f"{engine_name}.r2").stdout.count("r2:") == 5)
        workers = engine.workers()
        engine.process.kill()
        engine.process.wait()
        for worker in workers:
            worker.kill()
        psutil.wait_procs(workers, timeout=DEADLINE_S)
        left = set(list_segments(engine_name))
        assert left
        listed = cli("shm", "ls", engine_name)
        assert "dead" in listed.stdout
        inspected = cli("shm", "inspect", engine_name)
        assert inspected.returncode == 0, inspected.stdout
        assert re.search(r"r2:\d+ ", inspected.stdout), "the last records can be read after the crash"
        assert "ingest-0: ingest, pid" in inspected.stdout
        assert cli("shm", "clean", engine_name, "--dry-run").returncode == 0
        assert set(list_segments(engine_name)) == left
        cleaned = cli("shm", "clean", engine_name)
        assert cleaned.returncode == 0, cleaned.stderr
        assert list_segments(engine_name) == []


# ---- replay-info ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (TRADES, {"records": {"trade": 120}, "first": "2024-07-01T23:58:01.218218853Z"}),
        (TRADES, {"last": "2024-07-02T00:01:52.813445903Z", "symbols": ["ESU4"]}),
        (MBP, {"messages": {"mbp-1": 2288}, "records": {"quote": 2288, "trade": 120}}),
        ("dbn/es-futures/futures_ohlcv-1m_2024-07-01T23-40_2024-07-02T00-10.dbn.zst", {"records": {"bar": 60}}),
        ("itch/bekele-first1000-start-of-day.itch", {"messages": {"S": 1, "R": 993, "H": 3, "Y": 3}}),
        (
            "iex/TOPS16.pcapng.gz",
            {
                "frames": 13022,
                "heartbeats": 237,
                "gaps": 0,
                "messages": {
                    "Q": 27217, "T": 6390, "H": 7803, "O": 7801, "P": 7802, "A": 642, "D": 10, "S": 6, "B": 3
                },
            },
        ),
        (BINANCE, {"frames": 41249, "gaps": 0}),
    ],
)  # fmt: skip
def test_replay_info_counts_what_independent_parsers_counted(
    samples: Path, file: str, expected: dict[str, object]
) -> None:
    shown = cli("replay-info", str(samples / file), "--json")
    assert shown.returncode == 0, shown.stderr
    (info,) = json.loads(shown.stdout)
    assert {key: info[key] for key in expected} == expected


def test_replay_info_says_for_people_what_is_in_a_file(samples: Path) -> None:
    shown = cli("replay-info", str(samples / MBP), str(samples / TRADES))
    assert shown.returncode == 0
    assert "2,408: quote 2,288, trade 120" in shown.stdout
    assert "120: trade 120" in shown.stdout


def test_replay_info_of_damaged_and_unknown_files_is_status_1(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes((samples / BINANCE).read_bytes()[:600_000])
    (tmp_path / "text").write_text("hello")
    shown = cli("replay-info", *(str(tmp_path / name) for name in ("cut.gz", "text", "none")), "--json")
    assert shown.returncode == 1
    cut, text, none = json.loads(shown.stdout)
    assert "ends inside the compressed stream" in cut["error"]
    assert cut["records"], "what came before the damage is still counted"
    assert "no known capture" in text["error"]
    assert "No such file" in none["error"]
    assert cli("replay-info", str(samples / TRADES), "--date", "yesterday").returncode == 2


def test_replay_info_sees_that_a_zstd_file_is_cut_short(samples: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.dbn.zst").write_bytes((samples / MBP).read_bytes()[:20_000])
    assert cli("replay-info", str(tmp_path / "cut.dbn.zst")).returncode == 1


# ---- config, doctor, bench, options ---------------------------------------------------------------------------------


def test_config_prints_a_file_that_it_accepts(tmp_path: Path) -> None:
    file = tmp_path / "engine.toml"
    file.write_text(cli("config").stdout)
    assert cli("config", "--config", str(file), "--check").returncode == 0
    file.write_text("[engine]\nnmae = 'x'\n")
    refused = cli("config", "--config", str(file), "--check")
    assert refused.returncode == 2
    assert "name" in refused.stderr


def test_doctor_judges_every_line_and_its_status_follows() -> None:
    checks = json.loads((shown := cli("doctor", "--json")).stdout)
    assert {check["verdict"] for check in checks} <= {"ok", "warn", "fail"}
    assert all(bool(check["change"]) == (check["verdict"] != "ok") for check in checks)
    assert shown.returncode == int(any(check["verdict"] == "fail" for check in checks))
    text = cli("doctor").stdout
    assert all(check["name"] in text for check in checks)


def test_bench_hands_its_options_to_perf() -> None:
    refused = cli("bench", "--only", "publish_single", "--runs", "0", "--quick")
    assert refused.returncode == 2
    assert "--runs is 0" in refused.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["run", "--simulte"], "did you mean '--simulate'?"),
        (["top", "--onc"], "'--once'"),
        (["tail", "--jso"], "'--json'"),
        (["shm", "ls", "--js"], "--js"),
        (["frobnicate"], "frobnicate"),
    ],
)
def test_unknown_or_shortened_option_is_refused(words: list[str], says: str) -> None:
    refused = cli(*words)
    assert refused.returncode == 2
    assert says in refused.stderr


@pytest.mark.parametrize("command", ["run", "top", "tail", "replay-info", "shm", "doctor", "bench", "config"])
def test_every_command_has_help(command: str) -> None:
    shown = cli(command, "--help")
    assert shown.returncode == 0
    assert f"tickengine {command}" in shown.stdout
    assert command in cli("--help").stdout
