"""How long is nothing published when the active feed of a redundancy group dies, and what does a group cost?

    failover        ms from the last record of the feed that died to the first of the next, the longest of 100 deaths
    group_filter    records/s of the active feed through its group                    peer: numpy doing as little

        venues process                          python -m workers.ingest                   this process
        two WebSocket servers, the same  -->  two feeds of one group --> ring 2  -->  reads every record
        trades every 2 ms over each

Deaths by turns: the connection of the active feed is aborted, or its server says nothing any more and keeps the
connection; at moments drawn by a fixed seed. The dead one comes back as the standby, and the other one is next. Both
times are `ts_publish`, so backlog counts from when it stood in the ring.

Verified: FEED_SWITCHED names the right feeds each time, and the trades of the ring are all that the venues made between
the first and the last, each once and in order: nothing lost, nothing doubled. For group_filter: every record passes.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import numpy as np

from perf.errors import require
from perf.process import Child, Pipe, pinned, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage
from perf.ticks import ticks
from shm.layout import RecordType, StatusCode, empty
from shm.ring import RingReader
from workers.redundancy import Limits, Redundancy
from workers.spec import FeedSpec, IngestSettings, RedundancySettings

DEATHS: Final = 100
DEATHS_A_WORKER: Final = 10  # a feed that is lost too often in half a minute waits before it connects again
PACE_S: Final = 0.002
FEEDS: Final = (1, 2)
PATIENCE_S: Final = 30.0
BATCH: Final = 256


def failover(plan: Plan) -> Row:
    """The longest pause over all deaths; the note has the middle ones."""
    deaths = plan.amount(DEATHS)
    dice = random.Random(11)
    found: dict[str, list[float]] = {"abort": [], "silence": []}
    trades = 0
    with Child(_venues) as venues:
        ports = venues.hear()
        for begun in range(0, deaths, DEATHS_A_WORKER):
            with Stage(0) as stage, _Watch(stage, ports) as watch:
                for number in range(begun, min(begun + DEATHS_A_WORKER, deaths)):
                    how = "abort" if number % 4 < 2 else "silence"  # of each feed by turns
                    found[how].append(_die(watch, venues, how, dice))
                watch.check()
                trades += len(watch.ids)
    both = [*found["abort"], *found["silence"]]
    words = "; ".join(
        f"{how} p50 {np.median(values):.0f} ms, longest {max(values):.0f}" for how, values in found.items() if values
    )
    note = f"{len(both)} deaths: {words}; {trades:,} trades, none lost, none doubled"
    target = Target(1000, "lower")
    return Row("failover", max(both), "ms", runs=1, note=note, target=target, met=target.met_by(max(both)))


def group_filter(plan: Plan) -> Row:
    """Records a second of a feed that publishes, while a standby stands by."""
    count = plan.amount(2_000_000) // BATCH
    records = ticks(BATCH, 64)
    records["ts_event"] = 1_700_000_000_000_000_000
    with pinned(0), quiet_collector():
        ours, theirs = alternate(plan, lambda: _filter_rate(records, count), lambda: _numpy_rate(records, count))
        single = BATCH * 1e9 / alternate(plan, lambda: _filter_rate(records[:1], count * 16))[0].median
    note = f"{BATCH} records a call, 64 symbols; a call with one record takes {single / BATCH:.0f} ns; none withheld"
    target = Target(10e6, "higher")
    return compare(
        "group_filter", "records/s", ours, "numpy, the newest of each symbol", theirs, target=target, note=note
    )


def _filter_rate(records: np.ndarray, count: int) -> float:
    group = Redundancy("g", Limits())
    member, other = group.join(1, "a", 0), group.join(2, "b", 1)
    group.up(member, 1)
    group.up(other, 1)
    passed, now_ns = 0, 1_700_000_001_000_000_000
    start = time.perf_counter_ns()
    for _ in range(count):
        passed += group.filter(records, len(records), member, now_ns)
        now_ns += 1000
    elapsed_ns = time.perf_counter_ns() - start
    require(passed == count * len(records), f"{passed} of {count * len(records)} records passed")
    return passed / elapsed_ns * 1e9


def _numpy_rate(records: np.ndarray, count: int) -> float:
    """The peer: the newest event time of each symbol, and nothing decided by it."""
    newest = np.zeros(1024, dtype=np.int64)
    start = time.perf_counter_ns()
    for _ in range(count):
        np.maximum.at(newest, records["instrument_id"], records["ts_event"])
    elapsed_ns = time.perf_counter_ns() - start
    require(int(newest.max()) == int(records["ts_event"].max()), "the newest was not found")
    return count * len(records) / elapsed_ns * 1e9


def _die(watch: _Watch, venues: Child, how: str, dice: random.Random) -> float:
    """One death of the active feed; returns for how many ms nothing was published."""
    watch.look(dice.uniform(0.3, 0.9))
    active = watch.feeds[-1]
    switches, ups = len(watch.switches), watch.ups[active]
    venues.tell((how, active))
    watch.until(lambda: len(watch.switches) > switches and watch.feeds[-1] != active, f"a switch after {how}")
    venues.tell(("back", active))
    if how == "abort":
        watch.until(lambda: watch.ups[active] > ups, "the connection again")
    from_feed, to_feed, at = watch.switches[-1]
    require((from_feed, to_feed) == (active, 3 - active), f"switched from {from_feed} to {to_feed}, not from {active}")
    require(len(watch.switches) == switches + 1, "more than one switch")
    watch.look(0.6)  # the standby is heard of
    return (watch.times[at] - watch.times[at - 1]) / 1e6


@dataclass
class _Watch:
    """Reads the ring from its beginning: every trade, every switch. A context manager."""

    stage: Stage
    ports: tuple[int, int]
    ids: list[int] = field(default_factory=list)
    feeds: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    switches: list[tuple[int, int, int]] = field(default_factory=list)  # from, to, place in the lists of the next trade
    ups: dict[int, int] = field(default_factory=lambda: dict.fromkeys(FEEDS, 0))

    def __enter__(self) -> _Watch:
        self._reader = RingReader.attach(self.stage.engine, RING, start="oldest", label="watch")
        self._out = empty(4096)
        settings = IngestSettings(
            engine=self.stage.engine,
            label="ingest-0",
            ring_id=RING,
            feeds=tuple(_feed(number, port) for number, port in zip(FEEDS, self.ports, strict=True)),
            redundancy=RedundancySettings(hold_s=1000.0, margin=1.0),
        )
        self.stage.start(settings, quiet=True)
        self.until(lambda: all(self.ups.values()) and self.ids, "both feeds")
        self.look(1.0)
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close()

    def look(self, for_s: float) -> None:
        """Read on for so long."""
        end = time.monotonic() + for_s
        while time.monotonic() < end:
            self._read()

    def until(self, condition: Any, what: str) -> None:
        """Read on until it is so."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            require(time.monotonic() < end, f"waited {PATIENCE_S:.0f} s in vain for {what}")
            self._read()

    def _read(self) -> None:
        self._reader.wait(0.01)
        count = self._reader.read(self._out)
        require(self._reader.gap is None, "the ring was not read fast enough")
        for record in self._out[:count]:
            if record["record_type"] == RecordType.TRADE:
                self.ids.append(int(record["trade_id"]))
                self.feeds.append(int(record["feed_id"]))
                self.times.append(int(record["ts_publish"]))
            elif record["code"] == StatusCode.FEED_SWITCHED:
                self.switches.append((int(record["from_sequence"]), int(record["to_sequence"]), len(self.ids)))
            elif record["code"] == StatusCode.FEED_UP:
                self.ups[int(record["feed_id"])] += 1

    def check(self) -> None:
        """Nothing lost, nothing doubled."""
        missing = set(range(self.ids[0], self.ids[-1] + 1)) - set(self.ids)
        require(not missing, f"{len(missing)} trades were lost, the first is {min(missing, default=0)}")
        require(len(set(self.ids)) == len(self.ids), f"{len(self.ids) - len(set(self.ids))} trades came twice")
        require(self.ids == sorted(self.ids), "trades came out of order")


