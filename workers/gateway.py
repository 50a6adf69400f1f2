"""The gateway: the worker that takes records from rings to WebSocket clients. `python -m workers.gateway`.

                  a thread sleeps on the rings, and wakes the loop
    rings --> read --> who wants it? (audience.py) --> encode once (stream.py) --> each client's socket (ws_client.py)
                                                               `--> held for a late join (joins.py, late_join.py)
    a connection --> may it come in? (door.py) --> its requests (clients.py) --> who wants what (audience.py)

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
from typing import Final

import numpy as np
import uvloop
from picows import WSCloseCode, ws_create_server

from shm.errors import SegmentMissing
from shm.instruments import InstrumentTable
from shm.latest import LatestTable
from shm.layout import empty
from shm.ring import RingReader, RingSet
from shm.source_names import SourceNames
from workers.audience import INSTRUMENTS, STATUS_KEY, Audience
from workers.backlog import ANSWER, Message
from workers.clients import Clients
from workers.door import LISTEN_BACKLOG, PATH, Door
from workers.encode import MessageBuilder
from workers.joins import Joins
from workers.last_values import LastValues
from workers.runtime import MAX_WAIT_S, Runtime, main
from workers.spec import GatewaySettings
from workers.stream import ALL_TOPICS, data_frame, flatten, gap_frame
from workers.ws_client import WsClient

TICK_S: Final = 0.05
ALIVE_S: Final = 30.0  # a client is pinged so often, and gone if it has sent nothing, not even a pong, since the last
DRAIN_S: Final = 0.15
CLOSING_S: Final = 0.25
FILES: Final = 65536

log = logging.getLogger("gateway")


class Gateway:
    """The gateway at work: its readers, and what goes from them to its clients."""

    def __init__(self, runtime: Runtime[GatewaySettings]) -> None:
        """Attach to the engine. Raises ShmError; SettingsError for an address beyond loopback without a token."""
        self._settings = settings = runtime.settings
        self._runtime = runtime
        self._door = door = Door(settings)
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
        self._audience: Audience[WsClient] = Audience(self._instruments)
        self._dirty: dict[WsClient, None] = {}
        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        values = LastValues(self._table, source_names) if self._table is not None else None
        self._joins = Joins(values, self._instruments, self._positions, self._loop.time)
        self._clients = Clients(runtime, door, self._audience, self._joins, self._begin_reading)
        self._go = threading.Semaphore(0)
        self._parked = True  # the waiter sleeps, because nobody wants anything
        self._closing = False
        self._oldest_publish_ns = 0
        counter = runtime.status.counter
        self._records_read = counter("records_read")
        self._records_lost = counter("records_lost")
        self._gaps = counter("gaps")
        self._messages_encoded = counter("messages_encoded")
        self._ring_latency = runtime.status.histogram("ring_latency")
        self._send_latency = runtime.status.histogram("send_latency")

    async def run(self) -> None:
        """Serve until the runtime says stop; then send what the rings still hold, and say goodbye."""
        server = await ws_create_server(
            self._clients.admit,
            sock=self._door.listen(),
            backlog=LISTEN_BACKLOG,
            max_frame_size=self._settings.max_message_bytes,
            read_buffer_init_size=1024,
            logger_name=_picows_log(),
        )
        log.info("ws://%s:%d%s", self._settings.host, self._settings.port, PATH)
        waiter = threading.Thread(target=self._wait_for_records, name="rings", daemon=True)
        waiter.start()
        pump = asyncio.create_task(self._joins.pump())
        try:
            self._runtime.ready()
            next_alive_s = self._loop.time() + ALIVE_S
            while not self._runtime.stopping:
                await asyncio.sleep(TICK_S if self._clients.connected else MAX_WAIT_S)
                self._tick()
                if pump.done():
                    pump.result()
                if self._loop.time() > next_alive_s:
                    next_alive_s = self._loop.time() + ALIVE_S
                    self._clients.ping()
            server.close()
            await self._say_goodbye()
        finally:
            self._closing = True
            pump.cancel()
            self._go.release()
            waiter.join(1.0)
            server.close()
            for client in list(self._clients.connected):
                client.abort()
            self._clients.publish_counts()

    async def _say_goodbye(self) -> None:
        deadline = self._loop.time() + DRAIN_S
        while self._audience.subscriptions and self._take_turn() and self._loop.time() < deadline:
            pass
        while any(client.congested for client in self._clients.connected) and self._loop.time() < deadline:
            self._runtime.beat(time.time_ns())
            await asyncio.sleep(0.002)
        leaving = list(self._clients.connected)
        for client in leaving:
            client.close(WSCloseCode.GOING_AWAY, "the engine stops")
        deadline = self._loop.time() + CLOSING_S
        while self._loop.time() < deadline and not all(
            c.transport is None or c.transport.is_disconnected for c in leaving
        ):
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
        if not self._audience.subscriptions:
            self._parked = True
        elif self._take_turn() >= self._settings.batch_slots:
            self._loop.call_soon(self._on_records)
        else:
            self._go.release()

    def _begin_reading(self) -> None:
        """A client is about to want something: from now on, if nobody did, and wake the waiter."""
        if not self._audience.subscriptions:
            for reader in self._readers:
                reader.seek("newest")
        if self._parked:
            self._parked = False
            self._go.release()

    def _take_turn(self) -> int:
        """Take what each ring has and send it. Returns the most that one ring gave."""
        most = 0
        for reader in self._readers:
            count = reader.read(self._records, self._settings.batch_slots)
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
        audience = self._audience
        keys, chosen = audience.choose(records)
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
        self._clients.publish_counts()
        self._runtime.beat(time.time_ns())

    def _announce(self, ring: int, lost_from: int, lost_to: int) -> None:
        """Tell every client which records of a ring the gateway itself has lost."""
        log.warning("ring %d: lost %d records, %d to %d", ring, lost_to - lost_from, lost_from, lost_to - 1)
        self._gaps.add(1)
        self._records_lost.add(lost_to - lost_from)
        gap = Message(ANSWER, ring, 0, ALL_TOPICS, gap_frame(ALL_TOPICS, ring, (lost_from, lost_to), None, "overrun"))
        for client in self._clients.connected:
            if client.patterns:
                client.offer(gap)
                self._dirty[client] = None

    # Time

    def _positions(self) -> dict[int, int]:
        """Per ring, the newest sequence that has been read."""
        return {reader.ring_id: reader.sequence - 1 for reader in self._readers}

    def _tick(self) -> None:
        """Twenty times a second: heartbeat, clients, counters."""
        self._runtime.beat(time.time_ns())
        self._clients.look()
        if not self._audience.subscriptions:
            for reader in self._readers:
                reader.seek("newest")
        self._joins.end()
        self._clients.publish_counts()

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
