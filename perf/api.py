"""How many points does HTTP ingest take, and how fast is the last state of a symbol answered?

    ingest_json, ingest_msgpack   points/s that POST /data/ingest stores, 10,000 a request
    data_l1                       GET /data/SYMBOL?limit=10 from L1, requests/s over four connections, each of which
                                  waits for its answer; p50 is of one connection alone
    data_journal                  GET /data/SYMBOL?limit=100 of a time long past, us from request to answer, median
    snapshot                      POST /symbols/SYMBOL/snapshot, us from request to answer, median

        this process --HTTP, one connection or four--> control process --> ring 0 --> cache, fan-out

The engine is the real one, with the client on the same cores. Peers: of ingest, msgspec alone decoding the same body
into the same structs in this process; of data_journal, a page as long from L1; of the others, Litestar under uvicorn
that answers a constant of 100 bytes.

Verified: every point is counted as stored and ring 0 holds it; every answer is 200 and has data.
"""

from __future__ import annotations

import http.client
import re
import select
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from statistics import median
from typing import Any, Literal

import msgspec

from perf.errors import require
from perf.footprint import RunningEngine, running
from perf.report import Row, Target, compare
from perf.rounds import Plan, alternate
from perf.stage import free_port
from shm.ring import ring_info
from workers.points import decode_body

POINTS = 10_000
SYMBOLS = 200
REQUESTS = 2000
CONNECTIONS = 4
PAST_S = 1_750_000_000  # a time in 2025, s since the Unix epoch

_LENGTH = re.compile(rb"content-length: *([0-9]+)", re.IGNORECASE)

_BARE = """
import sys, uvicorn
from litestar import Litestar, get
@get("/")
async def constant() -> dict[str, str]:
    return {"answer": "x" * 85}
uvicorn.run(Litestar([constant], openapi_config=None), port=int(sys.argv[1]), log_level="critical", http="h11")
"""


def ingest_json(plan: Plan) -> Row:
    """Points a second as JSON."""
    return _ingest(plan, "json", 200_000)


def ingest_msgpack(plan: Plan) -> Row:
    """Points a second as msgpack."""
    return _ingest(plan, "msgpack", 500_000)


def data_l1(plan: Plan) -> Row:
    """GET /data from L1."""
    count = plan.amount(REQUESTS)
    with running("--simulate") as engine, _bare() as peer_port:
        path = f"/data/{_symbol(engine)}?limit=10"
        ours, theirs = alternate(
            plan, lambda: _rate(engine.http_port, path, 2 * count), lambda: _rate(peer_port, "/", 2 * count)
        )
        times = _times(engine.http_port, "GET", path, count)
    note = f"10 records; p50 {median(times) * 1e3:.2f} ms for one client alone; {CONNECTIONS} connections"
    return compare("data_l1", "requests/s", ours, "bare Litestar", theirs, target=Target(3000, "higher"), note=note)


