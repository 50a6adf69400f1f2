"""How many messages a second go from a ring to WebSocket clients, how late, and what does a client cost in memory?

    gateway_1, gateway_100, gateway_5000   messages/s to so many clients, all want everything   peer: plain picows
    gateway_latency                        a single tick on an idle machine, one client         peer: plain picows
    gateway_memory                         resident memory of the gateway a client, 5000 of them

        writer process            python -m workers.gateway                        clients process
        publish_batch --> ring 2 --> read, encode once, write --> tcp on loopback --> picows clients, one event loop

        peer:     picows server: one ready-made text of the same size, `send` to each client in turn --> picows clients

The writer keeps at most WINDOW records ahead of what the clients have, and so does the peer's loop, so that nobody is
slow and nothing is conflated. Our gateway reads, encodes and routes each record; the peer's text is ready-made: it
shows what the sockets alone cost. Ours writes to a client all messages of a turn in one piece, picows one by one, which
more than pays for the encoding. Timed by the clients' process from its first to its last message.

Verified: every client gets every message, in order (sequences are checked at every 50th client, counts at all).
"""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any, Final

import numpy as np
import psutil

from perf.errors import PeerMissing, require
from perf.process import CONTEXT, PATIENCE_S, Child, Pipe, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, Series, alternate
from perf.stage import RING, Stage, free_port, write_held_back
from perf.ticks import ticks
from shm._ring import now_ns
from shm.ring import RingWriter
from workers.spec import GatewaySettings

PEER: Final = "picows"
WINDOW: Final = 512
BATCH: Final = 64
INSTRUMENTS: Final = 100
PACE_S: Final = 0.002
CHECKED: Final = 50  # every so manieth client looks into its messages
SUBSCRIBE: Final = b'{"type":"subscribe","topics":["marketdata.tick.*"]}'
MANY: Final = 5000


def one(plan: Plan) -> Row:
    """Messages a second to one client."""
    return _throughput(plan, "gateway_1", 1, plan.amount(100_000), Target(50_000, "higher"))


def hundred(plan: Plan) -> Row:
    """Messages a second to 100 clients together."""
    return _throughput(plan, "gateway_100", 100, plan.amount(20_000), Target(200_000, "higher"))


def many(plan: Plan) -> Row:
    """Messages a second to 5000 clients together."""
    return _throughput(plan, f"gateway_{MANY}", MANY, plan.amount(600), Target(100_000, "higher"))


def latency(plan: Plan) -> Row:
    """From ts_publish to the client's hands, one client, idle."""
    count = plan.amount(1000)
    pooled: list[np.ndarray] = []

    def ours() -> float:
        taken = _one_way_ns(count)
        pooled.append(taken)
        return float(np.median(taken))

    mine, theirs = alternate(plan, ours, lambda: float(np.median(_peer_one_way_ns(count))))
    p99 = np.percentile(np.concatenate(pooled[1:]), 99)
    note = f"p99 {p99 / 1e3:.0f} us; ours has two processes and a sleeping thread to wake, the peer one process"
    return compare("gateway_latency", "ns", mine, PEER, theirs, target=Target(1_000_000, "lower"), note=note)


