"""The gateway's clients: who is in, what each asks for, and who has been too slow, too silent or too late.

    a connection --> door.py lets it in? --> WsClient (ws_client.py) --> its requests: token, topics, ping
                                                     `--> every turn of the clock: cut, shut out, pinged

Made by `gateway.py`, which sends them records; each `WsClient` tells it of its own connection. It keeps the sum of what
clients want (`audience.py`) up to date, and the counters about them. It reads no ring and writes to no socket itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final

from picows import WSCloseCode, WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from workers.audience import Audience
from workers.door import Door, Refused
from workers.joins import Joins
from workers.runtime import Runtime
from workers.spec import GatewaySettings
from workers.stream import Auth, Ping, RequestError, Subscribe, Unsubscribe, decode_request, parse_topics
from workers.ws_client import WsClient

AUTH_S: Final = 5.0

log = logging.getLogger("gateway")


class Clients:
    """Everyone who is connected to one gateway."""

    def __init__(
        self,
        runtime: Runtime[GatewaySettings],
        door: Door,
        audience: Audience[WsClient],
        joins: Joins,
        on_wanted: Callable[[], None],
    ) -> None:
        """Nobody is in. `on_wanted` is called before a client gets topics: the rings are worth reading now."""
        self.settings = runtime.settings
        self.connected: dict[WsClient, None] = {}
        self.slow: dict[WsClient, None] = {}
        self._unauthorised: dict[WsClient, float] = {}
        self._runtime = runtime
        self._door = door
        self._audience = audience
        self._joins = joins
        self._on_wanted = on_wanted
        self._loop = asyncio.get_running_loop()
        self._sent = self._sent_bytes = 0
        counter = runtime.status.counter
        self._clients = runtime.status.gauge("clients")
        self._subscriptions = counter("subscriptions")
        self._messages_sent = counter("messages_sent")
        self._messages_conflated = counter("messages_conflated")
        self._bytes_sent = counter("bytes_sent")
        self._clients_cut = counter("clients_cut")
        self._clients_refused = counter("clients_refused")
        self._requests_refused = counter("requests_refused")
        self._clients.set(0)
        self._subscriptions.set(0)

    # Coming and going

    def admit(self, request: WSUpgradeRequest) -> Any:
        """Answer an upgrade request: a new client, or an HTTP error. Called by picows."""
        has_room = len(self.connected) < self.settings.max_clients and not self._runtime.stopping
        judged = self._door.judge(request, has_room=has_room)
        if isinstance(judged, Refused):
            self._clients_refused.add(1)
            error = WSUpgradeResponse.create_error_response(judged.status, judged.why.encode() + b"\n")
            return WSUpgradeResponseWithListener(error, None)
        return WsClient(self, judged)

    def joined(self, client: WsClient) -> None:
        """A client's upgrade is done."""
        self.connected[client] = None
        if not client.authorised:
            self._unauthorised[client] = self.now_s() + AUTH_S

    def left(self, client: WsClient) -> None:
        """A client is gone, or will get nothing more. Safe to call twice."""
        for pattern in client.patterns:
            self._audience.remove(client, pattern)
        client.patterns.clear()
        for of_clients in (self.connected, self.slow, self._unauthorised):
            of_clients.pop(client, None)
        self._joins.forget(client)

    # Requests

    def serve(self, client: WsClient, data: bytes) -> None:
        """Serve one request. RequestError: it can't be, for a reason that the client is told."""
        request = decode_request(data)
        try:
            if isinstance(request, Auth):
                self._authorise(client, request)
            elif not client.authorised:
                raise RequestError("type", 'a token is needed first: {"type":"auth","token":"..."}')
            elif isinstance(request, Ping):
                client.answer("pong", request.id)
            elif isinstance(request, Subscribe):
                self._subscribe(client, request)
            else:
                self._unsubscribe(client, request)
        except RequestError as error:
            error.request_id = request.id
            raise

    def _authorise(self, client: WsClient, request: Auth) -> None:
        if not client.authorised and not self._door.token_fits(request.token):
            self.count_refused()
            client.answer("error", request.id, field="token", message="this is not the bearer token")
            client.close(WSCloseCode.POLICY_VIOLATION, "not authorised")
            return
        client.authorised = True
        self._unauthorised.pop(client, None)
        client.answer("authorised", request.id)

    def _subscribe(self, client: WsClient, request: Subscribe) -> None:
        patterns = parse_topics(request.topics)
        added = [pattern for pattern in patterns if pattern not in client.patterns]
        limit = self.settings.max_topics
        if len(client.patterns) + len(added) > limit:
            raise RequestError(
                "topics", f"that would be {len(client.patterns) + len(added)} topics, at most {limit} are allowed"
            )
        if request.snapshot:
            self._joins.check(client)
        if request.when_slow is not None:
            client.when_slow = request.when_slow
        self._on_wanted()
        before = tuple(client.patterns)
        for pattern in added:
            client.patterns[pattern] = patterns[pattern]
            self._audience.add(client, pattern)
        if request.snapshot and added:
            self._joins.begin(client, request, added, before)
        client.answer("subscribed", request.id, topics=list(patterns.values()))

    def _unsubscribe(self, client: WsClient, request: Unsubscribe) -> None:
        patterns = parse_topics(request.topics)
        for index, (pattern, topic) in enumerate(patterns.items()):
            if pattern not in client.patterns:
                raise RequestError(f"topics[{index}]", f"{topic!r} is not subscribed to")
        for pattern in patterns:
            del client.patterns[pattern]
            self._audience.remove(client, pattern)
        for join in client.joins:
            join.forget(patterns)
        client.answer("unsubscribed", request.id, topics=list(patterns.values()))

    # Time and counters

    def now_s(self) -> float:
        """The loop's clock."""
        return self._loop.time()

    def soon(self, call: Callable[[], None]) -> None:
        """Call at the loop's next turn."""
        self._loop.call_soon(call)

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        """Call after a while."""
        self._loop.call_later(delay_s, call)

    def look(self) -> None:
        """Twenty times a second: end those that are too slow, or have shown no token in time."""
        now_s = self.now_s()
        for client in list(self.slow):
            if client.paused and now_s - client.slow_since_s > self.settings.cut_after_s:
                client.cut(f"the connection took nothing for {self.settings.cut_after_s:g} s")
        for client, deadline_s in list(self._unauthorised.items()):
            if now_s > deadline_s:
                client.close(WSCloseCode.POLICY_VIOLATION, f"no token within {AUTH_S:g} s")

    def ping(self) -> None:
        """Ask each whether it is there; end those that have sent nothing since they were asked last."""
        for number, client in enumerate(list(self.connected), 1):
            if client.alive:
                client.alive = False
                if client.transport is not None and not client.paused:
                    client.transport.send_ping()
            elif not client.paused:  # a slow one is judged by its slowness
                client.abort()
            if not number % 256:
                self._runtime.beat(time.time_ns())

    def count_sent(self, messages: int, size_bytes: int) -> None:
        """Messages were handed to a socket."""
        self._sent += messages
        self._sent_bytes += size_bytes

    def count_conflated(self, messages: int) -> None:
        """Messages were replaced by newer ones."""
        self._messages_conflated.add(messages)

    def count_cut(self, why: str) -> None:
        """A client is being cut."""
        log.info("client cut: %s", why)
        self._clients_cut.add(1)

    def count_refused(self) -> None:
        """A request could not be served."""
        self._requests_refused.add(1)

    def publish_counts(self) -> None:
        """Put what was counted since the last call into the status block."""
        self._messages_sent.add(self._sent)
        self._bytes_sent.add(self._sent_bytes)
        self._sent = self._sent_bytes = 0
        self._clients.set(len(self.connected))
        self._subscriptions.set(self._audience.subscriptions)
