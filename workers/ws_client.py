"""One WebSocket client of the gateway: its requests in, its messages out, its slowness its own.

Made by `clients.py` for each connection; picows calls the `on_` methods and `pause_writing`, the gateway the others,
all on the event loop's thread. Messages are whole frames (`stream.frame`), so that they go to the socket as they are,
many in one system call. What the socket does not take waits here:

    FLOWING   messages of a turn are written at once
        | the socket's buffer is above HIGH_WATER_BYTES
    SLOW      everything goes to the backlog: in order, then conflated (`backlog.py`)
        | buffer below the low-water mark, and the backlog written: FLOWING again
        | the mark not reached for `cut_after_s`, or no room even conflated, or conflating refused by the client
    CUT       close frame 1008 with the reason; aborted after CLOSE_S, whether it was read or not

It never waits and never blocks; it knows no ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport

from workers.backlog import ANSWER, Backlog, Message
from workers.late_join import LateJoin
from workers.stream import Pattern, RequestError, answer_frame

if TYPE_CHECKING:
    from workers.clients import Clients

HIGH_WATER_BYTES: Final = 65536
LOW_WATER_BYTES: Final = 16384
SOCKET_BYTES: Final = 131072  # what the kernel may hold for one client (it takes twice that, for its own needs)
CLOSE_S: Final = 2.0
REQUESTS_PER_SECOND: Final = 200


class WsClient(WSListener):
    """One connection. `patterns` are its topics, `joins` its subscribes with `snapshot` that are not over."""

    __slots__ = (
        "_partial",
        "_partial_text",
        "alive",
        "authorised",
        "backlog",
        "clients",
        "closed",
        "joins",
        "outbox",
        "patterns",
        "paused",
        "request_count",
        "request_second",
        "slow_since_s",
        "transport",
        "when_slow",
        "writer",
    )

    def __init__(self, clients: Clients, authorised: bool) -> None:
        """A client that has asked for the upgrade and not been answered."""
        self.clients = clients
        self.authorised = authorised
        self.patterns: dict[Pattern, str] = {}
        self.outbox: list[Message] = []
        self.backlog: Backlog | None = None
        self.joins: list[LateJoin] = []
        self.when_slow = "conflate"
        self.paused = False
        self.closed = False
        self.alive = True
        self.slow_since_s = 0.0
        self.request_second = 0
        self.request_count = 0
        self.transport: WSTransport | None = None
        self._partial: bytearray | None = None
        self._partial_text = False

    @property
    def congested(self) -> bool:
        """Whether something waits that the socket has not taken."""
        return self.paused or self.backlog is not None

    def on_ws_connected(self, transport: WSTransport) -> None:
        """The upgrade is done."""
        self.transport = transport
        self.writer = transport.underlying_transport
        self.writer.set_write_buffer_limits(HIGH_WATER_BYTES, LOW_WATER_BYTES)
        self.clients.joined(self)

    def on_ws_disconnected(self, transport: WSTransport) -> None:  # noqa: ARG002 -- the signature is picows'
        """The connection is gone, however it went."""
        self.closed = True
        self.outbox.clear()
        self.backlog = None
        self.joins.clear()
        self.clients.left(self)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """A frame from the client; messages may come in several."""
        self.alive = True
        kind = frame.msg_type
        if kind == WSMsgType.CLOSE:
            if not transport.is_close_frame_sent:
                transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        if kind not in (WSMsgType.TEXT, WSMsgType.BINARY, WSMsgType.CONTINUATION) or self.closed:
            return
        data = frame.get_payload_as_bytes()
        if kind == WSMsgType.CONTINUATION:
            if self._partial is None:
                self.close(WSCloseCode.PROTOCOL_ERROR, "continuation of nothing")
                return
            self._partial += data
        elif self._partial is not None:
            self.close(WSCloseCode.PROTOCOL_ERROR, "a new message before the end of the last one")
            return
        elif not frame.fin:
            self._partial, self._partial_text = bytearray(data), kind == WSMsgType.TEXT
        if self._partial is not None:
            if len(self._partial) > self.clients.settings.max_message_bytes:
                self.close(WSCloseCode.MESSAGE_TOO_BIG, "message too big")
                return
            if not frame.fin:
                return
            data, is_text = bytes(self._partial), self._partial_text
            self._partial = None
        else:
            is_text = kind == WSMsgType.TEXT
        self._take(data, is_text)

    def _take(self, data: bytes, is_text: bool) -> None:
        """One whole message."""
        second = int(self.clients.now_s())
        if second != self.request_second:
            self.request_second, self.request_count = second, 0
        self.request_count += 1
        if self.request_count > REQUESTS_PER_SECOND:
            self.clients.count_refused()
            self.close(WSCloseCode.POLICY_VIOLATION, f"more than {REQUESTS_PER_SECOND} messages in a second")
            return
        try:
            if not is_text:
                raise RequestError("", "a binary message; requests are JSON in text messages")
            self.clients.serve(self, data)
        except RequestError as error:
            self.clients.count_refused()
            self.answer("error", error.request_id, field=error.field, message=error.message)

    def lets_pass(self, message: Message, kind: int, symbol: str) -> bool:
        """Whether a live message may go now, as far as late joins are concerned; a topic is one join's at most."""
        return all(join.passes(message, kind, symbol) for join in self.joins)

    def answer(self, kind: str, request_id: int | str | None = None, **fields: object) -> None:
        """Send an answer after what has been sent before it."""
        self.offer(Message(ANSWER, 0, 0, "", answer_frame(kind, request_id, **fields)))
        self.flush()

    def offer(self, message: Message) -> None:
        """Put a message behind the others; `flush` sends them."""
        if not self.closed:
            self.outbox.append(message)

    def flush(self) -> None:
        """Send what has been offered, or let it wait. Hot: once a turn for each client that got something."""
        outbox = self.outbox
        if not outbox or self.closed:
            outbox.clear()
            return
        sent = 0
        if not self.paused and self.backlog is None:
            if len(outbox) == 1:
                sent = 1
                self._write(outbox[0].frame, 1)
            else:
                sent = self._write_many(outbox)
        if sent < len(outbox):
            self._let_wait(outbox[sent:] if sent else outbox)
        outbox.clear()

    def _write_many(self, messages: list[Message]) -> int:
        """Write messages in pieces of about the high-water mark until the socket takes no more; returns how many."""
        sent = size = first = 0
        for number, message in enumerate(messages, 1):
            size += len(message.frame)
            if size >= HIGH_WATER_BYTES or number == len(messages):
                self._write(b"".join([item.frame for item in messages[first:number]]), number - first)
                sent, first, size = number, number, 0
                if self.paused or self.closed:
                    break
        return sent

    def _write(self, data: bytes, messages: int) -> None:
        self.writer.write(data)
        self.clients.count_sent(messages, len(data))

    def _let_wait(self, messages: list[Message]) -> None:
        if self.backlog is None:
            settings = self.clients.settings
            self.backlog = Backlog(settings.queue_messages, settings.conflated_topics)
        backlog = self.backlog
        before = backlog.conflated
        for message in messages:
            if not backlog.push(message):
                self.cut("too many topics wait")
                return
        if backlog.conflating and self.when_slow == "cut":
            self.cut(f"more than {self.clients.settings.queue_messages} messages wait, and when_slow is cut")
            return
        self.clients.count_conflated(backlog.conflated - before)

    def pause_writing(self) -> None:
        """The socket's buffer is above the high-water mark."""
        self.paused = True
        if not self.closed:
            self.slow_since_s = self.clients.now_s()
            self.clients.slow[self] = None

    def resume_writing(self) -> None:
        """The socket's buffer is below the low-water mark. Written from the loop: the transport is in its own write."""
        self.paused = False
        self.clients.soon(self.drain)

    def drain(self) -> None:
        """Write what waits until the socket takes no more."""
        while not self.paused and not self.closed and self.backlog is not None:
            frames, messages = self.backlog.take(HIGH_WATER_BYTES)
            if not messages:
                self.backlog = None
                break
            self._write(b"".join(frames), messages)
        if not self.congested:
            self.clients.slow.pop(self, None)

    def cut(self, why: str) -> None:
        """End a client that is too slow."""
        if self.closed:
            return
        self.clients.count_cut(why)
        self.close(WSCloseCode.POLICY_VIOLATION, f"too slow: {why}")

    def close(self, code: WSCloseCode, why: str) -> None:
        """Send a close frame and nothing more; aborted after CLOSE_S if the client does not answer."""
        if self.closed or self.transport is None:
            return
        self.closed = True
        self.outbox.clear()
        self.backlog = None
        self.joins.clear()
        self.clients.left(self)
        self.transport.send_close(code, why.encode()[:120])
        self.clients.later(CLOSE_S, self.abort)

    def abort(self) -> None:
        """End the connection at once. Safe to call twice."""
        if self.transport is not None and not self.transport.is_disconnected:
            self.transport.disconnect(graceful=False)
