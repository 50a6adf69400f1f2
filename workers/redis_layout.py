"""How records lie in Redis: names of the keys, chunks as bytes. No I/O.

Used by workers/redis_store.py (writes) and workers/redis_tier.py (reads). For each symbol and type one stream, whose
entries are chunks: records of one turn of the mirror, by time, a few hundred bytes to 32 KiB.

    tickengine:{ENGINE}:cursors                hash    "RING:STREAM" -> next sequence wanted
    tickengine:{ENGINE}:d:TYPE:SYMBOL          stream  <records so far>-<newest ts_publish, ms>   h HEAD   r RECORDS

The first half of an entry's id counts the records of its stream with this chunk, so that Redis itself caps the length
in records (`XADD ... MINID`); the second is when they were published and never goes back, so that ids tell the age.
HEAD is two int64: the highest `ts_event` of the stream up to this chunk, and of this chunk the lowest. A reader that
goes back from the newest entry may stop as soon as all that is left is older than what it has: exact even where data
came out of order, and one step in the ordinary case.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import numpy as np

from shm.layout import RECORD, RECORD_SIZE_BYTES, TYPE_NAMES, RecordType
from workers.journal_follower import Place

MAX_CHUNK_RECORDS: Final = 256
HEAD_FIELD: Final = b"h"
RECORDS_FIELD: Final = b"r"

_HEAD: Final = struct.Struct("<qq")


class EntryId(NamedTuple):
    """An entry's id, as a pair of numbers."""

    total: int  # records of the stream, with this chunk
    publish_ms: int

    def __str__(self) -> str:
        return f"{self.total}-{self.publish_ms}"


class Head(NamedTuple):
    """What an entry says about times, ns."""

    stream_max_ns: int  # highest ts_event of the stream up to and with this chunk
    chunk_min_ns: int


def cursor_key(engine: str) -> str:
    """The hash of the cursors. The braces keep all keys of an engine on one node of a cluster."""
    return f"tickengine:{{{engine}}}:cursors"


def cursor_field(place: Place) -> str:
    """Field of a ring in that hash."""
    return f"{place.ring_id}:{place.stream}"


def place_of(field: bytes) -> Place:
    """The ring of a field."""
    ring, _, stream = field.decode().partition(":")
    return Place(int(ring), int(stream))


def stream_key(engine: str, record_type: int, symbol: str) -> str:
    """The stream of a symbol's records of one type."""
    name = TYPE_NAMES[record_type] if 0 < record_type < len(TYPE_NAMES) else str(record_type)
    return f"tickengine:{{{engine}}}:d:{name}:{symbol}"


def stream_keys(engine: str, kind: RecordType | None, symbol: str) -> list[str]:
    """The streams in which a symbol's records of a type, or of any, can be."""
    return [stream_key(engine, code, symbol) for code in (list(RecordType) if kind is None else [kind])]


def pack_head(head: Head) -> bytes:
    """As it stands in an entry."""
    return _HEAD.pack(*head)


def unpack_entry(raw_id: bytes, fields: dict[bytes, bytes]) -> tuple[EntryId, Head, np.ndarray]:
    """An entry's id, times and records (dtype RECORD, read-only). ValueError or KeyError if it is none of ours."""
    total, _, publish_ms = raw_id.partition(b"-")
    body = fields[RECORDS_FIELD]
    if not body or len(body) % RECORD_SIZE_BYTES:
        raise ValueError(f"a chunk of {len(body)} bytes")
    try:
        head = Head(*_HEAD.unpack(fields[HEAD_FIELD]))
    except struct.error as error:
        raise ValueError(f"the head of a chunk: {error}") from None
    return EntryId(int(total), int(publish_ms)), head, np.frombuffer(body, RECORD)
