"""The control process's end of the line to the historian: questions out, answers in, in the running event loop.

Used by engine/tiers.py. The socket is made with the first question. No question waits for a process that is not there:
while the historian is down, or once it dies over a question, the answer is Unavailable at once. Bounded: MAX_ASKED
questions are under way at most; what is not answered in time is given up here and, by its deadline, there.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
import zmq

from workers.spec import Found, Question, decode_found, encode_question

MAX_ASKED: Final = 64
_LOOK_S: Final = 0.1  # how often it is looked whether the historian still lives


class ArchiveUnavailable(Exception):
    """There is no answer now; says why. `busy`: too many ask."""

    def __init__(self, why: str, *, busy: bool = False) -> None:
        """`why` for people."""
        super().__init__(why)
        self.busy = busy


class ArchiveRefused(Exception):
    """The question can't be answered; asked again it will not be either."""


class ArchiveClient:
    """Asks the historian. Use in one event loop."""

    def __init__(self, endpoint: str, pid: Callable[[], int]) -> None:
        """`pid` tells the historian's process id, 0 while it is not ready."""
        self._endpoint = endpoint
        self._pid = pid
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[tuple[Found, bytes]]] = {}
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1

    async def ask(self, question: Question, timeout_s: float) -> tuple[Found, bytes]:
        """The answer, and its records or file.

        Raises:
            ArchiveUnavailable, ArchiveRefused.
        """
        pid = self._pid()
        if not pid:
            raise ArchiveUnavailable("the historian is being started again")
        if len(self._asked) >= MAX_ASKED:
            raise ArchiveUnavailable(f"{MAX_ASKED} questions wait for the historian", busy=True)
        number = next(self._numbers)
        deadline_ns = time.monotonic_ns() + int(timeout_s * 1e9)
        frame = encode_question(msgspec.structs.replace(question, number=number, deadline_ns=deadline_ns))
        future: asyncio.Future[tuple[Found, bytes]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            self._send(frame)
            found, body = await self._wait(future, pid, deadline_ns)
        finally:
            self._asked.pop(number, None)
        if found.busy:
            raise ArchiveUnavailable(f"the historian is busy: {found.refused}", busy=True)
        if found.refused:
            raise ArchiveRefused(found.refused)
        return found, body

    def close(self) -> None:
        """Close the socket and end its thread. Safe to call twice."""
        if self._socket is not None and self._context is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._socket.close()
            self._context.term()
            self._socket = self._context = None

    async def _wait(
        self, future: asyncio.Future[tuple[Found, bytes]], pid: int, deadline_ns: int
    ) -> tuple[Found, bytes]:
        while True:
            done, _ = await asyncio.wait([future], timeout=_LOOK_S)
            if done:
                return future.result()
            if self._pid() != pid:
                raise ArchiveUnavailable("the historian ended over this question; it is being started again")
            if time.monotonic_ns() > deadline_ns:
                raise ArchiveUnavailable("the historian took too long")

    def _send(self, frame: bytes) -> None:
        if self._socket is None:
            self._context = zmq.Context(io_threads=1)
            self._socket = self._context.socket(zmq.DEALER)
            self._socket.linger = 0
            self._socket.setsockopt(zmq.RECONNECT_IVL, 20)
            self._socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)
            self._socket.connect(self._endpoint)
            self._fd = int(self._socket.getsockopt(zmq.FD))
            asyncio.get_running_loop().add_reader(self._fd, self._receive)
        try:
            self._socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            raise ArchiveUnavailable("the historian takes no questions") from None
        self._receive()  # the descriptor is edge-triggered: sending may have swallowed an edge

    def _receive(self) -> None:
        while self._socket is not None:
            try:
                frames: list[Any] = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                found = decode_found(frames[0])
            except msgspec.DecodeError:
                continue  # only our own user can listen there
            future = self._asked.get(found.number)
            if future is not None and not future.done() and len(frames) == 2:
                future.set_result((found, frames[1]))
