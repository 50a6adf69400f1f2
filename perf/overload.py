"""What becomes of a trade when fan-out gets ten times what it can send?

    overload_trade    p99 of a trade's way from its publication to a JSON subscriber at 10 x fan-out's capacity, divided
                      by the same at a tenth of its capacity

        writer process                   python -m workers.fanout                   subscriber process
        a batch a ms --> ring 2 --> read, conflate, encode, XPUB --> tcp on loopback --> one socket for all topics

Capacity is measured first, with the writer held back: messages a second that fan-out encodes and this subscriber takes,
in three processes on the cores that are there, nobody pinned. Then, round after round, a tenth of it for SECONDS_LIGHT
and ten times of it for SECONDS_HEAVY: one record in a hundred a trade, half of the rest quotes and half level 2, of
INSTRUMENTS symbols. A record's `ts_event` is when it was published, in microseconds on the wire, so that the
subscriber knows how long each trade took; what is timed is the arrival of the message, which is decoded afterwards.

Verified: every trade arrives, in order; of every tier what the writer published is what arrived and what fan-out says
that it conflated and shed; the ring overran nobody and no queue was full; fan-out's own memory grew by less than
MEMORY_BYTES. On two cores writer, fan-out, its ZeroMQ thread and the subscriber share them: the subscriber is then the
one that gets too little, and what waits for it in sockets is in the figure.
"""

from __future__ import annotations

import datetime
import statistics
import time
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import psutil
import zmq

from perf.errors import require
from perf.process import CONTEXT, PATIENCE_S, Child, Pipe, quiet_collector
from perf.report import Row, Target
from perf.rounds import Plan
from perf.stage import RING, Stage, free_port
from shm._ring import now_ns
from shm.layout import Action, Priority, RecordType, Source, empty
from shm.ring import RingWriter
from shm.status import ProcessView
from workers.spec import FanoutSettings

INSTRUMENTS: Final = 200
LEVELS: Final = 10
TRADES: Final = 0.01
OVER: Final = 10.0
LIGHT: Final = 0.1
SECONDS_HEAVY: Final = 10.0
SECONDS_LIGHT: Final = 5.0
STEP_S: Final = 0.001
POOL: Final = 65536  # records made beforehand, published over and over
CAPACITY_RECORDS: Final = 200_000
WINDOW: Final = 20_000
MEMORY_BYTES: Final = 128 << 20
ROUNDS: Final = 3
RATIO: Final = 2.0
_KINDS: Final = {b"trade": Priority.HIGH, b"quote": Priority.NORMAL, b"level2": Priority.LOW}


@dataclass
class Seen:
    """What one measurement saw. `trades_ns`: of each trade how long it took, in the order of arrival."""

    published: list[int]
    delivered: list[int]
    conflated: list[int]
    shed: list[int]
    trades_ns: np.ndarray
    memory_bytes: int
    states: list[str]

    @property
    def p99_ns(self) -> float:
        """Of the trades."""
        return float(np.percentile(self.trades_ns, 99))


def trade(plan: Plan) -> Row:
    """p99 of a trade under overload, in unloaded ones."""
    capacity = _capacity(plan.amount(CAPACITY_RECORDS))
    heavy_s, light_s = (SECONDS_HEAVY / 5, SECONDS_LIGHT / 5) if plan.quick else (SECONDS_HEAVY, SECONDS_LIGHT)
    ratios, heavy, light = [], [], []
    for _ in range(min(plan.runs, ROUNDS)):
        light.append(_measure(capacity * LIGHT, light_s))
        heavy.append(_measure(capacity * OVER, heavy_s))
        ratios.append(heavy[-1].p99_ns / light[-1].p99_ns)
    ratio, last = statistics.median(ratios), heavy[-1]
    rows = [
        f"{name} {last.published[t]} = {last.delivered[t]} + {last.conflated[t]} + {last.shed[t]}"
        for name, t in (("trades", 0), ("quotes", 1), ("levels", 2))
    ]
    note = (
        f"capacity {capacity:,.0f} messages/s; {OVER:.0f} x for {heavy_s:.0f} s; trades p50 and p99 "
        f"{_ms(light, 50)} and {_ms(light, 99)} ms at {LIGHT:g} x, {_ms(heavy, 50)} and {_ms(heavy, 99)} ms overloaded "
        f"(ratios {', '.join(f'{r:.2f}' for r in ratios)}); published = delivered + conflated + shed: "
        f"{'; '.join(rows)}; memory + {max(seen.memory_bytes for seen in heavy) / 1e6:.0f} MB; "
        f"told: {', '.join(last.states)}"
    )
    target = Target(RATIO, "lower")
    return Row("overload_trade", ratio, "x", runs=len(ratios), note=note, target=target, met=target.met_by(ratio))


