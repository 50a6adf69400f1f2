"""What a store behind the journal is to the mirror that fills it, and what can go wrong with it.

Implemented by workers/redis_store.py and workers/postgres_store.py, driven by workers/mirror.py from one thread. The
cursors are the store's own: they change in the same transaction as the records, so that whatever dies at whatever
moment, each record is in the store once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import quote, unquote

from workers.errors import WorkerError
from workers.journal_follower import Batch, Place

_URL_PASSWORD: Final = re.compile(r"^([a-z+]+://[^/@:?]*):([^@]*)@")
_PAIR_PASSWORD: Final = re.compile(r"""(?:^|[\s?&])password\s*=\s*(?:'((?:[^'\\]|\\.)*)'|([^\s&]*))""")
_COMMAND: Final = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: ")  # redis-py shows the records in it


class StoreDown(WorkerError):
    """The store did not take it: not reachable, too slow, full, or another mirror was there. Nothing has changed."""


class Store(Protocol):
    """One store. Every call may block; `abort` from another thread ends that."""

    name: str  # "redis", "postgres"

    def connect(self) -> dict[Place, int]:
        """Connect anew, make what is missing, and tell the cursors: the next sequence wanted of each ring.

        Raises:
            StoreDown: it can't be had.
        """

    def store(self, batches: Sequence[Batch], now_ns: int) -> None:
        """Store these and move their cursors, all or nothing.

        Raises:
            StoreDown: nothing is stored, or it is not known: connect again and ask.
        """

    def forget(self, places: Sequence[Place]) -> None:
        """Remove the cursors of rings that will not come again. Raises StoreDown."""

    def tend(self, now_ns: int) -> int:
        """Look after what is old; called when there is time, returns how much was removed. Raises StoreDown."""

    def abort(self) -> None:
        """Break off a call that another thread is in."""

    def close(self) -> None:
        """Let go. Safe to call twice."""


def with_password(address: str, password: str) -> str:
    """A URL, or a PostgreSQL connection string, with the password in it; as it was if there is none.

    What comes of it is secret: it goes to a worker through a pipe, and never to a log.
    """
    if not password:
        return address
    scheme, separator, rest = address.partition("://")
    if not separator:
        escaped = password.replace("\\", "\\\\").replace("'", "\\'")
        return f"{address} password='{escaped}'"
    if scheme == "unix":
        return f"{address}{'&' if '?' in address else '?'}password={quote(password, safe='')}"
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    return f"{scheme}://{user if at else ''}:{quote(password, safe='')}@{host}{slash}{path}"


def password_in(address: str) -> str:
    """The password in a URL or connection string; "" if there is none."""
    match = _URL_PASSWORD.match(address)
    if match is not None:
        return unquote(match[2])
    match = _PAIR_PASSWORD.search(address)
    if match is None:
        return ""
    if match[1] is not None:
        return re.sub(r"\\(.)", r"\1", match[1])
    return unquote(match[2]) if "://" in address else match[2]


def in_words(error: BaseException, address: str) -> str:
    """An error of a database library in one line, without the password of `address`."""
    text = _COMMAND.sub("", " ".join(str(error).split())) or type(error).__name__
    secret = password_in(address)
    return (text.replace(secret, "***") if secret else text)[:300]
