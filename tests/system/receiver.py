"""A real HTTP receiver of webhooks for tests: it checks each signature, and can fail in every way that receivers do."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from collections import deque
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from workers.webhook_queue import GAP_TOPIC

SECRET = "a-secret-of-the-tests"


@dataclass(frozen=True)
class Delivery:
    """One request that arrived whole."""

    path: str
    subscription: str
    number: int
    messages: list[dict[str, Any]]
    signed: bool
    answer: str  # what was done with it: "ok", or a word of `script`


class Receiver:
    """Listens on a loopback port. `script`: how to treat the next requests; those after it get `otherwise`.

    Words: ok; a status such as "503"; "429 SECONDS"; "redirect URL"; "stall" until `release`; "close" without answer;
    "half": the head of a 200 and a part of its body; "garbage": something that is not HTTP.
    """

    def __init__(self, host: str = "127.0.0.1", secret: str = SECRET) -> None:
        self.script: deque[str] = deque()
        self.otherwise = "ok"
        self.deliveries: list[Delivery] = []
        self.release = threading.Event()
        self.connections = 0
        self.secret = secret
        self._lock = threading.Lock()
        self._server = _Server((host, 0), self)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.url = f"http://{host}:{self._server.server_port}/hook"

    def __enter__(self) -> Receiver:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, headers: Any, body: bytes) -> str:
        """Note a request; returns what to do with it."""
        signed = headers["X-Tickengine-Timestamp"].encode() + b"." + body
        expected = "sha256=" + hmac.new(self.secret.encode(), signed, hashlib.sha256).hexdigest()
        with self._lock:
            answer = self.script.popleft() if self.script else self.otherwise
            self.deliveries.append(
                Delivery(
                    path=path,
                    subscription=headers["X-Tickengine-Subscription"],
                    number=int(headers["X-Tickengine-Delivery"]),
                    messages=json.loads(body),
                    signed=hmac.compare_digest(expected, headers["X-Tickengine-Signature"]),
                    answer=answer,
                )
            )
        return answer

    def accepted(self) -> list[dict[str, Any]]:
        """Messages that were answered with 2xx, in order of arrival."""
        return [m for d in self.deliveries if d.answer in ("ok", "half") for m in d.messages]

    def sequences(self) -> list[int]:
        """Sequences of the accepted messages, gaps left out."""
        return [m["payload"]["sequence"] for m in self.accepted() if m["topic"] != GAP_TOPIC]

    def gaps(self) -> list[dict[str, Any]]:
        """Gaps among the accepted messages."""
        return [m["payload"] for m in self.accepted() if m["topic"] == GAP_TOPIC]


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], receiver: Receiver) -> None:
        self.receiver = receiver
        super().__init__(address, _Handler)

    def get_request(self) -> tuple[Any, Any]:
        self.receiver.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that was killed leaves broken connections: no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        word, _, rest = self.server.receiver.take(self.path, self.headers, body).partition(" ")
        if word == "stall":
            self.server.receiver.release.wait()
            self._end()
        elif word == "close":
            self._end()
        elif word == "garbage":
            self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            self._end()
        elif word == "half":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\npart")
            self._end()
        else:
            self.send_response({"ok": 204, "redirect": 307}.get(word) or int(word))
            if word == "redirect":
                self.send_header("Location", rest)
            if word == "429":
                self.send_header("Retry-After", rest)
            if word != "ok":
                self.send_header("Content-Length", "0")
            self.end_headers()

    def _end(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        try:
            self.connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def log_message(self, *_: object) -> None:
        """Nothing on standard error."""