def _ms(seen: list[Seen], percent: float) -> str:
    return f"{np.percentile(np.concatenate([one.trades_ns for one in seen]), percent) / 1e6:.2f}"


def market(count: int, seed: int) -> np.ndarray:
    """`count` records, TRADES of them trades, the rest quotes and levels in equal parts; the writer sets times."""
    rng = np.random.default_rng(seed)
    records = empty(count)
    rest = (1 - TRADES) / 2
    kind = rng.choice([RecordType.TRADE, RecordType.QUOTE, RecordType.LEVEL2], count, p=[TRADES, rest, rest])
    records["record_type"], records["source"] = kind, Source.MOCK
    records["instrument_id"] = rng.integers(0, INSTRUMENTS, count)
    records["priority"] = np.array([0, 0, Priority.NORMAL, 0, Priority.HIGH, Priority.LOW], np.uint8)[kind]
    records["price"], records["size"] = 100.0 + rng.integers(0, 1000, count) / 64, 1.0
    levels = kind == RecordType.LEVEL2
    records["level"][levels] = rng.integers(0, LEVELS, count)[levels]
    records["depth"][levels], records["action"][levels] = LEVELS, Action.MODIFY
    records["side"][levels] = 1 + rng.integers(0, 2, count)[levels]
    return records


def _fanout(stage: Stage, *, reliable: bool) -> tuple[int, Any]:
    """Start the worker with the JSON endpoint alone; returns its port and its process."""
    port = free_port()
    worker = stage.start(
        FanoutSettings(
            engine=stage.engine,
            label="fanout-0",
            rings=(RING,),
            raw_port=0,
            msgpack_port=0,
            json_port=port,
            replay_port=0,
            reliable=reliable,
            log_level="error",
        )
    )
    return port, worker


def _view(stage: Stage) -> ProcessView:
    (view,) = (process for process in stage.status.processes() if process.label == "fanout-0")
    return view


