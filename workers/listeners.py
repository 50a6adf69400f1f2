"""The listeners of one fan-out shard: its outlets, who may connect to them, and who wants which topic.

    XPUB outlets --> subscriptions --> wanted topics (for the router) --> names of topics, encodings
    gate (CURVE) --> whose connections end

Made by workers/fanout.py, which asks it to `look` between turns and to `resolve` topics that are new to the router; who
watches which symbol goes on to workers/watch.py. It reads no ring and sends nothing.
"""

from __future__ import annotations

import logging
import time
from typing import Any, Final, Protocol

import numpy as np
import zmq

from shm.errors import BadArgument
from shm.instruments import InstrumentTable
from shm.layout import RECORD_SIZE_BYTES
from workers import topics as topic_table
from workers._route import JSON, MSGPACK, RAW, RESOLVED, Router
from workers.errors import SettingsError
from workers.gate import Gate
from workers.outlet import Outlet
from workers.runtime import Runtime
from workers.spec import FanoutSettings
from workers.topics import BATCH, INSTRUMENTS, SYMBOL_TOPICS
from workers.watch import Watch
from workers.wire import ALERT_TOPIC, BATCH_TOPIC, ERROR_TOPIC, STATUS_TOPIC, symbol_topic

QUEUE_BYTES: Final = 512 << 20  # most that may wait for one stuck subscriber; ZeroMQ itself counts messages only
PATIENCE_S: Final = 1.0  # with `reliable`: wait for a subscriber that is slow, give up on one that has stopped

_SHARD_TOPICS: Final = {
    topic_table.BATCH: BATCH_TOPIC,
    topic_table.STATUS: STATUS_TOPIC,
    topic_table.ERROR: ERROR_TOPIC,
    topic_table.ALERT: ALERT_TOPIC,
}

log = logging.getLogger("fanout")


def endpoints(settings: FanoutSettings, kind: str, port: int) -> list[str]:
    """Where this shard's outlet of that kind ("raw", "msgpack", "json", "replay") listens; none if its port is 0."""
    if port == 0:
        return []
    found = [f"tcp://{settings.host}:{port + settings.shard}"]
    if settings.ipc_dir:
        found.append(f"ipc://{settings.ipc_dir}/{settings.engine}.{kind}.{settings.shard}")
    return found


class HasConnections(Protocol):
    """A socket beside the outlets whose clients the gate judges too."""

    def drop_connections(self) -> None:
        """End every connection; who still may connects again."""


