"""Redundancy groups of a whole engine: two venues, one of which dies, and a subscriber that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Flag, RecordType, StatusCode
from tests.system.engine_process import ROOT, EngineProcess, wait_for
from tests.venue_server import Act, VenueServer, always_ready, binance_answer
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow
HOLD_S = 0.5


def described_answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The answer that `described_options` knows as an acknowledgement."""
    return [{"event": "subscribed", "s": asked["symbol"]}]


def described_options(url: str) -> dict[str, Any]:
    """A venue without code, which calls Bitcoin XBT."""
    return {
        "venue": "generic",
        "url": url,
        "code": "BINANCE",  # another way to the same venue: its trade ids are the same
        "channels": {"trade": "trades"},
        "subscribe": ['{"op":"subscribe","channel":"{channel}","symbol":"{symbol}"}'],
        "acknowledged": {"event": "subscribed"},
        "rename": {"XBT": "BTCUSDT", "XET": "ETHUSDT"},
        "messages": {
            "trade": {"when": {"event": "trade"}, "symbol": "s", "price": "p", "size": "q", "id": "i", "time": "t"}
        },
    }


class Venues:
    """Two servers that tell of the same trades, each in its own words."""

    def __init__(self, first: VenueServer, second: VenueServer) -> None:
        self.servers = [first, second]
        self.next_id = {"BTC": 1, "ETH": 1}

    def trade(self, *to: int, asset: str = "BTC") -> int:
        """One trade, told by these of the two; returns its id."""
        number, now_ms = self.next_id[asset], int(time.time() * 1000)
        self.next_id[asset] += 1
        price = 100 + number % 7
        words = [
            {
                "e": "trade",
                "E": now_ms,
                "s": f"{asset}USDT",
                "t": number,
                "p": f"{price}",
                "q": "1",
                "T": now_ms,
                "m": False,
            },
            {"event": "trade", "s": {"BTC": "XBT", "ETH": "XET"}[asset], "i": number, "p": price, "q": 1, "t": now_ms},
        ]
        for index in to:
            self.servers[index].push(json.dumps(words[index]).encode())
        return number


class Listener:
    """What a ZeroMQ subscriber has seen of the group."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self.ids: dict[str, list[int]] = {"BTCUSDT": [], "ETHUSDT": []}
        self.feeds: list[int] = []
        self.backfilled: list[int] = []
        self.told: list[tuple[int, int, str]] = []  # FEED_SWITCHED: from, to, why

    def listen(self, timeout_s: float = 0.05) -> None:
        """Take in whatever there is."""
        while (message := self._subscriber.receive(timeout_s=timeout_s)) is not None:
            records = message.records
            trades = records[records["record_type"] == RecordType.TRADE]
            if len(trades):
                symbol = message.topic.rsplit(".", 1)[1]
                self.ids[symbol] += trades["trade_id"].tolist()
                self.feeds += trades["feed_id"].tolist()
                late = trades[trades["flags"] & np.uint16(Flag.BACKFILLED) != 0]
                self.backfilled += late["trade_id"].tolist()
            for record in records[records["record_type"] == RecordType.STATUS]:
                if record["code"] == StatusCode.FEED_SWITCHED:
                    self.told.append(
                        (int(record["from_sequence"]), int(record["to_sequence"]), record["text"].decode())
                    )


def configuration(tmp_path: Path, first: VenueServer, second: VenueServer) -> Path:
    def written(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {written(one)}" for key, one in value.items()) + "}"
        return json.dumps(value)

    text = f"""
