"""Fills Redis: chunks of records into streams, and the cursors of the rings in the same transaction.

Driven by the mirror (workers/mirror.py), the only writer of its engine's keys. A transaction is one round trip:

    WATCH cursors    at connecting, and again after each transaction
    MULTI            HSET cursors ...    XADD stream MINID ...  PEXPIRE stream ...   one each a chunk or stream
    EXEC             nothing happens if anybody has changed the cursors since: then everything is asked anew

The end of each stream (how many records it has had, its highest time) is remembered here as long as the connection
holds; of streams that are new to it the last entry is read first. A server that was restarted from an older snapshot
has older cursors and older streams alike, and is filled up from the journal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from shm.layout import RECORD_SIZE_BYTES
from workers.errors import SettingsError
from workers.journal_follower import Batch, Place
from workers.redis_layout import (
    HEAD_FIELD,
    MAX_CHUNK_RECORDS,
    RECORDS_FIELD,
    EntryId,
    Head,
    cursor_field,
    cursor_key,
    pack_head,
    place_of,
    stream_key,
    unpack_entry,
)
from workers.store import StoreDown, in_words

if TYPE_CHECKING:
    import redis

TEND_NS: Final = 60_000_000_000
HOUR_MS: Final = 3_600_000

# Entries of the streams KEYS that are older than ARGV[1] ms go, oldest first, at most ARGV[2] a stream.
_AGE: Final = """
local gone = 0
for _, key in ipairs(KEYS) do
    for _ = 1, tonumber(ARGV[2]) do
        local first = redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
        if not first or tonumber(string.match(first[1], '-(%d+)$')) >= tonumber(ARGV[1]) then break end
        gone = gone + redis.call('XDEL', key, first[1])
    end
