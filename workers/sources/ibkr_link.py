"""One feed's connection to TWS or IB Gateway, on the worker's own loop: attempts, requests, why it can not be made.

    socket --> client (ibkr_client.py) --> wire (ibkr_wire.py) --> Events, Market
    requests --> client, at most `requests_per_s` --> socket

Each attempt has a client and a wire of its own: what an earlier one leaves behind reaches nobody. Everything happens in
turns of a PolledLoop, but for the import of ib_async at the first attempt, which takes half a second and more, and so
is done in a thread: the worker has other feeds. It places no order: no request that could is sent. Used by
workers/sources/ibkr.py.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

from workers.session import Verdict
from workers.sources.ibkr_market import Market
from workers.sources.ibkr_wire import MAX_REASON_CHARS, Events, Wire
from workers.sources.ibkr_witness import IbkrWitness
from workers.sources.polled_loop import PolledLoop

_CLIENT: Final = "workers.sources.ibkr_client"


@dataclass(frozen=True)
class Address:
    """Where TWS is, and as whom and how fast to speak to it."""

    host: str
    port: int
    client_id: int
    requests_per_s: int
    max_message_bytes: int


class Link:
    """See the module. `fault` is an error of our own on the way of a message, which no library may swallow."""

    def __init__(
        self,
        address: Address,
        events: Events,
        market: Market,
        *,
        loop: PolledLoop,
        clock: Callable[[], int],
        witness: IbkrWitness,
    ) -> None:
        """Nothing is connected yet."""
        self._address = address
        self._events = events
        self._market = market
        self._loop = loop
        self._clock = clock
        self._witness = witness
        self._wire: Wire | None = None
        self._client: Any = None  # of the wire, once there is one
        self._task: asyncio.Task[None] | None = None
        self.fault: BaseException | None = None

    @property
    def busy(self) -> bool:
        """Whether requests wait for the throttle, whose timers want turns."""
        return self._wire is not None and self._wire.throttled

    def open(self) -> None:
        """Begin an attempt; how it goes the events tell."""
        self.close()
        self._wire = Wire(self._events, self._market, self._failed, self._clock, self._witness)
        self._task = self._loop.spawn(self._connect(self._wire))
        self._task.add_done_callback(self._done)

    def request(self, send: Callable[[Any], None]) -> None:
        """Have a request sent by ib_async's client, in its turn. Nothing happens if the connection is over by then."""
        if self._client is not None:
            self._loop.spawn(_send(self._client, send)).add_done_callback(self._done)

    def close(self) -> None:
        """Give the present attempt up."""
        wire, self._wire = self._wire, None
        client, self._client = self._client, None
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        if wire is not None:
            wire.dead = True
        if client is not None:
            client.disconnect()

    def _done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._failed(task.exception())

    def _failed(self, error: BaseException | None) -> None:
        self.fault = self.fault or error

    async def _connect(self, wire: Wire) -> None:
        address = self._address
        module: Any = await asyncio.get_running_loop().run_in_executor(None, import_module, _CLIENT)
        if wire.dead:
            return
        client = self._client = module.MarketDataClient(wire, address.requests_per_s, address.max_message_bytes)
        try:
            # The session watches over the time.
            await client.connectAsync(address.host, address.port, address.client_id, timeout=None)
        except OSError as error:
            wire.end(Verdict(why_not(error, address)))
        else:
            if not wire.dead:
                self._events.ready()


async def _send(client: Any, send: Callable[[Any], None]) -> None:
    """In the loop, which the client's throttle asks for its time."""
    if not client.wire.dead and client.isReady():
        send(client)


def why_not(error: OSError, address: Address) -> str:
    """What a failed connection means, in words."""
    where = f"{address.host}:{address.port}"
    if isinstance(error, ConnectionRefusedError):
        return f"nobody listens at {where}: is TWS or IB Gateway running there, with its API enabled?"
    if isinstance(error, socket.gaierror):
        return f"{address.host} can not be resolved: {error.strerror}"
    return f"{where}: {error.strerror or error}"[:MAX_REASON_CHARS]
