"""Asking a replay socket: what was published under these numbers, and what is the latest of a symbol?

    with ReplayClient("tcp://127.0.0.1:8831") as replay:
        answer = replay.range("marketdata.tick.AAPL", 120, 180)
        print(answer.unavailable, [records["price"] for _, records in answer.frames])

For any program, like workers/subscriber.py, which asks by itself through `ReplayLink`; needs pyzmq and msgspec. What
goes over the wire is described in workers/wire.py. A link never waits; a client waits as long as it is told, and sends
again what may have been lost with a connection.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import zmq

from workers.errors import WorkerError
from workers.keys import CurveKeys
from workers.wire import Header, WireError, unpack_frame

RESEND_S: Final = 0.5

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(dict[str, Any]).decode


class ReplayError(WorkerError):
    """The replay socket refused a request (`code`), or has not answered (`code` "timeout")."""

    def __init__(self, code: str, message: str) -> None:
        """Keep the code that workers.wire lists."""
        super().__init__(message)
        self.code = code


class Answer(NamedTuple):
    """An answer: its map, and of each frame header and records (shape (n,), dtype RECORD, read-only)."""

    header: dict[str, Any]
    frames: list[tuple[Header, np.ndarray]]

    @property
    def unavailable(self) -> list[tuple[int, int]]:
        """Ranges [from, to) that the engine no longer has."""
        return [(first, end) for first, end in self.header.get("unavailable", ())]


class ReplayLink:
    """A connection to one replay socket that never waits."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: CurveKeys | None = None) -> None:
        """Connect in the background. zmq.ZMQError if ZeroMQ does not understand the endpoint."""
        self.endpoint = endpoint
        self._reached = False
        self.malformed = 0
        self._last_id = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        if keys is not None:
            keys.apply(self.socket)
        # Nothing is queued for a connection that is not there: `try_ask` says so instead.
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        self._monitor: zmq.Socket[bytes] | None = self.socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        self.socket.connect(endpoint)

    @property
    def reached(self) -> bool:
        """Whether there ever was a connection: if so, one that is missing now will come back."""
        if self._monitor is not None and int(self._monitor.events) & zmq.POLLIN:
            self._reached = True
            self._end_monitor()
        return self._reached

    def _end_monitor(self) -> None:
        if self._monitor is not None:
            self._monitor = None
            self.socket.disable_monitor()

    def try_ask(self, request: dict[str, Any]) -> int:
        """Send a request; returns the id that its answer will carry, 0 if there is no connection now."""
        try:
            self.socket.send(_encode({**request, "id": self._last_id + 1}), zmq.DONTWAIT)
        except zmq.Again:
            return 0
        self._last_id += 1
        return self._last_id

    def receive(self) -> Answer | None:
        """The next answer, if one is here. What is none is counted and dropped."""
        while int(self.socket.events) & zmq.POLLIN:
            parts = self.socket.recv_multipart(zmq.DONTWAIT)
            try:
                header = _decode(parts[0])
                answer = Answer(header, [unpack_frame(frame) for frame in parts[1:]])
            except (msgspec.DecodeError, UnicodeDecodeError, WireError):
                self.malformed += 1
                continue
            return answer
        return None

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        self._end_monitor()
        self.socket.close(0)


class ReplayClient:
    """Asks one shard and waits for the answers. Not for several threads."""

    def __init__(
        self,
        endpoint: str,
        *,
        timeout_s: float = 5.0,
        keys: CurveKeys | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        """Connect to a replay endpoint; `timeout_s` is what an answer may take, connecting included.

        `keys` are needed where the engine has some: workers.keys.CurveKeys.read.
        """
        self._timeout_s = timeout_s
        self._link = ReplayLink(context or zmq.Context.instance(), endpoint, keys)

    def range(self, topic: str, first: int, end: int) -> Answer:
        """Records [first, end) of a topic; ask on from header["to"] if that is less. Raises ReplayError."""
        return self.ask({"kind": "range", "topic": topic, "from": first, "to": end})

    def ring(self, ring: int, first: int, end: int) -> Answer:
        """Records [first, end) of a ring, by ring sequence; as `range` otherwise."""
        return self.ask({"kind": "ring", "ring": ring, "from": first, "to": end})

    def since(self, topics: Sequence[str], from_ns: int, to_ns: int = 0) -> Iterator[Answer]:
        """Records of topics published in [from_ns, to_ns), to_ns 0 = up to now, answer by answer; see workers.wire.

        The order over all answers is that of `ts_publish`. Raises ReplayError; code "no_journal": too long ago for the
        rings, and nothing is recorded.
        """
        position = None
        while True:
            request = {"kind": "time", "topics": list(topics), "from_ns": from_ns, "to_ns": to_ns, "next": position}
            answer = self.ask(request)
            yield answer
            position = answer.header["next"]
            if position is None:
                return

    def snapshot(self, topic: str = "", *, symbol: str = "", limit: int = 0) -> Answer:
        """Latest values and the last `limit` records of a topic, or of a symbol. Raises ReplayError."""
        name = {"topic": topic} if topic else {"symbol": symbol}
        return self.ask({"kind": "snapshot", "limit": limit, **name})

    def ask(self, request: dict[str, Any]) -> Answer:
        """Send any request (its id is chosen here) and wait for the answer. Raises ReplayError."""
        deadline = time.monotonic() + self._timeout_s
        resend_at, asked = 0.0, set()
        while (now := time.monotonic()) < deadline:
            if now >= resend_at:
                number = self._link.try_ask(request)
                asked.add(number)
                resend_at = now + (RESEND_S if number else 0.02)
            answer = self._link.receive()
            if answer is None:
                self._link.socket.poll(max(0, int((min(deadline, resend_at) - now) * 1000)) + 1)
            elif answer.header.get("id") not in asked:
                continue
            elif answer.header.get("kind") != "error":
                return answer
            elif answer.header.get("code") != "busy":
                raise ReplayError(str(answer.header.get("code")), str(answer.header.get("error")))
        raise ReplayError("timeout", f"{self._link.endpoint} has not answered within {self._timeout_s} s")

    def close(self) -> None:
        """Disconnect. Safe to call twice."""
        self._link.close()

    def __enter__(self) -> ReplayClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
