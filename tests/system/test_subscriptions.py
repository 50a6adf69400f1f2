"""Subscriptions of a running engine: made over HTTP, delivered to a real receiver, and there again after a restart."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shm.ring import RingReader
from tests.system.engine_process import EngineProcess, wait_for
from tests.system.receiver import SECRET, Receiver

pytestmark = pytest.mark.slow

CONFIG = """
[webhooks]
allow_networks = ["127.0.0.1"]
park_after = 2
timeout_s = 20
[simulate]
enabled = true
rate = 500
"""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        yield made


def start(name: str, folder: Path, **options: Any) -> EngineProcess:
    path = folder / "engine.toml"
    path.write_text(CONFIG)
    return EngineProcess(name, folder, "--config", str(path), **options)


def subscribe(engine: EngineProcess, receiver: Receiver, **fields: Any) -> str:
    """A subscription to all trades; its id."""
    body = {"symbols": ["*"], "data_types": ["trade"], "callback_url": receiver.url, "secret": SECRET, **fields}
    status, answer = engine.send("POST", "/subscriptions", body)
    assert status == 201, answer
    assert set(answer) == {"status", "subscription_id", "symbols", "data_types"}
    assert answer["status"] == "created"
    return str(answer["subscription_id"])


def one(engine: EngineProcess, subscription_id: str) -> dict[str, Any]:
    found: dict[str, Any] = engine.json(f"/subscriptions/{subscription_id}")
    return found


def more(receiver: Receiver, count: int = 50) -> None:
    """Wait for more messages than have been accepted by now."""
    before = len(receiver.sequences())
    wait_for("messages", lambda: len(receiver.sequences()) >= before + count)


def test_a_subscription_is_delivered_changed_and_removed(engine_name: str, tmp_path: Path, receiver: Receiver) -> None:
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        subscription_id = subscribe(engine, receiver)
        more(receiver)
        view = one(engine, subscription_id)
        assert set(view) >= {"subscription_id", "symbols", "data_types", "callback_url", "is_active", "created_at"}
        assert view["state"] == "delivering"
        assert view["topics"] == ["marketdata.trade.*"]
        wait_for("the counts", lambda: one(engine, subscription_id)["delivered"] >= 50)
        assert (view["failed"], view["lost"]) == (0, 0)
        assert engine.json("/subscriptions")["count"] == 1
        assert engine.json("/metrics")["active_subscriptions"] == 1
        assert b"marketdata_subscription_count 1.0" in engine.get("/metrics/prometheus")[2]

        symbol = receiver.accepted()[0]["payload"]["symbol"]
        change = {"add_symbols": [symbol], "remove_symbols": ["*"], "add_data_types": ["quote"]}
        status, answer = engine.send("PATCH", f"/subscriptions/{subscription_id}", change)
        assert (status, answer["symbols"], answer["data_types"]) == (200, [symbol], ["trade", "quote"])
        at = len(receiver.deliveries)
        wait_for("quotes", lambda: any(m["topic"] == f"marketdata.quote.{symbol}" for m in receiver.accepted()))
        wait_for("deliveries", lambda: len(receiver.deliveries) > at + 3)
        later = [m for d in receiver.deliveries[at + 1 :] for m in d.messages]
        assert {m["payload"]["symbol"] for m in later} == {symbol}

        assert engine.send("PATCH", f"/subscriptions/{subscription_id}", {"is_active": False})[0] == 200
        assert one(engine, subscription_id)["state"] == "paused"
        assert engine.json("/metrics")["active_subscriptions"] == 0
        assert engine.send("PATCH", f"/subscriptions/{subscription_id}", {"is_active": True})[0] == 200
        more(receiver, 5)
        assert engine.get(f"/subscriptions/{subscription_id}", method="DELETE")[0] == 200
        assert engine.get(f"/subscriptions/{subscription_id}")[0] == 404
        assert all(delivery.signed for delivery in receiver.deliveries)
        assert engine.stop() == 0
    audit = (tmp_path / "data" / engine_name / "audit.jsonl").read_text()
    assert [json.loads(line)["method"] for line in audit.splitlines()] == ["POST", "PATCH", "PATCH", "PATCH", "DELETE"]
    assert SECRET not in audit + engine.output


def test_they_are_there_after_a_restart_and_deliver(engine_name: str, tmp_path: Path, receiver: Receiver) -> None:
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        subscription_id = subscribe(engine, receiver, priority="high")
        named = [{"symbols": ["AAPL"]}, {"symbols": ["MSFT", "T*"], "data_types": ["quote"]}]
        status, answer = engine.send("POST", "/subscriptions/batch", named)
        assert (status, answer["count"]) == (201, 2)
        more(receiver)
        before = engine.json("/subscriptions")["subscriptions"]
        assert engine.stop() == 0
    count = len(receiver.sequences())
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        after = engine.json("/subscriptions")["subscriptions"]
        kept = ("subscription_id", "symbols", "data_types", "callback_url", "priority", "created_at", "is_active")
        assert [{k: s[k] for k in kept} for s in after] == [{k: s[k] for k in kept} for s in before]
        more(receiver)
        assert receiver.sequences()[count] < receiver.sequences()[count - 1], "a ring of its own"
        wait_for("the counts", lambda: one(engine, subscription_id)["delivered"] >= count + 50)
        assert engine.stop() == 0


def test_a_killed_worker_is_back_and_nothing_is_missing(engine_name: str, tmp_path: Path, receiver: Receiver) -> None:
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        subscribe(engine, receiver)
        more(receiver)
        first = receiver.sequences()[0]
        for _ in range(3):
            pid = engine.pids()["webhooks"]
            os.kill(pid, signal.SIGKILL)
            wait_for("another process", lambda old=pid: engine.pids().get("webhooks", old) != old)
            more(receiver, 200)
        came = receiver.sequences()
        with RingReader.attach(engine.name, 2, start=first) as reader:
            trades = [
                int(record["sequence"])
                for batch in reader.batches(0.0)
                for record in batch
                if record["record_type"] == 4 and record["sequence"] <= max(came)  # the last may be a repetition
            ]
        assert list(dict.fromkeys(came)) == trades
        assert not receiver.gaps()


def test_a_parked_one_says_why_and_is_unparked_by_its_owner(
    engine_name: str, tmp_path: Path, receiver: Receiver
) -> None:
    receiver.otherwise = "503"
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        subscription_id = subscribe(engine, receiver)
        view = wait_for("parked", lambda: (v := one(engine, subscription_id))["state"] == "parked" and v)
        assert view["last_failure"] == "answered 503"
        assert view["failed"] == 2
        assert view["next_attempt"] is not None
        wait_for("a longer gap", lambda: one(engine, subscription_id)["lost"] > view["lost"])
        receiver.otherwise = "ok"
        assert engine.send("PATCH", f"/subscriptions/{subscription_id}", {"is_active": True})[0] == 200
        more(receiver)
        (gap,) = receiver.gaps()
        assert gap["count"] == one(engine, subscription_id)["lost"]
        assert receiver.sequences()[0] >= gap["to"]


def test_what_can_not_be_is_refused_by_field(engine_name: str, tmp_path: Path, receiver: Receiver) -> None:
    with start(engine_name, tmp_path) as engine:
        engine.wait_ready()
        for body, words in [
            ({"symbols": ["A"], "callback_url": "http://127.0.0.2/"}, "callback_url: 127.0.0.2"),
            ({"symbols": ["A"], "callback_url": "http://169.254.169.254/latest"}, "callback_url"),
            ({"symbols": ["A"], "callback_url": "http://localhost/"[:-1] + ".:1/", "x": 1}, "x"),
            ({"symbols": ["A"], "callback_url": "gopher://example.com/"}, "callback_url"),
            ({"symbols": []}, "symbols"),
            ({"symbols": ["A B"]}, "symbols[0]"),
            ({"symbols": ["A"], "data_types": ["tock"]}, "data_types"),
            ({"symbols": ["A"], "priority": "urgent"}, "priority"),
            ({"symbols": ["A"], "secret": "short"}, "secret"),
            ({"symbols": ["A"] * 257}, "symbols"),
        ]:
            status, answer = engine.send("POST", "/subscriptions", body)
            assert status == 422, answer
            assert words in answer["detail"]
        batch = [
            {"symbols": ["A"], "callback_url": receiver.url},
            {"symbols": ["A"], "callback_url": "http://10.1.1.1/"},
        ]
        status, answer = engine.send("POST", "/subscriptions/batch", batch)
        assert (status, answer["detail"].partition(":")[0]) == (422, "[1].callback_url")
        assert engine.send("POST", "/subscriptions/batch", [{"symbols": ["A"]}] * 101)[0] == 422
        assert engine.send("POST", "/subscriptions/batch", [{"symbols": ["A" * 32] * 256}] * 200)[0] == 413
        assert engine.json("/subscriptions") == {"subscriptions": [], "count": 0}
        assert engine.send("PATCH", "/subscriptions/sub_none", {})[0] == 404
