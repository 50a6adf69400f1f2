"""A venue for tests: a WebSocket and HTTP server on loopback that speaks a venue's protocol and misbehaves as told."""

from __future__ import annotations

import asyncio
import gzip
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard
from aiohttp import WSMsgType, web

DEADLINE_S = 60


@dataclass
class Act:
    """How the server treats one connection: the n-th act for the n-th one, the last act for all that follow.

    Attributes:
        status, headers: answer the handshake so instead of upgrading.
        answer: takes a request (decoded) and gives what to send for it; None = the venue's own way.
        messages: what is sent once everything is subscribed to.
        end: what comes then: "hold" the connection, "close" it properly, "abort" it.
        reads: whether requests are read at all; False = a server that hangs after the upgrade.
        pongs: whether pings are answered.
    """

    messages: list[bytes] = field(default_factory=list)
    end: str = "hold"
    status: int = 101
    headers: dict[str, str] = field(default_factory=dict)
    answer: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None
    reads: bool = True
    pongs: bool = True
    close_code: int = 1000


Ready = Callable[[list[dict[str, Any]]], bool]
Answer = Callable[[dict[str, Any]], list[dict[str, Any]]]


class VenueServer:
    """Use as a context manager. `requests` has what each connection has sent, decoded; `fetched` the URLs of GETs."""

    def __init__(
        self, acts: list[Act], *, answer: Answer, ready: Ready, pictures: dict[str, bytes] | None = None
    ) -> None:
        """`answer`: the venue's reply to a request; `ready`: whether requests so far subscribe to everything."""
        self.acts = acts
        self.requests: list[list[dict[str, Any]]] = []
        self.fetched: list[str] = []
        self.picture_status: list[int] = []  # of the next GETs; then 200
        self.go_on = threading.Event()  # what is sent after the first `pause_after` messages waits for this
        self.pause_after = -1
        self.refuses = False  # new connections: HTTP 503
        self._live: dict[web.WebSocketResponse, web.Request] = {}  # subscribed: what `push` sends to
        self._answer, self._ready, self._pictures = answer, ready, pictures or {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._started = threading.Event()
        self._stop = asyncio.Event()
        self.port = 0

    def __enter__(self) -> VenueServer:
        self._thread.start()
        assert self._started.wait(DEADLINE_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self.go_on.set()
        self._thread.join(DEADLINE_S)

    @property
    def url(self) -> str:
        """Where a client connects."""
        return f"ws://127.0.0.1:{self.port}/ws"

    @property
    def rest_url(self) -> str:
        """Where it asks for snapshots."""
        return f"http://127.0.0.1:{self.port}/depth"

    @property
    def listeners(self) -> int:
        """Connections that have subscribed and have had their act's messages."""
        return len(self._live)

    def push(self, *messages: bytes) -> None:
        """Send text messages to every connection that has subscribed; returns when they are written."""
        asyncio.run_coroutine_threadsafe(self._push(messages), self._loop).result(DEADLINE_S)

    def cut(self) -> None:
        """Abort every connection that has subscribed."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(DEADLINE_S)

    async def _push(self, messages: tuple[bytes, ...]) -> None:
        for ws in list(self._live):
            for message in messages:
                await ws.send_str(message.decode())

    async def _cut(self) -> None:
        for request in self._live.values():
            if request.transport is not None:
                request.transport.abort()
        self._live.clear()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application()
        app.router.add_get("/ws", self._connect)
        self.add_routes(app)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()

    def add_routes(self, app: web.Application) -> None:
        """What it serves besides the WebSocket."""
        app.router.add_get("/depth", self._depth)
        app.router.add_get("/depth/{symbol}/", self._depth)

    async def _depth(self, request: web.Request) -> web.Response:
        self.fetched.append(str(request.rel_url))
        status = self.picture_status.pop(0) if self.picture_status else 200
        if status != 200:
            return web.Response(status=status, headers={"Retry-After": "1"})
        return web.Response(
            body=self._pictures[request.match_info.get("symbol") or request.query["symbol"]],
            content_type="application/json",
        )

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        self.requests.append([])
        act = self.acts[min(number, len(self.acts) - 1)]
        if self.refuses:
            return web.Response(status=503, text="closed")
        if act.status != 101:
            return web.Response(status=act.status, headers=act.headers, text="no")
        ws = web.WebSocketResponse(autoping=act.pongs)
        await ws.prepare(request)
        if not act.reads:
            await self._stop.wait()
            return ws
        sending: asyncio.Task[None] | None = None
        async for message in ws:
            if message.type is not WSMsgType.TEXT:
                continue
            asked = json.loads(message.data)
            self.requests[number].append(asked)
            for answer in (act.answer or self._answer)(asked):
                await ws.send_str(json.dumps(answer, separators=(",", ":")))
            if sending is None and self._ready(self.requests[number]):
                sending = asyncio.ensure_future(self._send(ws, act, request))
        self._live.pop(ws, None)
        if sending is not None:
            sending.cancel()
        return ws

    async def _send(self, ws: web.WebSocketResponse, act: Act, request: web.Request) -> None:
        for number, message in enumerate(act.messages):
            if number == self.pause_after:
                await asyncio.get_running_loop().run_in_executor(None, self.go_on.wait, DEADLINE_S)
            await ws.send_bytes(message) if message[:1] > b"\x7f" else await ws.send_str(message.decode())
        if act.end == "hold":
            self._live[ws] = request
        elif act.end == "close":
            await ws.close(code=act.close_code, message=b"bye")
        elif act.end == "abort":
            assert request.transport is not None
            request.transport.abort()


def jsonl(path: Path) -> list[dict[str, Any]]:
    """The lines of a `.jsonl.zst` capture."""
    text = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(path.read_bytes())).read()
    return [json.loads(line) for line in text.splitlines()]


def received(path: Path) -> list[bytes]:
    """The messages that the venue sent in a `.jsonl.zst` capture."""
    return [line["data"].encode() for line in jsonl(path) if line["t"] == "recv"]


def timed_lines(path: Path) -> list[bytes]:
    """The messages of a gzip capture of `<ns> <JSON>` lines."""
    return [line.partition(b" ")[2] for line in gzip.decompress(path.read_bytes()).splitlines()]


# -- the venues' ways


def binance_answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every SUBSCRIBE is taken."""
    return [{"result": None, "id": asked["id"]}]


def bitstamp_answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every subscription is taken."""
    return [{"event": "bts:subscription_succeeded", "channel": asked["data"]["channel"], "data": {}}]


def kraken_answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """Every symbol of a subscription is answered; one that is called NO/PE is refused."""
    if asked["method"] != "subscribe":
        return [{"method": asked["method"], "success": True, "result": {}}]
    channel = asked["params"]["channel"]
    return [
        {"error": "Currency pair not supported NO/PE", "method": "subscribe", "success": False, "symbol": symbol}
        if symbol == "NO/PE"
        else {"method": "subscribe", "result": {"channel": channel, "symbol": symbol}, "success": True}
        for symbol in asked["params"]["symbol"]
    ]


def kraken_v1_answer(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The system's state first; every pair of a subscription is answered; one that is called NO/PE is refused."""
    if asked["event"] != "subscribe":
        return [{"event": "subscriptionStatus", "status": "unsubscribed", "pair": asked["pair"][0]}]
    wanted = asked["subscription"]
    name = f"book-{wanted['depth']}" if wanted["name"] == "book" else wanted["name"]
    answers: list[dict[str, Any]] = [{"connectionID": 1, "event": "systemStatus", "status": "online", "version": "1"}]
    for pair in asked["pair"]:
        answer = {"event": "subscriptionStatus", "pair": pair, "subscription": wanted}
        if pair == "NO/PE":
            answers.append({**answer, "errorMessage": "Currency pair not supported NO/PE", "status": "error"})
        else:
            answers.append({**answer, "channelID": 7, "channelName": name, "status": "subscribed"})
    return answers


def after(count: int) -> Ready:
    """So many requests are all."""
    return lambda requests: len(requests) == count


def always_ready(_: list[dict[str, Any]]) -> bool:
    """One request is all."""
    return True


def no_answer(_: dict[str, Any]) -> list[dict[str, Any]]:
    """The capture has the answers."""
    return []


def coinbase_ready(requests: list[dict[str, Any]]) -> bool:
    """The last subscription is that of the heartbeats."""
    return requests[-1]["channel"] == "heartbeats"
