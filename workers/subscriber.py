"""The subscriber library: numpy records from fan-out's raw endpoints, with every loss made visible.

    from workers.subscriber import Subscriber

    with Subscriber("tcp://127.0.0.1:8801", topics=["marketdata.tick.AAPL", "marketdata.quote.*"]) as subscriber:
        for message in subscriber:
            print(message.topic, message.records["price"])

For any program; needs numpy, pyzmq, shm.layout and workers.wire, and no engine on this host. ZeroMQ itself matches
topics by prefix and drops in silence when a queue is full or a connection breaks. This class compares topics exactly
(`marketdata.tick.A` is not AAPL; a trailing `*` asks for a prefix) and checks the number that each message carries:

    number == expected      in order
    number >  expected      records [expected, number) are missing: a Gap, kept in `gaps` and on the message
    number <  expected      published before: known records are dropped and counted; but where the records are younger
                            than any seen in the topic, the engine was started anew and the numbers with it

Each shard numbers its own topics, so each endpoint gets a socket of its own. What was published before the first
message of a topic is not a gap: joining late is not a loss. It never asks anybody to send again.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Final, NamedTuple

import numpy as np
import zmq

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers.wire import HEADER, HEADER_SIZE_BYTES, WIRE_VERSION

DEFAULT_PORT: Final = 8801
GAPS_KEPT: Final = 1000

_TS_PUBLISH: Final = struct.Struct("<q")
_TS_PUBLISH_FROM_END: Final = RECORD_SIZE_BYTES - 24  # of the last record of a frame


class Gap(NamedTuple):
    """Records [from_sequence, to_sequence) of a topic that were published and did not arrive here."""

    topic: str
    from_sequence: int
    to_sequence: int


class Message(NamedTuple):
    """One message. `records` is read-only, shape (n,), dtype RECORD; `gap` is what is missing just before it."""

    topic: str
    ring: int
    topic_sequence: int
    records: np.ndarray
    gap: Gap | None


class _Topic:
    """What is known of one topic of one endpoint."""

    __slots__ = ("expected", "name", "newest_ns")

    def __init__(self, name: str) -> None:
        self.name = name
        self.expected = 0  # 0 = nothing received yet
        self.newest_ns = 0


_UNKNOWN: Final = _Topic("")


def raw_endpoints(shards: int = 1, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> list[str]:
    """The raw TCP endpoints of an engine with that many fan-out shards."""
    return [f"tcp://{host}:{port + shard}" for shard in range(shards)]


class Subscriber:
    """Receives raw messages of some topics from one endpoint a shard.

    Attributes:
        gaps: the last GAPS_KEPT gaps, oldest first.
        gap_count, records_missed: how many gaps there were, and how many records they hold.
        duplicates: records dropped because they had been received before.
        restarts: how often a topic's numbers started anew.
        malformed: messages that were not what workers.wire describes, dropped.
        messages, records: what was handed out.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        topics: Sequence[str],
        *,
        receive_hwm: int = 100_000,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Connect and subscribe; returns at once, also where nobody listens yet (ZeroMQ keeps trying).

        Args:
            endpoints: raw endpoints, one for each shard of interest ("tcp://127.0.0.1:8801", "ipc:///run/...").
            topics: exact topics, or prefixes with a trailing `*`; "*" is everything, the batch topic included.
            receive_hwm: messages queued here per endpoint; beyond that the publisher queues, then drops.
            context: the ZeroMQ context to use; None = the process's own.

        Raises:
            ValueError: no endpoint, no topic, or a bare string where a list of topics belongs.
            zmq.ZMQError: an endpoint that ZeroMQ does not understand.
        """
        if isinstance(topics, str):
            raise ValueError(f"topics is {topics!r}, must be a list of topics")
        if not topics:
            raise ValueError("topics is empty: name at least one, '*' is all of them")
        endpoints = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not endpoints:
            raise ValueError("endpoints is empty: name one for each shard")
        self._exact = {topic.encode() for topic in topics if not topic.endswith("*")}
        self._prefixes = tuple(topic[:-1].encode() for topic in topics if topic.endswith("*"))
        self.gaps: deque[Gap] = deque(maxlen=GAPS_KEPT)
        self.gap_count = self.records_missed = self.duplicates = self.restarts = self.malformed = 0
        self.messages = self.records = 0
        self._sockets: list[zmq.Socket[bytes]] = []
        self._topics: list[dict[bytes, _Topic | None]] = []  # per socket; None = a topic that only shares a prefix
        self._timeout_ms = -1
        self._next = 0
        self._poller = zmq.Poller()
        context = context or zmq.Context.instance()
        try:
            for endpoint in endpoints:
                self._connect(context, endpoint, receive_hwm)
        except BaseException:
            self.close()
            raise

    def _connect(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, receive_hwm: int) -> None:
        socket = context.socket(zmq.SUB)
        self._sockets.append(socket)
        self._topics.append({})
        socket.linger = 0
        socket.rcvhwm = receive_hwm
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        for topic in self._exact | set(self._prefixes):
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message, waiting up to `timeout_s` seconds for one (None = for ever, 0 = not at all); else None."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            index = self._wait(deadline)
            if index is None:
                return None
            socket = self._sockets[index]
            try:
                topic = socket.recv()
            except zmq.Again:
                return None
            message = self._judge(socket, self._topics[index], topic)
            if message is not None:
                self.messages += 1
                self.records += len(message.records)
                return message

    def batches(self, timeout_s: float | None = None) -> Iterator[Message]:
        """Messages as they come; ends when none has come for `timeout_s` seconds (None = never)."""
        while (message := self.receive(timeout_s)) is not None:
            yield message

    def __iter__(self) -> Iterator[Message]:
        """Messages as they come, without end."""
        return self.batches()

    def _wait(self, deadline: float | None) -> int | None:
        """Index of a socket whose next message has its first frame ready to be received, or None."""
        left_ms = -1 if deadline is None else max(0, int((deadline - time.monotonic()) * 1000 + 0.999))
        if len(self._sockets) == 1:
            # One socket needs no poll: `recv` itself waits, which saves a system call and half the wake-up latency.
            if left_ms != self._timeout_ms:
                self._sockets[0].setsockopt(zmq.RCVTIMEO, left_ms)
                self._timeout_ms = left_ms
            return 0
        count = len(self._sockets)
        for turn in range(count):  # in turn, so that a busy shard does not starve the others
            index = (self._next + turn) % count
            if int(self._sockets[index].events) & zmq.POLLIN:
                self._next = index + 1
                return index
        ready = dict(self._poller.poll(None if left_ms < 0 else left_ms))
        for index, socket in enumerate(self._sockets):
            if socket in ready:
                self._next = index + 1
                return index
        return None

    def _judge(self, socket: zmq.Socket[bytes], topics: dict[bytes, _Topic | None], topic: bytes) -> Message | None:
        """Receive the frame that follows `topic` and judge its number. None if there is nothing to hand out."""
        known = topics.get(topic, _UNKNOWN)
        if known is _UNKNOWN:
            if not socket.rcvmore:
                self.malformed += 1
                return None
            asked = topic in self._exact or topic.startswith(self._prefixes)
            known = topics[topic] = _Topic(topic.decode("utf-8", "replace")) if asked else None
        try:
            frame = socket.recv()
        except zmq.Again:  # a message of one frame, and nothing behind it
            self.malformed += 1
            return None
        if known is None:
            return None
        size_bytes = len(frame)
        if size_bytes >= HEADER_SIZE_BYTES:
            version, ring, count, number = HEADER.unpack_from(frame)
            well_formed = (
                version == WIRE_VERSION and size_bytes == HEADER_SIZE_BYTES + count * RECORD_SIZE_BYTES and count
            )
        else:
            well_formed = False
        if not well_formed:
            self.malformed += 1
            while socket.rcvmore:
                socket.recv()
            return None
        records = np.frombuffer(frame, RECORD, count, HEADER_SIZE_BYTES)
        (newest_ns,) = _TS_PUBLISH.unpack_from(frame, size_bytes - _TS_PUBLISH_FROM_END)
        expected = known.expected
        gap = None
        if number != expected and expected:
            if number > expected:
                gap = Gap(known.name, expected, number)
                self.gaps.append(gap)
                self.gap_count += 1
                self.records_missed += number - expected
            elif newest_ns > known.newest_ns:
                self.restarts += 1
            else:
                known_count = min(count, expected - number)
                self.duplicates += known_count
                if known_count == count:
                    return None
                records, number, count = records[known_count:], expected, count - known_count
        known.expected = number + count
        if newest_ns > known.newest_ns:  # noqa: PLR1730  a call of max() a message
            known.newest_ns = newest_ns
        return Message(known.name, ring, number, records, gap)

    def close(self) -> None:
        """Disconnect; what is queued is dropped. Safe to call twice."""
        for socket in self._sockets:
            socket.close(0)

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
