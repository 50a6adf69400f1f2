"""A whole engine with Redis and PostgreSQL behind it: started with them, without them, and left by one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import PostgresServer, RedisServer
from tests.system.engine_process import EngineProcess, wait_for


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    server = RedisServer("--requirepass", "hush hush")
    yield server
    server.close()


def process_of(engine: EngineProcess, label: str) -> dict[str, Any]:
    found = engine.json("/processes")["processes"]
    return next(process for process in found if process["label"] == label)


def why(engine: EngineProcess, label: str) -> str:
    checks = engine.json("/health")["checks"]
    return next(f"{check['status']}: {check['why']}" for check in checks if check["name"] == f"process:{label}")


@pytest.mark.slow
def test_an_engine_fills_both_and_tells_of_one_that_is_gone(
    engine_name: str, tmp_path: Path, redis_server: RedisServer, shared_postgres: PostgresServer
) -> None:
    config = tmp_path / "engine.toml"
    config.write_text(
        f'[redis]\nurl = "{redis_server.address}"\nflush_ms = 10\n'
        f'[postgres]\ndsn = "{shared_postgres.address}"\nflush_ms = 10\n'
        "[simulate]\nenabled = true\nrate = 5000\n"
    )
    env = {"TICKENGINE_REDIS_PASSWORD": "hush hush"}
    with EngineProcess(engine_name, tmp_path, "--config", str(config), env=env).wait_ready() as engine:
        wait_for("Redis is down and that is said", lambda: "degraded: its database" in why(engine, "mirror-redis"))
        redis_server.start()  # it comes after the engine
        for label in ("mirror-redis", "mirror-postgres"):
            wait_for(f"{label} stores", lambda label=label: counter(engine, label, "records_stored") > 5000)
            wait_for(f"{label} is healthy", lambda label=label: why(engine, label).startswith("healthy"))
        text = engine.get("/metrics/prometheus")[2].decode()
        for name in ("lag_records", "lag_seconds", "store_down", "reconnects_total", "records_lost_total"):
            assert f'marketdata_process_{name}{{process="mirror-redis",role="mirror"}}' in text
        rows = "SELECT count(*), count(DISTINCT (metadata->>'origin', metadata->>'sequence')) FROM market_data "
        rows += "WHERE starts_with(metadata->>'origin', %s)"
        ((count, distinct),) = shared_postgres.query(rows, f"{engine_name}/")
        assert count == distinct > 5000
        shown = [text, *(engine.get(path)[2].decode() for path in ("/processes", "/health", "/schema"))]
        assert not [part for part in shown if "hush" in part]
        assert engine.stop() == 0
        assert "hush" not in engine.output


def counter(engine: EngineProcess, label: str, name: str) -> int:
    return int(process_of(engine, label)["counters"].get(name, 0))