end
return gone
"""


def redis_module() -> Any:
    """The library. Raises SettingsError that says what to install."""
    try:
        import redis
    except ImportError as error:
        raise SettingsError(f"Redis needs redis-py: pip install 'tickengine[redis]' ({error})") from None
    return redis


_ANOTHER: Final = "Redis: another mirror has stored records of this engine; asking where to go on"


class Chunk(NamedTuple):
    """Records of one symbol and type, by time."""

    key: str
    body: bytes
    length: int  # records
    event_min_ns: int
    event_max_ns: int
    publish_ms: int


class _End(NamedTuple):
    """Where a stream ends."""

    last: EntryId
    event_max_ns: int


_NOTHING: Final = _End(EntryId(0, 0), np.iinfo(np.int64).min)


class RedisStore:
    """One connection, one engine. See workers.store.Store."""

    name = "redis"

    def __init__(self, url: str, engine: str, *, hours: float, max_records: int, timeout_s: float = 30.0) -> None:
        """Nothing is opened yet. `max_records` of a symbol and type; `url` may hold a password."""
        self._redis = redis_module()
        self._url = url
        self._engine = engine
        self._age_ms = int(hours * HOUR_MS)
        self._max_records = max_records
        self._timeout_s = timeout_s
        self._client: redis.Redis | None = None
        self._pipe: Any = None
        self._cursors = cursor_key(engine)
        self._known: dict[Place, int] = {}  # the cursors, as they were when watching began
        self._ends: dict[str, _End] = {}
        self._old: list[str] = []  # streams still to be looked through for what is too old
        self._tend_ns = 0

    def connect(self) -> dict[Place, int]:
        """See workers.store.Store."""
        self.close()
        try:
            self._client = self._redis.Redis.from_url(
                self._url,
                socket_connect_timeout=5.0,
                socket_timeout=self._timeout_s,
                socket_keepalive=True,
                health_check_interval=0,
                retry=None,
                client_name=f"tickengine-{self._engine}-mirror",
                single_connection_client=False,
            )
            self._pipe = self._client.pipeline(transaction=True)
            self._watch()
            return dict(self._known)
        except (self._redis.RedisError, OSError, ValueError) as error:
            raise self._down(error) from None

    def store(self, batches: Sequence[Batch], now_ns: int) -> None:  # noqa: ARG002  # age goes by ts_publish
        """See workers.store.Store."""
        if self._pipe is None:
            raise StoreDown("Redis is not connected")
        if any(self._known.get(batch.place, 0) != batch.from_sequence for batch in batches):
            raise StoreDown(_ANOTHER)
        chunks = [chunk for batch in batches for chunk in chunks_of(batch, self._engine)]
        try:
            ends = self._find_ends(chunks)
            pipe = self._pipe
            pipe.multi()
            pipe.hset(self._cursors, mapping={cursor_field(b.place): b.next_sequence for b in batches})
            for chunk in chunks:
                end = ends[chunk.key]
                entry = EntryId(end.last.total + chunk.length, max(end.last.publish_ms, chunk.publish_ms))
                event_max_ns = max(end.event_max_ns, chunk.event_max_ns)
                fields = {HEAD_FIELD: pack_head(Head(event_max_ns, chunk.event_min_ns)), RECORDS_FIELD: chunk.body}
                floor = entry.total - self._max_records + 1
                pipe.execute_command("XADD", chunk.key, "MINID", "=", f"{max(0, floor)}-0", str(entry), *_flat(fields))
                ends[chunk.key] = _End(entry, event_max_ns)
            for key in ends:
                pipe.pexpire(key, self._age_ms)
            pipe.execute()
            self._ends.update(ends)
            self._watch()
        except self._redis.WatchError:
            raise StoreDown(_ANOTHER) from None
        except (self._redis.RedisError, OSError, ValueError, KeyError) as error:
            raise self._down(error) from None

    def forget(self, places: Sequence[Place]) -> None:
        """See workers.store.Store."""
        if self._client is None or not places:
            return
        try:
            self._client.hdel(self._cursors, *map(cursor_field, places))
            self._watch()
        except (self._redis.RedisError, OSError, ValueError) as error:
            raise self._down(error) from None

    def tend(self, now_ns: int) -> int:
        """Remove what is too old from streams that go on, some at each call; whole streams expire by themselves."""
        client = self._client
        if client is None:
            return 0
        if not self._old and (now_ns >= self._tend_ns or self._tend_ns - now_ns > TEND_NS):
            self._tend_ns = now_ns + TEND_NS
            self._old = list(self._ends)
        keys, self._old = self._old[:64], self._old[64:]
        if not keys:
            return 0
        try:
            limit_ms = now_ns // 10**6 - self._age_ms
            return int(client.eval(_AGE, len(keys), *keys, str(limit_ms), "64"))
        except (self._redis.RedisError, OSError) as error:
            raise self._down(error) from None

    def abort(self) -> None:
        """See workers.store.Store. The socket's own timeout ends a call; there is nothing else to do."""

    def close(self) -> None:
        """See workers.store.Store."""
        self._ends.clear()
        self._old.clear()
        if self._pipe is not None:
            try:
                self._pipe.reset()
            except (self._redis.RedisError, OSError):
                pass  # it says UNWATCH to a server that may be gone
            self._pipe = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _watch(self) -> None:
        """Watch the cursors, then read them: whoever changes them from now on spoils the next transaction."""
        self._pipe.reset()
        self._pipe.watch(self._cursors)
        found = self._pipe.hgetall(self._cursors)
        self._known = {place_of(field): int(value) for field, value in found.items()}

    def _find_ends(self, chunks: Sequence[Chunk]) -> dict[str, _End]:
        """The ends of the streams of these chunks."""
        keys = dict.fromkeys(chunk.key for chunk in chunks)
        unknown = [key for key in keys if key not in self._ends]
        if unknown:
            assert self._client is not None
            asking = self._client.pipeline(transaction=False)
            for key in unknown:
                asking.xrevrange(key, count=1)
            for key, entries in zip(unknown, asking.execute(), strict=True):
                self._ends[key] = _NOTHING
                for raw_id, fields in entries:
                    last, head, _ = unpack_entry(raw_id, fields)
                    self._ends[key] = _End(last, head.stream_max_ns)
        return {key: self._ends[key] for key in keys}

    def _down(self, error: BaseException) -> StoreDown:
        return StoreDown(f"Redis: {in_words(error, self._url)}")


def chunks_of(batch: Batch, engine: str) -> Iterator[Chunk]:
    """The records of a batch by symbol and type, each sorted by time and cut into chunks."""
    records = batch.records
    if not len(records):
        return
    ids, types, times = records["instrument_id"], records["record_type"], records["ts_event"]
    ids = np.minimum(ids, len(batch.symbols))  # what has no symbol is one
    order = np.lexsort((records["sequence"], times, types, ids))
    rows = records.view(np.uint8).reshape(-1, RECORD_SIZE_BYTES)[order]
    ids, types, times, publish = ids[order], types[order], times[order], records["ts_publish"][order]
    group = ids.astype(np.int64) * 256 + types
    starts = np.concatenate(([0], np.flatnonzero(group[1:] != group[:-1]) + 1, [len(group)]))
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        instrument = int(ids[start])
        symbol = batch.symbols[instrument] if instrument < len(batch.symbols) else ""
        key = stream_key(engine, int(types[start]), symbol)
        for at in range(start, end, MAX_CHUNK_RECORDS):
            stop = min(end, at + MAX_CHUNK_RECORDS)
            yield Chunk(
                key,
                rows[at:stop].tobytes(),
                stop - at,
                int(times[at]),
                int(times[stop - 1]),
                max(0, int(publish[at:stop].max())) // 10**6,
            )


def _flat(fields: dict[bytes, bytes]) -> list[bytes]:
    return [item for pair in fields.items() for item in pair]
