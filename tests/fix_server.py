"""A FIX venue for tests: an acceptor on loopback, by simplefix, with numbers of its own, resends, and faults."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import simplefix

DEADLINE_S = 60
HEADER = frozenset({8, 9, 35, 34, 49, 50, 52, 56, 57, 43, 122, 10})
Body = list[tuple[int, str]]


@dataclass(frozen=True)
class Out:
    """A message to send. `lost`: it gets its number and never reaches the wire."""

    kind: str
    body: Body
    lost: bool = False


@dataclass
class Act:
    """How the venue treats one connection: the n-th act for the n-th one, the last act for all that follow.

    Attributes:
        messages: sent once everything is subscribed to; bytes go out as they are, without a number.
        subscriptions: so many requests are everything.
        end: what comes then: "hold" the connection, "logout", "close" or "abort" it.
        refuse: text with which the logon is answered by a logout.
        mute: nothing is answered after the logon, nor sent by itself.
        fills: what is asked for again is gap-filled, market data too.
        deaf: resend requests are not answered.
        before: sent right after the logon.
        unknown: symbols that are refused.
    """

    messages: Sequence[Out | bytes] = ()
    subscriptions: int = 1
    end: str = "hold"
    refuse: str = ""
    mute: bool = False
    fills: bool = False
    deaf: bool = False
    before: Sequence[Out | bytes] = ()
    unknown: frozenset[str] = field(default_factory=frozenset)


class FixServer:
    """Use as a context manager. `received` has what came on each connection; numbers go on from one to the next."""

    def __init__(
        self,
        acts: list[Act],
        *,
        begin: str = "FIX.4.4",
        target: str = "CLIENT",
        sender: str = "VENUE",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.acts = acts
        self.begin, self.sender, self.target = begin, sender, target
        self.received: list[list[simplefix.FixMessage]] = []
        self.next_in = self.next_out = 1
        self.too_low: list[int] = []  # numbers that came a second time without PossDup
        self.ahead: list[int] = []  # numbers that were too high
        self.heartbeat_s = 0
        self.sent: dict[int, Out] = {}
        self.go_on = threading.Event()  # what is sent after the first `pause_after` messages waits for this
        self.pause_after = -1
        self.refuses = False  # new connections are hung up on
        self._live: list[socket.socket] = []  # subscribed: what `push` sends to
        self._lock = threading.RLock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._stopped = False
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> FixServer:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self.go_on.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            _hang_up(connection)
        self._accepting.join(DEADLINE_S)
        for thread in self._threads:
            thread.join(DEADLINE_S)

    @property
    def connections(self) -> int:
        """How many were made."""
        return len(self.received)

    @property
    def listeners(self) -> int:
        """Connections that have subscribed and have had their act's messages."""
        return len(self._live)

    def push(self, *messages: Out | bytes) -> None:
        """Send to every connection that has subscribed; one that has hung up meanwhile has them no more."""
        for connection in list(self._live):
            try:
                for message in messages:
                    self.send(connection, message)
            except OSError:
                continue

    def cut(self) -> None:
        """Hang up on every connection that has subscribed."""
        live, self._live = self._live, []
        for connection in live:
            _hang_up(connection)

    def asked(self, kind: str, connection: int = -1) -> list[simplefix.FixMessage]:
        """The messages of a type that came on a connection."""
        came = self.received[connection] if self.received else []
        return [message for message in came if _text(message, 35) == kind]

    def send(self, connection: socket.socket, out: Out | bytes) -> None:
        """Give it the next number and send it."""
        if isinstance(out, bytes):
            connection.sendall(out)
            return
        with self._lock:
            seq = self.next_out
            self.next_out += 1
            self.sent[seq] = out
            if not out.lost:
                connection.sendall(self.encode(out, seq))

    def encode(self, out: Out, seq: int, *, again: bool = False) -> bytes:
        """The message as it goes over the wire."""
        message = simplefix.FixMessage()
        message.append_pair(8, self.begin)
        message.append_pair(35, out.kind)
        message.append_pair(34, seq)
        message.append_pair(49, self.sender)
        message.append_pair(56, self.target)
        now = f"{datetime.now(UTC):%Y%m%d-%H:%M:%S.%f}"[:-3]
        if again:
            message.append_pair(43, "Y")
        message.append_pair(52, now)
        if again:
            message.append_pair(122, now)
        for tag, value in out.body:
            message.append_pair(tag, value)
        encoded: bytes = message.encode()
        return encoded

    def _accept(self) -> None:
        while not self._stopped:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            if self.refuses:
                _hang_up(connection)
                continue
            number = len(self.received)
            self.received.append([])
            act = self.acts[min(number, len(self.acts) - 1)]
            thread = threading.Thread(target=self._serve, args=(connection, number, act), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket, number: int, act: Act) -> None:
        parser = simplefix.FixParser()
        try:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            while data := connection.recv(65536):
                parser.append_buffer(data)
                while (message := parser.get_message()) is not None:
                    self.received[number].append(message)
                    if not self._answer(connection, number, act, message):
                        _hang_up(connection)
                        return
        except OSError:
            return
        finally:
            if connection in self._live:
                self._live.remove(connection)

    def _answer(self, connection: socket.socket, number: int, act: Act, message: simplefix.FixMessage) -> bool:
        """False: hang up."""
        kind, seq = _text(message, 35), int(_text(message, 34))
        if kind == "A":
            if _text(message, 141) == "Y":
                self.next_in = self.next_out = 1
                self.sent.clear()
            return self._logon(connection, act, message, seq)
        if act.mute:
            return True
        if _text(message, 43) != "Y" and not self._number(connection, seq):
            return True
        if kind == "1":
            self.send(connection, Out("0", [(112, _text(message, 112))]))
        elif kind == "2" and not act.deaf:
            self._resend(connection, act, int(_text(message, 7)), int(_text(message, 16)))
        elif kind == "5":
            self.send(connection, Out("5", []))
            return False
        elif kind == "V" and _text(message, 263) == "1":
            if _text(message, 55) in act.unknown:
                refusal = [(262, _text(message, 262)), (281, "0"), (58, "symbol not found")]
                self.send(connection, Out("Y", refusal))
            wanted = [one for one in self.asked("V", number) if _text(one, 263) == "1"]
            if len(wanted) == act.subscriptions:
                if self._tls is not None:  # one thread alone may use such a connection
                    self._play(connection, act)
                    return True
                thread = threading.Thread(target=self._play, args=(connection, act), daemon=True)
                self._threads.append(thread)
                thread.start()
        return True

    def _logon(self, connection: socket.socket, act: Act, message: simplefix.FixMessage, seq: int) -> bool:
        if act.refuse:
            self.send(connection, Out("5", [(58, act.refuse)]))
            return False
        if seq < self.next_in:
            self.too_low.append(seq)
            self.send(connection, Out("5", [(58, f"MsgSeqNum too low, expecting {self.next_in} but received {seq}")]))
            return False
        body = [(98, "0"), (108, _text(message, 108))]
        if _text(message, 141) == "Y":
            body.append((141, "Y"))
        self.heartbeat_s = int(_text(message, 108))
        self.send(connection, Out("A", body))
        if seq > self.next_in:
            self.ahead.append(seq)
            self.send(connection, Out("2", [(7, str(self.next_in)), (16, "0")]))
        else:
            self.next_in = seq + 1
        for out in act.before:
            self.send(connection, out)
        return True

    def _number(self, connection: socket.socket, seq: int) -> bool:
        if seq < self.next_in:
            self.too_low.append(seq)
            return False
        if seq > self.next_in:
            self.ahead.append(seq)
            self.send(connection, Out("2", [(7, str(self.next_in)), (16, "0")]))
        self.next_in = max(self.next_in, seq + 1)
        return True

    def _resend(self, connection: socket.socket, act: Act, begin: int, end: int) -> None:
        with self._lock:
            last = self.next_out - 1 if end == 0 else min(end, self.next_out - 1)
            at = begin
            for seq in range(begin, last + 1):
                out = self.sent.get(seq)
                if act.fills or out is None or out.kind in "0125A4":
                    continue
                if seq > at:
                    connection.sendall(self.encode(Out("4", [(123, "Y"), (36, str(seq))]), at, again=True))
                connection.sendall(self.encode(out, seq, again=True))
                at = seq + 1
            if at <= last:
                connection.sendall(self.encode(Out("4", [(123, "Y"), (36, str(last + 1))]), at, again=True))

    def _play(self, connection: socket.socket, act: Act) -> None:
        try:
            for number, out in enumerate(act.messages):
                if number == self.pause_after:
                    self.go_on.wait(DEADLINE_S)
                self.send(connection, out)
            if act.end == "hold":
                self._live.append(connection)
            elif act.end == "logout":
                self.send(connection, Out("5", [(58, "end of day")]))
            elif act.end == "close":
                _hang_up(connection)
            elif act.end == "abort":
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                connection.shutdown(socket.SHUT_RD)  # so that the thread that reads lets go of it
                connection.close()
        except OSError:
            return


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()


def _text(message: simplefix.FixMessage, tag: int) -> str:
    value = message.get(tag)
    return value.decode() if value is not None else ""


def captured(samples: Path, kind: str) -> list[Out]:
    """The messages of a type in the captured sample, without their headers."""
    parser = simplefix.FixParser()
    parser.append_buffer((samples / "fix/valid-soh.fix").read_bytes())
    found = []
    while (message := parser.get_message()) is not None:
        if _text(message, 35) == kind:
            body = [(int(tag), value.decode()) for tag, value in message.pairs]
            found.append(Out(kind, [(tag, value) for tag, value in body if tag not in HEADER]))
    return found


def trades(symbol: str, count: int, first: int = 1) -> list[Out]:
    """Incremental refreshes of one trade each, ids from `first` on."""
    return [
        Out(
            "X",
            [
                (268, "1"),
                (279, "0"),
                (269, "2"),
                (278, str(number)),
                (55, symbol),
                (270, f"100.{number % 100:02d}"),
                (271, "5"),
            ],
        )
        for number in range(first, first + count)
    ]
