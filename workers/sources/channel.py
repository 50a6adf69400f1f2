"""One WebSocket connection of a feed: its session, its socket, what it sends and what it receives.

The session (workers/session.py) decides, the dialect (workers/venues/) knows the words, picows moves the bytes; this
ties them together. What arrives goes into the feed's inbox in order, status records about the connection among it.
Made by workers/sources/websocket.py, which calls `tick` at every poll; everything happens in turns of its loop.
"""

from __future__ import annotations

import asyncio
import email.utils
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from picows import WSCloseCode, WSError, WSFrame, WSHandshakeError, WSListener, WSMsgType, WSTransport, ws_connect

from shm.layout import StatusCode
from workers.cadence import Cadence
from workers.feed_health import FeedHealth
from workers.session import CONNECTED, Do, Limits, Session, State, Verdict
from workers.sources.polled_loop import PolledLoop
from workers.venues.dialect import Connection, Control, ControlKind, Dialect, Request
from workers.wire_log import WireLog

MAX_REASON_CHARS: Final = 200
_LASTING_STATUS: Final = (400, 401, 403, 404)
_BUSY_WAIT_S: Final = {429: 10.0, 418: 120.0, 503: 5.0}  # where the venue does not say how long


class Message(NamedTuple):
    """What a connection received, for the decoder."""

    channel: Channel
    attempt: int
    data: bytes
    ts_receive: int

    def same_run(self, other: Item) -> bool:
        """Whether the other one follows on the same connection."""
        return isinstance(other, Message) and other.channel is self.channel and other.attempt == self.attempt


class Told(NamedTuple):
    """Something to say about the feed, in its place among the messages."""

    code: StatusCode
    text: str
    gap_before: bool = False


class Ended(NamedTuple):
    """An attempt is over, in its place after what it has received."""

    channel: Channel
    attempt: int
    verdict: Verdict


class Picture(NamedTuple):
    """A snapshot of a book came over HTTP, in its place among the messages."""

    symbol: str
    body: bytes
    ts_receive: int


Item = Message | Told | Ended | Picture