def _feed(number: int, port: int) -> FeedSpec:
    shape = {"symbol": "s", "price": "p", "size": "q", "id": "i", "time": "t", "time_unit": "ns"}
    options = {
        "venue": "generic",
        "url": f"ws://127.0.0.1:{port}/",
        "code": "XPERF",
        "channels": {"trade": "trades"},
        "subscribe": ['{"subscribe":"{symbol}"}'],
        "messages": {"trade": shape},
    }
    return FeedSpec(
        feed_id=number,
        name=f"venue-{number}",
        source="websocket",
        symbols=("TEST",),
        data_types=("trade",),
        options=options,
        group="venues",
        rank=number,
    )


def _venues(pipe: Pipe) -> None:
    """Two servers that tell every subscriber of the same trades; they die as told."""
    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

    joined: dict[int, set[Any]] = {number: set() for number in FEEDS}
    silent: set[int] = set()

    class Client(WSListener):
        """One connection to one of the servers."""

        def __init__(self, number: int) -> None:
            self._clients = joined[number]

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type == WSMsgType.TEXT:
                self._clients.add(transport)
            elif frame.msg_type == WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            self._clients.discard(transport)

    def client(number: int, _: Any) -> Client:
        return Client(number)

    async def serve() -> None:
        servers = [await ws_create_server(partial(client, number), "127.0.0.1", 0) for number in FEEDS]
        pipe.say(tuple(server.sockets[0].getsockname()[1] for server in servers))
        number, due = 0, time.monotonic()
        while True:
            while pipe.heard():
                how, which = pipe.hear()
                if how == "abort":
                    for transport in list(joined[which]):
                        transport.disconnect(graceful=False)
                elif how == "silence":
                    silent.add(which)
                else:
                    silent.discard(which)
            number += 1
            told = json.dumps({"s": "TEST", "p": 100 + number % 9, "q": 1, "i": number, "t": time.time_ns()}).encode()
            for which in FEEDS:
                if which not in silent:
                    for transport in list(joined[which]):
                        transport.send(WSMsgType.TEXT, told)
            due += PACE_S
            await asyncio.sleep(max(0.0, due - time.monotonic()))

    asyncio.run(serve())
