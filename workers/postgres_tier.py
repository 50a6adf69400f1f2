"""Reads records back from PostgreSQL: the tier L3. See workers/tier.py.

Asked by whoever walks the tiers; never writes. `time` in the table has microseconds, records have nanoseconds: the
rows of the newest microsecond wanted are fetched whole, those below it by the index, newest first and with all that
share the last one's microsecond; what is exact is then decided on the records themselves.
"""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shm.layout import TYPE_NAMES, empty
from workers.postgres_rows import records_of
from workers.postgres_store import cut, psycopg_module
from workers.store import in_words
from workers.tier import TierDown, Wanted
from workers.tier_order import choose

if TYPE_CHECKING:
    import psycopg

_BELOW: Final = """
SELECT r.record FROM unnest(%(types)s::text[]) AS kind, LATERAL (
    SELECT metadata->>'packed' AS record FROM market_data
    WHERE symbol = %(symbol)s AND data_type = kind AND time < %(edge)s AND time >= %(start)s
      AND starts_with(metadata->>'origin', %(engine)s)
    ORDER BY time DESC FETCH FIRST %(limit)s ROWS WITH TIES) AS r"""
_AT_EDGE: Final = """
SELECT metadata->>'packed' FROM market_data
WHERE symbol = %(symbol)s AND data_type = ANY(%(types)s) AND time = %(edge)s
  AND starts_with(metadata->>'origin', %(engine)s)"""
_INT64: Final = np.iinfo(np.int64)
_RETRY_S: Final = 1.0  # after a failure, so that a dead server costs one caller its time and not all of them


class PostgresTier:
    """The records of one engine in PostgreSQL. For one thread at a time."""

    level = "L3"
    name = "postgresql"

    def __init__(self, dsn: str, engine: str, timeout_s: float) -> None:
        """Nothing is opened yet. Raises SettingsError without psycopg."""
        self._psycopg = psycopg_module()
        self._dsn = dsn
        self._engine = engine
        self._timeout_s = timeout_s
        self._connection: psycopg.Connection[Any] | None = None
        self._failed_s = -_RETRY_S

    def read(self, wanted: Wanted) -> np.ndarray:
        """See workers.tier.Tier."""
        highest_ns = int(_INT64.max) if wanted.to_ns is None else wanted.to_ns - 1
        if wanted.before is not None:
            highest_ns = min(highest_ns, wanted.before.ts_event)
        lowest_ns = int(_INT64.min) if wanted.from_ns is None else wanted.from_ns
        if highest_ns < lowest_ns:
            return empty(0)
        values = {
            "symbol": wanted.symbol,
            "types": list(TYPE_NAMES[1:]) if wanted.kind is None else [TYPE_NAMES[wanted.kind]],
            "edge": _timestamp(highest_ns),
            "start": _timestamp(lowest_ns),
            "limit": wanted.limit,
            "engine": f"{self._engine}/",
        }
        rows = self._fetch(values)
        return choose(records_of(row[0] for row in rows), wanted)

    def close(self) -> None:
        """See workers.tier.Tier."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _fetch(self, values: dict[str, Any]) -> list[Any]:
        if time.monotonic() - self._failed_s < _RETRY_S:
            raise TierDown("PostgreSQL did not answer a moment ago")
        try:
            if self._connection is None:
                self._connection = self._connect()
            connection = self._connection
            # The server's own timeout does not help against a server that stands still.
            alarm = threading.Timer(self._timeout_s, cut, [connection])
            alarm.start()
            try:
                return [row for statement in (_AT_EDGE, _BELOW) for row in connection.execute(statement, values)]
            finally:
                alarm.cancel()
        except (self._psycopg.Error, OSError) as error:
            self._failed_s = time.monotonic()
            self.close()
            raise TierDown(f"PostgreSQL: {in_words(error, self._dsn)}") from None

    def _connect(self) -> psycopg.Connection[Any]:
        made: psycopg.Connection[Any] = self._psycopg.connect(
            self._dsn,
            connect_timeout=max(2, round(self._timeout_s)),  # libpq knows whole seconds, at least 2
            application_name=f"tickengine {self._engine} reader",
            options=f"-c statement_timeout={max(1, int(self._timeout_s * 1000))} -c default_transaction_read_only=on",
            autocommit=True,
            prepare_threshold=None,  # a plan made for any time range would look at every partition
        )
        return made


def _timestamp(ns: int) -> datetime:
    """The microsecond in which a time lies."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=ns // 1000)