class Channel:
    """See the module. `attempt` counts connections: what an earlier one left behind is told from the present one's."""

    def __init__(
        self,
        number: int,
        connection: Connection,
        dialect: Dialect,
        session: Session,
        *,
        loop: PolledLoop,
        tls: ssl.SSLContext | None,
        inbox: deque[Item],
        cadence: Cadence,
        health: FeedHealth,
        clock: Callable[[], int],
        log: WireLog | None = None,
    ) -> None:
        """Nothing is connected yet. `log` writes down what goes over the wire."""
        self.number = number
        self._name = str(number)
        self._log = log
        self.connection = connection
        self.session = session
        self.cadence = cadence
        self.attempt = 0
        self.bytes_received = 0
        self.errors = 0
        self.refused: dict[str, str] = {}  # key of a request -> what the venue said
        self.gap_before = False  # on the next record: something was missed before it
        self.was_up = False
        self._dialect = dialect
        self._loop = loop
        self._tls = tls
        self._inbox = inbox
        self._health = health
        self._clock = clock
        self._wire: _Wire | None = None
        self._task: asyncio.Task[None] | None = None
        self._asked: set[str] = set()  # keys of the subscription
        self._pending: set[str] = set()  # of them, those not answered yet
        self._outbox: deque[Request] = deque()
        self._next_send_ns = 0
        self._repeat_ns = 0  # when the subscription is sent again; 0 = never
        self._lost_ns = 0
        self._ping_ns = round(dialect.options.ping_s * 1e9)
        self._pinged_ns = 0
        self._message_ns = 0

    @property
    def due_ns(self) -> int:
        """When to call `tick` at the latest."""
        due_ns = self.session.due_ns
        if self._outbox:
            due_ns = min(due_ns, self._next_send_ns)
        if self._repeat_ns:
            due_ns = min(due_ns, self._repeat_ns)
        if self.session.connected:
            due_ns = min(due_ns, max(self._message_ns, self._pinged_ns) + self._ping_ns)
        return due_ns

    def tick(self, now_ns: int, *, expected: bool) -> None:
        """Deadlines, requests that had to wait, pings."""
        self.obey(self.session.tick(now_ns, expected=expected), now_ns)
        if self._repeat_ns and now_ns >= self._repeat_ns and not self._outbox:
            self._outbox.extend(self._dialect.subscribe(self.connection.streams))
            self._set_repeat(now_ns)
        while self._outbox and now_ns >= self._next_send_ns and self._wire is not None:
            request = self._outbox.popleft()
            self._wire.send(request.message)
            if self._log is not None:
                self._log.sent(self._name, request.message, self._clock(), secret=request.secret)
            self._next_send_ns = now_ns + round(self._dialect.REQUEST_GAP_S * 1e9)
        if (
            self._wire is not None
            and self.session.state in CONNECTED
            and now_ns - max(self._message_ns, self._pinged_ns) >= self._ping_ns
        ):
            self._pinged_ns = now_ns
            self._wire.ping()

    def heard(self, now_ns: int) -> None:
        """A record was decoded of a message of this attempt."""
        self.obey(self.session.heard(now_ns), now_ns)

    def silent(self, now_ns: int, why: str) -> None:
        """All that it carries is silent for too long."""
        self.obey(self.session.silent(now_ns, why), now_ns)

    def lost(self, now_ns: int, verdict: Verdict) -> None:
        """The present attempt is over."""
        self._health.errors(now_ns)
        self.obey(self.session.lost(now_ns, verdict), now_ns)

    def send(self, requests: tuple[Request, ...]) -> None:
        """Queue requests; bounded by what the dialect has to ask for."""
        self._outbox.extend(requests)

    def close(self, now_ns: int) -> None:
        """For good."""
        self.obey(self.session.stop(now_ns), now_ns)

    def obey(self, actions: list[Do], now_ns: int) -> None:
        """Do what the session says. What is to be told goes before the messages that wait in the inbox."""
        for action in actions:
            if action is Do.CONNECT:
                self.attempt += 1
                self._wire = _Wire(self, self.attempt)
                self._task = self._loop.spawn(self._connect(self._wire))
            elif action is Do.LOGIN:
                self._ask([request._replace(secret=True) for request in self._dialect.login()])
            elif action is Do.SUBSCRIBE:
                self._subscribe(now_ns)
            elif action is Do.CLOSE:
                self._give_up(now_ns)
            elif action is Do.UP:
                self.was_up = True
                self._inbox.appendleft(Told(StatusCode.FEED_UP, "delivers"))
            elif action is Do.DOWN:
                self._lost_ns = now_ns
                self._inbox.appendleft(Told(StatusCode.FEED_DOWN, self.session.why))

    # -- what picows and the connecting coroutine report

    def opened(self, attempt: int) -> None:
        """The upgrade is done."""
        if attempt == self.attempt:
            now_ns = self._clock()
            self._message_ns = self._pinged_ns = now_ns
            if self._log is not None:
                self._log.connected(self._name, now_ns, url=self.connection.url, again=self.was_up)
            self._dialect.opened(self.number)
            if self.session.connects:
                self._health.reconnected(now_ns)
            self.obey(self.session.opened(now_ns), now_ns)

    def received(self, attempt: int, data: bytes) -> None:
        """A whole message."""
        if attempt != self.attempt:
            return
        now_ns = self._clock()
        self._message_ns = now_ns
        self.bytes_received += len(data)
        if self._log is not None:
            self._log.received(self._name, data, now_ns)
        self.session.message(now_ns)
        self._inbox.append(Message(self, attempt, data, now_ns))

    def alive(self, attempt: int) -> None:
        """A pong, or a ping of the venue's."""
        if attempt == self.attempt:
            self._message_ns = self._clock()
            self.session.message(self._message_ns)

    def failed(self, attempt: int, verdict: Verdict) -> None:
        """The connection could not be made, or has ended."""
        if attempt == self.attempt:
            self._inbox.append(Ended(self, attempt, verdict))

    # -- what comes out of the inbox, in order

    def ended(self, item: Ended, now_ns: int) -> None:
        """The end of an attempt has its turn."""
        if item.attempt == self.attempt:
            self.lost(now_ns, item.verdict)

    def listen(self, message: Message, now_ns: int) -> None:
        """A message has its turn: what does it say about the connection?"""
        control = self._dialect.control(message.data)
        if control is not None and message.attempt == self.attempt:
            self._heed(control, now_ns)

    def _heed(self, control: Control, now_ns: int) -> None:
        kind = control.kind
        if kind is ControlKind.ACKNOWLEDGED:
            self._answered(control.keys, now_ns)
        elif kind is ControlKind.LOGGED_IN:
            self.obey(self.session.logged_in(now_ns), now_ns)
        elif kind is ControlKind.COMPLAINT:
            self.errors += 1
            self._health.errors(now_ns)
        elif kind is ControlKind.GOING:
            self.lost(now_ns, Verdict(control.text, control.retry_after_s))
        elif kind is ControlKind.REFUSED:
            self.errors += 1
            reason = f"refused by the venue: {control.text}"[:MAX_REASON_CHARS]
            concerned = [key for key in control.keys if key in self._pending]
            for key in concerned:
                self.refused[key] = control.text
            # A part may be refused while the rest is had; without keys, or with nothing left, it is the connection.
            if not concerned or len(self.refused) >= len(self._asked):
                self.lost(now_ns, Verdict(reason, control.retry_after_s, lasting=not control.retry_after_s))
            else:
                self._health.errors(now_ns)
                self._answered(tuple(concerned), now_ns)

    def _answered(self, keys: tuple[str, ...], now_ns: int) -> None:
        if self.session.state is State.SUBSCRIBE:
            self._pending.difference_update(keys)
            if not self._pending:
                self.obey(self.session.acknowledged(now_ns), now_ns)

    def _subscribe(self, now_ns: int) -> None:
        self.refused.clear()
        requests = self._dialect.subscribe(self.connection.streams)
        self._asked = {key for request in requests for key in request.keys}
        self._pending = set(self._asked)
        if self.was_up:
            gone_s = (now_ns - self._lost_ns) / 1e9
            self._inbox.appendleft(Told(StatusCode.GAP, f"connected again after {gone_s:.1f} s", gap_before=True))
            self.gap_before = True
        self.cadence.restart(now_ns)
        self._ask(requests)
        self._set_repeat(now_ns)
        if not self._pending:
            self.obey(self.session.acknowledged(now_ns), now_ns)

    def _set_repeat(self, now_ns: int) -> None:
        self._repeat_ns = now_ns + round(self._dialect.REPEAT_S * 1e9) if self._dialect.REPEAT_S else 0

    def _ask(self, requests: list[Request]) -> None:
        self._outbox.extend(requests)
        self._next_send_ns = 0

    def _give_up(self, now_ns: int) -> None:
        wire, self._wire = self._wire, None
        if not self._lost_ns:
            self._lost_ns = now_ns
        self._outbox.clear()
        self._repeat_ns = 0
        self._pending.clear()
        self.attempt += 1  # whatever the old attempt still says concerns nobody
        if self._task is not None and not self._task.done():
            self._task.cancel()
        if wire is not None:
            wire.end()
            if self._log is not None:
                self._log.lost(self._name, now_ns, self.session.why)

    async def _connect(self, wire: _Wire) -> None:
        options = self._dialect.options
        try:
            await ws_connect(
                lambda: wire,
                self.connection.url,
                ssl_context=self._tls,
                websocket_handshake_timeout=options.connect_s,
                max_frame_size=options.max_message_bytes,
                enable_auto_pong=False,  # a ping is a sign of life, which the session is to see
                extra_headers=options.headers or None,
                logger_name=None,
            )
        except (WSError, OSError, TimeoutError, ValueError) as error:
            self.failed(wire.attempt, why_not(error, self._clock()))


