"""A feed of Interactive Brokers in a whole engine: added over HTTP, TWS killed and come back, live again by data."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import RecordType
from tests.system.engine_process import ROOT, EngineProcess, wait_for
from tests.tws_server import BY_TICK, Act, Asked, TwsServer, captured, contract_row, error
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow

ROWS = "vendor/ibkr/wire-fields.txt"
SYMBOL = "ESH3@CME"


def prints(samples: Path, count: int) -> Any:
    """The captured print, so many times, as the answer to a request for prints."""
    row = next(row for row in (samples / ROWS).read_text().splitlines() if row.startswith("99|"))

    def answer(asked: Asked) -> Iterable[bytes]:
        return [captured(row, asked.number)] * count if asked.kind == BY_TICK else []

    return answer


def counters(engine: EngineProcess, name: str) -> list[int]:
    """Values of the workers' counters with this ending, of IBKR feeds."""
    found = [process["counters"] for process in engine.json("/processes")["processes"]]
    return [value for one in found for key, value in one.items() if key.startswith("ibkr.") and key.endswith(name)]


def test_a_feed_survives_its_tws(engine_name: str, tmp_path: Path, samples: Path) -> None:
    future = contract_row("ES", 495512552, secType="FUT", expiry="20230317", exchange="CME", local="ESH3")
    contracts = {"ESH3": [future]}
    body = {"symbol": SYMBOL, "data_source": "ibkr", "data_types": ["trade"]}
    with TwsServer([Act(prints(samples, 40))], contracts) as tws, EngineProcess(engine_name, tmp_path) as engine:
        engine.wait_ready()
        options = {"port": tws.port, "session": "always"}
        with Subscriber(f"tcp://127.0.0.1:{engine.base + 1}", topics=[f"marketdata.trade.{SYMBOL}"]) as subscriber:
            status, answer = engine.send("POST", "/feeds", {**body, "options": {"prot": 1}})
            assert status == 422, answer
            assert "did you mean 'port'?" in answer["detail"]
            status, answer = engine.send("POST", "/feeds", {**body, "options": options})
            assert status == 201, answer
            name = answer["feed_id"]

            def feed() -> dict[str, Any]:
                found: dict[str, Any] = engine.json(f"/feeds/{name}")
                return found

            def state(*wanted: str) -> dict[str, Any]:
                found: dict[str, Any] = wait_for(
                    " or ".join(wanted), lambda: (one := feed())["state"] in wanted and one
                )
                return found

            assert state("active")["breaker"] == "closed"
            wait_for("all of it", lambda: feed()["message_count"] >= 40)
            assert len(tws.client_ids) == 1
            # TWS loses IBKR: the feed says so, and lives on when it is back.
            tws.push(error(-1, 1100, "Connectivity between IB and Trader Workstation has been lost."))
            assert "(1100)" in state("stale")["why"]
            asked = tws.find(BY_TICK)
            assert asked is not None
            row = next(iter(prints(samples, 1)(asked)))
            stray = next(iter(prints(samples, 1)(Asked(BY_TICK, 7, []))))
            tws.push(error(-1, 1102, "Connectivity restored - data maintained"), row, stray)
            state("active")
            wait_for("a message for nobody", lambda: counters(engine, ".strays") == [1])
            # TWS is killed.
            tws.stop()
            lost = state("recovering", "connecting", "failed")
            assert lost["health_score"] == 0.0
            wait_for("the reason", lambda: f"nobody listens at 127.0.0.1:{tws.port}" in feed()["why"])
            checks = {check["name"]: check["why"] for check in engine.json("/health")["checks"]}
            assert "nobody listens" in checks[f"feed:{name}"]
            with TwsServer([Act(prints(samples, 9))], contracts, port=tws.port) as back:
                found = state("active")
                assert found["reconnects"] == 1
                asked = back.find(BY_TICK)
                assert asked is not None
                assert asked.fields[-3] == "Last"
                taken = 0
                while taken < 40 + 1 + 9:
                    message = subscriber.receive(timeout_s=60)
                    assert message is not None, f"only {taken} trades"
                    kept = message.records[message.records["record_type"] == RecordType.TRADE]
                    assert (kept["price"] == 3895.25).all()
                    taken += len(kept)
                listed = engine.json(f"/data/{SYMBOL}?data_type=trade&limit=1000")
                assert {point["source"] for point in listed["data"]} == {"ibkr"}
                assert engine.stop() == 0


def test_without_the_library_a_feed_is_refused_with_what_to_install(engine_name: str, tmp_path: Path) -> None:
    # A module that is None is one that can't be imported.
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['ib_async'] = None\n")
    path = os.pathsep.join((str(tmp_path), str(ROOT)))
    with EngineProcess(engine_name, tmp_path, env={"PYTHONPATH": path}) as engine:
        engine.wait_ready()
        status, answer = engine.send("POST", "/feeds", {"symbol": "AAPL", "data_source": "ibkr"})
        assert status == 422
        assert "pip install 'tickengine[ibkr]'" in answer["detail"]
        assert "ibkr" not in {feed["data_source"] for feed in engine.json("/feeds")["feeds"]}
        assert engine.stop() == 0
