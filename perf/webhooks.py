"""How many messages a second go from a ring to one webhook receiver?

    webhook_messages       messages/s, one subscription to everything      peer: plain aiohttp, ready-made bodies

        writer process            python -m workers.webhooks                            receiver process
        publish_batch --> ring 2 --> read, encode, queue, sign, POST --> HTTP on loopback --> aiohttp server, 204

        peer:     aiohttp client: a ready-made body of as many messages, POST after POST --> aiohttp server, 204

The writer keeps at most WINDOW records ahead of what the receiver has, so that the queue never overflows. Ours reads,
encodes and signs each message and keeps the ledger; the peer shows what HTTP alone costs. Timed by the receiver, from
its first request to its last message.

Verified: every message arrives once and in order (by sequence), and every signature.
"""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from perf.errors import PeerMissing, require
from perf.process import CONTEXT, PATIENCE_S, Child, Pipe, quiet_collector
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import RING, Stage, free_port, write_held_back
from workers.spec import SubscriptionSpec, WebhookSettings

PEER: Final = "aiohttp"
WINDOW: Final = 8000
BATCH: Final = 250
MESSAGES: Final = 500  # of one request, the worker's own bound
INSTRUMENTS: Final = 100
SECRET: Final = "a secret of the benchmark"


class _Payload(msgspec.Struct):
    """Of a message, what is checked."""

    sequence: int


class _Received(msgspec.Struct):
    """One message."""

    payload: _Payload


def messages(plan: Plan) -> Row:
    """Messages a second to one receiver."""
    count = plan.amount(60_000)
    mine, theirs = alternate(plan, lambda: _rate(count), lambda: _peer_rate(count))
    note = f"{count} messages; runs {mine.spread('{:.0f}', 1e3)} k/s"
    return compare("webhook_messages", "messages/s", mine, PEER, theirs, target=Target(20_000, "higher"), note=note)


def _rate(count: int) -> float:
    taken, port = CONTEXT.RawValue("Q", 0), free_port()
    with (
        tempfile.TemporaryDirectory() as folder,
        Stage(INSTRUMENTS) as stage,
        Child(_receive, port, count, taken, True) as receiver,
    ):
        require(receiver.hear() == "ready", "the receiver did not start")
        subscription = SubscriptionSpec(
            key=1,
            subscription_id="sub_1",
            topics=("marketdata.tick.*",),
            callback_url=f"http://127.0.0.1:{port}/",
            secret=SECRET,
        )
        stage.start(
            WebhookSettings(
                engine=stage.engine,
                label="webhooks",
                rings=(RING,),
                ledger=str(Path(folder) / "ledger"),
                subscriptions=(subscription,),
                allow_private=True,
                batch_messages=MESSAGES,
                log_level="warning",
            )
        )
        with Child(_write, stage.engine, taken, count) as writer:
            require(writer.hear() == "ready", "the writer did not start")
            writer.tell("go")
            arrived, elapsed_ns = receiver.hear()
        lost = sum(view.counters.get("messages_lost", 0) for view in stage.status.processes())
    require(lost == 0, f"{lost} messages were lost")
    return float(arrived / elapsed_ns * 1e9)


def _peer_rate(count: int) -> float:
    taken, port = CONTEXT.RawValue("Q", 0), free_port()
    with Child(_receive, port, count, taken, False) as receiver:
        require(receiver.hear() == "ready", "the receiver did not start")
        with Child(_post, port, count) as sender:
            require(sender.hear() == "ready", "the peer did not start")
            sender.tell("go")
            arrived, elapsed_ns = receiver.hear()
    return float(arrived / elapsed_ns * 1e9)


def _write(pipe: Pipe, engine: str, taken: Any, count: int) -> None:
    write_held_back(pipe, engine, taken, count, batch=BATCH, instruments=INSTRUMENTS, window=WINDOW)


def _message(sequence: int) -> bytes:
    """A message as the worker makes them, in its usual size."""
    data = {
        "timestamp": "2024-03-01T14:30:00.000123Z",
        "price": 100.015625,
        "size": 100.0,
        "exchange": None,
        "trade_id": None,
        "side": None,
    }
    payload: dict[str, Any] = {
        "symbol": "S0001",
        "data_type": "tick",
        "data": data,
        "latency_ms": None,
        "source": "internal",
        "sequence": sequence,
        "flags": [],
        "ring": 2,
    }
    return json.dumps({"topic": "marketdata.tick.S0001", "payload": payload}, separators=(",", ":")).encode()


def _post(pipe: Pipe, port: int, count: int) -> None:
    """The peer: one body after the other."""
    import uvloop

    try:
        import aiohttp
    except ImportError as error:
        raise PeerMissing(str(error)) from error
    made = [_message(sequence) for sequence in range(1, count + 1)]
    bodies = [b"[" + b",".join(made[at : at + MESSAGES]) + b"]" for at in range(0, count, MESSAGES)]

    async def all_of_it() -> None:
        async with aiohttp.ClientSession(headers={"Content-Type": "application/json"}) as session:
            pipe.say("ready")
            pipe.hear()
            for body in bodies:
                async with session.post(f"http://127.0.0.1:{port}/", data=body) as answer:
                    require(answer.status == 204, f"status {answer.status}")
        pipe.hear()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner, quiet_collector():
        runner.run(all_of_it())


def _receive(pipe: Pipe, port: int, count: int, taken: Any, ours: bool) -> None:
    """The receiver; says how many messages came after the first request, and in which time."""
    import uvloop
    from aiohttp import web

    from workers.webhook_post import sign

    decoder = msgspec.json.Decoder(list[_Received])
    arrived = 0
    first = started_ns = 0
    ended = asyncio.Event()

    async def hook(request: web.Request) -> web.Response:
        nonlocal arrived, first, started_ns
        body = await request.read()
        if ours:
            signature = sign(SECRET, request.headers["X-Tickengine-Timestamp"], body)
            require(signature == request.headers["X-Tickengine-Signature"], "the signature is wrong")
        for message in decoder.decode(body):
            arrived += 1
            require(message.payload.sequence == arrived, f"message {arrived} has sequence {message.payload.sequence}")
        if not started_ns:
            first, started_ns = arrived, time.perf_counter_ns()
        taken.value = arrived
        if arrived == count:
            ended.set()
        return web.Response(status=204)

    async def all_of_it() -> None:
        app = web.Application(client_max_size=1 << 24)
        app.router.add_post("/", hook)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        listener = socket.create_server(("127.0.0.1", port))
        await web.SockSite(runner, listener).start()
        pipe.say("ready")
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        pipe.say((arrived - first, time.perf_counter_ns() - started_ns))
        await asyncio.get_running_loop().run_in_executor(None, _until_told, pipe)
        await runner.cleanup()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(all_of_it())


def _until_told(pipe: Pipe) -> None:
    try:
        pipe.hear()
    except EOFError:
        pass