[workers]
ingest = 2
[redundancy]
hold_s = {HOLD_S}
[[feeds]]
name = "main"
source = "websocket"
group = "crypto"
rank = 0
symbols = ["BTCUSDT", "ETHUSDT"]
data_types = ["trade"]
options = {written({"venue": "binance", "url": first.url})}
[[feeds]]
name = "aside"
source = "simulated"
options = {{rate = 1, instruments = 1}}
[[feeds]]
name = "spare"
source = "websocket"
group = "crypto"
rank = 1
symbols = ["XBT", "XET"]
data_types = ["trade"]
options = {written(described_options(second.url))}
"""
    path = tmp_path / "engine.toml"
    path.write_text(text)
    return path


def test_one_venue_dies_and_the_subscriber_goes_on(engine_name: str, tmp_path: Path) -> None:
    with (
        VenueServer([Act()], answer=binance_answer, ready=always_ready) as first,
        VenueServer([Act()], answer=described_answer, ready=lambda asked: len(asked) == 2) as second,
        EngineProcess(engine_name, tmp_path, "--config", str(configuration(tmp_path, first, second))) as engine,
    ):
        engine.wait_ready()
        venues = Venues(first, second)
        topics = ["marketdata.trade.BTCUSDT", "marketdata.trade.ETHUSDT", "marketdata.feed.status"]
        with Subscriber(f"tcp://127.0.0.1:{engine.base + 1}", topics=topics) as subscriber:
            listener = Listener(subscriber)

            def feed(name: str) -> dict[str, Any]:
                found: dict[str, Any] = engine.json(f"/feeds/{name}")
                return found

            def going(condition: Any, *to: int, assets: tuple[str, ...] = ("BTC", "ETH")) -> Any:
                """Trade on until it is so."""

                def look() -> Any:
                    for asset in assets:
                        venues.trade(*to, asset=asset)
                    listener.listen(0.02)
                    return condition()

                return wait_for("what the venues' trades should lead to", look)

            wait_for("both connections", lambda: first.listeners and second.listeners)
            going(lambda: feed("main")["role"] == "active" and feed("spare")["condition"] == "ready", 0, 1)
            assert feed("main")["process"] == feed("spare")["process"] != feed("aside")["process"]
            assert feed("spare")["role"] == "standby"
            assert feed("spare")["standby_records"] > 0
            checks = {check["name"]: check for check in engine.json("/health")["checks"]}
            assert checks["group:crypto"]["why"] == "main publishes; standing by: spare (ready)"
            assert listener.told == []
            assert set(listener.feeds) == {1}

            # The preferred one is cut off, after it has missed a trade.
            first.refuses = True
            missed = venues.trade(1)
            first.cut()
            going(lambda: listener.told, 1)
            assert listener.told[0][:2] == (1, 3)
            assert listener.told[0][2].startswith("lost: ")
            assert missed in listener.backfilled
            wait_for("the role", lambda: feed("spare")["role"] == "active")
            assert feed("main")["condition"] == "out"
            assert feed("main")["last_switch"].startswith("lost: ")
            why = {check["name"]: check["why"] for check in engine.json("/health")["checks"]}["group:crypto"]
            assert why.startswith("there is no standby that could take over: spare publishes; standing by: main (out: ")
            command = [sys.executable, "-m", "tools", "feeds", "--name", engine.name]
            listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True).stdout
            rows = {line.split()[0]: line.split()[-2:] for line in listed.splitlines()}
            assert rows["main"] == ["crypto/0", "standby"]
            assert rows["spare"] == ["crypto/1", "active"]

            # It is back, and publishes again when it has been well for long enough.
            first.refuses = False
            wait_for("its connection", lambda: first.listeners)
            going(lambda: len(listener.told) == 2, 0, 1)
            assert listener.told[1][:2] == (3, 1)
            assert listener.told[1][2].startswith("rank 0 healthy for ")

            # One symbol falls silent there.
            end = time.monotonic() + 60
            while len(listener.told) < 3:
                venues.trade(0, 1)
                venues.trade(1, asset="ETH")
                listener.listen(0.02)
                assert time.monotonic() < end
            assert listener.told[2][:2] == (1, 3)
            assert listener.told[2][2].startswith("trade silent for ")
            going(lambda: feed("spare")["publishes_alone"] == ["ETHUSDT"], 0, 1, assets=("BTC",))
            assert feed("main")["silent_here"] == ["ETHUSDT"]
            going(lambda: len(listener.told) == 4, 0, 1)
            assert listener.told[3][:2] == (3, 1)

            def exposed() -> str:
                return engine.get("/metrics/prometheus")[2].decode()

            wait_for("its switches", lambda: 'marketdata_group_switches{group="crypto"} 4.0' in exposed())
            assert 'marketdata_group_standbys{group="crypto"} 1.0' in exposed()
            assert 'feed_switches_total{process="' in exposed()
            assert 'marketdata_feed_standby{feed="spare",source="websocket"} 1.0' in exposed()

            # One that is added goes to the same worker, although the other one has fewer feeds.
            third = {"symbol": "BTCUSDT", "data_source": "websocket", "data_types": ["trade"], "group": "crypto"}
            options = {"venue": "binance", "url": first.url}
            status, answer = engine.send("POST", "/feeds", {**third, "rank": 5, "options": options})
            assert status == 201
            assert feed(answer["feed_id"])["process"] == feed("main")["process"]
            going(lambda: feed(answer["feed_id"])["condition"] == "ready", 0, 1)
            assert engine.send("DELETE", f"/feeds/{answer['feed_id']}", b"")[0] == 200

            # Its worker is killed: what was published is not published again, even if the venue repeats it.
            pids = engine.pids()
            label = feed("main")["process"]
            worker = next(process for process in engine.workers() if process.pid == pids[label])
            worker.kill()
            wait_for("the worker again", lambda: engine.pids().get(label, worker.pid) != worker.pid)
            wait_for("both connections", lambda: first.listeners and second.listeners)
            old = {asset: number - 1 for asset, number in venues.next_id.items()}
            for asset, number in old.items():
                venues.next_id[asset] = number
                venues.trade(0, 1, asset=asset)
            newest = venues.next_id["BTC"] - 1
            going(lambda: listener.ids["BTCUSDT"][-1] > newest, 0, 1)
            wait_for("the roles", lambda: feed("main")["role"] == "active")
            listener.listen(0.5)
        for ids in listener.ids.values():
            assert ids == list(range(ids[0], ids[-1] + 1))
        assert engine.stop() == 0


def test_groups_that_can_not_be_are_refused(engine_name: str, tmp_path: Path) -> None:
    with (
        VenueServer([Act()], answer=binance_answer, ready=always_ready) as venue,
        EngineProcess(engine_name, tmp_path) as engine,
    ):
        engine.wait_ready()
        body = {"symbol": "BTCUSDT", "data_source": "internal", "data_types": ["trade"], "group": "g"}
        status, answer = engine.send("POST", "/feeds", body)
        assert status == 422
        assert "group: a feed of source 'internal'" in answer["detail"]
        capture = {"file": "/nowhere.dbn", "speed": 1.0}
        status, answer = engine.send("POST", "/feeds", {**body, "data_source": "replay", "options": capture})
        assert status == 422, answer
        assert "group: a feed of source 'replay' can't be in one" in answer["detail"]
        options = {"venue": "binance", "url": venue.url}
        for rank in range(8):
            wanted = {**body, "data_source": "websocket", "options": options, "rank": rank}
            assert engine.send("POST", "/feeds", wanted)[0] == 201
        status, answer = engine.send(
            "POST", "/feeds", {**body, "data_source": "websocket", "options": options, "rank": 8}
        )
        assert status == 422
        assert "group 'g' has 8 feeds, the most there may be" in answer["detail"]
        assert engine.send("DELETE", "/feeds/feed_btcusdt_001", b"")[0] == 200
        wanted = {**body, "data_source": "websocket", "options": options, "rank": 8}
        assert engine.send("POST", "/feeds", wanted)[0] == 201
        assert engine.stop() == 0
