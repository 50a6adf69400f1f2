"""Alpha Vantage, FRED and Yahoo as feeds of a whole engine: added over HTTP, killed, started again; no doubles."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from shm.layout import RecordType
from tests.system.engine_process import EngineProcess, wait_for
from tests.vendor_server import Reply, VendorServer, av_series, fred_body, fred_row, fred_rows, yahoo_frames
from tests.venue_server import Act
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow

KEY = "SECRETKEY4711"


def post(engine: EngineProcess, body: dict[str, Any]) -> tuple[int, Any]:
    """POST /feeds, again while the worker is too busy to answer (503)."""
    answer: tuple[int, Any] = wait_for(
        "an answer", lambda: (one := engine.send("POST", "/feeds", body))[0] != 503 and one
    )
    return answer


def values(engine: EngineProcess, symbol: str, name: str) -> list[float]:
    """Everything that GET /data has of a symbol's ticks, oldest first."""
    answer = engine.json(f"/data/{symbol}?data_type=tick&limit=1000")
    return [point["data"][name] for point in answer.get("data", [])]


def test_fred_observations_come_once_whatever_is_killed(engine_name: str, tmp_path: Path, samples: Path) -> None:
    rows = fred_rows(samples)
    expected = [float(row["value"]) for row in rows]
    later = [*rows, fred_row("2020-05-01", "0.05", "2020-06-01")]
    body: dict[str, Any] = {"symbol": "FEDFUNDS", "data_source": "fred", "data_types": ["tick"]}
    with VendorServer({"FEDFUNDS": [Reply(fred_body(rows))] * 2 + [Reply(fred_body(later))]}) as vendor:
        body["options"] = {"url": vendor.base, "poll_s": 3600}
        with EngineProcess(engine_name, tmp_path) as engine:
            engine.wait_ready()
            status, answer = post(engine, body)
            assert status == 422
            assert "set FRED_API_KEY in the environment of the engine" in answer["detail"]
            status, answer = post(engine, {**body, "options": {"api_key": KEY}})
            assert status == 422
            assert "keys are not written in options" in answer["detail"]
            assert engine.stop() == 0
        with EngineProcess(engine_name, tmp_path, env={"FRED_API_KEY": KEY}) as engine:
            engine.wait_ready()
            assert post(engine, body)[0] == 201

            def feed(engine: EngineProcess = engine) -> dict[str, Any]:
                found: dict[str, Any] = engine.json("/feeds/feed_fedfunds_001")
                return found

            wait_for("all observations", lambda: values(engine, "FEDFUNDS", "price") == expected)
            assert wait_for("live", lambda: (one := feed())["state"] == "active" and one)["why"] == "delivers"
            os.kill(engine.pids()["ingest-0"], signal.SIGKILL)
            wait_for("asked again after the kill", lambda: vendor.counts["FEDFUNDS"] == 2)
            wait_for("live again", lambda: feed()["state"] == "active")
            assert values(engine, "FEDFUNDS", "price") == expected
            metrics = engine.get("/metrics/prometheus")[2].decode()
            assert "polled_1001_requests" in metrics or "polled.1001.requests" in metrics
            for path in ("/schema", "/feeds", "/health", "/processes", "/metrics/prometheus"):
                assert KEY.encode() not in engine.get(path)[2], path
            assert engine.stop() == 0
            assert KEY not in engine.output
        with EngineProcess(engine_name, tmp_path, env={"FRED_API_KEY": KEY}) as engine:
            engine.wait_ready()
            wait_for("asked again after the restart", lambda: vendor.counts["FEDFUNDS"] == 3)
            wait_for("only what is new", lambda: values(engine, "FEDFUNDS", "price") == [*expected, 0.05])
            count = wait_for("counted", lambda: engine.json("/feeds/feed_fedfunds_001")["message_count"])
            assert count == 2  # and that it is up
            assert engine.stop() == 0


