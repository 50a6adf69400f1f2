"""Fills PostgreSQL: rows by binary COPY, and the cursors of the rings in the same transaction.

Driven by the mirror (workers/mirror.py), which is the only writer of its engine's cursors. A transaction is

    BEGIN
    UPDATE tickengine_cursors ... WHERE next_sequence = <where this batch begins>      no row: somebody else was here
    COPY market_data FROM STDIN (FORMAT BINARY)
    COMMIT

so the cursor's row is locked before the first record is sent. The server may still be busy with the last transaction of
a mirror that was killed: its successor waits for that lock, finds the cursor moved, rolls back and asks where to go on.
`synchronous_commit` is off: after a crash of the server the last transactions may be gone, cursors and rows alike,
and are sent again from the journal.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shm.source_names import SourceNames
from workers.errors import SettingsError
from workers.journal_follower import Batch, Place
from workers.postgres_rows import COLUMNS, HEADER, TRAILER, RowWriter
from workers.postgres_schema import (
    DAY_NS,
    MADE_AHEAD_DAYS,
    Span,
    Upkeep,
    add_partitions,
    drop_chunks,
    drop_partitions,
    partitions,
    prepare,
    touch_partitions,
)
from workers.store import StoreDown, in_words

if TYPE_CHECKING:
    import psycopg

CONNECT_S: Final = 5
TEND_NS: Final = 3_600_000_000_000

_COPY: Final = f"COPY market_data ({', '.join(COLUMNS)}) FROM STDIN (FORMAT BINARY)".encode()
_MOVE: Final = (
    "UPDATE tickengine_cursors SET next_sequence = %s, updated = now() "
    "WHERE engine = %s AND ring = %s AND stream = %s AND next_sequence = %s"
)
_BEGIN: Final = """
INSERT INTO tickengine_cursors (next_sequence, engine, ring, stream) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING"""


def psycopg_module() -> Any:
    """The library. Raises SettingsError that says what to install."""
    try:
        import psycopg
    except ImportError as error:
        raise SettingsError(f"PostgreSQL needs psycopg: pip install 'tickengine[postgres]' ({error})") from None
    return psycopg


def cut(connection: psycopg.Connection[Any]) -> None:
    """End a connection under a call that waits for its server in another thread; that call then fails."""
    try:
        with socket.socket(fileno=os.dup(connection.fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
    except (OSError, psycopg_module().Error):
        pass  # it is closed already


class PostgresStore:
    """One connection, one engine. See workers.store.Store."""

    name = "postgres"

    def __init__(
        self,
        dsn: str,
        engine: str,
        *,
        retention_days: int,
        timescale: bool = True,
        source_names: SourceNames | None = None,
    ) -> None:
        """Nothing is opened yet. `dsn` may hold a password; `retention_days` 0 = keep for ever."""
        self._psycopg = psycopg_module()
        self._dsn = dsn
        self._engine = engine
        self._retention_days = retention_days
        self._timescale = timescale
        self._rows = RowWriter(engine, source_names)
        self._connection: psycopg.Connection[Any] | None = None
        self._upkeep = Upkeep.POLICIES
        self._spans: list[Span] = []
        self._touched: dict[Span, int] = {}  # when we last said that it is written to, ns
        self._tend_ns = 0

    def connect(self) -> dict[Place, int]:
        """See workers.store.Store."""
        self.close()
        try:
            self._connection = connection = self._psycopg.connect(
                self._dsn,
                connect_timeout=CONNECT_S,
                application_name=f"tickengine {self._engine} mirror",
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=3,
                tcp_user_timeout=30_000,  # ms
                autocommit=True,
            )
            connection.execute("SET synchronous_commit = off; SET lock_timeout = '20s'; SET TimeZone = 'UTC'")
            self._upkeep = prepare(connection, timescale=self._timescale, retention_days=self._retention_days)
            self._spans = partitions(connection) if self._upkeep is Upkeep.PARTITIONS else []
            rows = connection.execute(
                "SELECT ring, stream, next_sequence FROM tickengine_cursors WHERE engine = %s", [self._engine]
            )
            return {Place(ring, stream): following for ring, stream, following in rows}
        except (self._psycopg.Error, OSError) as error:
            raise self._down(error) from None

    def store(self, batches: Sequence[Batch], now_ns: int) -> None:
        """See workers.store.Store."""
        connection = self._connection
        if connection is None:
            raise StoreDown("PostgreSQL is not connected")
        try:
            self._make_room(connection, batches, now_ns)
            with connection.transaction():
                for batch in batches:
                    self._move(connection, batch)
                if any(len(batch.records) for batch in batches):
                    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
                        copy.write(HEADER)
                        for batch in batches:
                            for rows in self._rows.pieces(batch):
                                copy.write(rows)
                        copy.write(TRAILER)
        except (self._psycopg.Error, OSError) as error:
            raise self._down(error) from None

    def forget(self, places: Sequence[Place]) -> None:
        """See workers.store.Store."""
        if self._connection is None or not places:
            return
        text = "DELETE FROM tickengine_cursors WHERE engine = %s AND ring = %s AND stream = %s"
        try:
            for place in places:
                self._connection.execute(text, [self._engine, *place])
        except (self._psycopg.Error, OSError) as error:
            raise self._down(error) from None

    def tend(self, now_ns: int) -> int:
        """Make the partitions of the next days, drop old ones or old chunks; once an hour. Returns how many went."""
        connection = self._connection
        due = now_ns >= self._tend_ns or self._tend_ns - now_ns > TEND_NS
        if connection is None or self._upkeep is Upkeep.POLICIES or not due:
            return 0
        self._tend_ns = now_ns + TEND_NS
        if self._upkeep is Upkeep.CHUNKS:
            try:
                return drop_chunks(connection, self._retention_days) if self._retention_days else 0
            except (self._psycopg.Error, OSError) as error:
                raise self._down(error) from None
        today = now_ns // DAY_NS
        try:
            days = range(today, today + MADE_AHEAD_DAYS + 1)
            self._spans = add_partitions(connection, days, now_ns, self._retention_days)
            dropped = drop_partitions(connection, now_ns, self._retention_days) if self._retention_days else 0
            if dropped:
                self._spans = partitions(connection)
        except (self._psycopg.Error, OSError) as error:
            raise self._down(error) from None
        return dropped

    def abort(self) -> None:
        """See workers.store.Store."""
        connection = self._connection
        if connection is not None:
            cut(connection)

    def close(self) -> None:
        """See workers.store.Store."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _move(self, connection: psycopg.Connection[Any], batch: Batch) -> None:
        ring, stream = batch.place
        if batch.from_sequence:
            values = [batch.next_sequence, self._engine, ring, stream, batch.from_sequence]
            moved = connection.execute(_MOVE, values).rowcount
        else:
            moved = connection.execute(_BEGIN, [batch.next_sequence, self._engine, ring, stream]).rowcount
        if moved != 1:
            raise StoreDown(
                f"another mirror has stored ring {ring} beyond {batch.from_sequence}; asking where to go on"
            )

    def _make_room(self, connection: psycopg.Connection[Any], batches: Sequence[Batch], now_ns: int) -> None:
        """See that the partitions are there, and that the retention knows that they are written to."""
        if self._upkeep is not Upkeep.PARTITIONS:
            return
        days: set[int] = set()
        for batch in batches:
            days.update(np.unique(batch.records["ts_event"] // DAY_NS).tolist())
        missing = [day for day in days if not any(span.first <= day < span.end for span in self._spans)]
        if missing:
            self._spans = add_partitions(connection, sorted(missing), now_ns, self._retention_days)
        written = [span for span in self._spans if any(span.first <= day < span.end for day in days)]
        stale = [span for span in written if abs(now_ns - self._touched.get(span, 0)) > TEND_NS]
        if stale:
            touch_partitions(connection, stale)
            self._touched.update(dict.fromkeys(stale, now_ns))

    def _down(self, error: BaseException) -> StoreDown:
        return StoreDown(f"PostgreSQL: {in_words(error, self._dsn)}")