class _Wire(WSListener):
    """One attempt's socket as picows sees it."""

    def __init__(self, channel: Channel, attempt: int) -> None:
        self.attempt = attempt
        self._channel = channel
        self._transport: WSTransport | None = None
        self._partial: bytearray | None = None
        self._verdict: Verdict | None = None
        self._ended = False

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        if self._ended:
            transport.disconnect()
            return
        nodelay = transport.underlying_transport.get_extra_info("socket")
        if nodelay is not None:
            nodelay.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channel.opened(self.attempt)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind in (WSMsgType.TEXT, WSMsgType.BINARY):
            data = frame.get_payload_as_bytes()
            if frame.fin:
                self._channel.received(self.attempt, data)
            else:
                self._partial = bytearray(data)
        elif kind == WSMsgType.CONTINUATION:
            self._continue(transport, frame)
        elif kind == WSMsgType.CLOSE:
            code, text = frame.get_close_code(), frame.get_close_message()
            said = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text) or ""
            self._verdict = Verdict(
                f"closed by the venue: {getattr(code, 'value', code)} {said}".strip()[:MAX_REASON_CHARS]
            )
            if not transport.is_close_frame_sent:
                transport.send_close(code)
            transport.disconnect()
        elif kind in (WSMsgType.PING, WSMsgType.PONG):
            if kind == WSMsgType.PING:
                transport.send_pong(frame.get_payload_as_bytes())
            self._channel.alive(self.attempt)

    def _continue(self, transport: WSTransport, frame: WSFrame) -> None:
        if self._partial is None:
            self._verdict = Verdict("protocol error: a continuation of nothing")
            transport.disconnect()
            return
        self._partial += frame.get_payload_as_memoryview()
        if len(self._partial) > self._channel._dialect.options.max_message_bytes:
            self._verdict = Verdict("a message longer than max_message_bytes")
            transport.disconnect()
        elif frame.fin:
            data, self._partial = bytes(self._partial), None
            self._channel.received(self.attempt, data)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 -- the signature is picows'
        self._transport = None
        self._channel.failed(self.attempt, self._verdict or Verdict("the connection broke off"))

    def send(self, message: bytes) -> None:
        if self._transport is not None:
            self._transport.send(WSMsgType.TEXT, message)

    def ping(self) -> None:
        if self._transport is not None:
            self._transport.send_ping()

    def end(self) -> None:
        """Say good-bye and leave."""
        self._ended = True
        if self._transport is not None:
            if not self._transport.is_close_frame_sent:
                self._transport.send_close(WSCloseCode.OK)
            self._transport.disconnect()


