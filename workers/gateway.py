"""The gateway: the worker that takes records from rings to WebSocket clients. `python -m workers.gateway`.

                  a thread sleeps on the rings, and wakes the loop
    rings --> read --> who wants it? (audience.py) --> encode once (stream.py) --> each client's socket (ws_client.py)
                                                               `--> held for a late join (joins.py, late_join.py)
    a connection --> may it come in? (door.py) --> its requests (stream.py) --> who wants what (audience.py)

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
import logging
import resource
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import uvloop
from picows import WSCloseCode, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener, ws_create_server

from shm.errors import SegmentMissing
from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from shm.layout import empty
from shm.ring import RingReader, RingSet
from shm.source_names import SourceNames
from workers.audience import INSTRUMENTS, SOMEBODY, STATUS_KEY, UNRESOLVED, Audience, topic_keys
from workers.backlog import ANSWER, Message
from workers.door import LISTEN_BACKLOG, PATH, Door, Refused
from workers.encode import MessageBuilder
from workers.joins import Joins
from workers.last_values import LastValues
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import GatewaySettings
from workers.stream import (
    ALL_TOPICS,
    Auth,
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
from workers.ws_client import WsClient

TICK_S: Final = 0.05
AUTH_S: Final = 5.0
ALIVE_S: Final = 30.0  # a client is pinged so often, and gone if it has sent nothing, not even a pong, since the last
DRAIN_S: Final = 0.15
CLOSING_S: Final = 0.25
FILES: Final = 65536

log = logging.getLogger("gateway")


class Gateway:
    """The gateway at work: its readers, its clients, and who of them wants what."""

    def __init__(self, runtime: Runtime[GatewaySettings]) -> None:
        """Attach to the engine. Raises ShmError; SettingsError for an address beyond loopback without a token."""
        self.settings = settings = runtime.settings
        self._runtime = runtime
        self._door = Door(settings)
        self._instruments = InstrumentTable.attach(settings.engine)
        try:
            self._table: LatestTable | None = LatestTable.attach(settings.engine)
        except SegmentMissing:
            self._table = None
        self._readers = RingSet(
            RingReader.attach(settings.engine, ring, label=settings.label) for ring in settings.rings
        )
        self._records = empty(settings.batch_slots)
        self._records_view = memoryview(self._records.view(np.uint8).data)
        source_names = SourceNames(runtime.block)
        self._builder = MessageBuilder(source_names)
        self.audience: Audience[WsClient] = Audience(self._instruments)
        self.clients: dict[WsClient, None] = {}
        self.slow: dict[WsClient, None] = {}
        self._unauthorised: dict[WsClient, float] = {}
        self._dirty: dict[WsClient, None] = {}
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        values = LastValues(self._table, source_names) if self._table is not None else None
        self._joins = Joins(values, self._instruments, self._positions, self.now_s)
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
            sock=self._door.listen(),
            backlog=LISTEN_BACKLOG,
            max_frame_size=self.settings.max_message_bytes,
            read_buffer_init_size=1024,
            logger_name=_picows_log(),
        )
        log.info("ws://%s:%d%s", self.settings.host, self.settings.port, PATH)
        waiter = threading.Thread(target=self._wait_for_records, name="rings", daemon=True)
        waiter.start()
        pump = asyncio.create_task(self._joins.pump())
        try:
            self._runtime.ready()
            next_alive_s = self.now_s() + ALIVE_S
            while not self._runtime.stopping:
                await asyncio.sleep(TICK_S if self.clients else MAX_WAIT_S)
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
        self._joins.end()
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
        has_room = len(self.clients) < self.settings.max_clients and not self._runtime.stopping
        judged = self._door.judge(request, has_room=has_room)
        if isinstance(judged, Refused):
            self._clients_refused.add(1)
            error = WSUpgradeResponse.create_error_response(judged.status, judged.why.encode() + b"\n")
            return WSUpgradeResponseWithListener(error, None)
        return WsClient(self, judged)

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
        for of_clients in (self.clients, self.slow, self._unauthorised):
            of_clients.pop(client, None)
        self._joins.forget(client)

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
        if not client.authorised and not self._door.token_fits(request.token):
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
        if request.snapshot:
            self._joins.check(client)
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
            self._joins.begin(client, request, added, before)
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

    # Time and counters

    def _positions(self) -> dict[int, int]:
        """Per ring, the newest sequence that has been read."""
        return {reader.ring_id: reader.sequence - 1 for reader in self._readers}

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
        self._joins.end()
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


def _picows_log() -> logging.Logger:
    """picows' own log without a line for each connection."""
    found = logging.getLogger("picows")
    found.setLevel(max(log.getEffectiveLevel(), logging.WARNING))
    return found


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
