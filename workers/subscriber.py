"""The subscriber library: numpy records from fan-out's raw endpoints, with every loss made visible.

    from workers.subscriber import Subscriber

    with Subscriber("tcp://127.0.0.1:8801", topics=["marketdata.tick.AAPL", "marketdata.quote.*"]) as subscriber:
        for message in subscriber:
            print(message.topic, message.records["price"])

For any program; needs numpy, pyzmq, shm.layout and workers.wire, and no engine on this host. ZeroMQ itself matches
topics by prefix and drops in silence when a queue is full or a connection breaks. This class compares topics exactly
(`marketdata.tick.A` is not AAPL; a trailing `*` asks for a prefix) and checks the number that each message carries:

    number == expected      in order
    number >  expected      records [expected, number) are missing: they are asked for at the replay endpoint, and
                            handed out before this message; what can't be had is a Gap, in `gaps` and on the message,
                            and so is what an overloaded fan-out conflated or shed (workers/healing.py)
    number <  expected      published before: known records are dropped and counted; but where the records are younger
                            than any seen in the topic, the engine was started anew and the numbers with it

Each shard numbers its own topics, so each endpoint gets a socket of its own, and one for its replay endpoint (the same
host, port + 30) if `heal` is on. Only a later message shows what was lost before it. What was published before the
first message of a topic is not a gap: joining late is not a loss. With `join_records` the last so many records of each
topic are asked for, and handed out first; the stream goes on after them with neither gap nor double. While an answer
is awaited, messages of that topic are held, those of other topics are not; all of it happens within `receive`.
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Iterator, Sequence
from math import inf
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
import zmq

from shm.layout import RECORD, RECORD_SIZE_BYTES
from workers.healing import Gap, Healing, Message, Part, PastGap, Topic
from workers.wire import HEADER, HEADER_SIZE_BYTES, WIRE_VERSION, replay_endpoint

if TYPE_CHECKING:
    from workers.keys import CurveKeys
    from workers.replay_client import ReplayLink

__all__ = ["DEFAULT_PORT", "Gap", "Message", "PastGap", "Subscriber", "raw_endpoints"]

DEFAULT_PORT: Final = 8801
HELD_RECORDS: Final = 1 << 18  # 32 MiB: most that is held while answers are awaited
MAX_JOIN_RECORDS: Final = 8192
CONNECT_S: Final = 2.0  # how long a replay endpoint that was never reached is tried before it counts as absent

_TS_PUBLISH: Final = struct.Struct("<q")
_TS_PUBLISH_FROM_END: Final = RECORD_SIZE_BYTES - 24  # of the last record of a frame


_UNKNOWN: Final = Topic("", 0, True)


def raw_endpoints(shards: int = 1, *, host: str = "127.0.0.1", port: int = DEFAULT_PORT) -> list[str]:
    """The raw TCP endpoints of an engine with that many fan-out shards."""
    return [f"tcp://{host}:{port + shard}" for shard in range(shards)]


def _replay_endpoints(endpoints: list[str], heal: bool | None, given: Sequence[str] | None) -> list[str]:
    """Where to ask, for each endpoint; "" = nowhere."""
    if isinstance(given, str):
        given = [given]
    if heal is False:
        return [""] * len(endpoints)
    if given is not None:
        if len(given) != len(endpoints):
            raise ValueError(f"replay_endpoints has {len(given)} entries, endpoints has {len(endpoints)}")
        return list(given)
    derived = [replay_endpoint(endpoint) or "" for endpoint in endpoints]
    if heal and not all(derived):
        raise ValueError(f"heal is True: name replay_endpoints, they do not follow from {endpoints}")
    return derived


class Subscriber:
    """Receives raw messages of some topics from one endpoint a shard, and asks for those that got lost.

    Attributes:
        malformed: messages that were not what workers.wire describes, dropped.
        messages, records: what was handed out.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        topics: Sequence[str],
        *,
        receive_hwm: int = 100_000,
        heal: bool | None = None,
        join_records: int = 0,
        join_from_ns: int = 0,
        replay_endpoints: Sequence[str] | None = None,
        heal_timeout_s: float = 3.0,
        keys: CurveKeys | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Connect and subscribe; returns at once, also where nobody listens yet (ZeroMQ keeps trying).

        Args:
            endpoints: raw endpoints, one for each shard of interest ("tcp://127.0.0.1:8801", "ipc:///run/...").
            topics: exact topics, or prefixes with a trailing `*`; "*" is everything, the batch topic included.
            receive_hwm: messages queued here per endpoint; beyond that the publisher queues, then drops.
            heal: ask the replay endpoints for what was lost; None = where there is one.
            join_records: start each topic with up to that many records of before, 0 to 8192; needs `heal`. Topics named
                by a prefix are joined when their first message comes.
            join_from_ns: start each topic with all that was published since then (ns, `ts_publish`), from journal and
                rings; 0 = not. Not together with `join_records`. See `since_ns` and `past_gaps` for what was not kept.
            replay_endpoints: one for each of `endpoints`; None = derived from them (workers.wire.replay_endpoint).
            heal_timeout_s: how long an answer may take before what is missing counts as lost.
            keys: where the engine has keys, one's own secret and the engine's public one (CurveKeys.read).
            context: the ZeroMQ context to use; None = the process's own.

        Raises:
            ValueError: no endpoint, no topic, a bare string where a list of topics belongs, heal or join_records
                without a replay endpoint, join_records out of range.
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
        self.malformed = self.messages = self.records = 0
        replays = _replay_endpoints(endpoints, heal, replay_endpoints)
        if not 0 <= join_records <= MAX_JOIN_RECORDS:
            raise ValueError(f"join_records is {join_records}, must be 0 to {MAX_JOIN_RECORDS}")
        if join_from_ns < 0 or (join_from_ns and join_records):
            raise ValueError(f"join_from_ns is {join_from_ns}, must not be negative, nor stand beside join_records")
        if (join_records or join_from_ns) and not all(replays):
            raise ValueError(
                f"join_records is {join_records}, join_from_ns {join_from_ns}: "
                "heal and a replay endpoint for each endpoint are needed"
            )
        self._healing = Healing(
            [bool(replay) for replay in replays],
            join_records=join_records,
            join_from_ns=join_from_ns,
            held_limit=HELD_RECORDS,
            timeout_s=heal_timeout_s,
        )
        self._links: list[ReplayLink | None] = []
        self._sockets: list[zmq.Socket[bytes]] = []
        self._topics: list[dict[bytes, Topic | None]] = []  # per socket; None = a topic that only shares a prefix
        self._timeout_ms = -1
        self._next = 0
        self._patient_until = time.monotonic() + CONNECT_S
        self._poller = zmq.Poller()
        self._all_poller = zmq.Poller()  # with the replay endpoints
        context = context or zmq.Context.instance()
        try:
            for endpoint, replay in zip(endpoints, replays, strict=True):
                self._connect(context, endpoint, receive_hwm, keys)
                self._link(context, replay, keys)
        except BaseException:
            self.close()
            raise
        if join_records or join_from_ns:
            self._join()

    def _connect(
        self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, receive_hwm: int, keys: CurveKeys | None
    ) -> None:
        socket = context.socket(zmq.SUB)
        self._sockets.append(socket)
        self._topics.append({})
        socket.linger = 0
        socket.rcvhwm = receive_hwm
        if keys is not None:
            keys.apply(socket)
        socket.setsockopt(zmq.RECONNECT_IVL, 20)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        for topic in self._exact | set(self._prefixes):
            socket.setsockopt(zmq.SUBSCRIBE, topic)
        socket.connect(endpoint)
        self._poller.register(socket, zmq.POLLIN)
        self._all_poller.register(socket, zmq.POLLIN)

    def _link(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: CurveKeys | None) -> None:
        if not endpoint:
            self._links.append(None)
            return
        from workers.replay_client import ReplayLink  # msgspec, which a subscriber that never asks does not need

        link = ReplayLink(context, endpoint, keys)
        self._links.append(link)
        self._all_poller.register(link.socket, zmq.POLLIN)

    def _join(self) -> None:
        """Ask for the past of the topics that are named, without waiting for a first message of theirs."""
        now = time.monotonic()
        for index, topics in enumerate(self._topics):
            for name in sorted(self._exact):
                known = topics[name] = self._healing.topic(name.decode(), index)
                self._healing.join(known, now)

    def receive(self, timeout_s: float | None = None) -> Message | None:
        """The next message, waiting up to `timeout_s` seconds for one (None = for ever, 0 = not at all); else None.

        Raises ReplayError, once for each topic, if the past that `join_from_ns` asks for can't be had; the next call
        goes on with what comes.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        healing = self._healing
        while True:
            if healing.asks:
                self._ask()
            if healing.refused:
                from workers.replay_client import ReplayError

                raise ReplayError(*healing.refused.popleft())
            if healing.ready:
                message: Message | None = healing.ready.popleft()
            else:
                index = self._wait_all(deadline) if healing.asks else self._wait(deadline)
                if index is None:
                    if healing.asks and (deadline is None or time.monotonic() < deadline):
                        continue
                    return None
                socket = self._sockets[index]
                try:
                    topic = socket.recv()
                except zmq.Again:
                    return None
                message = self._judge(socket, index, topic)
            if message is not None:
                self.messages += 1
                self.records += len(message.records)
                return message

    @property
    def gaps(self) -> deque[Gap]:
        """The last gaps, oldest first."""
        return self._healing.gaps

    @property
    def since_ns(self) -> dict[str, int]:
        """With `join_from_ns`: topic -> since when (ns) its past is complete; later than asked for if not kept."""
        return self._healing.since_ns

    @property
    def past_gaps(self) -> deque[PastGap]:
        """With `join_from_ns`: what neither journal nor rings had, by ring and sequence."""
        return self._healing.past_gaps

    @property
    def gap_count(self) -> int:
        """How many gaps there were."""
        return self._healing.gap_count

    @property
    def records_missed(self) -> int:
        """How many records the gaps hold."""
        return self._healing.records_missed

    @property
    def healed(self) -> int:
        """Records that had not arrived, were asked for, and have been handed out in their place."""
        return self._healing.healed

    @property
    def joined(self) -> int:
        """Records of before joining that were handed out."""
        return self._healing.joined

    @property
    def duplicates(self) -> int:
        """Records dropped because the publisher had sent them before: 0, unless the network doubles messages."""
        return self._healing.duplicates

    @property
    def overlapped(self) -> int:
        """Records dropped because they had been handed out on joining: sent while the past was being asked for."""
        return self._healing.overlapped

    @property
    def restarts(self) -> int:
        """How often a topic's numbers started anew."""
        return self._healing.restarts

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

    def _ask(self) -> None:
        """Take in answers, send what is to be asked."""
        now, healing = time.monotonic(), self._healing
        for index, link in enumerate(self._links):
            while link is not None and (answer := link.receive()) is not None:
                healing.answer(index, answer.header, answer.frames, now)
        for ask in healing.due(now):
            link = self._links[ask.topic.endpoint]
            assert link is not None
            number = link.try_ask(ask.request(healing.join_records, healing.join_from_ns))
            if number or link.reached or now < self._patient_until:
                healing.sent(ask, number, now)
            else:
                healing.give_up(ask, now)  # nobody has ever been there

    def _wait_all(self, deadline: float | None) -> int | None:
        """As `_wait`, while answers are awaited: also returns, with None, when one is there or something is due."""
        at = self._healing.next_at()
        until = min(at if at is not None else inf, deadline if deadline is not None else inf)
        left_ms = None if until == inf else max(0, int((until - time.monotonic()) * 1000 + 0.999))
        ready = dict(self._all_poller.poll(left_ms))
        count = len(self._sockets)
        for turn in range(count):
            index = (self._next + turn) % count
            if self._sockets[index] in ready:
                self._next = index + 1
                return index
        return None

    def _judge(self, socket: zmq.Socket[bytes], endpoint: int, topic: bytes) -> Message | None:
        """Receive the frame that follows `topic` and judge its number. None if there is nothing to hand out."""
        topics = self._topics[endpoint]
        known = topics.get(topic, _UNKNOWN)
        if known is _UNKNOWN:
            if not socket.rcvmore:
                self.malformed += 1
                return None
            asked = topic in self._exact or topic.startswith(self._prefixes)
            known = topics[topic] = self._healing.topic(topic.decode("utf-8", "replace"), endpoint) if asked else None
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
        if known.plain and (number == known.expected or not known.expected):
            known.expected = number + count
            if newest_ns > known.newest_ns:  # noqa: PLR1730  a call of max() a message
                known.newest_ns = newest_ns
            return Message(known.name, ring, number, records, None)
        return self._healing.take(known, Part(ring, number, records, newest_ns), time.monotonic())

    def close(self) -> None:
        """Disconnect; what is queued is dropped. Safe to call twice."""
        for socket in self._sockets:
            socket.close(0)
        for link in self._links:
            if link is not None:
                link.close()

    def __enter__(self) -> Subscriber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