def why_not(error: BaseException, now_ns: int) -> Verdict:
    """What a failed connection means: in words, for how long, and whether it will pass by itself."""
    if isinstance(error, WSHandshakeError) and error.response is not None:
        response: Any = error.response
        status = int(response.status)
        asked = str(response.headers.get("Retry-After", "")).strip()
        wait_s = retry_after_s(asked, now_ns) or _BUSY_WAIT_S.get(status, 0.0)
        body = (error.raw_body or b"")[:80].decode("utf-8", "replace").strip()
        reason = f"the venue answers HTTP {status}{': ' + body if body else ''}"
        if wait_s:
            reason += f"; waits {wait_s:g} s as asked" if asked else f"; waits {wait_s:g} s"
        return Verdict(" ".join(reason.split())[:MAX_REASON_CHARS], wait_s, status in _LASTING_STATUS)
    if isinstance(error, ssl.SSLCertVerificationError):
        return Verdict(f"TLS: the venue's certificate is not trusted: {error.verify_message}", lasting=True)
    if isinstance(error, TimeoutError):
        return Verdict("no answer to the WebSocket handshake")
    if isinstance(error, socket.gaierror):
        return Verdict(f"the name can not be resolved: {error.strerror}")
    text = str(error) or type(error).__name__
    return Verdict(" ".join(text.split())[:MAX_REASON_CHARS])


def retry_after_s(text: str, now_ns: int) -> float:
    """Seconds of a Retry-After header: a number, or a date; 0 = it says nothing usable."""
    if text.isdecimal() and len(text) < 10:
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - now_ns / 1e9)
    except (ValueError, TypeError):
        return 0.0


def limits_of(dialect: Dialect) -> Limits:
    """The session's deadlines, from the feed's options."""
    options = dialect.options
    return Limits(
        connect_s=options.connect_s + 1.0,  # picows' own time-out says more
        login_s=options.acknowledge_s,
        acknowledge_s=options.acknowledge_s,
        first_data_s=options.first_data_s,
        message_s=options.message_s,
        stale_s=options.stale_s,
    )
