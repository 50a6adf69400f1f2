"""One ZeroMQ endpoint of fan-out: an XPUB socket, who subscribed to what, and what happens when somebody is slow.

Made by workers/listeners.py, one for each of raw, msgpack and JSON. An outlet never waits for anybody, unless told to
be patient. It knows topics as bytes, and records not at all.

The policy for a subscriber whose queue (`send_hwm` messages) is full: it loses the newest, nobody else does, and it
sees the loss in its topic numbers. libzmq drops in silence, so the socket asks to be told (XPUB_NODROP); told that some
queue is full, the outlet sends that one message again with leave to drop, and counts it. From then until the slow one
has emptied half its queue libzmq leaves it out without a word: `dropped` counts how often a queue filled up, each
subscriber's own numbers say how many messages it missed.

With `patience_s` above 0, for replays at full speed, an outlet first waits that long for the full queue to move: nobody
loses anything as long as every subscriber goes on taking messages, and one that has stopped is waited for once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import zmq

from workers.errors import WorkerError

_MAX_IPC_PATH_BYTES: Final = 107  # sun_path, less its NUL
_RETRY_S: Final = 0.0005
_REBIND_S: Final = 1.0
_MORE: Final = int(zmq.SNDMORE | zmq.DONTWAIT)
_LAST: Final = int(zmq.DONTWAIT)


def bind(socket: zmq.Socket[bytes], endpoint: str) -> None:
    """Listen on one endpoint. WorkerError names it and says why not; the socket is closed then."""
    scheme, _, address = endpoint.partition("://")
    try:
        if scheme == "ipc":
            if len(address.encode()) > _MAX_IPC_PATH_BYTES:
                raise WorkerError(f"{endpoint}: the path of an ipc socket has at most {_MAX_IPC_PATH_BYTES} bytes")
            Path(address).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        socket.bind(endpoint)
    except (zmq.ZMQError, OSError, WorkerError) as error:
        socket.close(0)
        if isinstance(error, WorkerError):
            raise
        raise WorkerError(f"can not listen on {endpoint}: {error}") from error


def rebind(socket: zmq.Socket[bytes], endpoints: Iterable[str]) -> None:
    """Drop every connection, and listen again on the same endpoints. WorkerError if one can't be had within a second.

    ZeroMQ can end a connection only with all others of its endpoint.
    """
    for endpoint in endpoints:
        if endpoint.startswith("inproc:"):
            continue
        socket.unbind(endpoint)
        deadline = time.monotonic() + _REBIND_S
        while True:
            try:
                socket.bind(endpoint)
                break
            except zmq.ZMQError as error:  # the I/O thread has not closed it yet
                if time.monotonic() > deadline:
                    raise WorkerError(f"can not listen on {endpoint} again: {error}") from error
                time.sleep(_RETRY_S)


class Outlet:
    """An XPUB socket with its subscriptions.

    Attributes:
        endpoints: where it listens.
        subscriptions: how many there are now, each subscriber's each topic.
        messages, bytes: handed to ZeroMQ (not counted where nobody subscribed).
        dropped: messages that met a full queue.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoints: Iterable[str],
        send_hwm: int,
        *,
        patience_s: float = 0.0,
        on_wait: Callable[[], bool] = lambda: True,
        guard: Callable[[zmq.Socket[bytes]], None] = lambda _: None,
    ) -> None:
        """Bind.

        Args:
            endpoints: tcp://, ipc:// or inproc:// addresses.
            send_hwm: messages queued for each subscriber.
            patience_s: how long to wait for a full queue before dropping; 0 = never.
            on_wait: called every millisecond or so while waiting; False ends the wait.
            guard: gets the socket before it is bound, to say who may connect (workers/gate.py).

        WorkerError names the endpoint that can't be bound and why.
        """
        self._patience_s = patience_s
        self._on_wait = on_wait
        self.endpoints = tuple(endpoints)
        self.subscriptions = self.messages = self.bytes = self.dropped = 0
        self._counts: Counter[bytes] = Counter()
        self._lengths: tuple[int, ...] = ()
        self._socket = context.socket(zmq.XPUB)
        self._socket.linger = 0
        self._socket.sndhwm = send_hwm
        self._socket.setsockopt(zmq.XPUB_VERBOSER, 1)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)
        # The class of pyzmq that does the work: the one above it only looks at arguments never used here (0.3 us each).
        self._send: Any = super(zmq.Socket, self._socket).send
        guard(self._socket)
        for endpoint in self.endpoints:
            bind(self._socket, endpoint)

    def drop_connections(self) -> None:
        """Make everybody connect anew: they get what they are still allowed to. WorkerError: see `rebind`."""
        rebind(self._socket, self.endpoints)

    def read_subscriptions(self) -> list[bytes]:
        """Take in who came and went; returns the prefixes that are newly wanted or no longer wanted by anybody."""
        changed: dict[bytes, None] = {}
        while int(self._socket.events) & zmq.POLLIN:
            message = self._socket.recv(zmq.DONTWAIT)
            prefix = message[1:]
            if message[:1] == b"\x01":
                self._counts[prefix] += 1
                self.subscriptions += 1
                if self._counts[prefix] == 1:
                    changed[prefix] = None
            elif message[:1] == b"\x00" and self._counts[prefix]:
                self._counts[prefix] -= 1
                self.subscriptions -= 1
                if not self._counts[prefix]:
                    del self._counts[prefix]
                    changed[prefix] = None
        if changed:
            self._lengths = tuple(sorted({len(prefix) for prefix in self._counts}))
        return list(changed)

    def listeners(self, prefix: bytes) -> int:
        """How many subscribed to exactly this prefix."""
        return self._counts.get(prefix, 0)

    def wants(self, topic: bytes) -> bool:
        """Whether somebody subscribed to a prefix of `topic`."""
        counts = self._counts
        return any(topic[:length] in counts for length in self._lengths)

    def send_frames(self, frames: list[tuple[int, memoryview]], names: Mapping[int, bytes]) -> None:
        """Send the router's frames; `names` has the topic of each index. Returns at once whatever subscribers do."""
        send, size_bytes = self._send, 0
        for topic, frame in frames:
            try:
                send(names[topic], _MORE)
            except zmq.Again:
                self._send_late(names[topic], frame)
            else:
                send(frame, _LAST)
            size_bytes += len(frame)
        self.messages += len(frames)
        self.bytes += size_bytes

    def send(self, topic: bytes, frame: bytes) -> None:
        """Send one message; returns at once whatever the subscribers do."""
        try:
            self._send(topic, _MORE)
        except zmq.Again:
            self._send_late(topic, frame)
        else:
            self._send(frame, _LAST)
        self.messages += 1
        self.bytes += len(frame)

    def _send_late(self, topic: bytes, frame: bytes | memoryview) -> None:
        """Some queue looks full: look again, wait for it as long as patience lasts, then send to all but the slow."""
        deadline = time.monotonic() + self._patience_s
        while True:
            # Asking for events makes libzmq take in what subscribers have read, which `send` does once a millisecond.
            self._socket.getsockopt(zmq.EVENTS)
            try:
                self._send(topic, _MORE)
            except zmq.Again:
                if not self._patience_s or time.monotonic() > deadline or not self._on_wait():
                    break
                time.sleep(_RETRY_S)
            else:
                self._send(frame, _LAST)
                return
        self.dropped += 1
        self._socket.setsockopt(zmq.XPUB_NODROP, 0)
        self._send(topic, _MORE)
        self._send(frame, _LAST)
        self._socket.setsockopt(zmq.XPUB_NODROP, 1)

    def close(self, linger_s: float = 0.0) -> None:
        """Stop listening; what is queued is still sent for up to `linger_s` seconds, while the context terminates."""
        self._socket.close(int(linger_s * 1000))