class Listeners:
    """Those of one shard. `names` and `symbols` are of each topic that was resolved; both grow in place."""

    def __init__(
        self, runtime: Runtime[FanoutSettings], router: Router, instruments: InstrumentTable, *, frame_records: int
    ) -> None:
        """Bind the endpoints. `frame_records`: most records of a message, for the bound on what may wait.

        Raises:
            WorkerError: an endpoint can't be bound.
            SettingsError: keys that can't be used, or none for an address beyond loopback.
        """
        self._settings = settings = runtime.settings
        self._runtime = runtime
        self._router = router
        self._instruments = instruments
        self._watch = Watch(settings.engine, instruments.find)
        self._also: list[HasConnections] = []
        self.names: dict[int, bytes] = {topic: name.encode() for topic, name in _SHARD_TOPICS.items()}
        self.symbols: dict[int, str | None] = dict.fromkeys(_SHARD_TOPICS)
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._gate = self._make_gate()
        self._drop_later = False  # not while a socket is in the middle of a message
        self.guard = self._gate.guard if self._gate is not None else _unguarded
        self.outlets: dict[int, Outlet] = {}
        for bit, kind, port in (
            (RAW, "raw", settings.raw_port),
            (MSGPACK, "msgpack", settings.msgpack_port),
            (JSON, "json", settings.json_port),
        ):
            if listens := endpoints(settings, kind, port):
                self.outlets[bit] = Outlet(
                    self.context,
                    listens,
                    min(settings.send_hwm, QUEUE_BYTES // (frame_records * RECORD_SIZE_BYTES)),
                    patience_s=PATIENCE_S if settings.reliable else 0.0,
                    on_wait=self._keep_waiting,
                    guard=self.guard,
                )
                log.info("%s on %s", kind, ", ".join(listens))
        self._subscriptions = runtime.status.counter("subscriptions")
        self._subscriptions.set(0)
        self._decide_shard_topics()

    def _make_gate(self) -> Gate | None:
        settings = self._settings
        if bool(settings.server_key_file) != bool(settings.client_keys):
            raise SettingsError("server_key_file, client_keys: both or neither")
        if settings.server_key_file:
            refused = self._runtime.status.counter("curve_refused")
            return Gate(self.context, settings.server_key_file, settings.client_keys, on_refused=refused.add)
        if not _is_loopback(settings.host):
            raise SettingsError(f"host {settings.host!r} is reachable from other machines, so CURVE keys are needed")
        return None

    def look(self, ranked: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        """Take in who subscribed to what; topics that this may concern are decided about anew when they next come.

        `ranked` (uint8, by instrument id) is brought up to date about once a second.
        """
        if self._gate is not None and (self._gate.look() or self._drop_later):
            self._drop_later = False
            self._drop_connections()
        changed: list[bytes] = []
        for outlet in self.outlets.values():
            changed += outlet.read_subscriptions()
        count = sum(outlet.subscriptions for outlet in self.outlets.values())
        if count != self._subscriptions.value:  # a topic's second subscriber changes nothing else
            self._subscriptions.set(count)
        if changed:
            for row, name in enumerate(_ROW_PREFIXES):
                if any(prefix.startswith(name) or name.startswith(prefix) for prefix in changed):
                    self._router.wanted[row * INSTRUMENTS : (row + 1) * INSTRUMENTS] = 0
            self._decide_shard_topics()
            self._watch.note(changed, self._listeners)
        self._watch.look(time.time_ns(), ranked)

    def _drop_connections(self) -> None:
        for outlet in self.outlets.values():
            outlet.drop_connections()
        for other in self._also:
            other.drop_connections()

    def _decide_shard_topics(self) -> None:
        for topic in _SHARD_TOPICS:
            self._router.wanted[topic] = self._wanted(topic) & ~(MSGPACK | JSON if topic == BATCH else 0)

    def resolve(self, unresolved: list[int]) -> None:
        """Decide about topics that came for the first time, or for the first time since subscriptions changed."""
        for topic in unresolved:
            if topic not in self.names:
                try:
                    symbol = self._instruments.symbol(topic % INSTRUMENTS)
                except BadArgument:
                    continue  # a number that nobody interned: stays undecided, numbered, unsent
                self.symbols[topic] = symbol
                self.names[topic] = symbol_topic(topic // INSTRUMENTS + 1, symbol).encode()
                self._watch.note([self.names[topic]], self._listeners)  # who subscribed before there was the symbol
            self._router.wanted[topic] = self._wanted(topic)

    def _listeners(self, topic: bytes) -> int:
        return sum(outlet.listeners(topic) for outlet in self.outlets.values())

    def _wanted(self, topic: int) -> int:
        name = self.names[topic]
        return sum((bit for bit, outlet in self.outlets.items() if outlet.wants(name)), RESOLVED)

    def _keep_waiting(self) -> bool:
        """Called while a patient outlet waits: the heart beats on, and whoever wants to stop does not wait."""
        self._runtime.beat(time.time_ns())
        if self._gate is not None:
            self._drop_later |= self._gate.look()
        return not self._runtime.stopping

    def judge_too(self, other: HasConnections) -> None:
        """When the gate ends connections, end those of `other` as well."""
        self._also.append(other)

    def totals(self) -> tuple[int, int, int]:
        """(messages sent, messages dropped, bytes sent) by all outlets since they were made. Once a turn."""
        messages = dropped = size_bytes = 0
        for outlet in self.outlets.values():
            messages += outlet.messages
            dropped += outlet.dropped
            size_bytes += outlet.bytes
        return messages, dropped, size_bytes

    def close_outlets(self, linger_s: float) -> None:
        """Send what is queued for up to `linger_s` seconds, and nothing more."""
        for outlet in self.outlets.values():
            outlet.close(linger_s)

    def close(self) -> None:
        """Let go of the rest, once every other socket of `context` is closed."""
        if self._gate is not None:
            self._gate.close()
        self._watch.close()
        self.context.term()


_ROW_PREFIXES: Final = [symbol_topic(row + 1, "").encode() for row in range(SYMBOL_TOPICS // INSTRUMENTS)]


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1", "[::1]") or host.startswith("127.")


def _unguarded(_: zmq.Socket[bytes]) -> None:
    """Whoever reaches the socket may connect: it listens on loopback, in a folder of the engine's own."""