def memory(plan: Plan) -> Row:
    """Resident memory of the gateway with 5000 subscribed clients, less that without, a client."""
    clients = plan.amount(MANY)
    series = Series()
    for _ in range(max(1, plan.runs // 2)):
        with Stage(INSTRUMENTS) as stage:
            port, process = _start(stage)
            before = process.memory_info().rss
            with Child(_receive, port, (clients, 200), CONTEXT.RawValue("Q", 0), True) as role:
                with Child(_write, stage.engine, CONTEXT.RawValue("Q", 1 << 60), 200) as writer:
                    require(role.hear() == "ready" and writer.hear() == "ready", "a role did not start")
                    writer.tell("go")
                    role.hear()
                series.values.append((process.memory_info().rss - before) / clients)
    note = f"{clients} clients, each subscribed and served; beside it at most 64 KiB and its queue for a slow one"
    return compare("gateway_memory", "B/client", series, "", None, target=Target(20_480, "lower"), note=note)


def _throughput(plan: Plan, name: str, clients: int, count: int, target: Target) -> Row:
    mine, theirs = alternate(plan, lambda: _rate(clients, count), lambda: _peer_rate(clients, count))
    note = f"{count} messages to each; runs {mine.spread('{:.0f}', 1e3)} k/s"
    return compare(name, "messages/s", mine, PEER, theirs, target=target, note=note)


def _start(stage: Stage) -> tuple[int, psutil.Process]:
    port = free_port()
    worker = stage.start(
        GatewaySettings(engine=stage.engine, label="gateway", rings=(RING,), port=port, log_level="warning")
    )
    return port, psutil.Process(worker.pid)


def _rate(clients: int, count: int) -> float:
    taken = CONTEXT.RawValue("Q", 0)
    with Stage(INSTRUMENTS) as stage:
        port, _ = _start(stage)
        with (
            Child(_receive, port, (clients, count), taken, True) as role,
            Child(_write, stage.engine, taken, count) as writer,
        ):
            require(role.hear() == "ready" and writer.hear() == "ready", "a role did not start")
            writer.tell("go")
            messages, elapsed_ns = role.hear()
            conflated = sum(view.counters.get("messages_conflated", 0) for view in stage.status.processes())
    require(conflated == 0, f"{conflated} messages were conflated")
    return float(messages / elapsed_ns * 1e9)


def _peer_rate(clients: int, count: int) -> float:
    taken, port = CONTEXT.RawValue("Q", 0), free_port()
    with Child(_broadcast, port, (clients, count), taken, 0.0) as server:
        require(server.hear() == "ready", "the peer did not start")
        with Child(_receive, port, (clients, count), taken, False) as role:
            require(role.hear() == "ready", "a role did not start")
            server.tell("go")
            messages, elapsed_ns = role.hear()
    return float(messages / elapsed_ns * 1e9)


def _one_way_ns(count: int) -> np.ndarray:
    with Stage(1) as stage:
        port, _ = _start(stage)
        with Child(_time, port, count, True) as role, Child(_write_paced, stage.engine, count) as writer:
            require(role.hear() == "ready" and writer.hear() == "ready", "a role did not start")
            writer.tell("go")
            latency_ns: np.ndarray = role.hear() - writer.hear()
    return latency_ns


def _peer_one_way_ns(count: int) -> np.ndarray:
    taken, port = CONTEXT.RawValue("Q", 0), free_port()
    with Child(_broadcast, port, (1, count), taken, PACE_S) as server:
        require(server.hear() == "ready", "the peer did not start")
        with Child(_time, port, count, False) as role:
            require(role.hear() == "ready", "a role did not start")
            server.tell("go")
            latency_ns: np.ndarray = role.hear() - server.hear()
    return latency_ns


def _text(sequence: int) -> bytes:
    """A message as the gateway makes them, in its usual size."""
    data = {
        "symbol": "S0001",
        "data_type": "tick",
        "source": "internal",
        "sequence": sequence,
        "ring": 2,
        "latency_ms": None,
        "flags": [],
        "timestamp": "2024-03-01T14:30:00.000123Z",
        "price": 100.015625,
        "size": 100.0,
        "exchange": None,
        "trade_id": None,
        "side": None,
    }
    return json.dumps({"type": "data", "topic": "marketdata.tick.S0001", "data": data}, separators=(",", ":")).encode()


def _write(pipe: Pipe, engine: str, taken: Any, count: int) -> None:
    write_held_back(pipe, engine, taken, count, batch=BATCH, instruments=INSTRUMENTS, window=WINDOW)


def _write_paced(pipe: Pipe, engine: str, count: int) -> None:
    records = ticks(count, 1)
    single = [records[i : i + 1].tobytes() for i in range(count)]
    published = np.zeros(count, dtype=np.int64)
    with RingWriter.open(engine, RING) as writer, quiet_collector():
        pipe.say("ready")
        pipe.hear()
        for index, record in enumerate(single):
            time.sleep(PACE_S)
            published[index] = now_ns()
            writer.publish(record)
        pipe.say(published)
        pipe.hear()


def _receive(pipe: Pipe, port: int, size: tuple[int, int], taken: Any, ours: bool) -> None:
    """`size`: connections, messages to each; says how many messages came after the first round, and in which time."""
    import uvloop
    from picows import WSListener, WSMsgType, WSTransport, ws_connect

    clients, count = size

    class Counter(WSListener):
        """What all clients got together."""

        total = 0
        goal = clients * count
        started_ns = 0
        ended = asyncio.Event()

    class Plain(WSListener):
        """One client that counts."""

        checks = False

        def __init__(self) -> None:
            self.got = 0
            self.ready = False

        def on_ws_connected(self, transport: WSTransport) -> None:
            if ours:
                transport.send(WSMsgType.TEXT, SUBSCRIBE)

        def on_ws_frame(self, _: WSTransport, frame: Any) -> None:
            if ours and not self.ready:
                self.ready = b'"subscribed"' in frame.get_payload_as_bytes()
                require(self.ready, "not subscribed")
                return
            self.got += 1
            if self.checks:
                sequence = json.loads(frame.get_payload_as_bytes())["data"]["sequence"]
                require(sequence == self.got, f"message {self.got} has sequence {sequence}")
            Counter.total += 1
            if Counter.total == clients:
                Counter.started_ns = time.perf_counter_ns()
            if not Counter.total & 255 or Counter.total == Counter.goal:
                taken.value = Counter.total // clients
                if Counter.total == Counter.goal:
                    Counter.ended.set()

    async def all_of_it() -> None:
        made: list[Any] = []
        while len(made) < clients:
            some = min(200, clients - len(made))
            made += [
                client
                for _, client in await asyncio.gather(
                    *(ws_connect(Plain, f"ws://127.0.0.1:{port}/ws/stream") for _ in range(some))
                )
            ]
        for client in made[::CHECKED]:
            client.checks = True
        while ours and not all(client.ready for client in made):
            await asyncio.sleep(0.01)
        pipe.say("ready")
        await asyncio.wait_for(Counter.ended.wait(), PATIENCE_S)
        ended_ns = time.perf_counter_ns()
        require(all(client.got == count for client in made), "a client has not got everything")
        pipe.say((Counter.goal - clients, ended_ns - Counter.started_ns))
        await asyncio.get_running_loop().run_in_executor(None, _until_told, pipe)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())


def _time(pipe: Pipe, port: int, count: int, ours: bool) -> None:
    """One client; says when each message came, ns, shape (count,)."""
    import uvloop
    from picows import WSListener, WSMsgType, WSTransport, ws_connect

    arrived = np.zeros(count, dtype=np.int64)

    class Timer(WSListener):
        """The client."""

        def __init__(self) -> None:
            self.got = -1 if ours else 0
            self.ended = asyncio.Event()

        def on_ws_connected(self, transport: WSTransport) -> None:
            if ours:
                transport.send(WSMsgType.TEXT, SUBSCRIBE)

        def on_ws_frame(self, _: WSTransport, __: Any) -> None:
            if self.got >= 0:
                arrived[self.got] = now_ns()
            self.got += 1
            if self.got == count:
                self.ended.set()

    async def all_of_it() -> None:
        client: Any
        _, client = await ws_connect(Timer, f"ws://127.0.0.1:{port}/ws/stream")
        while client.got < 0:
            await asyncio.sleep(0.005)
        pipe.say("ready")
        await asyncio.wait_for(client.ended.wait(), PATIENCE_S)
        pipe.say(arrived)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, quiet_collector():
        runner.run(all_of_it())


def _broadcast(pipe: Pipe, port: int, size: tuple[int, int], taken: Any, pace_s: float) -> None:
    """The peer: a picows server that sends `count` ready-made texts to everybody, one send a client and text."""
    import uvloop

    try:
        from picows import WSListener, WSMsgType, WSTransport, ws_create_server
    except ImportError as error:
        raise PeerMissing(str(error)) from error
    clients, count = size
    joined: list[Any] = []
    texts = [_text(sequence + 1) for sequence in range(count)]
    published = np.zeros(count, dtype=np.int64)

    class Peer(WSListener):
        """One connection."""

        def on_ws_connected(self, transport: WSTransport) -> None:
            joined.append(transport)

    async def all_of_it() -> None:
        server = await ws_create_server(lambda _: Peer(), "127.0.0.1", port, backlog=4096)
        pipe.say("ready")
        await asyncio.get_running_loop().run_in_executor(None, pipe.hear)
        require(len(joined) == clients, f"{len(joined)} of {clients} clients")
        for index, text in enumerate(texts):
            if pace_s:
                await asyncio.sleep(pace_s)
            while not pace_s and index - min(taken.value, index) > WINDOW:
                await asyncio.sleep(0.0002)
            published[index] = now_ns()
            for transport in joined:
                transport.send(WSMsgType.TEXT, text)
            await asyncio.sleep(0)
        if pace_s:
            pipe.say(published)
        await asyncio.get_running_loop().run_in_executor(None, _until_told, pipe)
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())


def _until_told(pipe: Pipe) -> None:
    try:
        pipe.hear()
    except EOFError:
        pass
