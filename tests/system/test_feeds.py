"""Feeds of a running engine: added, changed, removed; they outlive a killed worker and a restart of the engine."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow

TSLA = {"symbol": "TSLA", "data_source": "mock", "data_types": ["trade", "quote"], "options": {"rate": 200}}


def one(engine: EngineProcess, feed_id: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.json(f"/feeds/{feed_id}")
    return found


def delivers(engine: EngineProcess, feed_id: str) -> None:
    """Wait for more records of a feed than it has now."""
    before = one(engine, feed_id)["message_count"]
    wait_for(f"records of {feed_id}", lambda: one(engine, feed_id)["message_count"] > before)


def test_a_feed_is_added_changed_paused_and_removed(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        status, answer = engine.send("POST", "/feeds", TSLA)
        assert (status, answer) == (
            201,
            {"status": "created", "feed_id": "feed_tsla_001", "symbol": "TSLA", "data_source": "mock"},
        )
        delivers(engine, "feed_tsla_001")
        wait_for("its data in L1", lambda: engine.get("/data/TSLA")[0] == 200 and engine.json("/data/TSLA")["count"])
        assert engine.json("/feeds")["count"] == 2

        again = {**TSLA, "data_types": ["quote", "trade"]}
        assert engine.send("POST", "/feeds", again) == (200, {**answer, "status": "exists"})
        assert engine.send("POST", "/feeds", {**TSLA, "options": {"rate": 100}})[1]["feed_id"] == "feed_tsla_002"

        status, answer = engine.send("PATCH", "/feeds/feed_tsla_001", {"paused": True})
        assert (status, answer["state"]) == (200, "paused")
        held = answer["message_count"]
        assert one(engine, "feed_tsla_001")["message_count"] == held
        assert engine.send("PATCH", "/feeds/feed_tsla_001", {"paused": False})[1]["state"] != "paused"
        delivers(engine, "feed_tsla_001")

        assert engine.send("PATCH", "/feeds/feed_tsla_001", {"data_types": ["level2"]})[1]["data_types"] == ["level2"]
        wait_for("book data", lambda: engine.json("/data/TSLA?data_type=level2")["count"])
        status, answer = engine.send("PATCH", "/feeds/feed_tsla_001", {"data_types": ["bar"]})
        assert (status, one(engine, "feed_tsla_001")["data_types"]) == (422, ["level2"])
        delivers(engine, "feed_tsla_001")

        assert engine.send("PATCH", "/feeds/simulated", {"paused": True})[1]["state"] == "paused"
        assert engine.send("DELETE", "/feeds/simulated", b"")[0] == 422

        assert engine.send("DELETE", "/feeds/feed_tsla_001", b"") == (
            200,
            {"status": "removed", "feed_id": "feed_tsla_001"},
        )
        assert engine.get("/feeds/feed_tsla_001")[0] == 404
        assert engine.send("DELETE", "/feeds/feed_tsla_001", b"")[0] == 404
        assert engine.stop() == 0


def test_feeds_outlive_a_killed_worker_and_a_restart_of_the_engine(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        for symbol in ("TSLA", "AMD", "GONE"):
            assert engine.send("POST", "/feeds", {**TSLA, "symbol": symbol})[0] == 201
        assert engine.send("POST", "/feeds", {"symbol": "POSTED", "data_source": "internal"})[0] == 201
        engine.send("PATCH", "/feeds/feed_amd_001", {"paused": True})
        engine.send("DELETE", "/feeds/feed_gone_001", b"")
        pid = engine.pids()["ingest-0"]
        os.kill(pid, signal.SIGKILL)
        wait_for("a new worker", lambda: engine.pids().get("ingest-0", pid) != pid)
        delivers(engine, "feed_tsla_001")
        assert one(engine, "feed_amd_001")["state"] == "paused"
        assert engine.stop() == 0
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()
        ids = [feed["feed_id"] for feed in engine.json("/feeds")["feeds"]]
        assert ids == ["simulated", "feed_tsla_001", "feed_amd_001", "feed_posted_001"]
        delivers(engine, "feed_tsla_001")
        assert wait_for("paused", lambda: one(engine, "feed_amd_001")["state"] == "paused")
        point = {"symbol": "POSTED", "data_type": "tick", "data": {"price": 1.0}}
        assert engine.send("POST", "/data/ingest", {"data": [point] * 3})[0] == 200
        assert wait_for("counted", lambda: one(engine, "feed_posted_001")["message_count"] == 3)
        assert engine.stop() == 0


def test_what_can_not_work_is_refused_with_what_to_do(engine_name: str, tmp_path: Path) -> None:
    with EngineProcess(engine_name, tmp_path, "--simulate") as engine:
        engine.wait_ready()

        def refused(**body: Any) -> str:
            status, answer = engine.send("POST", "/feeds", {"symbol": "A", "data_source": "mock", **body})
            assert status == 422, answer
            return str(answer["detail"])

        assert "must be one of" in refused(data_source="bloomberg")
        assert "blanks" in refused(symbol="A B")
        assert "did you mean 'rate'" in refused(options={"rat": 1})
        assert "options: -9223372036854775809 is no 64-bit integer" in refused(options={"a": [{"b": -(2**63) - 1}]})
        assert "data_types" in refused(data_types=["candles"])
        assert "not simulated" in refused(data_types=["bar"])
        assert "give a number" in refused(data_source="replay", options={"file": "x", "speed": "max"})
        assert "one symbol's" in refused(symbol="*", data_source="internal")
        assert engine.send("POST", "/feeds", {"symbol": "A"})[0] == 422
        assert engine.json("/feeds")["count"] == 1

        missing = {"symbol": "*", "data_source": "replay", "options": {"file": str(tmp_path / "later.dbn")}}
        assert engine.send("POST", "/feeds", missing)[0] == 201
        wait_for("its state says so", lambda: one(engine, "feed_all_001")["state"] == "down")
        assert engine.send("POST", "/feeds", missing)[1] == {
            "status": "restarted",
            "feed_id": "feed_all_001",
            "symbol": "*",
            "data_source": "replay",
        }
        assert engine.stop() == 0


def test_an_engine_without_a_feed_takes_one_later(engine_name: str, tmp_path: Path) -> None:
    (tmp_path / "none.toml").write_text("[simulate]\nenabled = false\n")
    with EngineProcess(engine_name, tmp_path, "--config", str(tmp_path / "none.toml")) as engine:
        engine.wait_ready()
        assert engine.json("/health")["status"] == "degraded"
        assert engine.send("POST", "/feeds", TSLA)[0] == 201
        delivers(engine, "feed_tsla_001")
        wait_for("healthy", lambda: engine.json("/health")["status"] == "healthy")
        assert engine.stop() == 0


def test_a_feed_that_can_not_be_kept_is_not_added(engine_name: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    with EngineProcess(engine_name, tmp_path, "--simulate", "--data-dir", str(tmp_path / "taken")) as engine:
        engine.wait_ready()
        status, answer = engine.send("POST", "/feeds", TSLA)
        assert status == 503
        assert "data_dir" in answer["detail"]
        assert engine.json("/feeds")["count"] == 1
        assert engine.stop() == 0


def test_every_change_is_in_the_audit_log_and_no_secret(engine_name: str, tmp_path: Path) -> None:
    secret = "0123456789abcdef-writer"
    env = {"TICKENGINE_HTTP_TOKEN": f"write {secret} operator"}
    with EngineProcess(engine_name, tmp_path, "--simulate", env=env) as engine:
        engine.wait_ready()
        bearer = {"Authorization": f"Bearer {secret}"}
        point = {"symbol": "TSLA", "data_type": "tick", "data": {"price": 1.0}}
        assert engine.send("POST", "/feeds", TSLA)[0] == 401
        assert engine.send("POST", "/feeds", TSLA, **bearer)[0] == 201
        assert engine.send("POST", "/data/ingest", {"data": [point, {}]}, **bearer)[0] == 200
        assert engine.send("DELETE", "/feeds/feed_tsla_001", b"", **bearer)[0] == 200
        assert engine.stop() == 0
    text = (tmp_path / "data" / engine_name / "audit.jsonl").read_text()
    assert secret not in text
    entries = [json.loads(line) for line in text.splitlines()]
    assert [(e["method"], e["path"], e["status"], e["token"]) for e in entries] == [
        ("POST", "/feeds", 401, ""),
        ("POST", "/feeds", 201, "operator"),
        ("POST", "/data/ingest", 200, "operator"),
        ("DELETE", "/feeds/feed_tsla_001", 200, "operator"),
    ]
    assert entries[1]["feed_id"] == "feed_tsla_001"
    assert (entries[2]["stored"], entries[2]["rejected"]) == (1, 1)
