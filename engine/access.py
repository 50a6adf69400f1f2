"""Who may call the HTTP interface, and how often: bearer tokens with scopes, one bucket of requests a client.

Rules: on loopback everything that only reads is open. What changes state needs a token of scope "write" as soon as any
token is configured. Beyond loopback a token must be configured, or the engine does not listen at all; every call but
/live, /ready and the page's empty frame needs one. Without tokens a write must have been addressed to a loopback name:
a page that a browser of this host has open can't reach it under a name of its own (DNS rebinding).

Tokens are read once at start, from a file, a systemd credential or the environment; they never appear in logs, answers
or errors. One a line, in one of three forms; a scope that is left out is "write", which includes "read":

    TOKEN
    SCOPE TOKEN
    SCOPE TOKEN NAME        the name is what the audit log calls its holder
"""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from engine.config import is_loopback
from engine.errors import ConfigError
from engine.secret_file import read_secret
from engine.settings import Config

TOKEN_VARIABLE: Final = "TICKENGINE_HTTP_TOKEN"
CREDENTIAL: Final = "http_token"
MIN_TOKEN_CHARS: Final = 16
OPEN_PATHS: Final = frozenset({"/", "/live", "/ready"})
SCOPES: Final = ("read", "write")
READING_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

BURST_S: Final = 2.0  # a client that was silent may send this many seconds' worth of requests at once
MAX_CLIENTS: Final = 1024  # buckets kept; beyond, that of whoever was silent longest is forgotten


@dataclass(frozen=True)
class Token:
    """One bearer token. `name` is for the audit log; the secret is not shown by repr."""

    name: str
    writes: bool
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class Denial:
    """Why a request is not served."""

    status: int
    detail: str
    headers: dict[str, str]


def read_tokens(config: Config, env: Mapping[str, str]) -> tuple[Token, ...]:
    """The bearer tokens, none if none is configured.

    Raises:
        ConfigError: the file can't be read, a line is none of the three forms, a token is too short, or the address is
            beyond loopback without one.
    """
    if config.http.token_file:
        where = f"[http] token_file = {config.http.token_file!r}"
        text = read_secret(Path(config.http.token_file).expanduser(), where)
    elif env.get("CREDENTIALS_DIRECTORY") and (Path(env["CREDENTIALS_DIRECTORY"]) / CREDENTIAL).exists():
        where = f"credential {CREDENTIAL}"
        text = read_secret(Path(env["CREDENTIALS_DIRECTORY"]) / CREDENTIAL, where)
    else:
        where = TOKEN_VARIABLE
        text = env.get(TOKEN_VARIABLE, "")
    tokens = parse_tokens(text, where)
    if not tokens and not is_loopback(config.http.host):
        raise ConfigError(
            f"[http] host = {config.http.host!r} is reachable from other machines, so a bearer token is needed: set "
            f"[http] token_file, the systemd credential {CREDENTIAL} or {TOKEN_VARIABLE}; or listen on 127.0.0.1"
        )
    if config.gateway.enabled and not tokens and not is_loopback(config.gateway.host):
        raise ConfigError(
            f"[gateway] host = {config.gateway.host!r} is reachable from other machines, so a bearer token is needed: "
            f"set [http] token_file, the systemd credential {CREDENTIAL} or {TOKEN_VARIABLE}; or listen on 127.0.0.1"
        )
    return tokens


def parse_tokens(text: str, where: str) -> tuple[Token, ...]:
    """Tokens from lines (see the module); lines that are empty or begin with # are left out."""
    tokens: list[Token] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        scope, secret, name = {1: ("write", *words, ""), 2: (*words, ""), 3: tuple(words)}.get(len(words), ("",) * 3)
        if scope not in SCOPES:
            raise ConfigError(
                f"{where}, line {number}: must be TOKEN, SCOPE TOKEN or SCOPE TOKEN NAME, scope read or write"
            )
        if len(secret) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"{where}, line {number}: the token has {len(secret)} characters, at least {MIN_TOKEN_CHARS} are needed"
            )
        tokens.append(Token(name or f"token-{len(tokens) + 1}", scope == "write", secret.encode()))
    return tuple(tokens)


def changes_state(method: str, path: str) -> bool:
    """Whether a call does more than read. A snapshot is a POST for its clients' sake and reads."""
    return method not in READING_METHODS and not (path.startswith("/symbols/") and path.endswith("/snapshot"))


class Gate:
    """Decides on each request, before a route sees it."""

    def __init__(self, tokens: tuple[Token, ...], *, loopback: bool, requests_per_second: float) -> None:
        """`loopback`: whether only this host can reach the interface."""
        self._tokens = tokens
        self._loopback = loopback
        self._rate = requests_per_second
        self._burst = max(1.0, BURST_S * requests_per_second)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> (requests left, at time)

    def caller(self, authorization: str | None) -> Token | None:
        """Whose token an Authorization header carries; None if nobody's."""
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        secret = given.strip().encode()
        found = None
        for token in self._tokens:  # all of them, so that time tells nothing
            if hmac.compare_digest(secret, token.secret):
                found = token
        return found

    def denial(
        self, method: str, path: str, *, authorization: str | None, peer: str, host: str, now_s: float
    ) -> Denial | None:
        """Why this request is not served; None if it is.

        Args:
            peer: address of the other end.
            host: the Host header.
            now_s: monotonic time.
        """
        token = self.caller(authorization)
        wait_s = self.wait_s(token.name if token is not None else peer, now_s)
        if wait_s:
            text = f"too many requests: at most {self._rate:g} a second in the long run"
            return Denial(429, text, {"Retry-After": str(max(1, round(wait_s)))})
        writing = changes_state(method, path)
        if writing and self._tokens:
            if token is None:
                return Denial(401, _NEEDED.format("of scope write "), {"WWW-Authenticate": "Bearer"})
            if not token.writes:
                return Denial(403, f"the token {token.name!r} has scope read, and this call changes state", {})
        elif writing and not is_loopback(_host_name(host)):
            return Denial(
                403, f"without a token, writes must be addressed to a loopback name, not to {host[:80]!r}", {}
            )
        elif not self._loopback and token is None and path not in OPEN_PATHS:
            return Denial(401, _NEEDED.format(""), {"WWW-Authenticate": "Bearer"})
        return None

    def wait_s(self, client: str, now_s: float) -> float:
        """Take one request out of a client's bucket; seconds until there is one if it is empty, else 0."""
        left, before_s = self._buckets.get(client, (self._burst, now_s))
        left = min(self._burst, left + (now_s - before_s) * self._rate)
        if left >= 1.0:
            left -= 1.0
            wait_s = 0.0
        else:
            wait_s = (1.0 - left) / self._rate
        self._buckets[client] = (left, now_s)
        self._buckets.move_to_end(client)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait_s


_NEEDED: Final = "a bearer token {}is needed: Authorization: Bearer ..."


def _host_name(host: str) -> str:
    """The name in a Host header: without port, without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()