def data_journal(plan: Plan) -> Row:
    """GET /data by way of the historian, from the journal."""
    count, batches = plan.amount(300), max(3, plan.amount(20))
    with running("--simulate") as engine:
        _post_history(engine, batches)
        end = datetime.fromtimestamp(PAST_S + batches * POINTS // 2000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        live = _symbol(engine)

        def past() -> float:
            return median(_times(engine.http_port, "GET", f"/data/S7?limit=100&end={end}", count)) * 1e6

        def now() -> float:
            return median(_times(engine.http_port, "GET", f"/data/{live}?limit=100", count)) * 1e6

        ours, theirs = alternate(plan, past, now)
        answer = msgspec.json.decode(engine.get(f"data/S7?limit=100&end={end}"))
        require(answer["count"] == 100 and not answer["incomplete"], "the page is not whole")
    note = f"100 records out of {batches * POINTS:,} of {SYMBOLS} symbols; runs {ours.spread('{:.0f}')} us"
    return compare("data_journal", "us", ours, "100 from L1", theirs, target=Target(10_000, "lower"), note=note)


def snapshot(plan: Plan) -> Row:
    """POST /symbols/SYMBOL/snapshot."""
    count = plan.amount(REQUESTS)
    with running("--simulate") as engine, _bare() as peer_port:
        path = f"/symbols/{_symbol(engine)}/snapshot"
        ours, theirs = alternate(
            plan,
            lambda: median(_times(engine.http_port, "POST", path, count)) * 1e6,
            lambda: median(_times(peer_port, "GET", "/", count)) * 1e6,
        )
    note = f"runs {ours.spread('{:.0f}')} us; one client that waits for each answer"
    return compare("snapshot", "us", ours, "bare Litestar", theirs, target=Target(500, "lower"), note=note)


def _ingest(plan: Plan, form: Literal["json", "msgpack"], target: float) -> Row:
    module: Any = getattr(msgspec, form)
    body = bytes(module.encode({"data": [_point(number) for number in range(POINTS)]}))
    requests = plan.amount(30)
    headers = {"Content-Type": f"application/{form}"}
    with running("--simulate") as engine:
        connection = http.client.HTTPConnection("127.0.0.1", engine.http_port, timeout=30)

        def measure() -> float:
            before = ring_info(engine.name, 0).published
            start = time.perf_counter()
            for _ in range(requests):
                connection.request("POST", "/data/ingest", body, headers)
                answer = msgspec.json.decode(connection.getresponse().read())
                require(answer.get("count") == POINTS, f"a request stored {answer.get('count')} of {POINTS} points")
            seconds = time.perf_counter() - start
            held = ring_info(engine.name, 0).published - before
            require(held >= requests * POINTS, f"ring 0 has {held} records of {requests * POINTS} points")
            return requests * POINTS / seconds

        def decode_alone() -> float:
            start = time.perf_counter()
            for _ in range(requests):
                require(len(decode_body(body, form)[0]) == POINTS, "msgspec lost points")
            return requests * POINTS / (time.perf_counter() - start)

        ours, theirs = alternate(plan, measure, decode_alone)
        connection.close()
    note = f"{POINTS:,} points a request, {len(body) // POINTS} bytes each; trades and quotes of {SYMBOLS} symbols"
    return compare(
        f"ingest_{form}", "points/s", ours, "msgspec alone", theirs, target=Target(target, "higher"), note=note
    )


def _post_history(engine: RunningEngine, batches: int) -> None:
    """Trades and quotes of a day in 2025, a millisecond apart."""
    connection = http.client.HTTPConnection("127.0.0.1", engine.http_port, timeout=30)
    headers = {"Content-Type": "application/msgpack"}
    for first in range(0, batches * POINTS, POINTS):
        points = [
            _point(number) | {"timestamp": PAST_S * 10**9 + number * 10**6} for number in range(first, first + POINTS)
        ]
        connection.request("POST", "/data/ingest", msgspec.msgpack.encode({"data": points}), headers)
        require(msgspec.json.decode(connection.getresponse().read())["count"] == POINTS, "points were not stored")
    connection.close()


def _point(number: int) -> dict[str, Any]:
    price = 100 + number % 100 / 100
    trade = {"price": price, "size": 5.0, "exchange": "XNAS", "trade_id": number, "side": "buy"}
    quote = {"bid": price, "ask": price + 0.02, "bid_size": 3.0, "ask_size": 4.0}
    return {
        "symbol": f"S{number % SYMBOLS}",
        "data_type": "trade" if number % 2 else "quote",
        "source": "websocket",
        "timestamp": "2026-01-02T14:30:00.123456Z",
        "data": trade if number % 2 else quote,
        "latency_ms": 1.5,
    }


def _symbol(engine: RunningEngine) -> str:
    """A symbol that has at least ten records and a trade."""
    while True:
        for symbol in msgspec.json.decode(engine.get("symbols"))["symbols"]:
            if msgspec.json.decode(engine.get(f"data/{symbol}?data_type=trade&limit=10"))["count"] == 10:
                return str(symbol)
        time.sleep(0.1)


def _times(port: int, method: str, path: str, count: int) -> list[float]:
    """Seconds of each of `count` requests over one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times = []
    for _ in range(count):
        start = time.perf_counter()
        connection.request(method, path)
        answer = connection.getresponse()
        size = len(answer.read())
        times.append(time.perf_counter() - start)
        require(answer.status == 200 and size > 50, f"{path} answered {answer.status} with {size} bytes")
    connection.close()
    return times


def _rate(port: int, path: str, count: int) -> float:
    """Answers a second to CONNECTIONS clients, `count` in all; the client's part is kept small: plain sockets."""
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    clients = [socket.create_connection(("127.0.0.1", port), timeout=30) for _ in range(CONNECTIONS)]
    ready = select.epoll()
    for client in clients:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        ready.register(client.fileno(), select.EPOLLIN)
    by_fd = {client.fileno(): client for client in clients}
    partial = dict.fromkeys(by_fd, b"")
    asked = answered = 0
    start = time.perf_counter()
    for client in clients:
        client.sendall(request)
        asked += 1
    while answered < asked:
        for fd, _ in ready.poll(30):
            partial[fd] += by_fd[fd].recv(1 << 16)
            head, end, body = partial[fd].partition(b"\r\n\r\n")
            if not end:
                continue
            length = _LENGTH.search(head)
            require(head.startswith(b"HTTP/1.1 200") and length is not None, f"{path} answered {head[:20]!r}")
            if length is None or len(body) < int(length[1]):
                continue
            require(len(body) == int(length[1]) > 50, f"{path} answered {len(body)} bytes")
            partial[fd] = b""
            answered += 1
            if asked < count:
                by_fd[fd].sendall(request)
                asked += 1
    elapsed_s = time.perf_counter() - start
    ready.close()
    for client in clients:
        client.close()
    return answered / elapsed_s


@contextmanager
def _bare() -> Iterator[int]:
    """The port of a server that only answers."""
    port = free_port()
    server = subprocess.Popen([sys.executable, "-c", _BARE, str(port)])
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                _times(port, "GET", "/", 1)
                break
            except OSError:
                require(time.monotonic() < deadline, "the bare server did not start")
                time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()
