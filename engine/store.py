"""What must survive a restart of the engine: feeds and subscriptions made over HTTP, and the codes of plug-in sources,
in SQLite under the data folder.

Made by the control process, called by engine/feeds.py and engine/subscriptions.py from a thread (each call commits and
so waits for the disk). The file is made by the first write: an engine that is only read from needs no writable data
folder. It holds secrets of subscriptions, so only its user can read it. It never decides anything about what it keeps.

A file of an earlier version is brought up to date when it is opened: _STEPS[n] leads from version n to n + 1.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec
from msgspec import Struct

from engine.errors import ConfigError, StoreError

FILE: Final = "state.sqlite"
_BUSY_S: Final = 2.0
_STEPS: Final = (
    "CREATE TABLE feeds (feed_id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE subscriptions (subscription_id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
    "CREATE TABLE sources (name TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT",
)
_VERSION: Final = len(_STEPS)


RowT = TypeVar("RowT", bound=Struct)


class StoredFeed(Struct, frozen=True, kw_only=True):
    """A feed as it was asked for. `number` is its `feed_id` in records: unique in the engine, 1 to 65535."""

    feed_id: str
    number: int
    symbol: str
    data_source: str
    data_types: tuple[str, ...] = ()
    group: str = ""
    rank: int = 0
    options: dict[str, Any] = {}
    paused: bool = False


class StoredSubscription(Struct, frozen=True, kw_only=True):
    """A subscription as it was asked for. `key` is unique for ever; `created_ns` ns since the epoch."""

    subscription_id: str
    key: int
    symbols: tuple[str, ...]
    data_types: tuple[str, ...] = ()
    callback_url: str = ""
    secret: str = ""
    priority: Literal["high", "normal", "low"] = "normal"
    is_active: bool = True
    created_ns: int


class StoredSource(Struct, frozen=True, kw_only=True):
    """A plug-in source and the code of its records."""

    name: str
    code: int


class Store:
    """The file. Safe to call from any thread; one call at a time."""

    def __init__(self, folder: Path) -> None:
        """Opens nothing yet."""
        self._path = folder / FILE
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None

    def feeds(self) -> list[StoredFeed]:
        """Every feed, in the order in which they were added; none if there is no file.

        Raises:
            ConfigError: the file is not ours, or damaged.
        """
        return self._read("feeds", StoredFeed)

    def put_feed(self, feed: StoredFeed) -> None:
        """Keep a feed, in place of an earlier one of that id. StoreError if it can't be kept."""
        self._write(
            "INSERT INTO feeds VALUES (?, ?) ON CONFLICT (feed_id) DO UPDATE SET body = excluded.body",
            [(feed.feed_id, msgspec.json.encode(feed))],
        )

    def delete_feed(self, feed_id: str) -> None:
        """Forget a feed. StoreError if that can't be written."""
        self._write("DELETE FROM feeds WHERE feed_id = ?", [(feed_id,)])

    def subscriptions(self) -> list[StoredSubscription]:
        """Every subscription, in the order in which they were made. Raises as `feeds`."""
        return self._read("subscriptions", StoredSubscription)

    def put_subscriptions(self, subscriptions: Iterable[StoredSubscription]) -> None:
        """Keep all of them or, with StoreError, none; in place of earlier ones of their ids."""
        self._write(
            "INSERT INTO subscriptions VALUES (?, ?) ON CONFLICT (subscription_id) DO UPDATE SET body = excluded.body",
            [(item.subscription_id, msgspec.json.encode(item)) for item in subscriptions],
        )

    def delete_subscription(self, subscription_id: str) -> None:
        """Forget a subscription. StoreError if that can't be written."""
        self._write("DELETE FROM subscriptions WHERE subscription_id = ?", [(subscription_id,)])

    def source_codes(self) -> dict[str, int]:
        """Codes of plug-in sources by name. Raises as `feeds`."""
        return {source.name: source.code for source in self._read("sources", StoredSource)}

    def put_source_code(self, name: str, code: int) -> None:
        """Keep the code of a plug-in source. StoreError if it can't be kept."""
        source = StoredSource(name=name, code=code)
        self._write("INSERT INTO sources VALUES (?, ?)", [(name, msgspec.json.encode(source))])

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _read(self, table: Literal["feeds", "subscriptions", "sources"], kind: type[RowT]) -> list[RowT]:
        with self._lock:
            if not self._path.exists():
                return []
            try:
                rows = self._open().execute(f"SELECT body FROM {table} ORDER BY rowid").fetchall()
                return [msgspec.json.decode(body, type=kind) for (body,) in rows]
            except (sqlite3.Error, msgspec.DecodeError, OSError) as error:
                raise ConfigError(
                    f"{self._path} can't be read: {error}; move it away to start without its feeds and subscriptions"
                ) from error

    def _write(self, statement: str, rows: list[tuple[Any, ...]]) -> None:
        with self._lock:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                connection = self._open()
                with connection:
                    connection.executemany(statement, rows)
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"{self._path} can't be written: {error}; see [engine] data_dir") from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            _keep_private(self._path)
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")  # acknowledged is on the disk
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version > _VERSION:
                    raise sqlite3.DatabaseError(f"it has version {version}, this build reads {_VERSION}")
                if version < _VERSION:
                    self._upgrade(connection, version)
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection

    @staticmethod
    def _upgrade(connection: sqlite3.Connection, version: int) -> None:
        """All steps or none: SQLite takes its version number back with them."""
        connection.execute("BEGIN IMMEDIATE")
        with connection:
            for step in _STEPS[version:]:
                connection.execute(step)
            connection.execute(f"PRAGMA user_version = {_VERSION}")


def _keep_private(path: Path) -> None:
    """Make the file, or take it from others' eyes: SQLite itself would go by the umask."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
