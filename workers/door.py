"""The gateway's door: who may connect, with which token, from which web page; and the socket that listens there.

Asked by `clients.py` for every upgrade request and every `auth`. It decides and answers; it knows no client that is in,
keeps nothing about those it turned away, and never waits.
"""

from __future__ import annotations

import hmac
import ipaddress
import socket
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from picows import WSUpgradeRequest

from workers.errors import SettingsError, WorkerError
from workers.spec import GatewaySettings
from workers.ws_client import SOCKET_BYTES

PATH: Final = "/ws/stream"
LISTEN_BACKLOG: Final = 4096


class Refused(NamedTuple):
    """Why an upgrade request is answered with an HTTP error."""

    status: HTTPStatus
    why: str


class Door:
    """The gateway's address, tokens and origins."""

    def __init__(self, settings: GatewaySettings) -> None:
        """SettingsError for an address beyond loopback without a token."""
        self._settings = settings
        self._local = is_loopback(settings.host)
        if not self._local and not settings.tokens:
            raise SettingsError(f"host {settings.host!r} is reachable from other machines, so a token is needed")

    def listen(self) -> socket.socket:
        """A bound socket whose connections buffer SOCKET_BYTES at most. Raises WorkerError."""
        host, port = self._settings.host, self._settings.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)
            listener.bind((host, port))
            listener.setblocking(False)
        except OSError as error:
            listener.close()
            raise WorkerError(f"can't listen on {host}:{port}: {error.strerror or error}") from error
        return listener

    def judge(self, request: WSUpgradeRequest, *, has_room: bool) -> bool | Refused:
        """Whether a client may come in: True with a token or where none is needed, False if it must show one first."""
        if request.path.partition(b"?")[0].decode("latin-1") != PATH:
            return Refused(HTTPStatus.NOT_FOUND, f"the stream is at {PATH}")
        if not has_room:
            return Refused(HTTPStatus.SERVICE_UNAVAILABLE, "no room for more clients")
        origin = request.headers.get("Origin")
        if origin is not None and not self._origin_allowed(origin, request.headers.get("Host", "")):
            return Refused(HTTPStatus.FORBIDDEN, "web pages of this origin may not connect: [gateway] origins")
        authorization = request.headers.get("Authorization")
        if self._local or authorization is None:
            return self._local
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not self.token_fits(given.strip()):
            return Refused(HTTPStatus.UNAUTHORIZED, "this is not the bearer token")
        return True

    def token_fits(self, given: str) -> bool:
        """Whether this is one of the tokens; takes as long whichever it is."""
        fits = [hmac.compare_digest(given.encode(), token.encode()) for token in self._settings.tokens]
        return any(fits)

    def _origin_allowed(self, origin: str, host: str) -> bool:
        """A page that a browser got elsewhere must not read this engine's data: loopback is no secret to browsers."""
        if "*" in self._settings.origins or origin in self._settings.origins:
            return True
        name = urlsplit(origin).hostname or ""
        return is_loopback(name) or (not self._local and name == urlsplit(f"//{host}").hostname)


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this host alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
