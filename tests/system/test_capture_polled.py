"""Captures of polled feeds as people make them: `tickengine capture`, [capture] of an engine that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, concatenate, empty
from shm.ring import RingReader
from tests.ports import free_port
from tests.system.engine_process import DEADLINE_S, ROOT, EngineProcess, wait_for
from tests.system.test_cli import cli
from tests.unit.test_websocket_source import of
from tests.vendor_server import Reply, VendorServer, fred_body, fred_row, fred_rows, yahoo_chart
from workers.decoders.capture import open_capture
from workers.decoders.protocol import FramingError

pytestmark = pytest.mark.slow

KEY = "SECRETKEY4711"
_FIRST_RING = 2  # of ingest


def config(folder: Path, url: str, more: str = "") -> str:
    fast = f'url = "{url}", poll_s = 0.05, per_second = 0, per_minute = 0, session = "always"'
    path = folder / "engine.toml"
    path.write_text(
        f'[engine]\ndata_dir = "{folder}/data"\n'
        f'[[feeds]]\nname = "rates"\nsource = "fred"\nsymbols = ["FEDFUNDS"]\noptions = {{ {fast} }}\n'
        f'[[feeds]]\nname = "charts"\nsource = "yahoo"\nsymbols = ["AAPL"]\ndata_types = ["bar"]\n'
        f'options = {{ {fast}, interval = "1d", range = "5d" }}\n{more}'
    )
    return str(path)


def replayed(paths: list[Path]) -> np.ndarray:
    """The market records of these files, one behind the other; some are still being written."""
    names: dict[str, int] = {}
    found = [empty(0)]
    for path in paths:
        with open_capture(path, intern=lambda name: names.setdefault(name, len(names))) as capture:
            try:
                while count := capture.decode(out := empty(512)):
                    found.append(of(out, np.arange(512) < count))
            except FramingError:
                pass
    records = concatenate(found)
    return of(records, records["record_type"] != RecordType.STATUS)


def captured(folder: Path, name: str) -> list[Path]:
    return sorted(folder.glob(f"{name}-*.jsonl.zst"))


def unpacked(path: Path) -> bytes:
    import zstandard

    with path.open("rb") as file:
        data: bytes = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return data


def test_polled_feeds_of_a_configuration_are_captured_and_replay(
    samples: Path, engine_name: str, tmp_path: Path
) -> None:
    rows = fred_rows(samples)
    script = {
        "FEDFUNDS": [Reply(fred_body(rows[:700])), Reply(b"no JSON"), Reply(fred_body(rows))],
        "AAPL": [Reply(json.dumps(yahoo_chart(samples)).encode())],
    }
    out = tmp_path / "wire"
    with VendorServer(script) as vendor:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools", "capture", "--config", config(tmp_path, vendor.base), "--out", str(out)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "FRED_API_KEY": KEY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            wait_for("all rates", lambda: len(replayed(captured(out, "rates"))) == 790)
            wait_for("the chart", lambda: len(replayed(captured(out, "charts"))) == 1)
            process.send_signal(signal.SIGINT)
            said, errors = process.communicate(timeout=DEADLINE_S)
        finally:
            process.kill()
    assert process.returncode == 0, errors
    assert "0 dropped" in said
    assert KEY not in said + errors
    (rates,), (charts,) = captured(out, "rates"), captured(out, "charts")
    for path in (rates, charts):
        assert KEY.encode() not in unpacked(path)
    assert not (tmp_path / "data" / "main").exists()  # what an engine has published is its own affair
    assert list((tmp_path / "data" / ".budgets").glob("fred-*.budget"))
    found = replayed([rates])
    assert found["price"].tolist() == [float(row["value"]) for row in rows]
    info = json.loads(cli("replay-info", "--json", str(rates)).stdout)[0]
    assert info["records"] == {"tick": 790}
    assert info["format"].startswith("Fred answers over HTTP")
    options = ("--replay", str(rates), "--replay", str(charts), "--speed", "max", "--exit-when-done")
    with EngineProcess(engine_name, tmp_path, *options) as engine:
        assert engine.process.wait(timeout=DEADLINE_S) == 0
        assert "stopped after" in engine.output
    with EngineProcess(engine_name, tmp_path, "--replay", str(rates), "--faults", "drop=0.1") as engine:
        wait_for("the reason", lambda: "is of a polled feed, whose answers come whole or not at all" in engine.output)


def test_an_engine_whose_worker_is_killed_captures_what_it_published(
    samples: Path, engine_name: str, tmp_path: Path
) -> None:
    """The worker before and the one after have a capture each; together they have all that stands in the ring."""
    rows = fred_rows(samples)
    go_on = [fred_row("2020-05-01", "1.5", "2020-06-01")]
    script = {
        "FEDFUNDS": [Reply(fred_body(rows))],
        "AAPL": [Reply(json.dumps(yahoo_chart(samples)).encode())],
    }
    with VendorServer(script) as vendor:
        path = config(tmp_path, vendor.base, '[capture]\nfeeds = ["*"]\n')
        with EngineProcess(engine_name, tmp_path, "--config", path, env={"FRED_API_KEY": KEY}) as engine:
            engine.wait_ready()
            wire = tmp_path / "data" / engine_name / "wire"
            wait_for("all rates", lambda: len(replayed(captured(wire, "rates"))) == 790)
            before = engine.pids()["ingest-0"]
            os.kill(before, signal.SIGKILL)
            wait_for("a new process", lambda: engine.pids().get("ingest-0", before) != before)
            script["FEDFUNDS"].append(Reply(fred_body([*rows[:5], fred_row(rows[5]["date"], "99"), *rows[6:], *go_on])))
            wait_for("what is new", lambda: len(replayed(captured(wire, "rates"))) == 792)
            out = empty(1 << 12)
            with RingReader.attach(engine_name, _FIRST_RING, start=1, register=False) as reader:
                records = out[: reader.read(out)]
            assert engine.stop() == 0
    assert len(captured(wire, "rates")) == 2
    mine = of(records, (records["source"] == Source.FRED) & (records["record_type"] == RecordType.TICK))
    found = replayed(captured(wire, "rates"))
    assert len(found) == len(mine) == 792
    for name in ("ts_event", "ts_receive", "price", "source_sequence", "venue"):
        assert found[name].tolist() == mine[name].tolist(), name
    of_novelty = np.uint16(Flag.CORRECTED | Flag.BACKFILLED)
    assert (found["flags"] & of_novelty).tolist() == (mine["flags"] & of_novelty).tolist()
    assert all(KEY.encode() not in unpacked(path) for path in wire.iterdir())


def test_a_vendor_that_is_not_there_is_said_and_nothing_was_captured(tmp_path: Path) -> None:
    path = config(tmp_path, f"http://127.0.0.1:{free_port()}")
    done = cli("capture", "--config", path, "--feed", "charts", "--out", str(tmp_path / "wire"), "--for", "4s")
    assert done.returncode == 1
    assert "captured 0 messages" in done.stdout
    assert "tickengine capture: charts: Cannot connect to host 127.0.0.1" in done.stderr
    (file,) = captured(tmp_path / "wire", "charts")
    lines = [json.loads(line) for line in unpacked(file).splitlines()]
    assert [line["t"] for line in lines[:3]] == ["header", "ask", "http"]
    assert lines[2].get("status", 0) == 0
    assert "Cannot connect" in lines[2]["data"]
