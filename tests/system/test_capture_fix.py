"""`tickengine capture` and [capture] of a FIX feed: a venue that loses messages, kills, one session after another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from shm.layout import Flag, RecordType, Source, concatenate
from tests.fix_capture import replayed
from tests.fix_server import Act, FixServer, Out, trades
from tests.system.engine_process import DEADLINE_S, EngineProcess, wait_for
from tests.system.test_capture import captured, trade_ids
from tests.system.test_cli import cli, start
from tests.system.test_fix_feed import Ring
from tests.unit.test_websocket_source import of
from workers.decoders.protocol import FramingError, UnknownFormatError

pytestmark = pytest.mark.slow

PASSWORD = "s3cret-s3cret"


@pytest.fixture(autouse=True)
def _login(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_USERNAME", "somebody")
    monkeypatch.setenv("TICKENGINE_FIX_PRIME_PASSWORD", PASSWORD)


def configure(folder: Path, port: int, more: str = "") -> str:
    path = folder / "engine.toml"
    path.write_text(
        f'[engine]\ndata_dir = "{folder}/data"\n'
        '[[feeds]]\nname = "prime"\nsource = "fix"\nsymbols = ["EUR/USD"]\ndata_types = ["trade"]\n'
        f'options = {{ host = "127.0.0.1", port = {port}, sender = "US", target = "VENUE", login = "prime" }}\n{more}'
    )
    return str(path)


def with_holes(count: int, first: int = 1) -> list[Out]:
    return [Out(one.kind, one.body, lost=place % 50 == 20) for place, one in enumerate(trades("EUR/USD", count, first))]


def written(*paths: Path) -> list[int]:
    """Ids of the trades in files that are being written; one that has just begun may hold nothing yet."""
    try:
        return trade_ids(*paths)
    except (UnknownFormatError, FramingError):
        return []


def stop(process: subprocess.Popen[str]) -> tuple[str, str]:
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    return said, errors


def test_captures_go_on_with_the_session_and_replay(engine_name: str, tmp_path: Path) -> None:
    out = tmp_path / "wire"
    with FixServer([Act(with_holes(500)), Act(with_holes(300, 501))], target="US") as venue:
        path = configure(tmp_path, venue.port)
        for wanted in (500, 800):
            process = start("capture", "--config", path, "--out", str(out))
            wait_for("the last trade", lambda wanted=wanted: captured(out) and wanted in written(*captured(out)))
            said, errors = stop(process)
            assert "0 dropped" in said
            assert PASSWORD not in said + errors
        assert (venue.too_low, venue.connections) == ([], 2)
    first, second = captured(out)
    assert trade_ids(first) == list(range(1, 501))
    assert trade_ids(second) == list(range(501, 801))
    unpacked = b"".join(zstd(path) for path in (first, second))
    assert b"8=FIX.4.4" in unpacked
    for secret in (PASSWORD.encode(), b"somebody", b"554="):
        assert secret not in unpacked
    info = json.loads(cli("replay-info", "--json", str(first)).stdout)[0]
    assert info["format"] == "Venue FIX messages, jsonl capture (zstd)"
    assert (info["records"], info["malformed"]) == ({"trade": 500}, {})
    options = ("--replay", str(first), "--speed", "max", "--faults", "drop=0.1,seed=3", "--exit-when-done")
    with EngineProcess(engine_name, tmp_path, *options) as engine:
        assert engine.process.wait(timeout=DEADLINE_S) == 0
        assert "dropped of" in engine.output


def zstd(path: Path) -> bytes:
    import zstandard

    with path.open("rb") as file:
        data: bytes = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return data


def test_a_capture_that_is_killed_leaves_whole_messages_and_the_next_one_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "wire"
    with FixServer([Act(with_holes(1000)), Act(trades("EUR/USD", 100, 1001))], target="US") as venue:
        venue.pause_after = 700
        path = configure(tmp_path, venue.port)
        process = start("capture", "--config", path, "--out", str(out))
        wait_for("some trades", lambda: captured(out) and len(written(*captured(out))) >= 690)
        venue.go_on.set()
        process.kill()
        process.communicate(timeout=DEADLINE_S)
        (killed,) = captured(out)
        ids = trade_ids(killed)
        assert ids == list(range(1, len(ids) + 1))
        process = start("capture", "--config", path, "--out", str(out))
        wait_for("the last trade", lambda: 1100 in written(*captured(out)[1:]))
        stop(process)
        assert venue.too_low == []
        had = [int(value) for one in venue.sent.values() for tag, value in one.body if tag == 278]
    rest = trade_ids(captured(out)[1])
    assert rest == [number for number in had if number >= rest[0]]
    assert rest[0] > 600  # from where the killed one was sure to have come, and no sooner


def test_a_session_that_an_engine_has_is_not_taken_from_it(engine_name: str, tmp_path: Path) -> None:
    with FixServer([Act(trades("EUR/USD", 20))], target="US") as venue:
        path = configure(tmp_path, venue.port)
        with EngineProcess(engine_name, tmp_path, "--config", path) as engine:
            engine.wait_ready()
            wait_for("trades", lambda: engine.json("/feeds/prime")["message_count"] >= 20)
            named = configure(tmp_path, venue.port, "").replace("engine.toml", "same.toml")
            text = Path(path).read_text().replace("[engine]\n", f'[engine]\nname = "{engine_name}"\n')
            Path(named).write_text(text)
            done = cli("capture", "--config", named, "--out", str(tmp_path / "wire"), "--for", "1s")
            assert done.returncode == 1
            assert "another feed has this FIX session open" in done.stderr
            assert venue.connections == 1
            assert engine.stop() == 0


def test_an_engine_whose_worker_is_killed_captures_what_its_ring_has(engine_name: str, tmp_path: Path) -> None:
    """Each worker's capture gives what that worker had published, from its first record on."""
    with FixServer([Act(with_holes(1000)), Act(with_holes(500, 1001))], target="US") as venue:
        path = configure(tmp_path, venue.port, '[capture]\nfeeds = ["*"]\n')
        with EngineProcess(engine_name, tmp_path, "--config", path) as engine:
            engine.wait_ready()
            wire = tmp_path / "data" / engine_name / "wire"
            wait_for("a file", lambda: captured(wire) and 1000 in written(*captured(wire)))
            pid = engine.pids()["ingest-0"]
            os.kill(pid, signal.SIGKILL)
            wait_for("the next worker's file", lambda: len(captured(wire)) > 1 and 1500 in written(captured(wire)[1]))
            ring = Ring(engine_name)
            records = ring.read()
            ring.close()
            assert engine.stop() == 0
    market = of(records, records["record_type"] == RecordType.TRADE)
    assert market["trade_id"].tolist() == list(range(1, 1501))
    names = dict.fromkeys(["EUR/USD"], int(market["instrument_id"][0]))
    found = concatenate([replayed([path], names) for path in captured(wire)])
    replay = of(found, found["record_type"] == RecordType.TRADE)
    kept = np.uint16(Flag.BACKFILLED | Flag.GAP_BEFORE | Flag.SNAPSHOT)
    for name in ("ts_event", "ts_receive", "instrument_id", "source_sequence", "trade_id", "price", "size", "venue"):
        assert replay[name].tolist() == market[name].tolist(), name
    assert (replay["flags"] & kept).tolist() == (market["flags"] & kept).tolist()
    assert (replay["source"] == Source.REPLAY).all()
