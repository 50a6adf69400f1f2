"""Points posted to a running engine come out of it everywhere, and what is not stored is said."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from shm.layout import RecordType, empty
from shm.ring import RingReader
from tests.system.engine_process import EngineProcess, wait_for

pytestmark = pytest.mark.slow

LIMITS = """
http = { max_body = "200kB", max_ingest_points = 500 }
rings = { depth_slots = 1024 }
simulate = { enabled = true, rate = 10 }
"""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    """An engine with small limits and a small ring."""
    folder = tmp_path_factory.mktemp("ingest")
    (folder / "engine.toml").write_text(LIMITS)
    with EngineProcess(f"i{os.getpid():x}", folder, "--config", str(folder / "engine.toml")) as started:
        yield started.wait_ready()
        assert started.stop() == 0


def trade(symbol: str, price: float, **fields: Any) -> dict[str, Any]:
    return {"symbol": symbol, "data_type": "trade", "data": {"price": price, "size": 1.0}, **fields}


def prices(engine: EngineProcess, symbol: str, count: int) -> list[float]:
    """Prices in L1, once there are `count`."""

    def find() -> list[float]:
        points = engine.json(f"/data/{symbol}?data_type=trade&limit=1000").get("data", [])
        return [point["data"]["price"] for point in points] if len(points) >= count else []

    found: list[float] = wait_for(f"{count} trades of {symbol}", find)
    return found


@pytest.mark.parametrize(
    ("symbol", "content_type"),
    [("JSN", "application/json"), ("MSG", "application/msgpack"), ("NDJ", "application/x-ndjson")],
)
def test_points_of_every_form_come_out_of_l1(engine: EngineProcess, symbol: str, content_type: str) -> None:
    points = [trade(symbol, 100.0 + i, source="fix", latency_ms=0.5) for i in range(5)]
    bodies = {
        "application/json": msgspec.json.encode({"data": points}),
        "application/msgpack": msgspec.msgpack.encode({"data": points}),
        "application/x-ndjson": b"\n".join(msgspec.json.encode(item) for item in points),
    }
    before = engine.send("POST", "/data/ingest", {"data": []})[1]["total_stored"]
    status, answer = engine.send("POST", "/data/ingest", bodies[content_type], content_type)
    assert (status, answer) == (200, {"status": "ingested", "count": 5, "total_stored": before + 5, "rejected": []})
    assert prices(engine, symbol, 5) == [100.0, 101.0, 102.0, 103.0, 104.0]
    newest = engine.json(f"/data/{symbol}?data_type=trade&limit=1")["data"][0]
    assert (newest["source"], newest["latency_ms"]) == ("fix", 0.5)


def test_unusable_points_are_named_and_the_others_stored(engine: EngineProcess) -> None:
    points = [trade("PART", 1.0), trade("PART", 2.0, source="nobody"), {"symbol": "PART"}, trade("PART", 3.0)]
    status, answer = engine.send("POST", "/data/ingest", {"data": points})
    assert (status, answer["count"]) == (200, 2)
    assert [item["index"] for item in answer["rejected"]] == [1, 2]
    assert "source" in answer["rejected"][0]["error"]
    assert "data_type" in answer["rejected"][1]["error"]
    assert prices(engine, "PART", 2) == [1.0, 3.0]


def test_many_times_the_ring_in_a_stream_reaches_every_reader(engine: EngineProcess) -> None:
    """The ring has 1024 slots: the intake goes no faster than our readers, so that none of them loses a point."""
    count = 20_000
    lines = b"\n".join(msgspec.json.encode(trade("STREAM", float(i + 1))) for i in range(count))
    status, answer = engine.send("POST", "/data/ingest", lines, "application/x-ndjson")
    assert (status, answer["count"], answer["rejected"]) == (200, count, [])
    assert wait_for("all in L1", lambda: (p := prices(engine, "STREAM", 1000))[-1] == count and p)
    lost = {process["label"]: process["lost"] for process in engine.json("/processes")["processes"]}
    assert set(lost.values()) == {0}, lost


def test_a_reader_of_ring_0_sees_them_in_order(engine: EngineProcess) -> None:
    with RingReader.attach(engine.name, 0, label="test") as reader:
        engine.send("POST", "/data/ingest", {"data": [trade("ORDER", float(i + 1)) for i in range(100)]})
        out = empty(200)
        got = wait_for("records", lambda: reader.read(out))
        records = out[:got]
        trades = records[records["record_type"] == RecordType.TRADE]
        assert trades["price"].tolist() == [float(i + 1) for i in range(100)]
        assert np.all(np.diff(records["sequence"].astype(np.int64)) == 1)


def test_what_is_too_much_or_something_else_is_refused(engine: EngineProcess) -> None:
    def refused(status: int, body: Any, content_type: str = "application/json") -> str:
        got, answer = engine.send("POST", "/data/ingest", body, content_type)
        assert got == status, answer
        return str(answer["detail"])

    assert "max_ingest_points" in refused(422, {"data": [trade("MANY", 1.0)] * 501})
    assert "max_body" in refused(413, b" " * 300_000)
    assert "not json" in refused(400, b"{")
    assert "not msgpack" in refused(400, b"\xc1", "application/msgpack")
    assert "data" in refused(422, {"points": []})
    assert "text/plain" in refused(415, {"data": []}, "text/plain")
    assert "a line has more than" in refused(413, b"x" * 100_000, "application/x-ndjson")
    assert engine.get("/data/MANY")[0] == 404


def test_a_body_without_length_is_bounded_too(engine: EngineProcess) -> None:
    head = "POST /data/ingest HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n"
    with socket.create_connection(("127.0.0.1", engine.http_port), timeout=60) as connection:
        connection.sendall(head.encode() + b"\r\n" + (b"8000\r\n" + b" " * 0x8000 + b"\r\n") * 10 + b"0\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413")


def test_a_page_under_another_name_can_not_write(engine: EngineProcess) -> None:
    status, answer = engine.send("POST", "/data/ingest", {"data": []}, Host="evil.example")
    assert status == 403
    assert "loopback" in answer["detail"]


def test_a_token_of_scope_write_is_needed_once_there_is_one(engine_name: str, tmp_path: Path) -> None:
    reader, writer = "reader-0123456789", "writer-0123456789"
    env = {"TICKENGINE_HTTP_TOKEN": f"read {reader}\nwrite {writer}"}
    with EngineProcess(engine_name, tmp_path, "--simulate", env=env) as guarded:
        guarded.wait_ready()
        body = {"data": [trade("T", 1.0)]}
        assert guarded.send("POST", "/data/ingest", body)[0] == 401
        assert guarded.send("POST", "/data/ingest", body, Authorization=f"Bearer {reader}")[0] == 403
        assert guarded.send("POST", "/data/ingest", body, Authorization=f"Bearer {writer}")[0] == 200
        assert guarded.get("/metrics")[0] == 200
        assert guarded.stop() == 0
        assert reader not in guarded.output
        assert writer not in guarded.output


def test_start_and_end_choose_by_the_venues_time_before_limit_does(engine: EngineProcess) -> None:
    times = [f"2026-01-02T14:30:{second:02d}.000500Z" for second in range(60)]
    points = [trade("SPAN", float(i), timestamp=at) for i, at in enumerate(times)]
    assert engine.send("POST", "/data/ingest", {"data": points})[1]["count"] == 60
    assert len(prices(engine, "SPAN", 60)) == 60

    def chosen(query: str) -> list[float]:
        found = engine.json(f"/data/SPAN?data_type=trade&limit=1000&{query}")
        return [point["data"]["price"] for point in found["data"]]

    assert chosen(f"start={times[10]}&end={times[13]}") == [10.0, 11.0, 12.0]
    assert chosen("start=2026-01-02T15:30:58.000500%2B01:00") == [58.0, 59.0]
    assert chosen("end=2026-01-02T14:30:01") == [0.0]
    assert chosen(f"start={times[20]}&end={times[20]}") == []
    newest = engine.json(f"/data/SPAN?data_type=trade&limit=2&end={times[30]}")["data"]
    assert [point["timestamp"] for point in newest] == times[28:30]
    assert "start" in engine.json("/data/SPAN?start=yesterday")["detail"]
