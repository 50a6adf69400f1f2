"""Who may connect to fan-out's sockets: CURVE keys, and the list of those who are let in. ZAP (RFC 27), by hand.

    client                          libzmq's I/O thread                 this gate, between two turns of fan-out
    handshake with its key  ──▶  decrypts, asks over inproc  ──▶  on the list? 200 : 400, counted, logged
    no key, a wrong server key ─▶ fails by itself  ────monitor──▶  counted, logged

Made by workers/listeners.py if it has keys; `guard` makes a socket ask it, `look` answers. One socket stands for all of
its endpoints, so ipc clients need a key too. The list is looked at once a second, and at each handshake that would be
refused: who was added gets in at once. When somebody who had been let in is taken off the list, `look` says so, and
fan-out drops every connection (`rebind`): those who may then come back by themselves, and heal what they missed.
A socket that was refused does not try again (libzmq closes it for good): whoever is added later connects a new one.

pyzmq's ThreadAuthenticator is not used: it runs an asyncio loop in a thread beside the hot one, both behind one
interpreter lock, and does not tell its callback who asks. This here is one look at a socket every time fan-out looks
for subscriptions; a handshake with an idle engine takes up to 0.1 s for it. It never touches what is sent.
"""

from __future__ import annotations

import logging
import struct
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

from workers.errors import SettingsError
from workers.keys import AllowList, read_secret

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
DOMAIN: Final = b"tickengine"
LIST_EVERY_S: Final = 1.0
LOG_EVERY_S: Final = 60.0  # of one peer and reason
PEERS_KEPT: Final = 256
_ANSWERS: Final = 64  # most that one look takes from a socket

_EVENT: Final = struct.Struct("=HI")  # of a monitor: what happened, its value; the endpoint is another frame
_FAILED: Final = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_REASONS: Final = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it has no key",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it has another server key than this engine's",
}

log = logging.getLogger("gate")


class Gate:
    """Answers the question who may connect, for all guarded sockets of one context."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        server_key_file: str,
        client_keys: str,
        *,
        on_refused: Callable[[int], None],
    ) -> None:
        """Read the keys and begin to answer; before any socket of the context is guarded.

        `on_refused` is told of each connection that is refused, by their number.

        SettingsError names the file that can't be used, and why.
        """
        self._secret = read_secret(server_key_file)
        self.allowed = AllowList(client_keys)
        self._on_refused = on_refused
        self._admitted: set[bytes] = set()  # on the list, all of them
        self._logged: OrderedDict[str, tuple[float, int]] = OrderedDict()  # what -> when it was said, times since
        self._next_list_s = 0.0
        self._monitored: list[tuple[zmq.Socket[bytes], zmq.Socket[bytes]]] = []
        self._socket = context.socket(zmq.REP)
        self._socket.linger = 0
        self._socket.bind(ZAP_ENDPOINT)

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Let only those on the list connect to a socket; before it is bound."""
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, self._secret)
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without this gate nobody gets in, instead of everybody
        self._monitored.append((socket, socket.get_monitor_socket(_FAILED)))

    def look(self) -> bool:
        """Answer who waits. True: somebody who was let in has been taken off the list, so drop all connections."""
        now_s = time.monotonic()
        dropped = False
        if now_s >= self._next_list_s:
            self._next_list_s = now_s + LIST_EVERY_S
            dropped = self._read_list()
        for _ in range(_ANSWERS):
            if not int(self._socket.events) & zmq.POLLIN:
                break
            dropped |= self._answer(self._socket.recv_multipart(zmq.DONTWAIT), now_s)
        for _, monitor in self._monitored:
            for _ in range(_ANSWERS):
                if not int(monitor.events) & zmq.POLLIN:
                    break
                event, endpoint = monitor.recv_multipart(zmq.DONTWAIT)
                reason = _REASONS.get(_EVENT.unpack(event)[1], "its handshake failed")
                self._refuse(f"somebody at {endpoint.decode()}", reason, now_s)
        return dropped

    def _read_list(self) -> bool:
        try:
            if not self.allowed.changed():
                return False
        except SettingsError as error:
            log.warning("the list of clients stays as it was: %s", error)
            return False
        log.info("the list of clients has changed: %d may connect", len(self.allowed.names))
        gone = self._admitted - self.allowed.names.keys()
        self._admitted -= gone
        if gone:
            log.info("%d who were let in are no longer on it: all connections are dropped", len(gone))
        return bool(gone)

    def _answer(self, frames: list[bytes], now_s: float) -> bool:
        """Answer one question of libzmq: version, id, domain, address, identity, mechanism, credentials."""
        request = frames[1] if len(frames) > 1 else b""
        address = frames[3].decode("utf-8", "replace") if len(frames) > 3 else "?"
        key = z85.encode(frames[6]) if len(frames) == 7 and frames[5] == b"CURVE" and len(frames[6]) == 32 else b""
        dropped = False
        if key and key not in self.allowed.names:
            dropped = self._read_list()
        name = self.allowed.names.get(key)
        if name is None:
            self._socket.send_multipart([b"1.0", request, b"400", b"not on the list", b"", b""])
            self._refuse(address, f"the key {key[:8].decode()}... is not on the list", now_s)
            return dropped
        self._admitted.add(key)
        self._socket.send_multipart([b"1.0", request, b"200", b"OK", name.encode(), b""])
        return dropped

    def _refuse(self, peer: str, reason: str, now_s: float) -> None:
        self._on_refused(1)
        what = f"{peer}: {reason}"
        said_s, since = self._logged.get(what, (-LOG_EVERY_S, 0))
        if now_s - said_s < LOG_EVERY_S:
            self._logged[what] = said_s, since + 1
            return
        log.warning("refused a connection from %s%s", what, f" ({since} times more before)" if since else "")
        self._logged[what] = now_s, 0
        self._logged.move_to_end(what)
        if len(self._logged) > PEERS_KEPT:
            self._logged.popitem(last=False)

    def close(self) -> None:
        """Answer no more; the guarded sockets have been closed before."""
        for _, monitor in self._monitored:
            monitor.close(0)
        self._monitored.clear()
        self._socket.close(0)
