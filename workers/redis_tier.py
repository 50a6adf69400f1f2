"""Reads records back from Redis: the tier L2. See workers/tier.py.

Asked by whoever walks the tiers; never writes. A stream is read from its newest entry back, in pages, until everything
older must have a lower time than what was found (workers/redis_layout.py).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from shm.layout import concatenate, empty
from workers.redis_layout import MAX_CHUNK_RECORDS, stream_keys, unpack_entry
from workers.redis_store import redis_module
from workers.store import in_words
from workers.tier import TierDown, Wanted
from workers.tier_order import choose

if TYPE_CHECKING:
    import redis

_PAGE_MAX: Final = 256  # entries in one answer of a stream, 8 MiB at most
_RETRY_S: Final = 1.0  # after a failure, so that a dead server costs one caller its time and not all of them


class RedisTier:
    """The records of one engine in Redis. For one thread at a time."""

    level = "L2"
    name = "redis"

    def __init__(self, url: str, engine: str, timeout_s: float) -> None:
        """Nothing is opened yet. Raises SettingsError without redis-py."""
        self._redis = redis_module()
        self._url = url
        self._engine = engine
        self._timeout_s = timeout_s
        self._client: redis.Redis | None = None
        self._failed_s = -_RETRY_S

    def read(self, wanted: Wanted) -> np.ndarray:
        """See workers.tier.Tier."""
        if time.monotonic() - self._failed_s < _RETRY_S:
            raise TierDown("Redis did not answer a moment ago")
        deadline_s = time.monotonic() + self._timeout_s
        try:
            if self._client is None:
                self._client = self._connect()
            found = self._read(self._client, wanted, deadline_s)
        except (self._redis.RedisError, OSError, ValueError, KeyError) as error:
            self._failed_s = time.monotonic()
            self.close()
            raise TierDown(f"Redis: {in_words(error, self._url)}") from None
        return choose(concatenate(found), wanted) if found else empty(0)

    def close(self) -> None:
        """See workers.tier.Tier."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def _connect(self) -> redis.Redis:
        made: redis.Redis = self._redis.Redis.from_url(
            self._url,
            socket_connect_timeout=self._timeout_s,
            socket_timeout=self._timeout_s,
            retry=None,
            client_name=f"tickengine-{self._engine}-reader",
        )
        return made

    def _read(self, client: redis.Redis, wanted: Wanted, deadline_s: float) -> list[np.ndarray]:
        """Whole chunks in which everything wanted is; pages of all streams go over in one round trip."""
        page = min(_PAGE_MAX, 1 + wanted.limit // MAX_CHUNK_RECORDS)
        highest_ns = np.iinfo(np.int64).max if wanted.to_ns is None else wanted.to_ns - 1
        if wanted.before is not None:
            highest_ns = min(highest_ns, wanted.before.ts_event)
        open_streams: dict[str, str] = dict.fromkeys(stream_keys(self._engine, wanted.kind, wanted.symbol), "+")
        found: list[np.ndarray] = []
        while open_streams:
            if time.monotonic() > deadline_s:
                raise self._redis.TimeoutError(f"not read to the end within {self._timeout_s:g} s")
            asking: Any = client.pipeline(transaction=False)
            for key, before in open_streams.items():
                asking.xrevrange(key, max=before, count=page)
            answers = asking.execute()
            for key, entries in zip(list(open_streams), answers, strict=True):
                floor_ns = _floor(found, wanted)
                for raw_id, fields in entries:
                    entry, head, records = unpack_entry(raw_id, fields)
                    if head.stream_max_ns < floor_ns:
                        del open_streams[key]
                        break
                    if head.chunk_min_ns <= highest_ns:
                        found.append(records)
                    open_streams[key] = f"({entry}"
                else:
                    if len(entries) < page:
                        del open_streams[key]
            page = min(_PAGE_MAX, page * 4)
        return found


def _floor(found: list[np.ndarray], wanted: Wanted) -> int:
    """No record with a lower `ts_event` is wanted, given what was found."""
    lowest = np.iinfo(np.int64).min if wanted.from_ns is None else wanted.from_ns
    if not found:
        return lowest
    enough = choose(concatenate(found), wanted)
    if len(enough) < wanted.limit:
        return lowest
    found[:] = [enough]  # what was left out is older, or not wanted
    return max(lowest, int(enough["ts_event"][0]))
