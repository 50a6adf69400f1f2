"""What must survive a restart of the engine: feeds added over HTTP, in SQLite under the data folder.

Made by the control process, called by engine/feeds.py from a thread (each call commits and so waits for the disk). The
file is made by the first write: an engine that is only read from needs no writable data folder. It never decides
anything about feeds.
"""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct

from engine.errors import ConfigError, StoreError

FILE: Final = "state.sqlite"
_VERSION: Final = 1
_BUSY_S: Final = 2.0
_SCHEMA: Final = "CREATE TABLE feeds (feed_id TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT"


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
        with self._lock:
            if not self._path.exists():
                return []
            try:
                rows = self._open().execute("SELECT body FROM feeds ORDER BY rowid").fetchall()
                return [msgspec.json.decode(body, type=StoredFeed) for (body,) in rows]
            except (sqlite3.Error, msgspec.DecodeError) as error:
                raise ConfigError(
                    f"{self._path} can't be read: {error}; move it away to start without its feeds"
                ) from error

    def put_feed(self, feed: StoredFeed) -> None:
        """Keep a feed, in place of an earlier one of that id. StoreError if it can't be kept."""
        self._write(
            "INSERT INTO feeds VALUES (?, ?) ON CONFLICT (feed_id) DO UPDATE SET body = excluded.body",
            (feed.feed_id, msgspec.json.encode(feed)),
        )

    def delete_feed(self, feed_id: str) -> None:
        """Forget a feed. StoreError if that can't be written."""
        self._write("DELETE FROM feeds WHERE feed_id = ?", (feed_id,))

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _write(self, statement: str, values: tuple[Any, ...]) -> None:
        with self._lock:
            try:
                self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                connection = self._open()
                with connection:
                    connection.execute(statement, values)
            except (sqlite3.Error, OSError) as error:
                raise StoreError(f"{self._path} can't be written: {error}; see [engine] data_dir") from error

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self._path, timeout=_BUSY_S, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = FULL")  # acknowledged is on the disk
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                if version == 0:
                    with connection:
                        connection.execute(_SCHEMA)
                        connection.execute(f"PRAGMA user_version = {_VERSION}")
                elif version != _VERSION:
                    raise sqlite3.DatabaseError(f"it has version {version}, this build reads {_VERSION}")
            except BaseException:
                connection.close()
                raise
            self._connection = connection
        return self._connection
