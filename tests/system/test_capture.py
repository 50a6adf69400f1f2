"""`tickengine capture` and [capture] as people use them: real processes, a local venue, kills, and replays of it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shm.layout import RecordType, empty
from shm.ring import RingReader
from tests.replayed_trades import drain, make
from tests.replayed_trades import trades as write_trades
from tests.system.engine_process import DEADLINE_S, ROOT, EngineProcess, wait_for
from tests.system.test_cli import cli, start
from tests.system.test_live_feeds import trades
from tests.unit.test_websocket_source import of
from tests.venue_server import Act, VenueServer, always_ready, binance_answer
from workers.decoders.capture import open_capture
from workers.decoders.protocol import FramingError

pytestmark = pytest.mark.slow


def config(folder: Path, url: str, more: str = "") -> str:
    path = folder / "engine.toml"
    path.write_text(
        f'[[feeds]]\nname = "binance"\nsource = "websocket"\nsymbols = ["BTCUSDT"]\ndata_types = ["trade"]\n'
        f'options = {{ venue = "binance", url = "{url}?token=s3cret" }}\n'
        f'[[feeds]]\nname = "sim"\nsource = "simulated"\nenabled = false\n{more}'
    )
    return str(path)


def trade_ids(*paths: Path) -> list[int]:
    names: dict[str, int] = {}
    found: list[int] = []
    for path in paths:
        with open_capture(path, intern=lambda name: names.setdefault(name, len(names))) as capture:
            try:
                while count := capture.decode(out := empty(512)):
                    found += out["trade_id"][:count][out["record_type"][:count] == RecordType.TRADE].tolist()
            except FramingError:
                pass
    return found


def venue_of(messages: list[bytes]) -> VenueServer:
    return VenueServer([Act(messages)], answer=binance_answer, ready=always_ready)


def captured(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl.zst"))


def test_ctrl_c_ends_a_capture_in_order_and_its_file_replays(samples: Path, engine_name: str, tmp_path: Path) -> None:
    messages = trades(samples)
    out = tmp_path / "wire"
    with venue_of(messages) as venue:
        process = start("capture", "--config", config(tmp_path, venue.url), "--out", str(out))
        wait_for("the last trade", lambda: captured(out) and len(trade_ids(*captured(out))) == len(messages))
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    (path,) = captured(out)
    ids = trade_ids(path)
    assert len(ids) == len(messages)
    assert "0 dropped" in said
    assert f"replay: tickengine run --replay {path}" in said
    assert "s3cret" not in said + errors
    info = json.loads(cli("replay-info", "--json", str(path)).stdout)[0]
    assert info["records"] == {"trade": len(messages)}
    with EngineProcess(engine_name, tmp_path, "--replay", str(path), "--speed", "max", "--exit-when-done") as engine:
        assert engine.process.wait(timeout=DEADLINE_S) == 0
        assert "stopped after" in engine.output


def test_a_capture_that_is_killed_leaves_whole_messages(samples: Path, tmp_path: Path) -> None:
    messages = trades(samples)
    out = tmp_path / "wire"
    with venue_of(messages) as venue:
        venue.pause_after = 700
        process = start("capture", "--config", config(tmp_path, venue.url), "--out", str(out))
        wait_for("some trades", lambda: captured(out) and len(trade_ids(*captured(out))) >= 700)
        venue.go_on.set()
        process.kill()
        process.communicate(timeout=DEADLINE_S)
    ids = trade_ids(*captured(out))
    assert len(ids) >= 700
    assert ids == list(range(ids[0], ids[0] + len(ids)))


def test_a_capture_without_a_file_ends_after_its_time_and_says_that_nothing_came(tmp_path: Path) -> None:
    options = ("--source", "websocket", "--option", "venue=binance", "--option", "url=ws://127.0.0.1:1/")
    done = cli("capture", "BTCUSDT", *options, "--out", str(tmp_path / "wire"), "--for", "1s", "--json")
    assert done.returncode == 1, done.stderr
    answer = json.loads(done.stdout)
    assert (answer["messages"], answer["dropped"]) == (0, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "which feeds? --config FILE, or --source SOURCE"),
        (("--config", "CONFIG", "--feed", "binanc"), "--feed binanc: CONFIG has no such feed; did you mean 'binance'?"),
        (("--config", "CONFIG", "--feed", "sim"), "--feed sim: source 'simulated' has no wire"),
        (("--config", "/nowhere.toml"), "/nowhere.toml"),
        (("--source", "replay"), "--source replay: has no wire"),
        (("--source", "mine", "X"), "--source mine: can not be captured: only websocket, fix, multicast, yahoo, "),
        (("--source", "yahoo", "--types", "bar,tick", "AAPL"), "bar is polled; make a feed of each"),
        (("--source", "fred", "GDP", "--option", "key_variable=NONE_API_KEY"), "set NONE_API_KEY in the environment"),
        (("--source", "websocket", "--option", "venue=binanse"), "did you mean 'binance'?"),
        (("BTCUSDT",), "name its --source, too"),
        (("--config", "CONFIG", "--for", "soon"), "'soon': a time such as"),
        (("--config", "CONFIG", "--part-size", "1"), "'1': at least 4096 bytes"),
    ],
)
def test_what_can_not_be_captured_is_said_in_a_line(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    path = config(tmp_path, "ws://127.0.0.1:1/")
    done = cli("capture", *(word.replace("CONFIG", path) for word in words), "--out", str(tmp_path / "wire"))
    assert done.returncode == 2
    assert said.replace("CONFIG", path) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_whole_configuration_is_captured_but_for_what_can_not_be(samples: Path, tmp_path: Path) -> None:
    messages = trades(samples)
    out = tmp_path / "wire"
    more = '[[feeds]]\nname = "rates"\nsource = "mine"\nsymbols = ["DGS10"]\n'
    with venue_of(messages) as venue:
        process = start("capture", "--config", config(tmp_path, venue.url, more), "--out", str(out))
        wait_for("the last trade", lambda: captured(out) and len(trade_ids(*captured(out))) == len(messages))
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    assert "rates is left out: source 'mine' can not be captured: only websocket" in errors
    (path,) = captured(out)
    assert path.name.startswith("binance-")


def test_a_running_engine_captures_what_it_takes(samples: Path, engine_name: str, tmp_path: Path) -> None:
    messages = trades(samples)
    with venue_of(messages) as venue:
        path = config(tmp_path, venue.url, '[capture]\nfeeds = ["*"]\n')
        with EngineProcess(engine_name, tmp_path, "--config", path) as engine:
            engine.wait_ready()
            wire = tmp_path / "data" / engine_name / "wire"
            wait_for("the last trade", lambda: captured(wire) and len(trade_ids(*captured(wire))) == len(messages))

            def counted() -> bool:
                text = engine.get("/metrics/prometheus")[2].decode()
                found = [line for line in text.splitlines() if "capture_1_messages" in line and line[0] != "#"]
                return bool(found) and float(found[0].rpartition(" ")[2]) >= len(messages)

            wait_for("the counter", counted)
            assert engine.stop() == 0
    (file,) = captured(wire)
    assert len(trade_ids(file)) == len(messages)


def test_faults_on_the_command_line_are_done_counted_and_told(samples: Path, engine_name: str, tmp_path: Path) -> None:
    path = samples / "websocket/COINBASE.jsonl.zst"
    with EngineProcess(engine_name, tmp_path, "--replay", str(path), "--faults", "drop=0.1,seed=3") as engine:
        engine.wait_ready()
        dropped = "faults_1_dropped"

        def count() -> float:
            text = engine.get("/metrics/prometheus")[2].decode()
            found = [line for line in text.splitlines() if dropped in line and line[0] != "#"]
            return float(found[0].rpartition(" ")[2]) if found else 0.0

        wait_for("faults", count)
        assert engine.json("/feeds")["feeds"][0]["state"] != "ended"  # they are told while it goes on
        assert engine.stop() == 0
    options = ("--replay", str(path), "--speed", "max", "--faults", "drop=0.1,seed=3", "--exit-when-done")
    with EngineProcess(engine_name, tmp_path, *options) as engine:
        assert engine.process.wait(timeout=DEADLINE_S) == 0
        assert "faults on purpose:" in engine.output
        assert "dropped of 1,030 messages" in engine.output
    refused = cli("run", "--replay", str(path), "--faults", "dorp=0.1")
    assert refused.returncode == 2
    assert "--faults: 'dorp=0.1': expected NAME=VALUE" in refused.stderr


def test_a_killed_worker_goes_on_among_the_same_faults(engine_name: str, tmp_path: Path) -> None:
    path = write_trades(tmp_path, "day.txt", [step * 0.001 for step in range(4000)])
    faults = "drop=0.05,duplicate=0.05,delay=0.05,reorder=0.05,corrupt=0.05,seed=8"
    expected = drain(make(path, speed="max", faults=faults))
    wanted = [
        (int(row["trade_id"]), float(row["price"])) for row in of(expected, expected["record_type"] == RecordType.TRADE)
    ]
    with EngineProcess(engine_name, tmp_path, "--replay", path, "--faults", faults) as engine:
        engine.wait_ready()

        def feed() -> dict[str, Any]:
            found: dict[str, Any] = engine.json("/feeds")["feeds"][0]
            return found

        for share in (0.2, 0.5):
            wait_for("some records", lambda share=share: feed()["message_count"] > share * len(expected))
            before = engine.pids()["ingest-0"]
            os.kill(before, signal.SIGKILL)
            wait_for("a new process", lambda before=before: engine.pids().get("ingest-0", before) != before)
        wait_for("the end", lambda: feed()["state"] == "ended")
        out = empty(1 << 15)
        with RingReader.attach(engine_name, 2, start=1, register=False) as reader:
            records = out[: reader.read(out)]
        market = of(records, records["record_type"] == RecordType.TRADE)
        assert [(int(row["trade_id"]), float(row["price"])) for row in market] == wanted
        assert engine.stop() == 0


def test_the_terminal_shows_how_it_goes(samples: Path, tmp_path: Path) -> None:
    messages = trades(samples)
    with venue_of(messages) as venue:
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "tools", "capture", "--config", config(tmp_path, venue.url), "--out", str(tmp_path)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "TERM": "xterm", "NO_COLOR": "1"},
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        shown = b""

        def seen(*words: bytes) -> bool:
            nonlocal shown
            shown += os.read(master, 65536)
            return all(word in shown for word in words)

        wait_for("the table", lambda: seen(b"CONNECTION", b"binance", b"1001 ", b"Ctrl-C ends it"))
        process.send_signal(signal.SIGINT)
        wait_for("the result", lambda: seen(b"captured 1,001", b"0 dropped", b"replay: tickengine run --replay"))
        assert process.wait(timeout=DEADLINE_S) == 0
        os.close(master)
