"""The late joins of the gateway's clients: whose last values are on their way, and whose turn it is.

    subscribe with `snapshot` --> begin --> queue --> pump: a slice of time for each, in turn --> late_join.py releases
                                                      (last_values.py reads the table)            its live messages

Made by `gateway.py`, which calls `begin` for a request, runs `pump` beside its other work and calls `end` once a turn.
Of one client MAX_JOINS may be under way; a join that takes longer than JOIN_PATIENCE_S, or holds back more than
late_join.MAX_HELD messages, goes on without last values and the client is told. All of it runs on the event loop's
thread; it never reads a ring.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from shm.instruments import InstrumentTable
from workers.audience import INSTRUMENTS
from workers.last_values import LastValues
from workers.late_join import MAX_HELD, LateJoin
from workers.stream import Pattern, RequestError, Subscribe

if TYPE_CHECKING:
    from workers.ws_client import WsClient

JOIN_PATIENCE_S: Final = 3.0  # last values are waited for so long; the cache is usually there within a millisecond
MAX_JOINS: Final = 64  # subscribe requests with `snapshot` of one client that are under way
JOIN_SLICE_S: Final = 0.002
JOIN_PAUSE_S: Final = 0.002


class Joins:
    """All late joins of one gateway that are under way."""

    def __init__(
        self,
        values: LastValues | None,
        instruments: InstrumentTable,
        positions: Callable[[], Mapping[int, int]],
        now_s: Callable[[], float],
    ) -> None:
        """`values` None: the engine has no cache. `positions`: per ring, the newest sequence that has been read."""
        self._values = values
        self._instruments = instruments
        self._positions = positions
        self._now_s = now_s
        self._clients: dict[WsClient, None] = {}
        self._queue: deque[tuple[WsClient, LateJoin, Subscribe, float]] = deque()
        self._asked = asyncio.Event()

    def check(self, client: WsClient) -> None:
        """RequestError if a client can't be given last values now."""
        if self._values is None:
            raise RequestError("snapshot", "this engine keeps no last values")
        if len(client.joins) >= MAX_JOINS:
            raise RequestError("snapshot", f"the last values of {MAX_JOINS} earlier requests are still on their way")

    def begin(self, client: WsClient, request: Subscribe, added: list[Pattern], before: tuple[Pattern, ...]) -> None:
        """A client that was checked has these topics now, `before` them it had those: last values first."""
        join = LateJoin(added, before, self._positions(), self._meant_by(added))
        client.joins.append(join)
        self._clients[client] = None
        self._queue.append((client, join, request, self._now_s() + JOIN_PATIENCE_S))
        self._asked.set()

    def forget(self, client: WsClient) -> None:
        """A client is gone."""
        self._clients.pop(client, None)

    def end(self) -> None:
        """Let go of the joins that have nothing left to decide."""
        if not self._clients:
            return
        positions = self._positions()
        for client in list(self._clients):
            client.joins[:] = [join for join in client.joins if not join.is_over(positions)]
            if not client.joins:
                del self._clients[client]

    async def pump(self) -> None:
        """Send last values: a slice of time for one client, then the loop's other work, then the next client."""
        while True:
            await self._asked.wait()
            waited = 0
            while self._queue:
                client, join, request, deadline_s = self._queue.popleft()
                if join not in client.joins:
                    continue  # gone
                served = self._serve(client, join, request, deadline_s)
                waited = 0 if served else waited + 1
                if join.waiting:
                    self._queue.append((client, join, request, deadline_s))
                await asyncio.sleep(0 if waited < len(self._queue) or not waited else JOIN_PAUSE_S)
            self._asked.clear()

    def _meant_by(self, patterns: list[Pattern]) -> list[int]:
        """Instruments that exist and that one of the patterns may mean."""
        exact = [pattern.text for pattern in patterns if not pattern.is_prefix]
        starts = tuple(pattern.text for pattern in patterns if pattern.is_prefix)
        found = {number for text in exact if (number := self._instruments.find(text)) is not None}
        if starts:
            symbols = self._instruments.symbols()
            found |= {number for number, symbol in enumerate(symbols) if symbol.startswith(starts)}
        return sorted(number for number in found if number < INSTRUMENTS)

    def _serve(self, client: WsClient, join: LateJoin, request: Subscribe, deadline_s: float) -> bool:
        """Send the values of some instruments; False if none could be sent now."""
        values = self._values
        assert values is not None
        begun_s = self._now_s()
        if not join.covered_by(values.complete()) or join.held > MAX_HELD:
            if begun_s < deadline_s and join.held <= MAX_HELD:
                return False
            for instrument in list(join.waiting):
                for message in join.release(instrument, join.barrier):
                    client.offer(message)
            client.flush()
            why = "the last values are not there yet; the stream goes on without them"
            client.answer("error", request.id, field="snapshot", message=why)
            return True
        if client.congested:
            return False
        while join.waiting and self._now_s() - begun_s < JOIN_SLICE_S:
            instrument = next(iter(join.waiting))
            messages, floors = values.messages(instrument, self._instruments.symbol(instrument), join.concerns)
            for message in messages:
                client.offer(message)
            for message in join.release(instrument, floors):
                client.offer(message)
        client.flush()
        return True