def test_alpha_vantage_bars_reach_subscribers_within_the_budget(engine_name: str, tmp_path: Path) -> None:
    first = {"2024-05-01 10:00:00": 10.0, "2024-05-01 10:01:00": 11.0}
    script = [Reply(av_series(first)), Reply(av_series({**first, "2024-05-01 10:02:00": 12.0}))]
    bad = Reply(b'{"Error Message": "Invalid API call. Please retry or visit the documentation"}')
    with (
        VendorServer({"TSCO.LON": script, "NOPE": [bad]}) as vendor,
        EngineProcess(engine_name, tmp_path, env={"ALPHA_VANTAGE_API_KEY": KEY}) as engine,
    ):
        engine.wait_ready()
        options = {"url": vendor.base, "interval": "1min", "session": "always", "poll_s": 0.2}
        body = {"data_source": "alpha_vantage", "data_types": ["bar"]}
        with Subscriber(f"tcp://127.0.0.1:{engine.base + 1}", topics=["marketdata.bar.TSCO.LON"]) as subscriber:
            limits = {"per_second": 0, "per_minute": 0, "per_day": 3}
            assert post(engine, {**body, "symbol": "TSCO.LON", "options": {**options, **limits}})[0] == 201
            found: list[float] = []
            while len(found) < 3:
                message = subscriber.receive(timeout_s=60)
                assert message is not None, f"only {found}"
                kept = message.records[message.records["record_type"] == RecordType.BAR]
                found += kept["close"].tolist()
        assert found == [10.0, 11.0, 12.0]
        told = wait_for(
            "the budget is used up",
            lambda: "budget" in (one := engine.json("/feeds/feed_tsco_lon_001"))["why"] and one,
        )
        assert "3 of 3 requests used in 86400 s" in told["why"]
        assert vendor.counts["TSCO.LON"] == 3
        # Another feed of the same key finds it used up, too.
        assert post(engine, {**body, "symbol": "NOPE", "options": {**options, **limits}})[0] == 201
        wait_for("it waits", lambda: "budget" in engine.json("/feeds/feed_nope_001")["why"])
        assert vendor.counts["NOPE"] == 0
        more = {**options, "per_second": 0, "per_minute": 0, "per_day": 0}
        assert post(engine, {**body, "symbol": "NOPE", "options": more})[0] == 201
        why = wait_for(
            "refused",
            lambda: (one := engine.json("/feeds/feed_nope_002"))["state"] == "failed" and one["why"],
        )
        assert "Invalid API call" in why
        assert engine.stop() == 0
        assert KEY not in engine.output


def test_yahoo_prices_stream_and_the_feed_says_when_they_stop(engine_name: str, tmp_path: Path, samples: Path) -> None:
    frames = yahoo_frames(samples)
    acts = [Act([*frames, *frames], end="abort"), Act(status=429, headers={"Retry-After": "1"}), Act(frames)]
    with VendorServer({}, acts=acts) as vendor, EngineProcess(engine_name, tmp_path) as engine:
        engine.wait_ready()
        body = {"symbol": "BTC-USD", "data_source": "yahoo", "options": {"url": vendor.url}}
        status, answer = post(engine, {**body, "data_types": ["tick", "bar"]})
        assert status == 422
        assert "make a feed of each" in answer["detail"]
        assert post(engine, body)[0] == 201
        assert wait_for("the price", lambda: values(engine, "BTC-USD", "price"))[0] == 63391.56

        def feed() -> dict[str, Any]:
            found: dict[str, Any] = engine.json("/feeds/feed_btc_usd_001")
            return found

        wait_for("the loss", lambda: "HTTP 429" in feed()["why"])
        wait_for("connected again", lambda: (one := feed())["state"] == "active" and one["reconnects"] == 1)
        assert vendor.requests[-1][0] == {"subscribe": ["BTC-USD"]}
        assert engine.json("/data/BTC-USD?limit=1")["data"][0]["source"] == "yahoo"
        assert engine.stop() == 0
