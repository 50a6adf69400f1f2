"""The gateway: the worker that takes records from rings to WebSocket clients. `python -m workers.gateway`.

                  a thread sleeps on the rings, and wakes the loop
    rings --> read --> who wants it? (audience.py) --> encode once (stream.py) --> each client's socket (ws_client.py)
                                                               `--> held for a late join (late_join.py)

One turn takes what each ring has, up to `batch_slots` records, encodes those that somebody wants, each once, and writes
to every client what it gets in one piece. While nobody subscribes to anything the rings are not read at all.

What is lost, and how it shows:
    slow client            conflated to the newest per topic, with a gap message and `messages_conflated`; then cut with
                           close code 1008 and `clients_cut`. Nobody else notices
    overrun by a ring      the gateway itself was too slow: a gap message with topic marketdata.*, the ring and the
                           range to every client; `gaps`, `records_lost`
    this process killed    its connections end; clients connect again and ask for a snapshot

Started by the control process (workers/runtime.py); it publishes no ring and waits for no client.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import resource
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import uvloop
from picows import WSCloseCode, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener, ws_create_server

from shm.errors import SegmentMissing
from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from shm.layout import empty
from shm.ring import RingReader, RingSet
from workers.audience import INSTRUMENTS, SOMEBODY, STATUS_KEY, UNRESOLVED, Audience, topic_keys
from workers.backlog import ANSWER, Message
from workers.encode import MessageBuilder
from workers.errors import SettingsError, WorkerError
from workers.last_values import LastValues
from workers.late_join import MAX_HELD, LateJoin
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import GatewaySettings
from workers.stream import (
    ALL_TOPICS,
    Auth,
    Pattern,
    Ping,
    RequestError,
    Subscribe,
    Unsubscribe,
    data_frame,
    decode_request,
    flatten,
    gap_frame,
    parse_topics,
)
from workers.ws_client import SOCKET_BYTES, WsClient

PATH: Final = "/ws/stream"
TICK_S: Final = 0.05
AUTH_S: Final = 5.0
ALIVE_S: Final = 30.0  # a client is pinged so often, and gone if it has sent nothing, not even a pong, since the last
JOIN_PATIENCE_S: Final = 3.0  # last values are waited for so long; the cache is usually there within a millisecond
MAX_JOINS: Final = 64  # subscribe requests with `snapshot` of one client that are under way
JOIN_SLICE_S: Final = 0.002
JOIN_PAUSE_S: Final = 0.002
DRAIN_S: Final = 0.15
CLOSING_S: Final = 0.25
FILES: Final = 65536
LISTEN_BACKLOG: Final = 4096

log = logging.getLogger("gateway")


class Gateway:
    """The gateway at work: its readers, its clients, and who of them wants what."""

    def __init__(self, runtime: Runtime[GatewaySettings]) -> None:
        """Attach to the engine. Raises ShmError; SettingsError for an address beyond loopback without a token."""
        self.settings = settings = runtime.settings
        self._runtime = runtime
        self._local = _is_loopback(settings.host)
        if not self._local and not settings.tokens:
            raise SettingsError(f"host {settings.host!r} is reachable from other machines, so a token is needed")
        self._instruments = InstrumentTable.attach(settings.engine)
        try:
            self._table: LatestTable | None = LatestTable.attach(settings.engine)
        except SegmentMissing:
            self._table = None
        self._values = LastValues(self._table) if self._table is not None else None
        self._readers = RingSet(
            RingReader.attach(settings.engine, ring, label=settings.label) for ring in settings.rings
        )
        self._records = empty(settings.batch_slots)
        self._records_view = memoryview(self._records.view(np.uint8).data)
        self._builder = MessageBuilder()
        self.audience: Audience[WsClient] = Audience(self._instruments)
        self.clients: dict[WsClient, None] = {}
        self.slow: dict[WsClient, None] = {}
        self._unauthorised: dict[WsClient, float] = {}
        self._dirty: dict[WsClient, None] = {}
        self._joining: dict[WsClient, None] = {}
        self._join_queue: deque[tuple[WsClient, LateJoin, Subscribe, float]] = deque()
        self._join_asked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._go = threading.Semaphore(0)
        self._parked = True  # the waiter sleeps, because nobody wants anything
        self._closing = False
        self._oldest_publish_ns = 0
        self._sent = self._sent_bytes = 0
        counter = runtime.status.counter
        self._records_read = counter("records_read")
        self._records_lost = counter("records_lost")
        self._gaps = counter("gaps")
        self._clients = runtime.status.gauge("clients")
        self._subscriptions = counter("subscriptions")
        self._messages_sent = counter("messages_sent")
        self._messages_encoded = counter("messages_encoded")
        self._messages_conflated = counter("messages_conflated")
        self._bytes_sent = counter("bytes_sent")
        self._clients_cut = counter("clients_cut")
        self._clients_refused = counter("clients_refused")
        self._requests_refused = counter("requests_refused")
        self._ring_latency = runtime.status.histogram("ring_latency")
        self._send_latency = runtime.status.histogram("send_latency")
        self._clients.set(0)
        self._subscriptions.set(0)

    async def run(self) -> None:
        """Serve until the runtime says stop; then send what the rings still hold, and say goodbye."""
        server = await ws_create_server(
            self._admit,
            sock=_listener(self.settings.host, self.settings.port),
            backlog=LISTEN_BACKLOG,
            max_frame_size=self.settings.max_message_bytes,
            read_buffer_init_size=1024,
            logger_name=_picows_log(),
        )
        log.info("ws://%s:%d%s", self.settings.host, self.settings.port, PATH)
        waiter = threading.Thread(target=self._wait_for_records, name="rings", daemon=True)
        waiter.start()
        pump = asyncio.create_task(self._pump())
        try:
            self._runtime.ready()
            next_alive_s = self.now_s() + ALIVE_S
            while not self._runtime.stopping:
                await asyncio.sleep(TICK_S)
                self._tick()
                if pump.done():
                    pump.result()
                if self.now_s() > next_alive_s:
                    next_alive_s = self.now_s() + ALIVE_S
                    self._ping_all()
            server.close()
            await self._say_goodbye()
        finally:
            self._closing = True
            pump.cancel()
            self._go.release()
            waiter.join(1.0)
            server.close()
            for client in list(self.clients):
                client.abort()
            self._publish_counts()

    async def _say_goodbye(self) -> None:
        deadline = self.now_s() + DRAIN_S
        while self.audience.subscriptions and self._take_turn() and self.now_s() < deadline:
            pass
        while any(client.congested for client in self.clients) and self.now_s() < deadline:
            self._runtime.beat(time.time_ns())
            await asyncio.sleep(0.002)
        leaving = list(self.clients)
        for client in leaving:
            client.close(WSCloseCode.GOING_AWAY, "the engine stops")
        deadline = self.now_s() + CLOSING_S
        while self.now_s() < deadline and not all(c.transport is None or c.transport.is_disconnected for c in leaving):
            self._runtime.beat(time.time_ns())
            await asyncio.sleep(0.005)
        for client in leaving:
            client.abort()
        await asyncio.sleep(0)

    # Rings to clients

    def _wait_for_records(self) -> None:
        """The waiter's thread: sleeps on the rings and wakes the loop; then waits until the loop has read them."""
        while True:
            self._go.acquire()
            while not self._closing:
                if self._readers.wait(MAX_WAIT_S):
                    self._loop.call_soon_threadsafe(self._on_records)
                    break
            if self._closing:
                return

    def _on_records(self) -> None:
        """Some ring has something."""
        if self._closing:
            return
        if not self.audience.subscriptions:
            self._parked = True
        elif self._take_turn() >= self.settings.batch_slots:
            self._loop.call_soon(self._on_records)
        else:
            self._go.release()

    def _take_turn(self) -> int:
        """Take what each ring has and send it. Returns the most that one ring gave."""
        most = 0
        for reader in self._readers:
            count = reader.read(self._records, self.settings.batch_slots)
            if count:
                most = max(most, count)
                if reader.gap is not None:
                    self._announce(reader.ring_id, *reader.gap)
                self._forward(reader.ring_id, count)
        self._flush()
        return most

    def _forward(self, ring: int, count: int) -> None:
        """Offer the records just read to whoever wants them, each encoded once. Hot."""
        records = self._records[:count]
        publish_ns = int(records["ts_publish"][0])
        self._ring_latency.record(time.time_ns() - publish_ns)
        self._records_read.add(count)
        audience = self.audience
        keys = topic_keys(records)
        wanted = audience.wanted[keys]
        if not wanted.all():
            for key in np.unique(keys[wanted == UNRESOLVED]).tolist():
                audience.resolve(key)
            wanted = audience.wanted[keys]
        chosen = np.flatnonzero(wanted == SOMEBODY)
        if not len(chosen):
            return
        self._oldest_publish_ns = self._oldest_publish_ns or publish_ns
        names, symbols, dirty, build = audience.names, audience.symbol_of, self._dirty, self._builder.build
        encoded = 0
        first_sequence = int(records["sequence"][0])
        for index, key in zip(chosen.tolist(), keys[chosen].tolist(), strict=True):
            for _, found in build(self._records_view, [(index, key, None)], ring, names, symbols):
                encoded += 1
                topic = found["topic"]
                message = Message(
                    key, ring, first_sequence + index, topic, data_frame(topic, flatten(found["payload"], ring))
                )
                for client in audience.clients(key):
                    if client.joins and not client.lets_pass(message, *_parts(key, symbols)):
                        continue
                    client.outbox.append(message)
                    dirty[client] = None
        self._messages_encoded.add(encoded)

    def _flush(self) -> None:
        """Write to each client what the turn has for it; the heart beats on meanwhile."""
        if self._dirty:
            dirty, self._dirty = self._dirty, {}
            for number, client in enumerate(dirty, 1):
                client.flush()
                if not number % 256:
                    self._runtime.beat(time.time_ns())
            if self._oldest_publish_ns:
                self._send_latency.record(time.time_ns() - self._oldest_publish_ns)
        self._oldest_publish_ns = 0
        if self._joining:
            self._end_joins()
        self._publish_counts()
        self._runtime.beat(time.time_ns())

    def _announce(self, ring: int, lost_from: int, lost_to: int) -> None:
        """Tell every client which records of a ring the gateway itself has lost."""
        log.warning("ring %d: lost %d records, %d to %d", ring, lost_to - lost_from, lost_from, lost_to - 1)
        self._gaps.add(1)
        self._records_lost.add(lost_to - lost_from)
        gap = Message(ANSWER, ring, 0, ALL_TOPICS, gap_frame(ALL_TOPICS, ring, (lost_from, lost_to), None, "overrun"))
        for client in self.clients:
            if client.patterns:
                client.offer(gap)
                self._dirty[client] = None

    # Requests

    def _admit(self, request: WSUpgradeRequest) -> Any:
        """Answer an upgrade request: a new client, or an HTTP error. Called by picows."""
        if request.path.partition(b"?")[0].decode("latin-1") != PATH:
            return self._refuse(HTTPStatus.NOT_FOUND, f"the stream is at {PATH}")
        if len(self.clients) >= self.settings.max_clients or self._runtime.stopping:
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "no room for more clients")
        origin = request.headers.get("Origin")
        if origin is not None and not self._origin_allowed(origin, request.headers.get("Host", "")):
            return self._refuse(HTTPStatus.FORBIDDEN, "web pages of this origin may not connect: [gateway] origins")
        authorised = self._local
        authorization = request.headers.get("Authorization")
        if not authorised and authorization is not None:
            scheme, _, given = authorization.partition(" ")
            if scheme.lower() != "bearer" or not self._token_fits(given.strip()):
                return self._refuse(HTTPStatus.UNAUTHORIZED, "this is not the bearer token")
            authorised = True
        return WsClient(self, authorised)

    def _refuse(self, status: HTTPStatus, why: str) -> WSUpgradeResponseWithListener:
        self._clients_refused.add(1)
        return WSUpgradeResponseWithListener(
            WSUpgradeResponse.create_error_response(status, why.encode() + b"\n"), None
        )

    def _token_fits(self, given: str) -> bool:
        fits = [hmac.compare_digest(given.encode(), token.encode()) for token in self.settings.tokens]
        return any(fits)

    def _origin_allowed(self, origin: str, host: str) -> bool:
        """A page that a browser got elsewhere must not read this engine's data: loopback is no secret to browsers."""
        if "*" in self.settings.origins or origin in self.settings.origins:
            return True
        name = urlsplit(origin).hostname or ""
        return _is_loopback(name) or (not self._local and name == urlsplit(f"//{host}").hostname)

    def joined(self, client: WsClient) -> None:
        """A client's upgrade is done."""
        self.clients[client] = None
        if not client.authorised:
            self._unauthorised[client] = self.now_s() + AUTH_S

    def left(self, client: WsClient) -> None:
        """A client is gone, or will get nothing more. Safe to call twice."""
        for pattern in client.patterns:
            self.audience.remove(client, pattern)
        client.patterns.clear()
        for of_clients in (self.clients, self.slow, self._joining, self._unauthorised):
            of_clients.pop(client, None)

    def serve(self, client: WsClient, data: bytes) -> None:
        """Serve one request. RequestError: it can't be, for a reason that the client is told."""
        request = decode_request(data)
        try:
            if isinstance(request, Auth):
                self._authorise(client, request)
            elif not client.authorised:
                raise RequestError("type", 'a token is needed first: {"type":"auth","token":"..."}')
            elif isinstance(request, Ping):
                client.answer("pong", request.id)
            elif isinstance(request, Subscribe):
                self._subscribe(client, request)
            else:
                self._unsubscribe(client, request)
        except RequestError as error:
            error.request_id = request.id
            raise

    def _authorise(self, client: WsClient, request: Auth) -> None:
        if not client.authorised and not self._token_fits(request.token):
            self.count_refused()
            client.answer("error", request.id, field="token", message="this is not the bearer token")
            client.close(WSCloseCode.POLICY_VIOLATION, "not authorised")
            return
        client.authorised = True
        self._unauthorised.pop(client, None)
        client.answer("authorised", request.id)

    def _subscribe(self, client: WsClient, request: Subscribe) -> None:
        patterns = parse_topics(request.topics)
        added = [pattern for pattern in patterns if pattern not in client.patterns]
        limit = self.settings.max_topics
        if len(client.patterns) + len(added) > limit:
            raise RequestError(
                "topics", f"that would be {len(client.patterns) + len(added)} topics, at most {limit} are allowed"
            )
        if request.snapshot and self._values is None:
            raise RequestError("snapshot", "this engine keeps no last values")
        if request.snapshot and len(client.joins) >= MAX_JOINS:
            raise RequestError("snapshot", f"the last values of {MAX_JOINS} earlier requests are still on their way")
        if request.when_slow is not None:
            client.when_slow = request.when_slow
        if not self.audience.subscriptions:
            for reader in self._readers:
                reader.seek("newest")
        before = tuple(client.patterns)
        for pattern in added:
            client.patterns[pattern] = patterns[pattern]
            self.audience.add(client, pattern)
        if request.snapshot and added:
            join = LateJoin(added, before, self._positions(), self._meant_by(added))
            client.joins.append(join)
            self._joining[client] = None
            self._join_queue.append((client, join, request, self.now_s() + JOIN_PATIENCE_S))
            self._join_asked.set()
        client.answer("subscribed", request.id, topics=list(patterns.values()))
        if self._parked:
            self._parked = False
            self._go.release()

    def _unsubscribe(self, client: WsClient, request: Unsubscribe) -> None:
        patterns = parse_topics(request.topics)
        for index, (pattern, topic) in enumerate(patterns.items()):
            if pattern not in client.patterns:
                raise RequestError(f"topics[{index}]", f"{topic!r} is not subscribed to")
        for pattern in patterns:
            del client.patterns[pattern]
            self.audience.remove(client, pattern)
        for join in client.joins:
            join.forget(patterns)
        client.answer("unsubscribed", request.id, topics=list(patterns.values()))

    # Last values first

    def _positions(self) -> dict[int, int]:
        """Per ring, the newest sequence that has been read."""
        return {reader.ring_id: reader.sequence - 1 for reader in self._readers}

    def _meant_by(self, patterns: list[Pattern]) -> list[int]:
        """Instruments that exist and that one of the patterns may mean."""
        exact = [pattern.text for pattern in patterns if not pattern.is_prefix]
        starts = tuple(pattern.text for pattern in patterns if pattern.is_prefix)
        found = {number for text in exact if (number := self._instruments.find(text)) is not None}
        if starts:
            symbols = self._instruments.symbols()
            found |= {number for number, symbol in enumerate(symbols) if symbol.startswith(starts)}
        return sorted(number for number in found if number < INSTRUMENTS)

    async def _pump(self) -> None:
        """Send last values: a slice of time for one client, then the loop's other work, then the next client."""
        while True:
            await self._join_asked.wait()
            waited = 0
            while self._join_queue:
                client, join, request, deadline_s = self._join_queue.popleft()
                if join not in client.joins:
                    continue  # gone
                served = self._serve_join(client, join, request, deadline_s)
                waited = 0 if served else waited + 1
                if join.waiting:
                    self._join_queue.append((client, join, request, deadline_s))
                await asyncio.sleep(0 if waited < len(self._join_queue) or not waited else JOIN_PAUSE_S)
            self._join_asked.clear()

    def _serve_join(self, client: WsClient, join: LateJoin, request: Subscribe, deadline_s: float) -> bool:
        """Send the values of some instruments; False if none could be sent now."""
        values = self._values
        assert values is not None
        begun_s = self.now_s()
        if not join.covered_by(values.complete()) or join.held > MAX_HELD:
            if begun_s < deadline_s and join.held <= MAX_HELD:
                return False
            for instrument in list(join.waiting):
                for message in join.release(instrument, join.barrier):
                    client.offer(message)
            client.flush()
            why = "the last values are not there yet; the stream goes on without them"
            client.answer("error", request.id, field="snapshot", message=why)
            return True
        if client.congested:
            return False
        while join.waiting and self.now_s() - begun_s < JOIN_SLICE_S:
            instrument = next(iter(join.waiting))
            messages, floors = values.messages(instrument, self._instruments.symbol(instrument), join.concerns)
            for message in messages:
                client.offer(message)
            for message in join.release(instrument, floors):
                client.offer(message)
        client.flush()
        return True

    def _end_joins(self) -> None:
        positions = self._positions()
        for client in list(self._joining):
            client.joins[:] = [join for join in client.joins if not join.is_over(positions)]
            if not client.joins:
                del self._joining[client]

    # Time and counters

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def soon(self, call: Callable[[], None]) -> None:
        """Call at the loop's next turn."""
        self._loop.call_soon(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call after a while."""
        self._loop.call_later(delay_s, call)

    def _tick(self) -> None:
        """Twenty times a second: heartbeat, clients that are too slow or too late, counters."""
        self._runtime.beat(time.time_ns())
        now_s = self.now_s()
        for client in list(self.slow):
            if client.paused and now_s - client.slow_since_s > self.settings.cut_after_s:
                client.cut(f"the connection took nothing for {self.settings.cut_after_s:g} s")
        for client, deadline_s in list(self._unauthorised.items()):
            if now_s > deadline_s:
                client.close(WSCloseCode.POLICY_VIOLATION, f"no token within {AUTH_S:g} s")
        if not self.audience.subscriptions:
            for reader in self._readers:
                reader.seek("newest")
        if self._joining:
            self._end_joins()
        self._publish_counts()

    def _ping_all(self) -> None:
        for number, client in enumerate(list(self.clients), 1):
            if client.alive:
                client.alive = False
                if client.transport is not None and not client.paused:
                    client.transport.send_ping()
            elif not client.paused:  # a slow one is judged by its slowness
                client.abort()
            if not number % 256:
                self._runtime.beat(time.time_ns())

    def count_sent(self, messages: int, size_bytes: int) -> None:
        """Messages were handed to a socket."""
        self._sent += messages
        self._sent_bytes += size_bytes

    def count_conflated(self, messages: int) -> None:
        """Messages were replaced by newer ones."""
        self._messages_conflated.add(messages)

    def count_cut(self, why: str) -> None:
        """A client is being cut."""
        log.info("client cut: %s", why)
        self._clients_cut.add(1)

    def count_refused(self) -> None:
        """A request could not be served."""
        self._requests_refused.add(1)

    def _publish_counts(self) -> None:
        self._messages_sent.add(self._sent)
        self._bytes_sent.add(self._sent_bytes)
        self._sent = self._sent_bytes = 0
        self._clients.set(len(self.clients))
        self._subscriptions.set(self.audience.subscriptions)

    def close(self) -> None:
        """Leave the engine."""
        self._readers.close()
        self._instruments.close()
        if self._table is not None:
            self._table.close()


def _parts(key: int, symbols: dict[int, str | None]) -> tuple[int, str]:
    """Record type and symbol of a resolved topic; for special topics nothing that a late join would ask for."""
    return (0, "") if key >= STATUS_KEY else (key // INSTRUMENTS + 1, symbols[key] or "")


def _is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _picows_log() -> logging.Logger:
    """picows' own log without a line for each connection."""
    found = logging.getLogger("picows")
    found.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    return found


def _listener(host: str, port: int) -> socket.socket:
    """A bound socket whose connections buffer SOCKET_BYTES at most. Raises WorkerError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise WorkerError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
    return listener


def _raise_file_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _serve(runtime: Runtime[GatewaySettings]) -> None:
    gateway = Gateway(runtime)
    try:
        await gateway.run()
    finally:
        gateway.close()


def run(runtime: Runtime[GatewaySettings]) -> None:
    """The life of this worker, as workers.runtime.main calls it."""
    _raise_file_limit()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(runtime))


if __name__ == "__main__":
    main("gateway", GatewaySettings, run)
