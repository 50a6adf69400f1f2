"""The databases behind the journal, as they are configured: what must be there, and their passwords.

Called at start, by engine/config.py (addresses) and engine/control.py (libraries, passwords); opens no connection.
Passwords come from a systemd credential or the environment, never from the configuration, so that whoever may read that
or `tickengine config` learns none; they go to the worker that needs them through its standard input, and to no other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from engine.errors import ConfigError
from engine.settings import Config

# section -> (credential, variable): where its password is looked for, in this order.
SECRETS: Final = {
    "redis": ("redis_password", "TICKENGINE_REDIS_PASSWORD"),
    "postgres": ("postgres_password", "PGPASSWORD"),
}
LIBRARIES: Final = {"redis": "redis", "postgres": "psycopg"}

_REDIS_SCHEMES: Final = ("redis://", "rediss://", "unix://")
_HAS_PASSWORD: Final = re.compile(r"://[^/@]*:[^/@]*@|password\s*=", re.IGNORECASE)


@dataclass(frozen=True)
class Passwords:
    """Empty = none is needed. Not shown by repr."""

    redis: str = field(default="", repr=False)
    postgres: str = field(default="", repr=False)


NO_PASSWORDS: Final = Passwords()


def check_addresses(config: Config) -> None:
    """ConfigError where an address can't work or holds a password, which the message does not repeat."""
    addresses = {"[redis] url": config.redis.url, "[postgres] dsn": config.postgres.dsn}
    for key, address in addresses.items():
        section = key[1 : key.index("]")]
        if _HAS_PASSWORD.search(address):
            credential, variable = SECRETS[section]
            raise ConfigError(
                f"{key}: holds a password, which may not stand in the configuration; leave it out, and set "
                f"{variable} or the systemd credential {credential}"
            )
        if address and not config.storage.enabled:
            raise ConfigError(f"{key}: the store is filled from the journal, so [storage] enabled must be true")
    url = config.redis.url
    if url and not url.startswith(_REDIS_SCHEMES):
        raise ConfigError(f"[redis] url = {url!r}: must begin with one of {', '.join(_REDIS_SCHEMES)}")


def read_passwords(config: Config, env: Mapping[str, str]) -> Passwords:
    """The passwords of the stores that are configured.

    Raises:
        ConfigError: the library of one is not installed, or its credential can't be read.
    """
    found = {}
    for section, configured in (("redis", config.redis.url), ("postgres", config.postgres.dsn)):
        if not configured:
            continue
        if find_spec(LIBRARIES[section]) is None:
            raise ConfigError(
                f"[{section}] is configured, but {LIBRARIES[section]} is not installed: pip install "
                f"'tickengine[{section}]'"
            )
        credential, variable = SECRETS[section]
        path = Path(env.get("CREDENTIALS_DIRECTORY") or "/nonexistent") / credential
        try:
            found[section] = path.read_text().strip() if path.exists() else env.get(variable, "")
        except (OSError, UnicodeDecodeError):
            raise ConfigError(f"credential {credential}: can't be read as text") from None
    return Passwords(**found)
