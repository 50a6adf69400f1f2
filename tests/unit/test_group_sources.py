"""Redundancy groups of unlike feeds with their real sources: FIX, WebSocket and polled ones stand by for each other."""

from __future__ import annotations

import json
import random
import select
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shm.layout import Action, Flag, RecordType, Side, StatusCode, concatenate, empty
from shm.ring import RingReader, RingWriter, create_ring
from shm.status import StatusBlock
from tests.fix_server import Act as FixAct
from tests.fix_server import FixServer, Out, trades
from tests.vendor_server import Reply, VendorServer, av_series, yahoo_frames
from tests.venue_server import Act, VenueServer, always_ready, no_answer
from workers.feed import Feed, Publisher
from workers.feed_group import FeedGroup
from workers.group_member import Condition, Member
from workers.resume import FeedPosition
from workers.source import SourceContext, open_source
from workers.spec import FeedSpec, QualitySettings, RedundancySettings

DEADLINE_S = 60
RING = 2
HOLD_S = 0.3
MINUTE_NS = 60_000_000_000


class Worker:
    """Feeds of one group, served as the ingest worker serves them, and everything that the ring has had."""

    def __init__(self, name: str, folder: Path) -> None:
        self._folder = folder
        self.names: dict[str, int] = {}
        self._block = StatusBlock.create(name, process_slots=2)
        create_ring(name, RING, depth_slots=1 << 16)
        self._writer = RingWriter.open(name, RING)
        self._status = self._block.register("ingest-0", "ingest")
        self._publisher = Publisher(self._writer, self._status)
        self.group = FeedGroup("g", RedundancySettings(hold_s=HOLD_S), self._status)
        self.feeds: list[Feed] = []
        self._reader = RingReader.attach(name, RING, start=1, register=False)
        self._found = [empty(0)]
        self._out = empty(4096)
        self._batch = empty(512)

    def add(self, source: str, *, symbol: str = "TEST", types: tuple[str, ...], **options: Any) -> None:
        """Feed number 1, 2, ... in the order of their ranks."""
        number = len(self.feeds) + 1
        spec = FeedSpec(
            feed_id=number,
            name=f"{source}-{number}",
            source=source,
            symbols=(symbol,),
            data_types=types,
            options=options,
            group="g",
            rank=number,
        )
        context = SourceContext(
            spec, lambda name: self.names.setdefault(name, len(self.names)), folder=str(self._folder / "engine")
        )
        feed = Feed(
            spec,
            lambda: open_source(context),
            quality=QualitySettings(),
            status=self._status,
            position=FeedPosition(self._status, spec, 1),
            published_already=0,
            dice=random.Random(1),
            seat=self.group.join(spec),
        )
        feed.prepare()
        self.feeds.append(feed)

    def until(self, condition: Callable[[], Any], what: str) -> None:
        """Serve until it is so."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            now_ns = time.time_ns()
            for feed in self.feeds:
                if feed.due_ns is not None:
                    feed.serve(self._batch, now_ns, self._publisher)
            self.group.step(now_ns, self._publisher, str)
            while got := self._reader.read(self._out):
                self._found.append(self._out[:got].copy())
            fds = [feed.fd for feed in self.feeds if feed.fd is not None]
            select.select(fds, [], [], 0.002)
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}; {self.said}; {self.members}"

    @property
    def records(self) -> np.ndarray:
        self._found = [concatenate(self._found)]
        return self._found[0]

    def of(self, kind: RecordType) -> list[Any]:
        return [record for record in self.records if record["record_type"] == kind]

    @property
    def ids(self) -> list[int]:
        return [int(record["trade_id"]) for record in self.of(RecordType.TRADE)]

    @property
    def bars(self) -> list[tuple[int, float]]:
        """(feed, close)."""
        return [(int(record["feed_id"]), float(record["close"])) for record in self.of(RecordType.BAR)]

    @property
    def said(self) -> list[tuple[int, int, str]]:
        """FEED_SWITCHED: from, to, why."""
        return [
            (int(one["from_sequence"]), int(one["to_sequence"]), one["text"].decode())
            for one in self.of(RecordType.STATUS)
            if one["code"] == StatusCode.FEED_SWITCHED
        ]

    @property
    def members(self) -> list[Member]:
        return list(self.group.redundancy.members.values())

    @property
    def active(self) -> int:
        member = self.group.redundancy.active
        return member.feed_id if member is not None else 0

    def book(self) -> dict[tuple[int, float], float]:
        """What the level2 records of the ring leave behind."""
        found: dict[tuple[int, float], float] = {}
        for record in self.of(RecordType.LEVEL2):
            key = int(record["side"]), float(record["price"])
            if record["action"] == Action.CLEAR:
                found.clear()
            elif record["action"] == Action.DELETE or record["size"] == 0:
                found.pop(key, None)
            else:
                found[key] = float(record["size"])
        return found

    def close(self) -> None:
        for feed in self.feeds:
            feed.stop(time.time_ns(), self._publisher)
        self._reader.close()
        self._writer.close()
        self._block.close()


@pytest.fixture
def worker(engine_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    monkeypatch.setenv("ALPHA_VANTAGE_API_KEY", "k")
    worker = Worker(engine_name, tmp_path)
    yield worker
    worker.close()


def ws_options(url: str) -> dict[str, Any]:
    """A venue without code, with the trade ids of the FIX venue."""
    return {
        "venue": "generic",
        "url": url,
        "code": "SAME",
        "channels": {"trade": "t", "level2": "b", "bar": "k"},
        "subscribe": ['{"channel":"{channel}"}'],
        "messages": {
            "trade": {"when": {"e": "t"}, "symbol": "s", "price": "p", "size": "q", "id": "i", "time": "t"},
            "level2": {
                "when": {"e": ["b", "w"]},
                "symbol": "s",
                "bids": "bids",
                "asks": "asks",
                "price": "0",
                "size": "1",
                "snapshot": {"e": "w"},
                "time": "t",
            },
            "bar": {
                "when": {"e": "k"},
                "symbol": "s",
                "open": "c",
                "high": "c",
                "low": "c",
                "close": "c",
                "volume": "-",
                "time": "t",
            },
        },
    }


def ws_trade(number: int) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    return json.dumps({"e": "t", "s": "TEST", "i": number, "p": 100, "q": 1, "t": now_ms}).encode()


def ws_book(kind: str, bids: list[list[float]], asks: list[list[float]]) -> bytes:
    now_ms = time.time_ns() // 1_000_000
    return json.dumps({"e": kind, "s": "TEST", "bids": bids, "asks": asks, "t": now_ms}).encode()


def fix_entries(kind: str, *levels: tuple[str, str, float, float]) -> Out:
    """A snapshot (W) or a refresh (X) of (action, type, price, size)."""
    body = [(55, "TEST")] if kind == "W" else []
    body.append((268, str(len(levels))))
    for action, side, price, size in levels:
        body += [(279, action)] if kind == "X" else []
        body += [(269, side)] + ([(55, "TEST")] if kind == "X" else [])
        body += [(270, str(price)), (271, str(size))]
    return Out(kind, body)


def fix_options(venue: FixServer) -> dict[str, Any]:
    return {
        "host": "127.0.0.1",
        "port": venue.port,
        "sender": "CLIENT",
        "target": "VENUE",
        "code": "SAME",
        "session": "always",
    }


@pytest.mark.parametrize("first", ["fix", "websocket"])
def test_a_fix_feed_and_a_websocket_feed_stand_by_for_each_other(worker: Worker, first: str) -> None:
    """Whichever is preferred is cut off, having missed what the other one tells, and comes back."""
    with (
        FixServer([FixAct()]) as fix,
        VenueServer([Act()], answer=no_answer, ready=always_ready) as stream,
    ):
        for name in (first, "websocket" if first == "fix" else "fix"):
            options = fix_options(fix) if name == "fix" else ws_options(stream.url)
            worker.add(name, types=("trade",), **options)
        servers: dict[str, Any] = {"fix": fix, "websocket": stream}
        second = next(name for name in servers if name != first)
        worker.until(lambda: fix.listeners and stream.listeners, "both subscriptions")
        told = 0

        def tell(*names: str) -> int:
            """One trade more."""
            nonlocal told
            told += 1
            for name in names:
                servers[name].push(trades("TEST", 1, told)[0] if name == "fix" else ws_trade(told))
            return told

        def going(condition: Callable[[], Any], what: str, *names: str) -> None:
            due_ns = 0

            def look() -> Any:
                nonlocal due_ns
                if time.time_ns() >= due_ns:
                    tell(*names)
                    due_ns = time.time_ns() + 5_000_000
                return condition()

            worker.until(look, what)

        going(lambda: worker.members[1].condition is Condition.READY, "a standby that is ready", "fix", "websocket")
        assert worker.active == 1
        assert worker.said == []
        servers[first].refuses = True
        missed = tell(second)
        servers[first].cut()
        going(lambda: worker.said, "the switch", second)
        assert worker.said[0][:2] == (1, 2)
        assert worker.said[0][2].startswith("lost: ")
        going(lambda: worker.ids[-1] > missed + 20, "trades of the other one", second)
        (late,) = [one for one in worker.of(RecordType.TRADE) if one["trade_id"] == missed]
        assert late["flags"] & int(Flag.BACKFILLED)
        assert late["feed_id"] == 2
        servers[first].refuses = False
        going(lambda: servers[first].listeners, "its connection", second)
        going(lambda: worker.active == 1, "the way back", "fix", "websocket")
        assert worker.said[1][:2] == (2, 1)
        assert worker.said[1][2].startswith("rank 1 healthy for ")
        last = tell("fix", "websocket")
        worker.until(lambda: worker.ids[-1] >= last, "the last trade")
        assert worker.ids == list(range(worker.ids[0], last + 1))
        assert len(worker.said) == 2


def test_books_of_a_fix_feed_and_of_a_websocket_feed_differ_and_each_is_whole(worker: Worker) -> None:
    picture = fix_entries("W", ("", "0", 99.5, 10), ("", "0", 99.0, 20), ("", "1", 100.5, 30))
    whole = ws_book("w", [[99.25, 1], [98.0, 2]], [[100.25, 3], [101.0, 4]])
    with (
        FixServer([FixAct([picture])]) as fix,
        VenueServer([Act([whole])], answer=no_answer, ready=always_ready) as stream,
    ):
        worker.add("fix", types=("level2",), **fix_options(fix))
        worker.add("websocket", types=("level2",), **ws_options(stream.url))
        worker.until(lambda: fix.listeners and stream.listeners, "both subscriptions")
        bid, ask = int(Side.BUY), int(Side.SELL)
        fix.push(fix_entries("X", ("2", "0", 99.0, 0), ("0", "1", 100.75, 5)))
        of_fix = {(bid, 99.5): 10.0, (ask, 100.5): 30.0, (ask, 100.75): 5.0}
        worker.until(lambda: worker.book() == of_fix, "the book of the first feed")
        stream.push(ws_book("b", [[98.0, 0], [99.0, 7]], [[100.25, 9]]))
        of_stream = {(bid, 99.25): 1.0, (bid, 99.0): 7.0, (ask, 100.25): 9.0, (ask, 101.0): 4.0}
        board = worker.group.redundancy.board
        slot = worker.members[1].slot
        worker.until(lambda: board.withheld(slot) == 5 + 3, "what the other one tells")
        fix.refuses = True
        fix.cut()
        worker.until(lambda: worker.book() == of_stream, "the book of the other feed")
        levels = worker.of(RecordType.LEVEL2)
        clear = next(one for one in levels if one["feed_id"] == 2)
        assert clear["action"] == Action.CLEAR
        assert clear["flags"] == Flag.SNAPSHOT | Flag.GAP_BEFORE
        stream.push(ws_book("b", [[99.0, 0]], []))
        del of_stream[bid, 99.0]
        worker.until(lambda: worker.book() == of_stream, "its change")
        fix.refuses = False
        worker.until(lambda: fix.connections == 2 and fix.listeners, "the connection again")
        fix.push(fix_entries("X", ("1", "0", 99.5, 11)))

        def going() -> bool:
            fix.push(fix_entries("X", ("1", "0", 99.5, 11)))
            stream.push(ws_book("b", [[97.0, 1]], []))
            return worker.active == 1

        worker.until(going, "the way back")
        back = {(bid, 99.5): 11.0, (bid, 99.0): 20.0, (ask, 100.5): 30.0}
        worker.until(lambda: worker.book() == back, "the book of the first feed as it is told again")
        assert [one[:2] for one in worker.said] == [(1, 2), (2, 1)]


def av_bars(count: int, first: datetime) -> bytes:
    """So many bars of a minute each; the n-th closes at n."""
    return av_series(
        {f"{first + timedelta(minutes=number):%Y-%m-%d %H:%M:%S}": float(number) for number in range(count)}, zone="UTC"
    )


def test_bars_of_a_stream_go_on_as_those_of_a_polled_vendor(worker: Worker) -> None:
    first = datetime(2024, 5, 1, 10, tzinfo=UTC)

    def ws_bar(number: int) -> bytes:
        start_ms = round((first + timedelta(minutes=number)).timestamp() * 1000)
        return json.dumps({"e": "k", "s": "TEST", "c": float(number), "t": start_ms}).encode()

    script = [Reply(av_bars(3, first))]
    with (
        VendorServer({"TEST": script}) as vendor,
        VenueServer([Act()], answer=no_answer, ready=always_ready) as stream,
    ):
        options = {"url": vendor.base, "interval": "1min", "session": "always", "poll_s": 0.02}
        limits = {"per_second": 0, "per_minute": 0, "per_day": 0}
        described = ws_options(stream.url)
        described["messages"]["bar"]["volume"] = "c"
        worker.add("websocket", types=("bar",), **described)
        worker.add("alpha_vantage", types=("bar",), **options, **limits)
        worker.until(lambda: stream.listeners and vendor.counts["TEST"] > 2, "both")
        stream.push(*[ws_bar(number) for number in range(3, 6)])
        worker.until(lambda: worker.bars == [(1, 3.0), (1, 4.0), (1, 5.0)], "the bars of the stream")
        polled = worker.members[1]
        worker.until(lambda: polled.condition is Condition.READY, "a standby that is ready")
        # The stream goes on while the polled one has nothing new for far longer than it ever paused: that is its way.
        for number in range(6, 10):
            stream.push(ws_bar(number))
            worker.until(lambda number=number: worker.bars[-1] == (1, float(number)), "the next bar")
            until_ns = time.time_ns() + 400_000_000
            worker.until(lambda until_ns=until_ns: time.time_ns() >= until_ns, "time")
        assert polled.condition is Condition.READY
        assert worker.said == []
        stream.refuses = True
        script.append(Reply(av_bars(11, first)))
        stream.cut()
        worker.until(lambda: worker.bars[-1] == (2, 10.0), "the bar of the vendor")
        assert [close for _, close in worker.bars] == [float(number) for number in range(3, 11)]
        assert worker.said[0][:2] == (1, 2)
        stream.refuses = False
        worker.until(lambda: stream.listeners, "the stream again")
        number = 11

        def going() -> bool:
            """Bars of the stream, which the vendor has later."""
            nonlocal number
            if time.time_ns() >= going_ns[0]:
                stream.push(ws_bar(number))
                number += 1
                going_ns[0] = time.time_ns() + 50_000_000
            return worker.active == 1

        going_ns = [0]
        worker.until(going, "the way back")
        worker.until(lambda: worker.bars[-1][1] == number - 1, "the last bar")
        assert [close for _, close in worker.bars] == [float(one) for one in range(3, number)]
        assert [one[:2] for one in worker.said] == [(1, 2), (2, 1)]
        assert worker.said[1][2].startswith("rank 1 healthy for ")


def test_a_stream_of_prices_and_polled_bars_make_one_group(worker: Worker, samples: Path) -> None:
    """Yahoo's stream has no bars, its charts have no ticks: each publishes what it has, and neither is judged by it."""
    frames = yahoo_frames(samples)
    chart = json.loads((samples / "vendor/yahoo/chart-AAPL.json").read_text())["response"]["bodyJson"]
    with VendorServer({"BTC-USD": [Reply(json.dumps(chart).encode())]}, acts=[Act(frames)]) as vendor:
        worker.add("yahoo", symbol="BTC-USD", types=("tick",), url=vendor.url)
        options = {"interval": "1d", "range": "5d", "session": "always", "poll_s": 0.05, "per_second": 0}
        worker.add("yahoo", symbol="BTC-USD", types=("bar",), url=vendor.base, per_minute=0, **options)
        worker.until(lambda: worker.of(RecordType.TICK) and worker.of(RecordType.BAR), "ticks and bars")
        assert {int(one["feed_id"]) for one in worker.of(RecordType.TICK)} == {1}
        assert {int(one["feed_id"]) for one in worker.of(RecordType.BAR)} == {2}
        assert worker.active == 1
        ((from_feed, to_feed, why),) = worker.said
        assert (from_feed, to_feed) == (1, 2)
        assert why.startswith("bar silent for ")
        ready = Condition.READY
        worker.until(lambda: all(one.condition is ready for one in worker.members), "both ready")
        assert worker.group.redundancy.exceptions(worker.members[0]) == ([], [])  # what it does not carry is not missed
        assert len(worker.said) == 1