def _wait(stage: Stage, what: str, name: str, value: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while _view(stage).counters.get(name, 0) < value:
        require(time.monotonic() < deadline, what)
        time.sleep(0.005)


def _capacity(count: int) -> float:
    """Messages a second that this fan-out and this subscriber get through, nothing left out."""
    taken = CONTEXT.RawValue("Q", 0)
    with Stage(INSTRUMENTS) as stage:
        port, _ = _fanout(stage, reliable=True)
        with (
            Child(_subscribe, port, taken, count) as subscriber,
            Child(_write_held_back, stage.engine, taken, count) as writer,
        ):
            require(writer.hear() == "ready" and subscriber.hear() == "ready", "a role did not start")
            _wait(stage, "the subscription did not reach fan-out", "subscriptions", 1)
            writer.tell("go")
            delivered, _, elapsed_ns, _ = subscriber.hear()
            require(sum(delivered) == count, f"{sum(delivered)} of {count} messages arrived")
    return float(count / elapsed_ns * 1e9)


def _measure(rate: float, seconds: float) -> Seen:
    """That many records a second, for so long."""
    taken = CONTEXT.RawValue("Q", 0)
    with Stage(INSTRUMENTS) as stage:
        port, worker = _fanout(stage, reliable=False)
        process = psutil.Process(worker.pid)
        with (
            Child(_subscribe, port, taken, 0) as subscriber,
            Child(_write_paced, stage.engine, rate, seconds) as writer,
        ):
            require(writer.hear() == "ready" and subscriber.hear() == "ready", "a role did not start")
            _wait(stage, "the subscription did not reach fan-out", "subscriptions", 1)
            before = process.memory_info()
            writer.tell("go")
            most = 0
            while not writer.said():
                memory = process.memory_info()
                most = max(most, memory.rss - memory.shared - before.rss + before.shared)
                time.sleep(0.05)
            published = writer.hear()
            lost = _view(stage).counters["records_lost"]
            require(lost == 0, f"fan-out did not run for as long as the ring lasts: {lost} records overrun")
            _wait(stage, "fan-out did not read all", "records_read", sum(published))
            deadline = time.monotonic() + PATIENCE_S
            while _view(stage).gauges.get("records_waiting") or _view(stage).gauges.get("overload"):
                require(time.monotonic() < deadline, "the overload did not end")
                time.sleep(0.05)
            subscriber.tell(int(_view(stage).counters["messages_sent"]))
            delivered, trades_ns, _, states = subscriber.hear()
        counters = _view(stage).counters
        require(counters["records_lost"] == 0, f"the ring overran fan-out: {counters['records_lost']} records")
        require(counters["messages_dropped"] == 0, f"a queue was full: {counters['messages_dropped']} messages")
    conflated = [0, counters["conflated_normal"], counters["conflated_low"]]
    shed = [0, counters["shed_normal"], counters["shed_low"]]
    for tier in Priority:
        parts = delivered[tier], conflated[tier], shed[tier]
        require(published[tier] == sum(parts), f"{tier.name}: {published[tier]} published, {parts} accounted for")
    require(most < MEMORY_BYTES, f"memory grew by {most} bytes")
    return Seen(published, delivered, conflated, shed, trades_ns, most, states)


def _write_held_back(pipe: Pipe, engine: str, taken: Any, count: int) -> None:
    records, batch = market(POOL, 1), 1000
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        for sent in range(0, count, batch):
            while sent - min(taken.value, sent) > WINDOW:
                time.sleep(0.0002)
            at = sent % (POOL - batch)
            writer.publish_batch(records[at : at + batch], min(batch, count - sent))
        pipe.hear()  # the ring's writer stays until all is over


def _write_paced(pipe: Pipe, engine: str, rate: float, seconds: float) -> None:
    """Publish by the clock, what is due since the last time; says how many of each tier."""
    records, published = market(POOL, 2), np.zeros(3, np.int64)
    priority = records["priority"].copy()
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        start_ns, sent, at = time.perf_counter_ns(), 0, 0
        while (elapsed_ns := time.perf_counter_ns() - start_ns) < seconds * 1e9:
            due = min(int(elapsed_ns * rate / 1e9) - sent, 8192)
            if at + due > POOL:
                at = 0
            if due > 0:
                batch = records[at : at + due]
                batch["ts_event"] = now_ns()
                writer.publish_batch(batch, due)
                published += np.bincount(priority[at : at + due], minlength=3)
                sent, at = sent + due, at + due
            time.sleep(STEP_S)
        pipe.say(published.tolist())
        pipe.hear()


def _subscribe(pipe: Pipe, port: int, taken: Any, count: int) -> None:
    """Take `count` messages, or until told how many there were; says what came (see the end)."""
    trades: list[tuple[bytes, int]] = []
    status: list[bytes] = []
    kinds = dict.fromkeys(_KINDS, 0)
    with zmq.Context() as context:
        socket = context.socket(zmq.SUB)
        socket.linger, socket.rcvhwm, socket.rcvtimeo = 0, 0, 50
        socket.setsockopt(zmq.SUBSCRIBE, b"marketdata.")
        socket.connect(f"tcp://127.0.0.1:{port}")
        receive = socket.recv
        pipe.say("ready")
        got, total, start_ns, last_ns = 0, count, 0, 0
        with quiet_collector():
            while not total or got < total:
                try:
                    topic = receive()
                except zmq.Again:
                    if not count and pipe.heard():
                        total = pipe.hear()
                    continue
                frame = receive()
                last_ns = now_ns()
                start_ns = start_ns or last_ns
                got += 1
                taken.value = got
                kind = topic[11 : topic.index(b".", 11)]
                if kind in kinds:
                    kinds[kind] += 1
                    if kind == b"trade":
                        trades.append((frame, last_ns))
                else:
                    status.append(frame)
        socket.close()
    numbers: dict[str, int] = {}
    times = np.zeros(len(trades), np.int64)
    for i, (frame, arrived_ns) in enumerate(trades):
        payload = msgspec.json.decode(frame)["payload"]
        number = numbers.get(payload["symbol"], 0) + 1
        require(payload["topic_sequence"] == number, f"trade {number} of {payload['symbol']} is missing or late")
        numbers[payload["symbol"]] = number
        if not count:
            sent = datetime.datetime.fromisoformat(payload["data"]["timestamp"])
            times[i] = arrived_ns - int(sent.timestamp() * 1e6) * 1000
    states = [msgspec.json.decode(frame)["payload"]["data"]["text"].split()[0] for frame in status]
    pipe.say(([kinds[kind] for kind in _KINDS], times, last_ns - start_ns, states))
