"""Live feeds of a whole engine: added over HTTP, seen at a ZeroMQ subscriber, lost and found again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shm.layout import RecordType
from tests.system.engine_process import ROOT, EngineProcess, wait_for
from tests.venue_server import Act, VenueServer, always_ready, binance_answer, timed_lines
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow


def trades(samples: Path) -> list[bytes]:
    lines = timed_lines(samples / "websocket/spot_btcusdt_20240808.gz")
    return [line for line in lines if b"@trade" in line[:40]][:1000]


def feeds_command(engine: EngineProcess, *words: str) -> str:
    """What `tickengine feeds` prints."""
    command = [sys.executable, "-m", "tools", "feeds", "--name", engine.name, *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_websocket_feed_reaches_subscribers_and_tells_of_its_losses(
    engine_name: str, tmp_path: Path, samples: Path
) -> None:
    messages = trades(samples)
    acts = [Act(messages[:400], end="abort"), Act(status=429, headers={"Retry-After": "1"}), Act(messages[400:])]
    with (
        VenueServer(acts, answer=binance_answer, ready=always_ready) as venue,
        EngineProcess(engine_name, tmp_path) as engine,
    ):
        venue.pause_after = 100
        engine.wait_ready()
        with Subscriber(f"tcp://127.0.0.1:{engine.base + 1}", topics=["marketdata.trade.BTCUSDT"]) as subscriber:
            body = {
                "symbol": "BTCUSDT",
                "data_source": "websocket",
                "data_types": ["trade"],
                "options": {"venue": "binance", "url": venue.url},
            }
            assert engine.send("POST", "/feeds", {**body, "options": {"venue": "binanse"}})[0] == 422
            status, answer = engine.send("POST", "/feeds", body)
            assert (status, answer["feed_id"]) == (201, "feed_btcusdt_001")

            def feed() -> dict[str, object]:
                found: dict[str, object] = engine.json("/feeds/feed_btcusdt_001")
                return found

            wait_for("the first records", lambda: feed()["message_count"])
            live = wait_for("live", lambda: (one := feed())["state"] == "active" and one)
            assert (live["health_score"], live["breaker"], live["connections"]) == (1.0, "closed", 1)
            venue.go_on.set()
            lost = wait_for("the loss", lambda: (one := feed())["state"] == "recovering" and one)
            assert "HTTP 429" in str(lost["why"])
            assert lost["health_score"] == 0.0
            assert lost["retry_at"] is not None
            checks = {check["name"]: check["why"] for check in engine.json("/health")["checks"]}
            assert "HTTP 429" in checks["feed:feed_btcusdt_001"]
            listed = feeds_command(engine)
            assert "feed_btcusdt_001" in listed
            assert "recovering" in listed or "active" in listed
            back = wait_for("data again", lambda: (one := feed())["state"] == "active" and one)
            assert back["reconnects"] == 1
            wait_for("everything", lambda: int(str(feed()["message_count"])) >= 1000)
            exposition = engine.get("/metrics/prometheus")[2].decode()
            assert 'marketdata_feed_reconnects_total{feed="feed_btcusdt_001",source="websocket"} 1.0' in exposition

            found: list[int] = []
            while len(found) < 1000:
                message = subscriber.receive(timeout_s=60)
                assert message is not None, f"only {len(found)} trades"
                kept = message.records[message.records["record_type"] == RecordType.TRADE]
                found += kept["trade_id"].tolist()
        first = found[0]
        assert found == list(range(first, first + 1000))

        assert feeds_command(engine, "pause", "feed_btcusdt_001") == "feed_btcusdt_001: paused\n"
        assert feed()["state"] == "paused"
        feeds_command(engine, "resume", "feed_btcusdt_001")
        wait_for("a connection anew", lambda: len(venue.requests) == 4)
        feeds_command(engine, "restart", "feed_btcusdt_001")
        wait_for("one more", lambda: len(venue.requests) == 5)
        options = ["--source", "websocket", "--types", "quote", "--option", "venue=binance", "--option"]
        added = feeds_command(engine, "add", "ETHUSDT", *options, f"url={venue.url}")
        assert added == "feed_ethusdt_001: created\n"
        assert feeds_command(engine, "remove", "feed_ethusdt_001") == "feed_ethusdt_001: removed\n"
        with pytest.raises(AssertionError, match="there is no feed 'feed_ethusdt_001'"):
            feeds_command(engine, "remove", "feed_ethusdt_001")
        assert engine.stop() == 0
