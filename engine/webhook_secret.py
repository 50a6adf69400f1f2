"""The secret that signs deliveries of subscriptions that have none of their own.

From a file, a systemd credential or the environment, read at start; with none of them one is made in the data folder
when the first subscription needs it, so that no delivery is ever unsigned. It never appears in logs, answers or errors.
Used by engine/control.py and engine/subscriptions.py.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from engine.errors import ConfigError, StoreError
from engine.secret_file import read_secret
from engine.settings import Config

VARIABLE: Final = "TICKENGINE_WEBHOOK_SECRET"
CREDENTIAL: Final = "webhook_secret"
FILE: Final = "webhook_secret"
MIN_CHARS: Final = 16
MAX_CHARS: Final = 256


class WebhookSecret:
    """The secret, once it is asked for."""

    def __init__(self, config: Config, env: Mapping[str, str], folder: Path) -> None:
        """Read it where one is configured. ConfigError: that can't be read, or is too short."""
        self._path = folder / FILE
        self._secret = _configured(config, env)

    def get(self) -> str:
        """The secret; made and kept in the data folder if there is none. StoreError if it can't be kept there."""
        if not self._secret:
            self._secret = self._kept()
        return self._secret

    def _kept(self) -> str:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            except FileExistsError:
                found = self._path.read_text().strip()
            else:
                found = secrets.token_hex(32)
                with os.fdopen(fd, "w") as file:
                    file.write(f"{found}\n")
                    file.flush()
                    os.fsync(file.fileno())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not text"
            raise StoreError(f"{self._path}: {reason}; see [webhooks] secret_file and [engine] data_dir") from None
        if len(found) < MIN_CHARS:
            raise StoreError(f"{self._path} holds {len(found)} characters, at least {MIN_CHARS} are needed; remove it")
        return found


def _configured(config: Config, env: Mapping[str, str]) -> str:
    credentials = env.get("CREDENTIALS_DIRECTORY")
    if config.webhooks.secret_file:
        where = f"[webhooks] secret_file = {config.webhooks.secret_file!r}"
        text = read_secret(Path(config.webhooks.secret_file).expanduser(), where)
    elif credentials and (Path(credentials) / CREDENTIAL).exists():
        where = f"credential {CREDENTIAL}"
        text = read_secret(Path(credentials) / CREDENTIAL, where)
    else:
        where = VARIABLE
        text = env.get(VARIABLE, "").strip()
        if not text:
            return ""
    if not MIN_CHARS <= len(text) <= MAX_CHARS:
        raise ConfigError(f"{where}: the secret has {len(text)} characters, {MIN_CHARS} to {MAX_CHARS} are needed")
    return text
