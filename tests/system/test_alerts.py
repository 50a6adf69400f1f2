"""What marketdata.feed.status, .error and .latency.alert tell of is made to happen, and received by plain SUBs."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq

from shm.layout import RECORD
from tests.replayed_trades import trades
from tests.system.engine_process import EngineProcess, wait_for
from workers.wire import unpack_frame

pytestmark = pytest.mark.slow

TOPICS = (b"marketdata.feed.status", b"marketdata.error", b"marketdata.latency.alert")
LIMIT_MS = 150

CONFIG = f"""
[engine]
start_delay_s = 2
[rings]
depth_slots = 1024
[supervisor]
heartbeat_timeout_s = 60
[health]
latency_alert_ms = {LIMIT_MS}
stale_factor = 1.5
stale_floor_s = 0.5
[simulate]
enabled = true
rate = 1000
[storage]
enabled = false
"""


class Ears:
    """A plain subscriber to the three topics on each endpoint; everything that came, by endpoint."""

    def __init__(self, engine: EngineProcess) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self.heard: dict[str, list[dict[str, Any]]] = {"raw": [], "msgpack": [], "json": []}
        self._sockets = {}
        for kind, offset in (("raw", 1), ("msgpack", 11), ("json", 21)):
            socket = self._sockets[kind] = self._context.socket(zmq.SUB)
            for topic in TOPICS:
                socket.subscribe(topic)
            socket.connect(f"tcp://127.0.0.1:{engine.base + offset}")

    def listen(self) -> None:
        for kind, socket in self._sockets.items():
            while socket.poll(0):
                topic, frame = socket.recv_multipart()
                if kind == "raw":
                    for record in unpack_frame(frame)[1]:
                        assert record.dtype == RECORD
                        self.heard[kind].append({"topic": topic.decode(), "code": int(record["code"])})
                    continue
                message = json.loads(frame) if kind == "json" else msgspec.msgpack.decode(frame)
                assert message["topic"] == topic.decode()
                self.heard[kind].append({"topic": message["topic"], **message["payload"]["data"]})

    def wait(self, what: str, topic: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """What the JSON endpoint told; the msgpack endpoint must have told the same, the raw one of its topic too."""

        def told() -> dict[str, Any] | None:
            self.listen()
            found = [m for m in self.heard["json"] if m["topic"] == topic and wanted(m)]
            same = found and found[0] in self.heard["msgpack"]
            return found[0] if same and any(m["topic"] == topic for m in self.heard["raw"]) else None

        found: dict[str, Any] = wait_for(what, told)
        return found

    def close(self) -> None:
        for socket in self._sockets.values():
            socket.close(0)
        self._context.term()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still, as a machine does that has no time for it."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def check(engine: EngineProcess, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {c["name"]: c for c in engine.json("/health")["checks"]}[name]
    return found


def coded(code: str, **fields: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["code"] == code and all(message[k] == v for k, v in fields.items())


def test_everything_that_can_go_wrong_is_told_on_every_endpoint(engine_name: str, tmp_path: Path) -> None:
    capture = trades(tmp_path, "capture.jsonl", [0.0, 0.1, 0.2])
    with Path(capture).open("a") as file:  # trade ids 4 to 8 are missing
        file.write(Path(trades(tmp_path, "more.jsonl", [0.3], first_id=9)).read_text())
    path = tmp_path / "engine.toml"
    path.write_text(CONFIG)
    status, error, alert = (topic.decode() for topic in TOPICS)
    with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
        engine.wait_ready()
        ears = Ears(engine)
        try:
            wait_for("all subscriptions", lambda: subscriptions(engine) == 3 * len(TOPICS))
            feed = next(f for f in engine.json("/feeds")["feeds"])

            # A feed that comes, ends and has a gap.
            body = {"symbol": "BTCUSDT", "data_source": "replay", "data_types": ["trade"]}
            assert engine.send("POST", "/feeds", {**body, "options": {"files": [capture], "speed": 1.0}})[0] == 201
            up = ears.wait("feed up", status, lambda m: m["code"] == "feed_up" and m["feed_id"] != 1)
            number = up["feed_id"]
            ears.wait("a gap of the venue", status, coded("gap", feed_id=number))
            ears.wait("the end of the replay", status, coded("end_of_replay", feed_id=number))
            ears.wait("feed down", status, coded("feed_down", feed_id=number, text="finished"))
            wait_for("health says ended", lambda: "ended" in check(engine, "feed:feed_btcusdt_001")["why"])

            # What is refused is told with its reason.
            point = {"symbol": "X", "data_type": "trade", "source": "internal", "data": {"price": "no", "size": 1}}
            assert engine.send("POST", "/data/ingest", {"data": [point]})[1]["rejected"]
            refused = ears.wait("a rejection", error, coded("rejected"))
            assert refused["to"] == 1
            assert "1 points rejected: data" in refused["text"]

            # A fan-out that has no time: its records are late, some are lost.
            with stopped(engine.pids()["fanout-0"]):
                before = published(engine)
                wait_for("a ring is lapped", lambda: published(engine) > before + 1500)
            lost = ears.wait("what was lost", status, lambda m: m["code"] == "gap" and "overran fanout-0" in m["text"])
            overload = ears.wait("the overload", status, coded("overload", text="records_lost fanout-0"))
            assert overload["to"] > 0
            assert lost["from"] < lost["to"]
            slow = coded("latency_alert", state="raised", process="fanout-0")
            fanout = engine.pids()["fanout-0"]

            def slowed() -> bool:
                with stopped(fanout):
                    before = published(engine)
                    wait_for("records that wait", lambda: published(engine) > before + 2 * LIMIT_MS)
                ears.listen()
                return any(slow(message) for message in ears.heard["json"])

            wait_for("late records in such numbers that p99 shows it", slowed)
            raised = ears.wait("the alert", alert, slow)
            assert (raised["hop"], raised["threshold_ms"]) == ("ring_latency", LIMIT_MS)
            assert raised["p99_ms"] > LIMIT_MS
            ears.wait("its end", alert, coded("latency_alert", state="cleared"))
            wait_for("health agrees", lambda: check(engine, "latency")["status"] == "healthy")

            # A feed that looks alive and is silent.
            with stopped(engine.pids()["ingest-0"]):
                stale = ears.wait("stale", status, coded("feed_stale", feed_id=1))
                assert "silent for" in stale["text"]
                assert check(engine, f"feed:{feed['feed_id']}")["status"] == "degraded"
            ears.wait("recovered", status, coded("feed_recovered", feed_id=1))
            wait_for("healthy feed", lambda: check(engine, f"feed:{feed['feed_id']}")["status"] == "healthy")
        finally:
            ears.close()


def subscriptions(engine: EngineProcess) -> int:
    _, _, body = engine.get("/metrics/prometheus")
    lines = [line for line in body.decode().splitlines() if "subscriptions" in line and "fanout-0" in line]
    return sum(int(float(line.split()[-1])) for line in lines)


def published(engine: EngineProcess) -> int:
    found: int = engine.json("/metrics")["total_messages"]
    return found
