"""The command channel: a ROUTER socket on ipc, to which every worker connects with its label as identity.

The supervisor and (later) the feed routes use `ask`: a command goes to one worker, its reply resolves the future. The
channel never starts or stops a worker; one that does not answer is found out by its heartbeat, not here.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Final

import msgspec
import zmq

from workers.spec import AnyReply, Command, FeedReport, GroupReport, Hello, Refused, decode_reply, encode_command

MAX_WAITING: Final = 1000


class CommandChannel:
    """The control process's end.

    `greeted` maps a label to the pid that said hello last, `reports` a feed's number to what was said of it last,
    `groups` the same of redundancy groups by name.
    """

    def __init__(self, endpoint: str) -> None:
        """Bind; `endpoint` is an ipc address in a folder that only this user may enter."""
        self.greeted: dict[str, int] = {}
        self.reports: dict[int, FeedReport] = {}
        self.groups: dict[str, GroupReport] = {}
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[AnyReply]] = {}
        self._context = zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)  # a restarted worker takes its predecessor's name
        self._socket.bind(endpoint)
        self._fd = int(self._socket.getsockopt(zmq.FD))

    def start(self) -> None:
        """Take part in the running event loop: no thread, no polling."""
        asyncio.get_running_loop().add_reader(self._fd, self._receive)
        self._receive()

    async def ask(self, label: str, command: Command, timeout_s: float = 2.0) -> AnyReply:
        """Send a command, wait for its reply. A worker that is absent or silent gives Refused, never an exception."""
        if len(self._waiting) >= MAX_WAITING:
            return Refused(error=f"{MAX_WAITING} commands wait for an answer already")
        number = next(self._numbers)
        future: asyncio.Future[AnyReply] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            frame = encode_command(msgspec.structs.replace(command, request_id=number))
            self._socket.send_multipart([label.encode(), frame], zmq.DONTWAIT)
            self._receive()  # the descriptor is edge-triggered: sending may have swallowed an edge
            return await asyncio.wait_for(future, timeout_s)
        except zmq.ZMQError:
            return Refused(request_id=number, error=f"worker {label} is not connected")
        except TimeoutError:
            return Refused(request_id=number, error=f"worker {label} did not answer within {timeout_s:g} s")
        finally:
            self._waiting.pop(number, None)

    def _receive(self) -> None:
        while True:
            try:
                frames: list[Any] = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                reply = decode_reply(frames[-1])
            except msgspec.DecodeError:
                continue  # only our own user can connect; a worker of another version is restarted by its heartbeat
            if isinstance(reply, Hello):
                self.greeted[frames[0].decode("utf-8", "replace")] = reply.pid
            elif isinstance(reply, FeedReport):
                self.reports[reply.feed_id] = reply
                continue
            elif isinstance(reply, GroupReport):
                self.groups[reply.group] = reply
                continue
            future = self._waiting.get(reply.request_id)
            if future is not None and not future.done():
                future.set_result(reply)

    def close(self) -> None:
        """Close the socket and end its thread."""
        asyncio.get_running_loop().remove_reader(self._fd)
        self._socket.close()
        self._context.term()
