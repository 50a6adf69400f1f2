"""Redundancy groups of unlike feeds in a whole engine: FIX beside WebSocket, and books of two venues."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm.layout import Action, Flag, RecordType, Side
from tests.fix_server import Act as FixAct
from tests.fix_server import FixServer, trades
from tests.system.engine_process import EngineProcess, wait_for
from tests.system.test_feed_groups import Listener, described_answer, described_options
from tests.venue_server import Act, VenueServer, always_ready, binance_answer
from workers.subscriber import Subscriber

pytestmark = pytest.mark.slow


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {toml(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def configure(tmp_path: Path, *feeds: tuple[str, list[str], list[str], dict[str, Any]]) -> Path:
    """Feeds of one group, the first one preferred: source, symbols, data types, options."""
    text = "[redundancy]\nhold_s = 0.5\n"
    for rank, (source, symbols, types, options) in enumerate(feeds):
        text += (
            f'[[feeds]]\nname = "{source}-{rank}"\nsource = "{source}"\ngroup = "g"\nrank = {rank}\n'
            f"symbols = {json.dumps(symbols)}\ndata_types = {json.dumps(types)}\noptions = {toml(options)}\n"
        )
    path = tmp_path / "engine.toml"
    path.write_text(text)
    return path


def test_a_fix_venue_dies_and_the_websocket_feed_goes_on_and_back(engine_name: str, tmp_path: Path) -> None:
    with (
        FixServer([FixAct()]) as fix,
        VenueServer([Act()], answer=described_answer, ready=always_ready) as stream,
    ):
        of_fix = {
            "host": "127.0.0.1",
            "port": fix.port,
            "sender": "CLIENT",
            "target": "VENUE",
            "code": "BINANCE",  # the trade ids are those of the other feed
            "rename": {"BTC/USD": "BTCUSDT"},
        }
        path = configure(
            tmp_path,
            ("fix", ["BTC/USD"], ["trade"], of_fix),
            ("websocket", ["XBT"], ["trade"], described_options(stream.url)),
        )
        told = 0

        def tell(*servers: FixServer | VenueServer) -> int:
            nonlocal told
            told += 1
            message = {"event": "trade", "s": "XBT", "i": told, "p": 100, "q": 1, "t": time.time_ns() // 1_000_000}
            for server in servers:
                if isinstance(server, FixServer):
                    server.push(*trades("BTC/USD", 1, told))
                else:
                    server.push(json.dumps(message).encode())
            return told

        with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
            engine.wait_ready()
            topics = ["marketdata.trade.BTCUSDT", "marketdata.feed.status"]
            with Subscriber(f"tcp://127.0.0.1:{engine.base + 1}", topics=topics) as subscriber:
                listener = Listener(subscriber)
                ids = listener.ids["BTCUSDT"]

                def going(condition: Callable[[], Any], *servers: FixServer | VenueServer) -> None:
                    def look() -> Any:
                        tell(*servers)
                        listener.listen(0.02)
                        return condition()

                    wait_for("what the trades should lead to", look)

                def feed(name: str) -> dict[str, Any]:
                    found: dict[str, Any] = engine.json(f"/feeds/{name}")
                    return found

                wait_for("both connections", lambda: fix.listeners and stream.listeners)
                both = (fix, stream)
                going(lambda: feed("fix-0")["role"] == "active" and feed("websocket-1")["condition"] == "ready", *both)
                assert listener.told == []
                assert set(listener.feeds) == {1}

                fix.refuses = True
                missed = tell(stream)
                fix.cut()
                going(lambda: listener.told and ids[-1] > missed, stream)
                assert listener.told[0][:2] == (1, 2)
                assert listener.told[0][2].startswith("lost: ")
                assert missed in listener.backfilled
                wait_for("the roles", lambda: feed("websocket-1")["role"] == "active")
                assert feed("fix-0")["condition"] == "out"

                fix.refuses = False
                going(lambda: fix.listeners, stream)
                going(lambda: len(listener.told) == 2, *both)
                assert listener.told[1][:2] == (2, 1)
                assert listener.told[1][2].startswith("rank 0 healthy for ")
                last = tell(*both)
                going(lambda: ids[-1] > last, *both)
            assert ids == list(range(ids[0], ids[-1] + 1))
            assert engine.stop() == 0


class Book:
    """A venue's book as it is, told in the words of Binance or of a described venue."""

    def __init__(self, dice: random.Random, first_price: int) -> None:
        self.dice = dice
        self.update = 1
        self.levels = {
            (int(side), float(first_price + at)): 1.0 + at
            for side, begin in ((Side.BUY, 0), (Side.SELL, 20))
            for at in range(begin, begin + 10)
        }
        self._first = first_price

    def entries(self, side: Side) -> list[list[str]]:
        return [[str(price), str(size)] for (one, price), size in self.levels.items() if one == side]

    def change(self) -> tuple[list[list[str]], list[list[str]]]:
        """One level of each side is set or taken out."""
        changed: tuple[list[list[str]], list[list[str]]] = ([], [])
        for side, begin, entries in ((Side.BUY, 0, changed[0]), (Side.SELL, 20, changed[1])):
            price = float(self._first + begin + self.dice.randrange(20))
            size = float(self.dice.choice((0, self.dice.randrange(1, 90))))
            if size:
                self.levels[int(side), price] = size
            else:
                self.levels.pop((int(side), price), None)
            entries.append([str(price), str(size)])
        return changed

    # Binance

    def picture(self) -> bytes:
        told = {"lastUpdateId": self.update, "bids": self.entries(Side.BUY), "asks": self.entries(Side.SELL)}
        return json.dumps(told).encode()

    def depth_update(self) -> bytes:
        bids, asks = self.change()
        self.update += 1
        told = {
            "e": "depthUpdate",
            "E": time.time_ns() // 1_000_000,
            "s": "BTCUSDT",
            "U": self.update,
            "u": self.update,
        }
        data = json.dumps({**told, "b": bids, "a": asks})
        return f'{{"stream":"btcusdt@depth@100ms","data":{data}}}'.encode()

    # the described venue

    def snapshot(self) -> bytes:
        told = {"event": "whole", "s": "XBT", "t": time.time_ns() // 1_000_000}
        return json.dumps({**told, "bids": self.entries(Side.BUY), "asks": self.entries(Side.SELL)}).encode()

    def step(self) -> bytes:
        bids, asks = self.change()
        told = {"event": "step", "s": "XBT", "t": time.time_ns() // 1_000_000, "bids": bids, "asks": asks}
        return json.dumps(told).encode()


class Reader:
    """A subscriber that keeps the book as the records of its topic say."""

    def __init__(self, subscriber: Subscriber) -> None:
        self._subscriber = subscriber
        self.levels: dict[tuple[int, float], float] = {}
        self.clears: list[tuple[int, int]] = []  # feed, flags

    def read(self) -> None:
        while (message := self._subscriber.receive(timeout_s=0.02)) is not None:
            for record in message.records:
                assert record["record_type"] == RecordType.LEVEL2
                key = int(record["side"]), float(record["price"])
                if record["action"] == Action.CLEAR:
                    self.levels.clear()
                    self.clears.append((int(record["feed_id"]), int(record["flags"])))
                elif record["action"] == Action.DELETE or record["size"] == 0:
                    self.levels.pop(key, None)
                else:
                    self.levels[key] = float(record["size"])


def test_the_book_is_that_of_the_venue_that_publishes(engine_name: str, tmp_path: Path) -> None:
    dice = random.Random(5)
    main, spare = Book(dice, 1000), Book(dice, 1005)
    pictures = {"BTCUSDT": main.picture()}
    acts = [Act([spare.snapshot()])]
    options = described_options("")
    described = {
        "channels": {"level2": "book"},
        "messages": {
            "level2": {
                "when": {"event": ["step", "whole"]},
                "symbol": "s",
                "time": "t",
                "bids": "bids",
                "asks": "asks",
                "price": "0",
                "size": "1",
                "snapshot": {"event": "whole"},
            }
        },
    }
    with (
        VenueServer([Act()], answer=binance_answer, ready=always_ready, pictures=pictures) as first,
        VenueServer(acts, answer=described_answer, ready=always_ready) as second,
    ):
        of_main = {"venue": "binance", "url": first.url, "rest_url": first.rest_url, "depth_limit": 1000}
        path = configure(
            tmp_path,
            ("websocket", ["BTCUSDT"], ["level2"], of_main),
            ("websocket", ["XBT"], ["level2"], {**options, **described, "url": second.url}),
        )
        with EngineProcess(engine_name, tmp_path, "--config", str(path)) as engine:
            engine.wait_ready()
            endpoint = f"tcp://127.0.0.1:{engine.base + 1}"
            with Subscriber(endpoint, topics=["marketdata.level2.BTCUSDT"]) as subscriber:
                reader = Reader(subscriber)

                def going(condition: Callable[[], Any], *venues: Book) -> None:
                    """Both books change on until it is so."""

                    def look() -> Any:
                        if main in venues:
                            first.push(main.depth_update())
                            pictures["BTCUSDT"] = main.picture()
                        if spare in venues:
                            second.push(spare.step())
                        reader.read()
                        return condition()

                    wait_for("what the books should lead to", look)

                def feed(number: int) -> dict[str, Any]:
                    found: dict[str, Any] = engine.json(f"/feeds/websocket-{number}")
                    return found

                wait_for("both connections", lambda: first.listeners and second.listeners)
                both = (main, spare)
                going(lambda: feed(0)["role"] == "active" and feed(1)["condition"] == "ready", *both)
                going(lambda: reader.levels == main.levels)
                assert reader.levels != spare.levels

                seen = len(reader.clears)
                first.refuses = True
                first.cut()
                going(lambda: len(reader.clears) > seen, spare)
                going(lambda: reader.levels == spare.levels)
                assert reader.clears[seen] == (2, int(Flag.SNAPSHOT | Flag.GAP_BEFORE))
                for _ in range(20):
                    second.push(spare.step())
                going(lambda: reader.levels == spare.levels)

                first.refuses = False
                seen = len(reader.clears)
                wait_for("its connection", lambda: first.listeners)
                going(lambda: feed(0)["role"] == "active", *both)
                going(lambda: reader.levels == main.levels)
                assert reader.clears[seen:] == [(1, int(Flag.SNAPSHOT | Flag.GAP_BEFORE))]
                going(lambda: reader.levels == main.levels, *both)

                pids, label = engine.pids(), feed(0)["process"]
                next(process for process in engine.workers() if process.pid == pids[label]).kill()
                seen = len(reader.clears)
                going(lambda: len(reader.clears) > seen and reader.clears[-1][0] == 1, *both)
                going(lambda: reader.levels == main.levels)
            assert engine.stop() == 0
