"""Who may call the HTTP interface, and how often: the bearer token and the bound on requests.

Rules: on loopback everything that only reads is open. Beyond loopback a token must be configured, or the engine does
not listen at all; every call but /live, /ready and the page's empty frame needs it. The token is read once at start,
from a file, a systemd credential or the environment; it never appears in logs, answers or errors.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine.config import is_loopback
from engine.errors import ConfigError
from engine.settings import Config

TOKEN_VARIABLE: Final = "TICKENGINE_HTTP_TOKEN"
CREDENTIAL: Final = "http_token"
MIN_TOKEN_CHARS: Final = 16
OPEN_PATHS: Final = frozenset({"/", "/live", "/ready"})

REQUESTS_PER_SECOND: Final = 500.0
REQUESTS_BURST: Final = 1000.0


def read_token(config: Config, env: Mapping[str, str]) -> str:
    """The bearer token, or "" if none is configured.

    Raises:
        ConfigError: the file can't be read, the token is too short, or the address is beyond loopback without one.
    """
    if config.http.token_file:
        path = Path(config.http.token_file).expanduser()
        token = _read(path, f"[http] token_file = {config.http.token_file!r}")
    elif env.get("CREDENTIALS_DIRECTORY") and (Path(env["CREDENTIALS_DIRECTORY"]) / CREDENTIAL).exists():
        token = _read(Path(env["CREDENTIALS_DIRECTORY"]) / CREDENTIAL, f"credential {CREDENTIAL}")
    else:
        token = env.get(TOKEN_VARIABLE, "").strip()
    if token and len(token) < MIN_TOKEN_CHARS:
        raise ConfigError(f"the bearer token has {len(token)} characters, at least {MIN_TOKEN_CHARS} are needed")
    if not token and not is_loopback(config.http.host):
        raise ConfigError(
            f"[http] host = {config.http.host!r} is reachable from other machines, so a bearer token is needed: set "
            f"[http] token_file, the systemd credential {CREDENTIAL} or {TOKEN_VARIABLE}; or listen on 127.0.0.1"
        )
    return token


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise ConfigError(f"{what}: {reason}") from None


class Gate:
    """Decides on each request. One bucket for all clients: what it protects is the one loop that serves them."""

    def __init__(self, token: str, *, loopback: bool, now_s: float) -> None:
        """`now_s` is monotonic time, as in every call."""
        self._token = token.encode()
        self._loopback = loopback
        self._filled = REQUESTS_BURST
        self._filled_s = now_s

    def takes(self, now_s: float) -> bool:
        """Whether one more request may pass now."""
        self._filled = min(REQUESTS_BURST, self._filled + (now_s - self._filled_s) * REQUESTS_PER_SECOND)
        self._filled_s = now_s
        if self._filled < 1.0:
            return False
        self._filled -= 1.0
        return True

    def allows(self, path: str, authorization: str | None) -> bool:
        """Whether a reading call may pass."""
        if self._loopback or path in OPEN_PATHS:
            return True
        scheme, _, given = (authorization or "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._token)
